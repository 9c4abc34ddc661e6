"""The members of `ZImagePipeline`: that each is there as its users expect, and its numbers."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from max.driver import Buffer
from max.dtype import DType
from max.pipelines.diffusion.interface import DiffusionPipeline
from max.pipelines.modeling.base.component_model import ComponentModel
from PIL import Image

import max_zimage
from max_zimage import ZImagePipeline
from max_zimage.errors import RequestError
from max_zimage.pipeline.max_step_cache import ZImageCacheState
from tests.references.diffusers_runs import Call, Pair, noise, packed, relative_l2
from tests.references.engine_runs import OpenTransformer, inputs_of, request_of
from tests.references.noises import initial_noise
from tests.tolerances import TRANSFORMER_L2

PROMPT = "a red star on a blue background"
EMPTY = inspect.Parameter.empty


@pytest.fixture
def pipeline(embedded: Pair) -> ZImagePipeline:
    return embedded.ours


def buffer(values: np.ndarray) -> Buffer:
    return Buffer.from_numpy(np.ascontiguousarray(values))


SIGNATURES: dict[str, dict[str, Any]] = {
    "__init__": {
        "pipeline_config": EMPTY,
        "session": EMPTY,
        "devices": EMPTY,
        "weight_paths": EMPTY,
        "cache_config": None,
        "kwargs": EMPTY,
    },
    "init_remaining_components": {},
    "build_preprocess_latents": {},
    "preprocess_latents": {"latents": EMPTY, "dtype": DType.float32},
    "build_prepare_scheduler": {},
    "prepare_scheduler": {"sigmas": EMPTY},
    "build_scheduler_step": {},
    "scheduler_step": {"latents": EMPTY, "noise_pred": EMPTY, "dt": EMPTY},
    "build_decode_latents": {},
    "decode_latents": {"latents": EMPTY, "h_carrier": EMPTY, "w_carrier": EMPTY, "output_type": "np"},
    "prepare_inputs": {"context": EMPTY},
    "prepare_prompt_embeddings": {"tokens": EMPTY, "num_images_per_prompt": EMPTY},
    "prepare_img2img_latents": {"noise_latents": EMPTY, "image_tensor": EMPTY, "sigmas": EMPTY},
    "create_cache_state": {"batch_size": EMPTY, "seq_len": EMPTY, "transformer_config": EMPTY, "text_seq_len": 0},
    "run_transformer": {"cache_state": EMPTY, "kwargs": EMPTY},
    "run_denoising_step": {"step": EMPTY, "cache_state": EMPTY, "device": EMPTY, "kwargs": EMPTY},
    "execute": {"model_inputs": EMPTY, "output_type": "np", "on_step": None},
}
CALL_DEFAULTS = {
    "prompt": None,
    "negative_prompt": None,
    "height": None,
    "width": None,
    "num_inference_steps": None,
    "sigmas": None,
    "guidance_scale": None,
    "cfg_normalization": False,
    "cfg_truncation": 1.0,
    "num_images_per_prompt": 1,
    "latents": None,
    "prompt_embeds": None,
    "negative_prompt_embeds": None,
    "output_type": "pil",
    "callback_on_step_end": None,
    "max_sequence_length": None,
    "seed": None,
    "shift": None,
    "sampler": None,
    "sigma_shape": None,
    "image": None,
    "strength": None,
    "resize": False,
    "step_cache": None,
    "others": EMPTY,
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_members_have_their_signatures(name: str) -> None:
    parameters = inspect.signature(getattr(ZImagePipeline, name)).parameters
    found = {key: parameter.default for key, parameter in parameters.items() if key != "self"}
    assert found == SIGNATURES[name]


def test_a_call_takes_what_diffusers_takes() -> None:
    parameters = inspect.signature(ZImagePipeline.__call__).parameters
    # None: what is configured, or else what diffusers has.
    expected = CALL_DEFAULTS | {"cfg_normalization": None, "cfg_truncation": None}
    assert {key: parameter.default for key, parameter in parameters.items() if key != "self"} == expected
    assert list(parameters)[1:8] == [
        "prompt",
        "height",
        "width",
        "num_inference_steps",
        "sigmas",
        "guidance_scale",
        "cfg_normalization",
    ]


def test_class_attributes() -> None:
    assert issubclass(ZImagePipeline, DiffusionPipeline)
    assert list(ZImagePipeline.components) == ["text_encoder", "transformer", "vae"]
    assert all(issubclass(component, ComponentModel) for component in ZImagePipeline.components.values())
    assert ZImagePipeline.unprefixed_weight_component == "transformer"
    assert ZImagePipeline.default_num_inference_steps == 50
    assert ZImagePipeline.default_residual_threshold == 0.06
    assert ZImagePipeline.default_taylorseer_cache_interval == 5
    assert ZImagePipeline.default_taylorseer_max_order == 1
    assert ZImagePipeline.default_taylorseer_warmup_steps == 9
    for name in ("prepare_scheduler", "scheduler_step"):
        assert isinstance(inspect.getattr_static(ZImagePipeline, name), staticmethod)


def test_everything_public_can_be_imported() -> None:
    assert {
        "ARCHITECTURES",
        "ZImageArchConfig",
        "ZImageModelInputs",
        "ZImagePipeline",
        "ZImagePipelineOutput",
        "ZImageTransformerModel",
    } <= set(max_zimage.__all__)
    for name in max_zimage.__all__:
        assert getattr(max_zimage, name) is not None
    # Checkpoints of image-to-image and inpainting hold the same parts under a name of their own.
    names = ["ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline"]
    assert [architecture.name for architecture in max_zimage.ARCHITECTURES] == names
    assert {architecture.pipeline_model for architecture in max_zimage.ARCHITECTURES} == {ZImagePipeline}


def test_preprocess_latents_packs(pipeline: ZImagePipeline) -> None:
    latents = initial_noise(3, 2, 16, 80, 112)
    np.testing.assert_array_equal(pipeline.preprocess_latents(buffer(latents)).to_numpy(), packed(latents))
    with pytest.raises(ValueError, match=r"latents are float32 from the first step to the last, got DType\.bfloat16"):
        pipeline.preprocess_latents(buffer(latents), DType.bfloat16)
    with pytest.raises(ValueError, match="even sides, got 5 x 6"):
        pipeline.preprocess_latents(buffer(np.zeros((1, 16, 5, 6), np.float32)))


def test_prepare_scheduler_splits_sigmas() -> None:
    sigmas = np.array([1.0, 0.9, 0.75, 0.5, 0.0], np.float32)
    timesteps, deltas = ZImagePipeline.prepare_scheduler(buffer(sigmas))
    np.testing.assert_array_equal(timesteps.to_numpy(), sigmas[:-1])
    np.testing.assert_array_equal(deltas.to_numpy(), np.diff(sigmas))


def test_scheduler_step_is_euler_with_the_sign_folded_in() -> None:
    latents, prediction = np.random.default_rng(0).standard_normal((2, 2, 12, 64), np.float32)
    delta = np.array([-0.25], np.float32)
    moved = ZImagePipeline.scheduler_step(buffer(latents), buffer(prediction), buffer(delta)).to_numpy()
    # A fused multiply-add rounds once where numpy rounds twice.
    np.testing.assert_allclose(moved, latents - delta * prediction, rtol=0, atol=5e-7)


def test_decode_latents_in_every_form(pipeline: ZImagePipeline) -> None:
    latents = initial_noise(3, 2, 16, 80, 112)
    tokens, sides = buffer(packed(latents)), (np.empty(5), np.empty(7))
    np.testing.assert_array_equal(pipeline.decode_latents(tokens, *sides, "latent"), latents)
    pixels = pipeline.decode_latents(tokens, *sides)
    assert isinstance(pixels, np.ndarray)
    assert (pixels.shape, pixels.dtype) == ((2, 80, 112, 3), np.uint8)
    for picture, expected in zip(pipeline.decode_latents(tokens, *sides, "pil"), pixels, strict=True):
        assert isinstance(picture, Image.Image)
        np.testing.assert_array_equal(np.asarray(picture), expected)
    with pytest.raises(RequestError, match="output_type must be one of pil, np, latent, got 'jpeg'"):
        pipeline.decode_latents(tokens, *sides, "jpeg")


def test_run_denoising_step_returns_the_prediction(embedded: Pair) -> None:
    """Without step caching: what the loop's own step moves the latents by."""
    pipeline, call = embedded.ours, Call(guidance=0.0)
    inputs = inputs_of(pipeline, request_of(embedded, call))
    transformer, latents = OpenTransformer.of(pipeline, inputs), packed(noise(embedded, call))
    state = pipeline.create_cache_state(1, latents.shape[1], None)
    assert state == ZImageCacheState()
    step = transformer.step(1, buffer(latents))
    prediction = pipeline.run_denoising_step(1, state, pipeline.device, inputs=step).to_numpy()
    moved = pipeline.transformer.model(*step.arguments)[0].to_numpy()
    assert relative_l2(moved, latents - inputs.schedule.deltas[1] * prediction) <= TRANSFORMER_L2
