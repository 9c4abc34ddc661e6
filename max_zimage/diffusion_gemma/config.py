"""`DiffusionGemmaForBlockDiffusionConfig` as MAX documents it: the names, defaults and methods, over a strict reader.

Reference: max.pipelines.architectures.diffusion_gemma.model_config. Text only: `vision_config` is kept as it was read,
and no tower is built from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from max.dtype import DType
from max.graph import DeviceRef
from max.graph.weights import WeightData
from max.nn.transformer import ReturnLogits
from max.pipelines.lib.config import PipelineConfig
from transformers import PreTrainedConfig

from max_zimage.device.dtypes import model_dtype
from max_zimage.diffusion_gemma.config_file import FILE, read_config
from max_zimage.diffusion_gemma.names import DECODER, ENCODER, PREFIXES
from max_zimage.errors import CheckpointError
from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec, LayerType
from max_zimage.graphs.diffusion_gemma.stack import kinds

_DECODED = ("float4_e2m1fnx2", "float8_e4m3fn")
"""Encodings of files whose weights are decoded when they are loaded."""


@dataclass(frozen=True, kw_only=True)
class GemmaCacheParams:
    """What keys and values of a token take; they lie in one tensor for each type of layer, and not in pages.

    Attributes:
        dtype: Of keys and values.
        shapes: Layer type -> [layers, 2, key_heads, head_dim].
    """

    dtype: DType
    shapes: Mapping[LayerType, tuple[int, int, int, int]]

    @classmethod
    def of(cls, spec: DiffusionGemmaSpec, dtype: DType) -> Self:
        """Those of a model."""
        shapes = {
            kind: (spec.count(kind), 2, spec.shape(kind).key_heads, spec.shape(kind).head_dim) for kind in kinds(spec)
        }
        return cls(dtype=dtype, shapes=shapes)

    @property
    def bytes_per_token(self) -> int:
        """Of each row."""
        numbers = sum(layers * both * heads * width for layers, both, heads, width in self.shapes.values())
        return numbers * self.dtype.size_in_bytes


@dataclass(kw_only=True)
class DiffusionGemmaForBlockDiffusionConfig:
    """A DiffusionGemma's configuration.

    Attributes:
        devices: Where it runs; one.
        dtype: Of weights and computation.
        unquantized_dtype: Of the weights that files store unquantized.
        kv_params: Of the cache.
        image_token_index: Token that stands for a piece of an image in a prompt; refused there.
        video_token_index: The same for a video.
        text_config: Shape of the text part, as the graphs take it.
        vision_config: What the checkpoint says of its vision tower, or None; not built.
        tie_word_embeddings: Whether embedding and head are one table, as `finalize` finds it; all checkpoints that can
            be run have it so.
        canvas_length: Tokens of a canvas.
        boi_token_id: Token that begins an image.
        eoi_token_id: Token that ends one.

    Raises:
        ValueError: If `canvas_length` is not that of `text_config`, or there is more than one device.
    """

    devices: list[DeviceRef]
    dtype: DType
    unquantized_dtype: DType = DType.bfloat16
    kv_params: GemmaCacheParams
    image_token_index: int
    video_token_index: int = 262_144
    text_config: DiffusionGemmaSpec
    vision_config: Mapping[str, object] | None
    tie_word_embeddings: bool = False
    canvas_length: int = 256
    boi_token_id: int = 255_999
    eoi_token_id: int = 258_882

    def __post_init__(self) -> None:
        if self.canvas_length != self.text_config.canvas_length:
            raise ValueError(
                f"canvas_length {self.canvas_length} must be that of text_config, {self.text_config.canvas_length}; "
                "give it, or make both by initialize_from_config"
            )
        if len(self.devices) != 1:
            raise ValueError(f"DiffusionGemma runs on one device, got {len(self.devices)}; give a list of one")

    @classmethod
    def initialize_from_config(cls, pipeline_config: PipelineConfig, huggingface_config: PreTrainedConfig) -> Self:
        """Read a configuration as transformers has it.

        Args:
            pipeline_config: MAX's, for device and encoding: float32, bfloat16, or one that is decoded in loading.
            huggingface_config: A `DiffusionGemmaConfig`.

        Raises:
            ConfigError: With every missing, unknown or unsupported key.
            ValueError: If the encoding is another.
        """
        config = huggingface_config.to_dict()
        read = read_config(config, FILE)
        spec, model = read.spec, pipeline_config.model
        devices = [DeviceRef(each.device_type, each.id) for each in model.device_specs]
        encoding = model.quantization_encoding
        name = "auto" if encoding is None or encoding in _DECODED else encoding
        dtype = DType[model_dtype(name, devices[0].to_device())]
        vision = config.get("vision_config")
        return cls(
            devices=devices,
            dtype=dtype,
            kv_params=GemmaCacheParams.of(spec, dtype),
            image_token_index=_or(read.image_token_id, spec.vocab_size),
            text_config=spec,
            vision_config=vision,
            tie_word_embeddings=True,
            canvas_length=spec.canvas_length,
            boi_token_id=_or(read.boi_token_id, spec.vocab_size),
            eoi_token_id=_or(read.eoi_token_id, spec.vocab_size),
        )

    def finalize(
        self, huggingface_config: PreTrainedConfig, state_dict: Mapping[str, WeightData], return_logits: ReturnLogits
    ) -> None:
        """Settle what the weights decide: `tie_word_embeddings` and `unquantized_dtype`.

        Args:
            huggingface_config: The one that this was made from.
            state_dict: The checkpoint's tensors under their own names.
            return_logits: `ReturnLogits.LAST_TOKEN`, MAX's default: reading makes no logits, and a look at a canvas
                makes those of all its positions.

        Raises:
            ConfigError: If the checkpoint is untied, or cannot be run otherwise.
            CheckpointError: If the tensors are not those of a DiffusionGemma.
            ValueError: If the configuration is another one, or other logits are asked for.
        """
        if return_logits != ReturnLogits.LAST_TOKEN:
            raise ValueError(
                f"return_logits must be ReturnLogits.LAST_TOKEN, got {return_logits}: prompts are read without "
                "logits, and a denoising step returns those of the whole canvas in any case"
            )
        if read_config(huggingface_config.to_dict(), FILE).spec != self.text_config:
            raise ValueError("huggingface_config is another one than this configuration was made from; give that one")
        norms = [f"{prefix}{stack}norm.weight" for prefix in PREFIXES for stack in (DECODER, ENCODER)]
        found = next((name for name in norms if name in state_dict), None)
        if found is None:
            first = ", ".join(sorted(state_dict)[:3])
            raise CheckpointError(
                f"state_dict holds none of {', '.join(norms)}: it is no DiffusionGemma; it holds {first or 'nothing'}"
            )
        self.tie_word_embeddings = True
        self.unquantized_dtype = state_dict[found].dtype


def _or(token: int | None, absent: int) -> int:
    """A token's number; where there is none, one that no text has."""
    return absent if token is None else token
