"""The Qwen3 text encoder: token ids to the features that condition the transformer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from typing_extensions import override

from max_zimage.checkpoint.config import text_encoder_spec
from max_zimage.checkpoint.digest import digest_of_weights
from max_zimage.checkpoint.expand import ParameterTable, text_encoder_names
from max_zimage.checkpoint.transforms.base import Transform
from max_zimage.compile.compiler import CompiledGraph
from max_zimage.components.base import ZImageComponent
from max_zimage.components.encoder_layers import EncoderLayers
from max_zimage.device.devices import upload
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.model.text_encoder import HIDDEN_LAYER, TextEncoderSpec
from max_zimage.request.hidden_layer import DEFAULT_HIDDEN_LAYER, HiddenLayer
from max_zimage.sampling.positions import padded, text_rope
from max_zimage.text.kept_features import KeptFeatures


class ZImageTextEncoderModel(ZImageComponent):
    """Compiled text encoder.

    Attributes:
        model: The graph, `graphs.model.text_encoder.TextEncoder`.
        layers: Its other hidden states, layer by layer.
        spec: Its shape.
        kept_features: Features of prompts that came before; None to keep none.
    """

    kept_features: KeptFeatures | None = None

    model: CompiledGraph
    spec: TextEncoderSpec

    def load_model(self) -> CompiledGraph:
        """Load the weights of the layers that are used and define the graph."""
        self.spec = text_encoder_spec(self.config)
        self.model = self.graph("text_encoder", self.provide())
        self.layers = EncoderLayers(self, self.spec, ())
        return self.model

    @override
    def bind(self, transforms: Sequence[Transform] = ()) -> frozenset[str]:
        changed = super().bind(transforms)
        self.__dict__.pop("identity", None)
        self.layers = EncoderLayers(self, self.spec, transforms)
        return changed

    @override
    def leave(self) -> None:
        if self.is_here:
            self.layers = self.layers.anew()
        super().leave()

    @property
    def graphs(self) -> tuple[CompiledGraph, ...]:
        """Those that every picture needs."""
        return (self.model,)

    @cached_property
    def identity(self) -> str:
        """What the text encoder is: the same for equal weights behind all transforms, see `digest_of_weights`."""
        return digest_of_weights(self.plan())

    def names(self) -> ParameterTable:
        """The tensors that the component's files must hold."""
        spec = text_encoder_spec(self.config)
        return text_encoder_names(spec, spec.layers_used(HIDDEN_LAYER))

    def __call__(
        self, captions: Sequence[npt.NDArray[np.int64]], hidden_layer: HiddenLayer = DEFAULT_HIDDEN_LAYER
    ) -> Buffer:
        """Encode captions.

        Args:
            captions: int64 [tokens] each, unpadded.
            hidden_layer: Which of the hidden states, and how much of each; see `max_zimage.request.hidden_layer`.

        Returns:
            [captions, longest caption rounded up to a multiple of 32, hidden_size] in the model's dtype; rows at and
            beyond a caption's length mean nothing.

        Raises:
            ValueError: If an id has no embedding: no kernel would say so in words, and one on a GPU not at all.
            CheckpointError: If the files lack the final norm, and its state is asked for.
        """
        for caption in captions:
            self.check_ids(caption)
        length = padded(max(len(caption) for caption in captions))
        tokens = np.zeros((len(captions), length), np.int64)
        for row, caption in zip(tokens, captions, strict=True):
            row[: len(caption)] = caption
        rope = text_rope(self.spec.head_dim, self.spec.rope_theta, length)
        self.come()
        inputs = upload(tokens, self.device), upload(rope, self.device)
        if hidden_layer != DEFAULT_HIDDEN_LAYER:
            return self.layers(*inputs, hidden_layer)
        return self.model(*inputs)[0]

    def check_ids(self, ids: npt.NDArray[np.int64]) -> None:
        """Look at token ids, of any shape.

        Raises:
            ValueError: If one has no embedding.
        """
        if ids.size and not 0 <= np.min(ids) <= np.max(ids) < self.spec.vocab_size:
            raise ValueError(
                f"token ids must be from 0 to {self.spec.vocab_size - 1}, got {np.min(ids)} to {np.max(ids)}; use the "
                "tokenizer of the checkpoint"
            )


class NoTextEncoder(ZImageTextEncoderModel):
    """In place of one, where pictures are drawn from features alone.

    Args:
        spec: Whose features they are.
        dtype_name: That the other components run in.
        device: Where they run.
    """

    def __init__(self, spec: TextEncoderSpec, dtype_name: ModelDtype, device: Device) -> None:
        self.spec, self.dtype_name, self.device = spec, dtype_name, device
        self.is_here, self.before_coming, self.before_work = False, None, None
        self.layers = EncoderLayers(self, spec, ())

    @property
    @override
    def graphs(self) -> tuple[CompiledGraph, ...]:
        return ()

    @override
    def __call__(
        self, captions: Sequence[npt.NDArray[np.int64]], hidden_layer: HiddenLayer = DEFAULT_HIDDEN_LAYER
    ) -> Buffer:
        raise ValueError("this pipeline draws from features alone, and has no text encoder; load it with one")
