"""Z-Image as a diffusion pipeline of MAX: captions and noise in, pictures out, nothing but compiled graphs in between.

    prompts -> ids -> [text_encoder] -> features -> [conditioning] -> caption tokens --+
    seed -> noise -> [pack] -> latents ------------------------------------------------+-> [denoise] x steps
    [denoise] x steps -> latents -> [decode] -> uint8
    steps, shift -> sigmas -> [modulation] -> one row a step --------------------------+

Names in brackets are compiled graphs. Here is the contract with MAX; what a person calls is in
`max_zimage.pipeline.calling`.

Reference: diffusers pipelines/z_image/pipeline_z_image.py; MAX pipelines/diffusion/interface.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef
from max.graph.weights import SafetensorWeights
from max.pipelines.context import PixelContext
from max.pipelines.diffusion.config import DenoisingCacheConfig
from max.pipelines.diffusion.interface import DiffusionPipeline, DiffusionPipelineOutput
from max.pipelines.lib.config import PipelineConfig
from max.pipelines.modeling.base.component_model import ComponentModel
from max.profiler import Tracer
from PIL import Image

from max_zimage import progress
from max_zimage.compile.compiler import compile_together, wait_for
from max_zimage.compile.small_graphs import pack_graph, prepare_scheduler_graph, scheduler_step_graph
from max_zimage.components import ZImageTextEncoderModel, ZImageTransformerModel, ZImageVaeModel
from max_zimage.device.devices import Tensor, as_buffer
from max_zimage.device.memory import available_memory, check_device_memory, check_memory
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.caching import StepCaching
from max_zimage.pipeline.calling import Calling
from max_zimage.pipeline.context_checks import check_context
from max_zimage.pipeline.contract import MaxContract
from max_zimage.pipeline.denoising import as_squares, caption_tokens, denoise, finished
from max_zimage.pipeline.estimate import check_picture
from max_zimage.pipeline.manifest import Sources, find_sources
from max_zimage.pipeline.not_finite import usual_suspects
from max_zimage.pipeline.prepare import inputs_of_contexts
from max_zimage.pipeline.stepping import stepper_of
from max_zimage.request.checks import output_type as checked_output_type

StepHook = Callable[[int, float, Buffer], Buffer | None]
"""Called after each step with its number, its timestep in [0, 1000] and the packed latents; may return others."""


@dataclass
class ZImagePipelineOutput(DiffusionPipelineOutput):
    """What a request makes.

    Attributes:
        images: uint8 [pictures, height, width, 3] ("np"), PIL images ("pil"), or latents before decoding, float32
            [pictures, channels, height/8, width/8] ("latent").
        computed: bool [steps, items], which steps ran the whole transformer; items are the pictures under their
            prompts, then with guidance under their negative prompts.
    """

    images: Any
    computed: npt.NDArray[np.bool_]


class ZImagePipeline(Calling, StepCaching, MaxContract, DiffusionPipeline):  # type: ignore[misc]  # buffers, not eager tensors
    """Z-Image and Z-Image-Turbo.

    Args:
        pipeline_config: MAX's configuration of a diffusion checkpoint, one model entry a component.
        session: Runs the graphs.
        devices: The first one runs all components.
        weight_paths: Weight files in place of the checkpoint's own. One that stands in no component's folder belongs to
            the transformer.
        cache_config: Step caching of requests that say nothing of it; off if not given.
        **kwargs: None: others are refused by name.

    Raises:
        TypeError: If there is no such argument.
        ValueError: If the checkpoint, the device or the memory does not do.
    """

    components: dict[str, type[ComponentModel]] = {  # noqa: RUF012  (an instance variable in the base class)
        "text_encoder": ZImageTextEncoderModel,
        "transformer": ZImageTransformerModel,
        "vae": ZImageVaeModel,
    }
    unprefixed_weight_component = "transformer"
    default_num_inference_steps = 50
    default_residual_threshold = 0.06
    default_taylorseer_cache_interval = 5
    default_taylorseer_max_order = 1
    default_taylorseer_warmup_steps = 9

    text_encoder: ZImageTextEncoderModel
    transformer: ZImageTransformerModel
    vae: ZImageVaeModel
    sources: Sources

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        session: InferenceSession,
        devices: list[Device],
        weight_paths: list[Path],
        cache_config: DenoisingCacheConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs:  # the base class takes any argument and drops it
            raise TypeError(
                f"ZImagePipeline has no use for {', '.join(kwargs)}; its arguments are pipeline_config, session, "
                "devices, weight_paths and cache_config"
            )
        super().__init__(pipeline_config, session, devices, weight_paths, cache_config)

    def _load_sub_models(self, weight_paths: list[Path]) -> dict[str, ComponentModel]:
        """Check everything that will be loaded, then load the components' weights."""
        self.sources = find_sources(
            self.pipeline_config,
            weight_paths,
            self.unprefixed_weight_component,
            self.devices[0],
            self.default_num_inference_steps,
        )
        # Weights pass through host memory whatever the device is, on the way to a GPU one component at a time.
        sizes, device = self.sources.nbytes.values(), self.devices[0]
        check_memory(sum(sizes) if device.is_host else max(sizes), available_memory())
        if not device.is_host:
            check_device_memory(sum(sizes), device)
        components = {name: self._load_component(name) for name in self.components}
        transformer = cast(ZImageTransformerModel, components["transformer"])
        transformer.nbytes_beside = sum(sizes) - self.sources.nbytes["transformer"]
        return components

    def _load_component(self, name: str) -> ComponentModel:
        make: Callable[..., ComponentModel] = self.components[name]
        return make(
            self.sources.configs[name],
            self.sources.dtypes[name],
            self.devices,
            SafetensorWeights(self.sources.files[name]),
            session=self.session,
            cache_config=self.cache_config,
        )

    def init_remaining_components(self) -> None:
        """Compile all graphs that `execute` runs.

        `prepare_scheduler` and `scheduler_step` compile when they are first called: `execute` has no need of either.
        """
        self.device = self.devices[0]
        self.vae_scale_factor = self.vae.spec.downscale
        self.build_preprocess_latents()
        self.build_decode_latents()
        wait_for([*self.transformer.graphs, self.text_encoder.model, self._decode, self._pack])
        self.use_step_cache(self.configured_cache)

    def build_preprocess_latents(self) -> None:
        """Compile patchify + pack."""
        self._pack = pack_graph(self.transformer.spec.in_channels, self.transformer.device_ref, self.session)

    def build_prepare_scheduler(self) -> None:
        """Compile what `prepare_scheduler` calls."""
        compile_together([prepare_scheduler_graph(self.transformer.device_ref)])

    def build_scheduler_step(self) -> None:
        """Compile what `scheduler_step` calls."""
        compile_together([scheduler_step_graph(self.transformer.device_ref)])

    def build_decode_latents(self) -> None:
        """Take the autoencoder's graph: it unpacks, denormalizes, decodes and quantizes."""
        self._decode = self.vae.model

    def prepare_inputs(self, context: PixelContext) -> ZImageModelInputs:
        """Bring a request of `max serve` to the device.

        Args:
            context: With tokens, schedule and noise in it, as `ZImageTokenizer` makes it.

        Raises:
            RequestError: If it is not whole.
        """
        check_context(context, self.sources.limits, self.text_encoder.spec.vocab_size)
        return inputs_of_contexts([context], self.transformer.rope_spec, self.vae, self.device)

    def preprocess_latents(self, latents: Tensor, dtype: DType = DType.float32) -> Buffer:
        """Patchify and pack.

        Args:
            latents: float32 [batch, channels, height/8, width/8].
            dtype: float32: latents have no other dtype in this engine.

        Returns:
            float32 [batch, height/16 · width/16, 4 · channels].

        Raises:
            ValueError: If the dtype is not float32 or a side is odd.
        """
        if dtype != DType.float32:
            raise ValueError(f"latents are float32 from the first step to the last, got {dtype}; use DType.float32")
        return self._pack(as_squares(as_buffer(latents)).to(self.device))[0]

    @staticmethod
    def prepare_scheduler(sigmas: Tensor) -> tuple[Buffer, Buffer]:
        """Split sigmas, float32 [steps + 1], into timesteps (each step's sigma) and step deltas, float32 [steps]."""
        sigmas = as_buffer(sigmas)
        timesteps, deltas = prepare_scheduler_graph(DeviceRef.from_device(sigmas.device))(sigmas)
        return timesteps, deltas

    @staticmethod
    def scheduler_step(latents: Tensor, noise_pred: Tensor, dt: Tensor) -> Buffer:
        """Return latents - dt · noise_pred, all float32: tokens [batch, image tokens, 4 · channels], dt [1]."""
        latents, noise_pred, dt = map(as_buffer, (latents, noise_pred, dt))
        return scheduler_step_graph(DeviceRef.from_device(latents.device))(latents, noise_pred, dt)[0]

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
        checked_output_type(output_type)
        check_picture(
            self.sources,
            self.device,
            height=model_inputs.height,
            width=model_inputs.width,
            guided=bool(np.any(model_inputs.guidance > 0)),
            pictures=model_inputs.batch,
            again=self.transformer.again_bytes,
        )
        captions = caption_tokens(self.text_encoder, self.transformer, model_inputs.captions)
        stepper = stepper_of(self.transformer, model_inputs, captions)
        loop = denoise(self.transformer, model_inputs, self.preprocess_latents(model_inputs.latents), stepper)
        with progress.stage("Denoising", model_inputs.num_inference_steps) as shown, Tracer("denoising"):
            replacement: Buffer | None = None
            for index in range(model_inputs.num_inference_steps):
                timestep, latents = loop.send(replacement)
                replacement = on_step(index, timestep, latents) if on_step else None
                shown.advance(f"step {index + 1}")
        rows, columns = (side // (2 * self.vae_scale_factor) for side in (model_inputs.height, model_inputs.width))
        latents = latents if replacement is None else replacement
        suspects = usual_suspects(self.transformer.dtype_name, model_inputs.step_cache)
        return ZImagePipelineOutput(
            finished(self._decode, latents, rows, columns, output_type, suspects), stepper.computed()
        )

    def decode_latents(
        self, latents: Tensor, h_carrier: Any, w_carrier: Any, output_type: str = "np"
    ) -> npt.NDArray[Any] | list[Image.Image]:
        """Packed latents to pictures.

        Args:
            latents: float32 [batch, image tokens, 4 · channels].
            h_carrier: Anything of shape [height/16]; carries the height in its shape.
            w_carrier: Anything of shape [width/16].
            output_type: "np", "pil" or "latent".

        Returns:
            What `ZImagePipelineOutput.images` describes.

        Raises:
            ValueError: If the output type is unknown.
            NotFiniteError: If a picture or its latents are NaN or infinity; it holds the others.
        """
        suspects = usual_suspects(self.vae.dtype_name)
        rows, columns = int(h_carrier.shape[0]), int(w_carrier.shape[0])
        return finished(self._decode, as_buffer(latents), rows, columns, output_type, suspects)
