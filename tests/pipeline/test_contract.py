"""Members that MAX documents, called as documented, against numpy and diffusers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from max.experimental.tensor import Tensor
from max.pipelines.context import PixelContext, TokenBuffer
from max.pipelines.lib.interfaces import ArchConfig

import max_zimage
from max_zimage import FirstBlockCache, TaylorSeer, ZImageArchConfig, ZImagePipeline, components
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.errors import RequestError
from max_zimage.sampling.schedule import ScheduleSpec, schedule
from tests.references.diffusers_runs import Call, Pair, noise, packed, reference_features, relative_l2
from tests.references.noises import initial_noise
from tests.tolerances import ENCODER_L2, FEATURES_L2

PROMPT = "a red star on a blue background"


def buffer(values: np.ndarray) -> Buffer:
    return Buffer.from_numpy(np.ascontiguousarray(values))


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "buffer": buffer,
    "tensor": lambda values: Tensor.from_dlpack(np.ascontiguousarray(values)),
    "numpy": lambda values: values,
    "torch": torch.from_numpy,
}


@pytest.mark.parametrize("form", FORMS)
def test_prompt_embeddings_of_token_tensors(form: str, embedded: Pair) -> None:
    """[length] and [batch, length], every caption once a picture, in diffusers' numbers."""
    call = Call(prompts=(40,), guidance=0.0)
    ids = embedded.ours.tokenizer.encode(embedded.arguments(call)["prompt"][0])
    expected = reference_features(embedded, call)[0][0].numpy()
    made = embedded.ours.prepare_prompt_embeddings(FORMS[form](ids), 1)
    assert (list(made.shape), made.is_contiguous) == ([1, len(ids), expected.shape[1]], True)
    assert relative_l2(made.to_numpy()[0], expected) <= FEATURES_L2
    two = np.stack([ids, ids[::-1]])
    made = embedded.ours.prepare_prompt_embeddings(tokens=FORMS[form](two.copy()), num_images_per_prompt=2)
    assert list(made.shape) == [4, len(ids), expected.shape[1]]
    again = made.to_numpy()
    np.testing.assert_array_equal(again[:2], again[2:])
    assert relative_l2(again[2], expected) <= FEATURES_L2
    assert relative_l2(again[1], expected) > 0.1


@pytest.mark.parametrize(
    ("tokens", "copies", "message"),
    [
        (np.zeros(3, np.float32), 1, r"tokens must be a tensor of ids from 0 to \d+, .*, got float32 \[3\]"),
        (np.zeros((1, 1, 3), np.int64), 1, r"got int64 \[1, 1, 3\]"),
        (np.zeros(0, np.int64), 1, r"got int64 \[0\]"),
        (np.array([0, 10**6]), 1, "got ids from 0 to 1000000"),
        (np.array([-1, 0]), 1, "got ids from -1 to 0"),
        (np.zeros(10**6, np.int64), 1, "tokens may have a length of .* at most, got 1000000"),
        (np.zeros(3, np.int64), 0, "num_images_per_prompt must be from 1 to"),
    ],
)
def test_tokens_that_are_none(tokens: np.ndarray, copies: int, message: str, embedded: Pair) -> None:
    with pytest.raises(RequestError, match=message):
        embedded.ours.prepare_prompt_embeddings(tokens, copies)


