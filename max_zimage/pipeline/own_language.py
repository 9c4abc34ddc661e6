"""The language model that a checkpoint's text encoder is a part of, with all that loading it takes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from max.driver import Device
from max.graph.weights import SafetensorWeights

from max_zimage.checkpoint.language_head import LanguageModelPlan, language_model_plan
from max_zimage.components import ZImageTextEncoderModel
from max_zimage.components.language_model import LanguageModel
from max_zimage.device.devices import device_name
from max_zimage.enhancer.language_model import OwnModel
from max_zimage.pipeline.load_components import check_fit, new_session
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.text.tokenizer import NoTokenizer, PromptTokenizer


class CheckpointLanguage(OwnModel):
    """That of a checked checkpoint.

    Args:
        sources: The checkpoint.
        tokenizer: Its tokenizer.
        devices: The first one runs it.
        encoder: The text encoder of a pipeline, whose weights then are not loaded again; None for none.
    """

    def __init__(
        self,
        sources: CheckpointManifest,
        tokenizer: PromptTokenizer,
        devices: list[Device],
        encoder: ZImageTextEncoderModel | None = None,
    ) -> None:
        self._sources, self._places, self._encoder = sources, devices, encoder
        self.tokenizer = tokenizer
        self.max_positions = sources.specs.text_encoder.max_positions
        self.ends = frozenset() if isinstance(tokenizer, NoTokenizer) else ends_of(tokenizer, self._config)

    def check(self) -> None:
        """Look at its files; errors are those of `language_model_plan`."""
        _ = self._plan

    def weights(self) -> dict[str, int]:
        """Device -> bytes of all that `load` puts there without an encoder."""
        dtype = self._sources.dtypes["text_encoder"]
        return {device_name(self._places[0]): self._plan.body.nbytes(dtype) + self._plan.head.nbytes(dtype)}

    def load(self) -> LanguageModel:
        """Load what of it is not there.

        Raises:
            NotEnoughMemoryError: If it does not fit.
        """
        return LanguageModel(self._encoder or self._loaded(), self._plan)

    @cached_property
    def _plan(self) -> LanguageModelPlan:
        sources = self._sources
        return language_model_plan(sources.plans["text_encoder"], sources.specs.text_encoder, self._config)

    @property
    def _config(self) -> dict[str, Any]:
        return self._sources.configs["text_encoder"]

    def _loaded(self) -> ZImageTextEncoderModel:
        dtype, checked = self._sources.dtypes["text_encoder"], self._sources.plans["text_encoder"]
        check_fit([*self.weights().values()], self._places[0])
        weights = SafetensorWeights(list(checked.files))
        session = new_session(self._places)
        return ZImageTextEncoderModel(self._config, dtype, self._places, weights, session=session, plan=checked)


def ends_of(tokenizer: PromptTokenizer, config: Mapping[str, object]) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's own, and what the configuration names."""
    named = config.get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    return frozenset(each for each in (*ids, tokenizer.end) if isinstance(each, int) and not isinstance(each, bool))
