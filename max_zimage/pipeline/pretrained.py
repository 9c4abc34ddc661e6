"""How a pipeline comes from a checkpoint: found and checked, then loaded and compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from max.driver import Device

from max_zimage.device.devices import device_kind
from max_zimage.pipeline import llm_dit
from max_zimage.pipeline.carried import Carried
from max_zimage.pipeline.configured import (
    Config,
    configuration_of,
    configured_defaults,
    with_options,
    with_torch_dtype,
)
from max_zimage.pipeline.load_components import PathName, new_session
from max_zimage.pipeline.loading import CheckedModel, check_model
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.pipeline.storages import Quantize
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.step_cache import StepCache
from max_zimage.text.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from typing import Self


class PretrainedMethods:
    """What a pipeline has for that, and calls under llm-dit's names."""

    tokenizer: PromptTokenizer
    named: tuple[str, tuple[str, ...]] = ("", ())
    """The checkpoint and the weight files in place of its own, as they were named; empty if MAX made the pipeline."""

    sources: CheckpointManifest
    devices: list[Device]

    def carried(self, request: GenerationRequest, *, is_whole: bool) -> Carried:
        """What the files of a call's pictures are to say.

        Args:
            request: The call's.
            is_whole: Whether it says all of the pictures.
        """
        model, weight_paths = self.named
        drawn_by = {"model": model, "weight_paths": weight_paths, "dtype": self.sources.dtypes["transformer"]}
        drawn_by |= {"device": device_kind(self.devices[0]), "quantize": self.sources.quantize}
        return Carried(request, drawn_by, is_whole and bool(model))

    img2img = llm_dit.img2img
    generate_multipass = llm_dit.generate_multipass

    @classmethod
    def from_pretrained(
        cls,
        model: PathName | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        weight_path: PathName | Sequence[PathName] = (),
        step_cache: StepCache | str | None = None,
        templates_dir: PathName | None = None,
        quantize: Quantize = None,
        embedding_cache_bytes: int | None = None,
        loras: Sequence[Any] = (),
        torch_dtype: object = None,
        config: Config = None,
        profile: str | None = None,
    ) -> Self:
        """Load a checkpoint and compile its graphs.

        Args:
            model: A directory in the diffusers layout, or a hub id such as "Tongyi-MAI/Z-Image-Turbo"; None loads the
                small model that the package contains.
            device: "auto" (the first accelerator, or else the CPU), "cpu", "gpu" or "gpu:N".
            dtype: "auto" (bfloat16 on an accelerator, float32 on a CPU), "float32" or "bfloat16".
            weight_path: Weight files in place of the checkpoint's own, safetensors or GGUF. One that is in no folder
                named text_encoder, transformer or vae goes to every component that it holds, or to the transformer.
            step_cache: What calls use that name none, `FirstBlockCache`, `TaylorSeer` or one in words; its graphs are
                compiled here. Those of another one compile when a call first asks for it.
            templates_dir: Templates that calls may name, before the shipped ones; see `max_zimage.request.templates`.
            quantize: Component -> "int8" or "q4", for a CPU: {"transformer": "int8", "text_encoder": "q4"}, or the same
                as "transformer=int8,text_encoder=q4". Their matrices are rounded when they are loaded. None is what the
                variable MAX_ZIMAGE_QUANTIZE says, or else nothing.
            embedding_cache_bytes: Of text features that are kept for prompts that come again; none if not given.
            loras: Adapters of calls that name none; see `set_loras`.
            torch_dtype: `dtype` as diffusers and llm-dit call it, such as torch.bfloat16 or "bfloat16".
            config: A configuration file, which says what these arguments leave at their defaults and what calls leave
                out; see `max_zimage.request.configuration`. None, without a profile, reads none.
            profile: Of that file, or of the one in the default place.

        Raises:
            ValueError: If the model, device or dtype is unsupported, or memory is insufficient. Raised before any
                weight is loaded.
        """
        given = {name: value for name, value in locals().items() if name not in ("cls", "model")}
        return cls.from_prepared(cls.prepare(model, **given))

    @classmethod
    def prepare(cls, model: PathName | None = None, **options: Any) -> CheckedModel:
        """Find and check all that `from_pretrained` would load, reading configurations, headers and the tokenizer only.

        Arguments and errors are those of `from_pretrained`, memory apart. Requests can be checked against the result
        before minutes are spent on compiling.
        """
        defaults = {"device": "auto", "dtype": "auto", "weight_path": (), "step_cache": None}
        given = with_torch_dtype(defaults | options)
        configuration = configuration_of(given.pop("config", None), given.pop("profile", None))
        if configuration is None:
            return check_model(model, **given)
        rest = dict.fromkeys(("templates_dir", "quantize", "embedding_cache_bytes", "loras"))
        model, found = with_options(model, rest | given, configuration)
        checked = check_model(model, **found)
        changed = configured_defaults(checked.sources.defaults, checked.sources.limits, configuration)
        return replace(checked, sources=checked.sources.with_defaults(**changed))

    @classmethod
    def from_prepared(cls, prepared: CheckedModel) -> Self:
        """Load and compile what `prepare` has found.

        Raises:
            NotEnoughMemoryError: If the weights do not fit. Raised before anything is loaded.
            RuntimeError: If MAX cannot compile a graph, or cannot be used in this process because it is a fork.
        """
        session, cache = new_session(prepared.devices), prepared.config.runtime.denoising_cache
        where = (prepared.config, session, prepared.devices, prepared.weight_paths)
        make: Any = cls
        pipeline = make(*where, cache_config=cache, sources=prepared.sources)
        pipeline.named = prepared.named
        pipeline.tokenizer, pipeline.text_encoder.kept_features = prepared.tokenizer, prepared.kept_features()
        pipeline.use_step_cache(prepared.sources.defaults.step_cache)
        pipeline.set_loras(prepared.sources.defaults.loras)
        made: Self = pipeline
        return made
