"""Z-Image as a diffusion pipeline of MAX: captions and noise in, pictures out, nothing but compiled graphs in between.

    prompts -> ids -> [text_encoder] -> features -> [conditioning] -> caption tokens --+
    seed -> noise -> [pack] -> latents ------------------------------------------------+-> [denoise] per evaluation
    [denoise] -> latents -> [decode] -> uint8
    steps, shift, sampler -> sigmas -> [modulation] -> one row per evaluation ---------+

Names in brackets are compiled graphs. Members that exist for MAX's sake are one line each, see
`max_zimage.pipeline.max_contract`.

Reference: diffusers pipelines/z_image/pipeline_z_image.py; MAX pipelines/diffusion/interface.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from max.driver import Device
from max.engine import InferenceSession
from max.pipelines.diffusion.interface import DiffusionPipeline
from max.pipelines.modeling.base.component_model import ComponentModel
from PIL import Image

from max_zimage.compile.compiler import CompiledGraph
from max_zimage.components import ZImageTextEncoderModel, ZImageTransformerModel, ZImageVaeModel
from max_zimage.pipeline import encoding, max_contract, stages
from max_zimage.pipeline.adapters import AdapterMethods
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.callbacks import StepCallback, StepHook, step_hook
from max_zimage.pipeline.enhancing import Wanted, enhanced, own_of_pipeline
from max_zimage.pipeline.generator import request_of_call
from max_zimage.pipeline.pretrained import DEFAULT_STEPS, UNPREFIXED_COMPONENT, PretrainedMethods
from max_zimage.pipeline.results import PictureArray, Pictures, ZImagePipelineOutput, fields_of, result
from max_zimage.pipeline.run import Run, sides_at
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.step_cache import StepCache

if TYPE_CHECKING:
    from max.pipelines.diffusion.config import DenoisingCacheConfig
    from max.pipelines.lib.config import PipelineConfig

Floats = npt.NDArray[np.float32]


class ZImagePipeline(AdapterMethods, PretrainedMethods, DiffusionPipeline):
    """Z-Image and Z-Image-Turbo.

    Args:
        pipeline_config: MAX's configuration of a diffusion checkpoint, one model entry for each component.
        session: Runs the graphs.
        devices: The first one runs the transformer.
        weight_paths: Weight files in place of the checkpoint's own. One that stands in no component's folder goes to
            every component that it holds, or to the transformer.
        cache_config: Step caching of requests that say nothing of it; off if not given.
        **kwargs: `sources`, if the checkpoint was checked before, with `plan` and `max_memory`, where its components
            go; others are refused by name.

    Raises:
        TypeError: If there is no such argument.
        ValueError: If the checkpoint, the device or the memory does not do.
    """

    components: dict[str, type[ComponentModel]] = {  # noqa: RUF012  (an instance variable in the base class)
        "text_encoder": ZImageTextEncoderModel,
        "transformer": ZImageTransformerModel,
        "vae": ZImageVaeModel,
    }
    unprefixed_weight_component = UNPREFIXED_COMPONENT
    default_num_inference_steps = DEFAULT_STEPS
    default_residual_threshold = 0.06
    default_taylorseer_cache_interval = 5
    default_taylorseer_max_order = 1
    default_taylorseer_warmup_steps = 9

    text_encoder: ZImageTextEncoderModel
    transformer: ZImageTransformerModel
    vae: ZImageVaeModel
    _pack: CompiledGraph

    own_language = cached_property(own_of_pipeline)
    own_writer: Any = None  # the enhancer with it, which goes when the pipeline does
    from_pretrained_generator_only = classmethod(encoding.from_pretrained_generator_only)
    generate_from_embeddings = encoding.generate_from_embeddings

    # What MAX documents of its pipelines, and what is configured by its flags.
    build_preprocess_latents = max_contract.build_preprocess_latents
    build_prepare_scheduler = max_contract.build_prepare_scheduler
    build_scheduler_step = max_contract.build_scheduler_step
    build_decode_latents = max_contract.build_decode_latents
    prepare_inputs = max_contract.prepare_inputs
    preprocess_latents = max_contract.preprocess_latents
    decode_latents = max_contract.decode_latents
    prepare_prompt_embeddings = max_contract.prepare_prompt_embeddings
    prepare_img2img_latents = max_contract.prepare_img2img_latents
    prepare_scheduler = staticmethod(max_contract.prepare_scheduler)
    scheduler_step = staticmethod(max_contract.scheduler_step)
    create_cache_state = max_contract.create_cache_state
    run_transformer = max_contract.run_transformer  # type: ignore[assignment]  # buffers, not eager tensors
    run_denoising_step = max_contract.run_denoising_step  # type: ignore[assignment]
    use_step_cache = max_contract.use_step_cache
    compile_step_cache = max_contract.compile_step_cache

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        session: InferenceSession,
        devices: list[Device],
        weight_paths: list[Path],
        cache_config: DenoisingCacheConfig | None = None,
        **kwargs: Any,
    ) -> None:
        checked = {name: kwargs.pop(name) for name in ("sources", "plan", "max_memory") if name in kwargs}
        if kwargs:  # the base class takes any argument and drops it
            raise TypeError(
                f"ZImagePipeline has no use for {', '.join(kwargs)}; its arguments are pipeline_config, session, "
                "devices, weight_paths and cache_config"
            )
        self.find(pipeline_config, weight_paths, devices, **checked)
        super().__init__(pipeline_config, session, devices, weight_paths, cache_config)

    @property
    def configured_cache(self) -> StepCache | None:
        """What MAX's flags ask for."""
        return max_contract.configured_cache(self)

    def init_remaining_components(self) -> None:
        """Compile all graphs that `execute` runs; those of `prepare_scheduler` and `scheduler_step` on first use."""
        self.device = self.devices[0]
        self.vae_scale_factor = self.vae.spec.downscale
        self.make_adapters()
        self.build_preprocess_latents()
        self.compile_parts([*self.transformer.graphs], [*self.text_encoder.graphs], [self.vae.model], [self._pack])
        self.use_step_cache(self.configured_cache)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        cfg_normalization: bool | float | None = None,
        cfg_truncation: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        latents: Floats | None = None,
        prompt_embeds: Sequence[Floats] | None = None,
        negative_prompt_embeds: Sequence[Floats] | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        max_sequence_length: int | None = None,
        shift: float | None = None,
        sampler: str | None = None,
        sigma_shape: str | None = None,
        image: Image.Image | npt.NDArray[np.uint8] | None = None,
        strength: float | None = None,
        resize: bool = False,
        step_cache: StepCache | str | None = None,
        **others: Any,
    ) -> Pictures | PictureArray:
        """Make pictures, a list of PIL's or an array by `output_type`; names and meanings are those of diffusers.

        Arguments: see `RequestFields` (None is the checkpoint's own), of which **others takes the rest, diffusers'
        `generator` and, with `enhance=True`, an `enhancer`; and `StepCallback`. Result: see `Pictures`.

        Raises:
            RequestError: If an argument is out of range; all that is wrong is said together.
            EnhancerError: If there is no such enhancer. One that fails is a warning.
            NotFiniteError: If a picture came out as NaN or infinity; it holds the others.
            TypeError: If there is no such argument; see `check_others`.
        """
        given = dict(locals())  # the arguments, under their names
        for name in ("self", "others", "callback_on_step_end"):
            del given[name]
        if cfg_normalization is None:
            del given["cfg_normalization"]
        given |= fields_of(others)
        if (sets := self.loras_by_prompt(given.get("loras"))) is not None:
            given["loras"] = []
        return self.generate(request_of_call(self.sources, given), callback_on_step_end, given.get("enhancer"), sets)

    def generate(
        self,
        request: GenerationRequest,
        callback_on_step_end: StepCallback | None = None,
        enhancer: Wanted = None,
        loras: Sequence[Any] | None = None,
    ) -> Pictures | PictureArray:
        """Make the pictures of a validated request; see `__call__`. `loras` are those of each prompt, if they differ.

        Raises:
            NotEnoughMemoryError: If they do not fit into what is free. Raised before anything is computed.
            NotApplied: If its adapters cannot be added to the weights.
        """
        sets = self.prompt_adapters(request, loras)
        request = enhanced(self, sets.request, enhancer)
        self.residency.check(self.text_encoder, self.transformer, request)
        parts = self.tokenizer, self.text_encoder, self.transformer, self.vae
        with self.adapters.using(request.loras), stages.blaming(request.latents):
            inputs = sets.added_to(encoding.inputs_of_texts(request, self.sources, *parts))
            hook, callback = None, callback_on_step_end
            if callback is not None:
                hook = step_hook(self, callback, sides=partial(sides_at, inputs), pack=self.preprocess_latents)
            images = self.execute(inputs, request.output_type, hook).images
        return result(images, sets.told_by(self.carried(request, is_whole=callback is None)))

    def execute(  # type: ignore[override]  # named arguments in place of the base class's keywords
        self, model_inputs: ZImageModelInputs, output_type: str = "np", on_step: StepHook | None = None
    ) -> ZImagePipelineOutput:
        """Make the pictures of a request.

        Args:
            model_inputs: From `prepare_inputs`.
            output_type: "np", "pil" or "latent"; see `ZImagePipelineOutput`.
            on_step: Sees, and may replace, the latents after each step.

        Raises:
            ValueError: If the output type is unknown.
            NotEnoughMemoryError: If the pictures do not fit into what is free.
            NotFiniteError: If a picture came out as NaN or infinity; it holds the others.
        """
        stages.check_output_type(output_type)
        self.residency.check(self.text_encoder, self.transformer, model_inputs)
        stages.expect(self.vae, model_inputs, output_type)
        run = self.denoising(model_inputs)
        run.run(on_step)
        images = stages.finished(self.vae, run.latents, *run.sides, output_type, model_inputs)
        return ZImagePipelineOutput(images, run.computed())

    def denoising(self, inputs: ZImageModelInputs) -> Run:
        """Encode a request's captions and pack its noise, under its adapters: what is left are its steps."""
        self.adapters.bind(inputs.loras)
        return Run(self, inputs, self.preprocess_latents)
