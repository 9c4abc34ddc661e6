"""The text encoder alone: what a process loads that only encodes. Nothing is read of transformer and autoencoder.

Where a transformer's configuration lies in the checkpoint, its positions say how many rows of features there may be.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from max.driver import Device, load_devices
from max.graph.weights import SafetensorWeights

from max_zimage import embedded
from max_zimage.checkpoint.config import ConfigError, text_encoder_spec, transformer_spec
from max_zimage.checkpoint.locate import find_component_files, read_config, resolve_model
from max_zimage.checkpoint.plan import LoadPlan, holds_final_norm
from max_zimage.compile.compiler import wait_for
from max_zimage.components import ZImageTextEncoderModel
from max_zimage.device.devices import device_spec
from max_zimage.device.dtypes import ModelDtype, model_dtype
from max_zimage.pipeline import encoding
from max_zimage.pipeline.configured import (
    START,
    TEXT_FIELDS,
    Config,
    configuration_of,
    configured_defaults,
    encoder_defaults,
    is_left,
    with_options,
    with_torch_dtype,
)
from max_zimage.pipeline.load_components import (
    Backend,
    PathName,
    asked_storages,
    backend_of,
    check_fit,
    checked_cache_bytes,
    new_session,
)
from max_zimage.pipeline.manifest import check_device, text_encoder_plan
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.text.kept_features import KeptFeatures
from max_zimage.text.tokenizer import PromptTokenizer

_AXES_LENS = (1536, 512, 512)
"""Positions of the published transformers, where a checkpoint holds none."""
_OTHERS = ("transformer", "vae", "scheduler")


@dataclass(frozen=True, kw_only=True)
class CheckedEncoder:
    """A text encoder that is found and checked, but not loaded.

    Attributes:
        devices: The first one will run it.
        config: Its configuration as Hugging Face's JSON has it.
        dtype: That it will run in.
        plan: What is loaded of its files.
        limits: What the checkpoint can do at most.
        defaults: What it does where nothing is asked for, with the templates there are.
        tokenizer: Its tokenizer.
        embedding_cache_bytes: Of features that are kept in memory; 0 to keep none.
        attention: How its graphs compute attention; None for what dtype and device choose.
    """

    devices: list[Device]
    config: dict[str, Any]
    dtype: ModelDtype
    plan: LoadPlan
    limits: Limits
    defaults: RequestDefaults
    tokenizer: PromptTokenizer
    embedding_cache_bytes: int = 0
    attention: Backend | None = None


class ZImageTextEncoder:
    """The text encoder of a checkpoint, alone.

    Attributes:
        sources: Limits and defaults.
        tokenizer: Text to ids.
        text_encoder: Ids to features.
        device: Where it runs.
    """

    encode = encoding.encode

    def __init__(self, checked: CheckedEncoder) -> None:
        """Load and compile what `prepare` has found.

        Raises:
            NotEnoughMemoryError: If the weights do not fit. Raised before anything is loaded.
            RuntimeError: If MAX cannot compile the graph, or cannot be used in this process because it is a fork.
        """
        self.sources, self.tokenizer, self.device = checked, checked.tokenizer, checked.devices[0]
        check_fit([checked.plan.nbytes(checked.dtype)], self.device)
        session = new_session(checked.devices)
        weights = SafetensorWeights(list(checked.plan.files))
        what = checked.config, checked.dtype, checked.devices, weights
        self.text_encoder = ZImageTextEncoderModel(
            *what, session=session, plan=checked.plan, attention=checked.attention
        )
        wait_for(self.text_encoder.graphs)
        kept = checked.embedding_cache_bytes
        self.text_encoder.kept_features = KeptFeatures(kept) if kept else None

    @classmethod
    def from_pretrained(cls, model: PathName | None = None, **options: Any) -> ZImageTextEncoder:
        """Load a text encoder and compile its graph; arguments and errors are those of `prepare`, memory besides."""
        return cls(cls.prepare(model, **options))

    @staticmethod
    def prepare(
        model: PathName | None = None, *, config: Config = None, profile: str | None = None, **options: Any
    ) -> CheckedEncoder:
        """Find and check all that loading would load; arguments and errors are those of `check_encoder`.

        Args:
            model: As there.
            config: As in `ZImagePipeline.from_pretrained`.
            profile: As there.
            **options: The other arguments.
        """
        options = with_torch_dtype({"dtype": "auto"} | options)
        configuration = configuration_of(config, profile)
        if configuration is None:
            return check_encoder(model, **options)
        options = dict.fromkeys(START) | options
        own_device = configuration.start.get("encoder_device")
        if own_device is not None and is_left("device", options["device"]):  # before the device of a whole model
            options["device"] = own_device
        model, found = with_options(model, options, configuration)
        checked = check_encoder(model, **{name: value for name, value in found.items() if value is not None})
        own = configuration.only(TEXT_FIELDS)
        changed = configured_defaults(checked.defaults, checked.limits, own)
        return replace(checked, defaults=replace(checked.defaults, **changed))


def check_encoder(
    model: PathName | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    weight_path: PathName | Sequence[PathName] = (),
    templates_dir: PathName | None = None,
    quantize: str | Mapping[str, str] | None = None,
    attention_backend: str | None = None,
    embedding_cache_bytes: int | None = None,
) -> CheckedEncoder:
    """Find and check all that loading would load, reading configurations, headers and the tokenizer only.

    Args:
        model: As in `ZImagePipeline.from_pretrained`; the folders of the transformer and the autoencoder need not
            be there.
        device: As there.
        dtype: As there.
        weight_path: Files of the text encoder in place of the checkpoint's own.
        templates_dir: As there.
        quantize: As there; what it says of the transformer is the transformer's.
        attention_backend: As there.
        embedding_cache_bytes: As there.

    Raises:
        ValueError: If the model, device or dtype is unsupported.
    """
    devices = load_devices([device_spec(device)])
    chosen, cache_bytes = model_dtype(dtype, devices[0]), checked_cache_bytes(embedding_cache_bytes)
    check_device(devices[0])
    storages = asked_storages(quantize, devices[0], ("text_encoder",))
    given = [weight_path] if isinstance(weight_path, (str, os.PathLike)) else weight_path
    replaced = ("text_encoder",) if given else ()
    named = model if isinstance(model, str) else Path(model or embedded.PATH)
    directory = resolve_model(named, without=_OTHERS, replaced=replaced)
    config = read_config(directory, "text_encoder")
    try:
        spec, limits = text_encoder_spec(config), _limits(directory, config)
    except ConfigError as error:
        raise error.located({name: directory / name for name in ("text_encoder", "transformer")}, directory) from error
    attention = backend_of(attention_backend, spec, chosen, devices[0])
    checked = text_encoder_plan(spec, [Path(path) for path in given] or find_component_files(directory, "text_encoder"))
    checked = replace(checked, kept_as=storages.get("text_encoder"))
    tokenizer = PromptTokenizer(directory / "tokenizer", embeddings=spec.vocab_size, positions=limits.max_tokens)
    return CheckedEncoder(
        devices=devices,
        config=config,
        dtype=chosen,
        plan=checked,
        limits=replace(limits, has_final_norm=holds_final_norm(checked)),
        defaults=encoder_defaults(templates_dir),
        tokenizer=tokenizer,
        embedding_cache_bytes=cache_bytes,
        attention=attention,
    )


def _limits(directory: Path, config: dict[str, Any]) -> Limits:
    """Those of the checkpoint, as far as features go."""
    spec, lengths, layers = text_encoder_spec(config), _AXES_LENS, 30
    if (directory / "transformer" / "config.json").is_file():
        transformer = transformer_spec(read_config(directory, "transformer"))
        lengths, layers = transformer.axes_lens, transformer.num_layers
    return Limits.of(
        axes_lens=lengths,
        max_positions=spec.max_positions,
        latent_channels=16,
        caption_dim=spec.hidden_size,
        num_layers=layers,
        text_layers=spec.num_layers,
    )