def test_what_is_no_tensor(embedded: Pair) -> None:
    with pytest.raises(TypeError, match="a tensor is wanted, got list"):
        embedded.ours.prepare_prompt_embeddings([1, 2], 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_small_members_take_every_tensor(form: str, embedded: Pair) -> None:
    made = FORMS[form]
    latents = initial_noise(3, 2, 16, 80, 112)
    tokens = embedded.ours.preprocess_latents(made(latents), DType.float32)
    np.testing.assert_array_equal(tokens.to_numpy(), packed(latents))
    sides = (made(np.empty(5, np.float32)), made(np.empty(7, np.float32)))
    np.testing.assert_array_equal(embedded.ours.decode_latents(made(packed(latents)), *sides, "latent"), latents)
    sigmas = np.array([1.0, 0.7, 0.0], np.float32)
    times, deltas = ZImagePipeline.prepare_scheduler(made(sigmas))
    np.testing.assert_array_equal(times.to_numpy(), sigmas[:-1])
    moved = ZImagePipeline.scheduler_step(made(packed(latents)), made(packed(latents)), made(np.array([-0.5], "f4")))
    np.testing.assert_allclose(moved.to_numpy(), 1.5 * packed(latents), rtol=0, atol=5e-7)
    np.testing.assert_array_equal(deltas.to_numpy(), np.diff(sigmas))


def test_prepare_img2img_latents(embedded: Pair) -> None:
    """Against diffusers' encoder and numpy, on a picture that is neither square nor of even token sides."""
    rng = np.random.default_rng(1)
    image, start = rng.integers(0, 256, (1, 80, 112, 3), np.uint8), rng.standard_normal((2, 16, 10, 14), np.float32)
    vae, sigma = embedded.theirs.vae, np.float32(0.7)
    signed = np.ascontiguousarray(image.transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - np.float32(1)
    with torch.no_grad():
        mode = vae.encode(torch.from_numpy(signed)).latent_dist.mode().numpy()
    expected = sigma * start + (1 - sigma) * (mode - vae.config.shift_factor) * vae.config.scaling_factor
    sigmas = np.array([sigma, 0.3], np.float32)
    ours = embedded.ours.prepare_img2img_latents(buffer(start), buffer(image), sigmas)
    assert relative_l2(ours.to_numpy(), expected) <= ENCODER_L2
    for form in FORMS.values():  # as MAX has it: channels first, in [-1, 1]
        again = embedded.ours.prepare_img2img_latents(form(start), form(signed), form(sigmas))
        np.testing.assert_array_equal(again.to_numpy(), ours.to_numpy())
    with pytest.raises(ValueError, match="the sides of a picture must be multiples of 8, got 80 x 100"):
        embedded.ours.prepare_img2img_latents(buffer(start), buffer(image[:, :, :100]), np.ones(1, np.float32))
    with pytest.raises(ValueError, match="must hold the 256 levels of a picture"):
        embedded.ours.prepare_img2img_latents(start, signed * np.float32(0.3), sigmas)
    with pytest.raises(ValueError, match=r"image_tensor must be uint8 .* or float32 .*, got uint8 \[1, 3, 80, 112\]"):
        embedded.ours.prepare_img2img_latents(start, image.transpose(0, 3, 1, 2), sigmas)


CONFIGS: dict[str, Any] = {
    "attributes": SimpleNamespace(
        num_attention_heads=3, attention_head_dim=8, patch_size=2, out_channels=None, in_channels=5
    ),
    "mapping": {
        "num_attention_heads": 4,
        "attention_head_dim": 6,
        "patch_size": 2,
        "out_channels": 5,
        "in_channels": 9,
    },
    "Z-Image's": {"dim": 24, "in_channels": 5, "all_patch_size": [2], "n_heads": 3},
    "Z-Image's attributes": SimpleNamespace(dim=24, in_channels=5, all_patch_size=(2,), all_f_patch_size=(1,)),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("cache", [None, FirstBlockCache(), TaylorSeer()], ids=["none", "first block", "taylorseer"])
def test_cache_state_of_any_transformer(
    cache: object, config: Any, embedded: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ZImagePipeline, "configured_cache", cache)
    state = embedded.ours.create_cache_state(2, 64, config, text_seq_len=7)
    names = ("prev_residual", "prev_output", "taylor_factor_0", "taylor_factor_1", "taylor_factor_2")
    shapes = [None if (held := getattr(state, name)) is None else list(held.shape) for name in names]
    residual, output = [2, 64, 24], [2, 64, 20]
    expected = {
        type(None): [None] * 5,
        FirstBlockCache: [residual, output, None, None, None],
        TaylorSeer: [None, None, output, output, output],
    }
    assert shapes == expected[type(cache)]
    assert all(not getattr(state, name).to_numpy().any() for name, shape in zip(names, shapes, strict=True) if shape)


def test_cache_state_of_this_transformer(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """None, its own shape, and the checkpoint's configuration in either library's form say the same."""
    monkeypatch.setattr(ZImagePipeline, "configured_cache", FirstBlockCache())
    pipeline, theirs = embedded.ours, embedded.theirs.transformer.config
    for config in (None, pipeline.transformer.spec, pipeline.transformer.config, theirs):
        state = pipeline.create_cache_state(1, 32, config)
        assert state.prev_residual is not None
        assert state.prev_output is not None
        assert list(state.prev_residual.shape) == [1, 32, theirs.dim]
        assert list(state.prev_output.shape) == [1, 32, 4 * theirs.in_channels]
    for config in ({}, {"num_attention_heads": 3}, "x"):
        with pytest.raises(
            TypeError, match="transformer_config must have num_attention_heads, attention_head_dim, pat"
        ):
            pipeline.create_cache_state(1, 32, config)
    with pytest.raises(RequestError, match="batch_size must be from 1 to"):
        pipeline.create_cache_state(0, 32, None)


def test_a_step_takes_no_unknown_arguments(embedded: Pair) -> None:
    state = embedded.ours.create_cache_state(1, 32, None)
    with pytest.raises(TypeError, match=r"a step takes inputs, .* got prompt_embeds, timestep"):
        embedded.ours.run_denoising_step(0, state, embedded.ours.device, prompt_embeds=1, timestep=2)


def context(pair: Pair, image: np.ndarray | None = None) -> PixelContext:
    """MAX's own context, filled by hand."""
    sigmas = schedule(ScheduleSpec(shift=3.0, num_train_timesteps=1000), steps=3)
    encode = pair.ours.tokenizer.encode
    return PixelContext(
        tokens=TokenBuffer(encode(PROMPT)),
        negative_tokens=TokenBuffer(encode("green")),
        sigmas=sigmas.sigmas,
        timesteps=sigmas.timesteps,
        latents=noise(pair, Call(height=80, width=112)),
        height=80,
        width=112,
        num_inference_steps=3,
        guidance_scale=2.5,
        cfg_normalization=True,
        cfg_truncation=0.9,
        input_image=image,
    )


def test_a_context_of_max_is_drawn_in_every_form(embedded: Pair) -> None:
    pipeline = embedded.ours
    inputs = pipeline.prepare_inputs(context(embedded))
    arguments: dict[str, Any] = {"negative_prompt": "green", "guidance_scale": 2.5, "cfg_normalization": 1.0}
    arguments |= {"cfg_truncation": 0.9, "num_inference_steps": 3, "height": 80, "width": 112}
    call = {"latents": noise(embedded, Call(height=80, width=112)), **arguments}
    for kind in ("np", "latent"):
        np.testing.assert_array_equal(
            pipeline.execute(inputs, output_type=kind).images, np.asarray(pipeline(PROMPT, output_type=kind, **call))
        )
    (picture,) = pipeline.execute(inputs, "pil").images
    np.testing.assert_array_equal(np.asarray(picture), pipeline.execute(inputs).images[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"latents": np.zeros(0, np.float32)},
            r"latents must be a float32 numpy array .* = \[1, 16, 10, 14\], got shape",
        ),
        ({"latents": np.zeros((1, 16, 10, 10), np.float32)}, r"latents must be .*, got shape \[1, 16, 10, 10\]"),
        ({"latents": np.full((1, 16, 10, 14), np.nan, np.float32)}, "latents must be .* of finite values"),
        ({"num_images_per_prompt": 2}, r"latents must be .* = \[2, 16, 10, 14\]"),
        ({"height": 84}, "height must be a multiple of 16, got 84"),
        ({"sigmas": np.zeros(0, np.float32)}, "sigmas must be"),
        ({"timesteps": np.zeros(2, np.float32)}, "timesteps must be one for every step, 3, got .0.0, 0.0"),
        ({"sigmas": np.array([1.0, 0.5, 0.7, 0.0], np.float32)}, "sigmas must fall at every step"),
        ({"guidance_scale": -1.0}, "guidance_scale must be"),
        (
            {"input_image": np.zeros((80, 100, 3), np.uint8)},
            "image: it has 100x80 pixels and the request asks for 112x",
        ),
        ({"input_image": np.zeros((80, 112, 3), np.float32)}, "input_image must be .*, got float32"),
        ({"tokens": TokenBuffer(np.array([10**6]))}, "tokens must be ids from 0 to"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_contexts_are_validated(changes: dict[str, Any], message: str, embedded: Pair) -> None:
    asked = context(embedded)
    for name, value in changes.items():
        setattr(asked, name, value)
    with pytest.raises(RequestError, match=message):
        embedded.ours.prepare_inputs(asked)


def test_names_of_components() -> None:
    assert max_zimage.Qwen3TextEncoderZImageModel is components.Qwen3TextEncoderZImageModel
    assert max_zimage.AutoencoderKLModel is components.AutoencoderKLModel
    assert ZImagePipeline.components == {
        "text_encoder": max_zimage.Qwen3TextEncoderZImageModel,
        "transformer": max_zimage.ZImageTransformerModel,
        "vae": max_zimage.AutoencoderKLModel,
    }


def test_unknown_keywords_of_the_constructor_are_named() -> None:
    with pytest.raises(TypeError, match="ZImagePipeline has no use for residual_threshold, foo; its arguments are"):
        ZImagePipeline(None, None, [], [], residual_threshold=1, foo=2)  # type: ignore[arg-type]


def test_the_arch_config() -> None:
    config = ZImagePipeline.prepare(EMBEDDED, device="cpu").config
    made = ZImageArchConfig.initialize(config)
    assert isinstance(made, ArchConfig)
    assert made.pipeline_config is config
    assert made.get_max_seq_len() == 512
    assert ZImageArchConfig.initialize(config, config.models["vae"], max_seq_len=512).pipeline_config is config
    by_name = {architecture.name: architecture for architecture in max_zimage.ARCHITECTURES}
    assert by_name["ZImagePipeline"].config is ZImageArchConfig
