"""What a person calls: `ZImagePipeline.from_pretrained` and the pipeline itself, with diffusers' arguments.

Reference: diffusers pipelines/z_image/pipeline_z_image.py, __call__.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from max.driver import Device, load_devices
from max.engine import InferenceSession
from max.pipelines.lib.config import PipelineConfig
from PIL import Image

from max_zimage import embedded
from max_zimage.checkpoint.locate import resolve_model
from max_zimage.device.devices import device_spec
from max_zimage.device.dtypes import model_dtype
from max_zimage.device.libraries import check_libraries
from max_zimage.host.processes import check_process
from max_zimage.pipeline.callbacks import StepCallback, step_hook
from max_zimage.pipeline.estimate import check_request
from max_zimage.pipeline.manifest import Sources, find_sources
from max_zimage.pipeline.max_config import pipeline_config
from max_zimage.pipeline.not_finite import GIVEN_LATENTS, NotFiniteError
from max_zimage.pipeline.prepare import captions_of_request, inputs_of_request
from max_zimage.pipeline.results import PictureArray, Pictures, check_others, result
from max_zimage.request.checks import step_cache as checked_step_cache
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.step_cache import StepCache, flags_of
from max_zimage.text.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from typing import Self

    from max_zimage.pipeline.zimage import ZImagePipeline

"""The checkpoint that the package contains."""


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that is found and checked, but not loaded.

    Attributes:
        directory: Where it lies.
        config: MAX's configuration of it.
        devices: The first one will run all components.
        weight_paths: Files in place of the checkpoint's own.
        sources: Shapes, files, defaults and limits.
        tokenizer: Its tokenizer.
    """

    directory: Path
    config: PipelineConfig
    devices: list[Device]
    weight_paths: list[Path]
    sources: Sources
    tokenizer: PromptTokenizer


