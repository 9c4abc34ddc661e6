"""Finds and checks a checkpoint, before anything of it is loaded.

A checked model is read once: the pipeline and its components take over what was found.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from max.driver import Device
from max.pipelines.lib.config import PipelineConfig

from max_zimage import embedded
from max_zimage.checkpoint.digest import digest_of_weights
from max_zimage.checkpoint.locate import resolve_model
from max_zimage.device.plans import Plan, Wish
from max_zimage.pipeline.bound_adapters import checked_loras, facts
from max_zimage.pipeline.load_components import (
    DEFAULT_STEPS,
    UNPREFIXED_COMPONENT,
    PathName,
    checked_cache_bytes,
    routed,
    sources_of,
)
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.pipeline.max_config import pipeline_config
from max_zimage.pipeline.placing import devices_of, mesh_of, usual_cache_bytes, wish_of, with_groups
from max_zimage.pipeline.storages import Quantize
from max_zimage.request.checks import step_cache as checked_step_cache
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.step_cache import StepCache, flags_of
from max_zimage.text.kept_features import KeptFeatures
from max_zimage.text.tokenizer import NoTokenizer, PromptTokenizer


@dataclass(frozen=True)
class CheckedModel:
    """A checkpoint that is found and checked, but not loaded.

    Attributes:
        directory: Where it lies.
        config: MAX's configuration of it.
        devices: The first one will run the transformer, and all components that `wish` has nowhere else.
        weight_paths: Files in place of the checkpoint's own.
        sources: Shapes, files, defaults and limits.
        tokenizer: Its tokenizer.
        wish: Where components are to run, and what is to stay in memory.
        embedding_cache_bytes: Of features that are kept in memory; 0 to keep none, None for what `plan` needs.
        plan: What is done of that; None where it is still to be chosen.
        named: The checkpoint and those files, as they were named.
        metadata: Whether pictures say what they were drawn with, where nobody says it as they are saved.
        enhancer: Who writes prompts out where a call names nobody, see `max_zimage.enhancer.opening.Wanted`.
    """

    directory: Path
    config: PipelineConfig
    devices: list[Device]
    weight_paths: list[Path]
    sources: CheckpointManifest
    tokenizer: PromptTokenizer
    wish: Wish
    embedding_cache_bytes: int | None = None
    plan: Plan | None = None
    named: tuple[str, tuple[str, ...]] = ("", ())
    metadata: bool = True
    enhancer: Any = None

    @property
    def encoder_digest(self) -> str:
        """By which the text encoder's weights are known again, as they are in its files."""
        return digest_of_weights(self.sources.plans["text_encoder"])

    def kept_features(self) -> KeptFeatures | None:
        """An empty cache of features, where there is to be one."""
        kept = self.embedding_cache_bytes
        if kept is None and self.plan is not None:
            kept = usual_cache_bytes(self.plan)
        return KeptFeatures(kept) if kept else None

    def facts_of(self, request: GenerationRequest) -> list[str]:
        """Check that the adapters of a request fit the checkpoint; what each changes, and what is odd, in words.

        Raises:
            CheckpointError: If one does not.
        """
        return [facts(each, self.sources.specs) for each in request.loras]


def check_model(
    model: PathName | None,
    *,
    dtype: str,
    weight_path: PathName | Sequence[PathName],
    step_cache: StepCache | str | None,
    templates_dir: PathName | None = None,
    quantize: Quantize = None,
    attention_backend: str | None = None,
    embedding_cache_bytes: int | None = None,
    generator_only: bool = False,
    loras: Sequence[Any] | None = None,
    guidance_scale: float | None = None,
    placing: Mapping[str, Any],
) -> CheckedModel:
    """Find and check all that loading would load, reading configurations, headers and the tokenizer only.

    Arguments and errors are those of `ZImagePipeline.from_pretrained`, memory apart; with `generator_only` the text
    encoder and the tokenizer are left alone, and their files need not be there. What `Placing` has is in `placing`.
    By `guidance_scale`, where a configuration has one in place of the checkpoint's, it is chosen what devices share.
    """
    cache_bytes = None if embedding_cache_bytes is None else checked_cache_bytes(embedding_cache_bytes)
    without = ("text_encoder", "tokenizer") if generator_only else ()
    wish = wish_of(placing)
    devices = devices_of(wish, dtype)
    cache = checked_step_cache(step_cache, None)
    given = [weight_path] if isinstance(weight_path, (str, os.PathLike)) else weight_path
    paths = [Path(path) for path in given]
    replaced = routed(paths, UNPREFIXED_COMPONENT)
    named_model = model if isinstance(model, str) else Path(model or embedded.PATH)
    directory = resolve_model(named_model, without=without, replaced=replaced)
    where = wish.mesh or (wish.devices["transformer"],)
    described = (directory, where, None if dtype == "auto" else dtype, flags_of(cache))
    config = pipeline_config(*described)
    how = without, quantize, attention_backend
    found = sources_of(config, replaced, UNPREFIXED_COMPONENT, devices, DEFAULT_STEPS, *how)
    if paths:
        config = pipeline_config(*described, {name: files for name, files in found.files.items() if files[0] in paths})
    sources = found.with_step_cache(cache).with_streams(wish.placement == "streamed")
    wish = with_groups(wish, sources, guidance_scale)
    sources = sources.with_mesh(wish.groups if wish.mesh else 0)
    if templates_dir is not None:
        sources = sources.with_templates(Path(templates_dir))
    if loras is not None:
        sources = sources.with_defaults(loras=checked_loras(loras, sources))
    tokenizer: PromptTokenizer = NoTokenizer()
    if not generator_only:
        tokenizer = PromptTokenizer(
            directory / "tokenizer",
            embeddings=sources.specs.text_encoder.vocab_size,
            positions=sources.limits.max_tokens,
        )
    main = mesh_of(wish, devices["transformer"])
    named = str(model or embedded.NAME), tuple(str(path) for path in paths)
    return CheckedModel(directory, config, main, paths, sources, tokenizer, wish, cache_bytes, named=named)