class Calling:
    """The part of `ZImagePipeline` that people use."""

    tokenizer: PromptTokenizer

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        weight_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        step_cache: StepCache | str | None = None,
    ) -> Self:
        """Load a checkpoint and compile its graphs.

        Args:
            model: A directory in the diffusers layout, or a hub id such as "Tongyi-MAI/Z-Image-Turbo"; None loads the
                small model that the package contains.
            device: "auto" (the first accelerator, or else the CPU), "cpu", "gpu" or "gpu:N".
            dtype: "auto" (bfloat16 on an accelerator, float32 on a CPU), "float32" or "bfloat16".
            weight_path: Weight files in place of the checkpoint's own; one that stands in no folder named text_encoder,
                transformer or vae belongs to the transformer.
            step_cache: What calls use that name none, `FirstBlockCache`, `TaylorSeer` or one in words; its graphs are
                compiled here. Those of another one compile when a call first asks for it.

        Returns:
            The pipeline, ready to be called.

        Raises:
            ValueError: If the model, the device, the dtype or the memory does not do; said before anything is loaded.
        """
        return cls.from_prepared(
            cls.prepare(model, device=device, dtype=dtype, weight_path=weight_path, step_cache=step_cache)
        )

    @classmethod
    def prepare(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        weight_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        step_cache: StepCache | str | None = None,
    ) -> Prepared:
        """Find and check all that `from_pretrained` would load, reading configurations, headers and the tokenizer only.

        Arguments and errors are those of `from_pretrained`, memory apart. Requests can be checked against the result
        before minutes are spent on compiling.
        """
        spec = device_spec(device)
        devices = load_devices([spec])
        model_dtype(dtype, devices[0])
        check_libraries(devices[0])
        cache = checked_step_cache(step_cache, None)
        given = [weight_path] if isinstance(weight_path, (str, os.PathLike)) else weight_path
        directory = resolve_model(model if isinstance(model, str) else Path(model or embedded.PATH))
        config = pipeline_config(directory, spec, None if dtype == "auto" else dtype, flags_of(cache))
        paths = [Path(path) for path in given]
        constants = cast("type[ZImagePipeline]", cls)
        sources = find_sources(
            config, paths, constants.unprefixed_weight_component, devices[0], constants.default_num_inference_steps
        ).with_step_cache(cache)
        tokenizer = PromptTokenizer(
            directory / "tokenizer",
            embeddings=sources.specs.text_encoder.vocab_size,
            positions=sources.limits.max_tokens,
        )
        return Prepared(directory, config, devices, paths, sources, tokenizer)

    @classmethod
    def from_prepared(cls, prepared: Prepared) -> Self:
        """Load and compile what `prepare` has found.

        Raises:
            NotEnoughMemoryError: If the weights do not fit; said before anything is loaded.
            RuntimeError: If MAX cannot compile a graph, or cannot be used in this process because it is a fork.
        """
        check_process()
        make = cast(Callable[..., "Self"], cls)
        session = InferenceSession(devices=prepared.devices)
        cache_config = prepared.config.runtime.denoising_cache
        pipeline = make(prepared.config, session, prepared.devices, prepared.weight_paths, cache_config=cache_config)
        pipeline.tokenizer = prepared.tokenizer
        cast("ZImagePipeline", pipeline).use_step_cache(prepared.sources.defaults.step_cache)
        return pipeline

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        cfg_normalization: bool | float = False,
        cfg_truncation: float | None = 1.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        latents: npt.NDArray[np.float32] | None = None,
        prompt_embeds: Sequence[npt.NDArray[np.float32]] | None = None,
        negative_prompt_embeds: Sequence[npt.NDArray[np.float32]] | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        max_sequence_length: int | None = None,
        shift: float | None = None,
        image: Image.Image | npt.NDArray[np.uint8] | None = None,
        strength: float | None = None,
        resize: bool = False,
        step_cache: StepCache | str | None = None,
        **others: Any,
    ) -> Pictures | PictureArray:
        """Make pictures, a list of PIL's or an array by `output_type`; names and meanings are those of diffusers.

        Arguments: see `GenerationRequest` (None is the checkpoint's own) and `StepCallback`. Result: see `Pictures`.

        Raises:
            RequestError: If an argument is out of range; all that is wrong is said together.
            NotFiniteError: If a picture came out as NaN or infinity; it holds the others.
            TypeError: If there is no such argument; see `check_others`.
        """
        request = self._request(
            others,
            prompt=prompt,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            sigmas=sigmas,
            shift=shift,
            guidance_scale=guidance_scale,
            cfg_normalization=cfg_normalization,
            cfg_truncation=cfg_truncation,
            num_images_per_prompt=num_images_per_prompt,
            seed=seed,
            max_sequence_length=max_sequence_length,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            image=image,
            strength=strength,
            resize=resize,
            step_cache=step_cache,
            output_type=output_type,
        )
        return self.generate(request, callback_on_step_end)

    def _request(self, others: Mapping[str, object], **arguments: Any) -> GenerationRequest:
        check_others(others)
        sources = cast("ZImagePipeline", self).sources
        return GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, **arguments)

    def generate(
        self, request: GenerationRequest, callback_on_step_end: StepCallback | None = None
    ) -> Pictures | PictureArray:
        """Make the pictures of a validated request; see `__call__`.

        Raises:
            NotEnoughMemoryError: If they do not fit into what is free; said before anything is computed.
        """
        pipeline = cast("ZImagePipeline", self)
        check_request(pipeline.sources, pipeline.device, request, again=pipeline.transformer.again_bytes)
        captions = captions_of_request(request, self.tokenizer, pipeline.text_encoder, pipeline.sources.limits)
        inputs = inputs_of_request(
            request,
            captions,
            schedule_spec=pipeline.sources.specs.schedule,
            rope_spec=pipeline.transformer.rope_spec,
            vae=pipeline.vae,
            device=pipeline.device,
        )
        callback = callback_on_step_end
        hook = None if callback is None else step_hook(pipeline, callback, inputs.height, inputs.width)
        try:
            return result(pipeline.execute(inputs, request.output_type, hook).images)
        except NotFiniteError as error:
            if request.latents is None:
                raise
            raise error.blaming(GIVEN_LATENTS) from None
