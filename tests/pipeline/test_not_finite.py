"""NaN and infinity on the way to a picture: found wherever they arise, and at the cost of that picture alone.

A number is planted into weights, into latents that are given, and into those a callback returns. Without the checks in
graphs all of these make a picture: white, black, or one that only looks like none of the prompt's.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from max.driver import Buffer
from PIL import Image

from max_zimage import NotFiniteError, ZImagePipeline
from max_zimage.pipeline.not_finite import are_finite
from tests.pipeline.test_image_to_image import start
from tests.references.diffusers_runs import Pair
from tests.references.noises import initial_noise
from tests.references.planting import planted, planted_copy

PROMPT = "a red star on a blue background"
SIZE: dict[str, Any] = {"height": 80, "width": 112, "num_inference_steps": 2, "guidance_scale": 2.0}
NAN, INF = float("nan"), float("inf")
DIM = 256  # of the embedded model's transformer
GATE = 3 * 4 * DIM + DIM + 5  # a gate of block 3, which the hyperbolic tangent would make 1

TRANSFORMER = [
    ("x_embedder.bias", INF, 7),
    ("x_pad_token", -INF, 7),
    ("cap_embedder.linear.weight", -INF, 100),
    ("cap_pad_token", INF, 9),
    ("context_refiner.0.feed_forward.w2.weight", INF, 500),
    ("t_embedder.linear_2.bias", 1e38, 3),
    ("modulation.bias", NAN, GATE),
    ("modulation.bias", INF, GATE),
    ("noise_refiner.0.attention.qkv.weight", 1e38, 40),
    ("layers.3.attention.out.weight", INF, 1000),
    ("layers.3.feed_forward.w13.weight", INF, 77),
    ("layers.5.ffn_norm2.weight", INF, 0),
    ("final_layer.linear.weight", NAN, 0),
    ("final_layer.linear.weight", 1e38, 0),
]
DECODER = [
    ("decoder.conv_in.weight", INF, 50),
    ("decoder.mid_block.resnets.0.conv1.bias", 1e30, 3),
    ("decoder.mid_block.attentions.0.qkv.weight", NAN, 5),
    ("decoder.up_blocks.2.resnets.1.conv2.bias", 1e25, 3),
    ("decoder.conv_norm_out.weight", NAN, 0),
    ("decoder.conv_out.bias", -INF, 2),
    ("decoder.conv_out.bias", 1e38, 2),
]
ENCODER = [
    ("encoder.conv_out.bias", NAN, 16 + 3),  # of a log variance, which a clamp would make 20
    ("encoder.conv_out.bias", INF, 16 + 3),
    ("encoder.conv_in.bias", 1e30, 3),
]


def draw(pipeline: ZImagePipeline, **arguments: Any) -> np.ndarray:
    return np.asarray(pipeline(PROMPT, output_type="np", **{**SIZE, "seed": 7, **arguments}))


@pytest.fixture(scope="module")
def clean(embedded: Pair) -> np.ndarray:
    return draw(embedded.ours)


def transformer_weights(pair: Pair) -> Mapping[str, Buffer]:
    weights = pair.ours.transformer.provide()
    assert weights is not None
    return weights


@pytest.mark.parametrize(("name", "value", "index"), TRANSFORMER)
def test_a_weight_of_the_transformer(name: str, value: float, index: int, embedded: Pair, clean: np.ndarray) -> None:
    with planted(transformer_weights(embedded), name, value, index):
        for kind in ("np", "latent"):
            with pytest.raises(NotFiniteError, match="the picture came out as NaN or infinity") as caught:
                embedded.ours(PROMPT, output_type=kind, seed=7, **SIZE)
            assert caught.value.images == [None]
            assert "`max-zimage info --check-weights` names it" in str(caught.value)
    np.testing.assert_array_equal(draw(embedded.ours), clean)


@pytest.mark.parametrize(("name", "value", "index"), DECODER)
def test_a_weight_of_the_decoder(name: str, value: float, index: int, embedded: Pair, clean: np.ndarray) -> None:
    with planted(embedded.ours.vae.provide(), name, value, index):
        for kind in ("np", "pil"):
            with pytest.raises(NotFiniteError):
                embedded.ours(PROMPT, output_type=kind, seed=7, **SIZE)
        assert np.isfinite(np.asarray(embedded.ours(PROMPT, output_type="latent", seed=7, **SIZE))).all()
    np.testing.assert_array_equal(draw(embedded.ours), clean)


@pytest.mark.parametrize(("name", "value", "index"), ENCODER)
def test_a_weight_of_the_encoder(name: str, value: float, index: int, embedded: Pair) -> None:
    """Said before any step is taken."""

    def never(*arguments: object) -> None:
        raise AssertionError("a step was taken")

    with planted(embedded.ours.vae.provide(), name, value, index), pytest.raises(NotFiniteError, match="the image to"):
        embedded.ours(PROMPT, image=start(), callback_on_step_end=never, seed=7, num_inference_steps=2)


@pytest.mark.parametrize(
    ("tensor", "value"),
    [("model.layers.1.self_attn.q_proj.weight", NAN), ("model.layers.2.mlp.down_proj.weight", INF)],
)
def test_a_weight_of_the_text_encoder(tensor: str, value: float, tmp_path: Path) -> None:
    """From a file, whose graphs are those of the embedded model: weights are no part of what is compiled."""
    pipeline = ZImagePipeline.from_pretrained(planted_copy(tmp_path, "text_encoder", tensor, value), device="cpu")
    with pytest.raises(NotFiniteError):
        draw(pipeline)


@pytest.mark.slow  # as the other tests in bfloat16: its graphs take minutes to compile
@pytest.mark.parametrize(
    ("part", "name", "value", "index"),
    [
        ("transformer", "x_pad_token", INF, 7),
        ("transformer", "layers.3.attention.qkv.weight", NAN, 40),
        ("transformer", "modulation.bias", NAN, GATE),
    ],
)
def test_in_bfloat16(part: str, name: str, value: float, index: int, embedded_bfloat16: Pair) -> None:
    component: Any = getattr(embedded_bfloat16.ours, part)
    with (
        planted(component.provide(), name, value, index),
        pytest.raises(NotFiniteError, match=r"bfloat16 \(try float3"),
    ):
        draw(embedded_bfloat16.ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensor", "value"), [("decoder.conv_out.bias", 3e38), ("decoder.mid_block.attentions.0.to_q.weight", NAN)]
)
def test_a_decoder_in_bfloat16(tensor: str, value: float, embedded_bfloat16: Pair, tmp_path: Path) -> None:
    """From a file: a number that is replaced in memory does not reach the decoder of this dtype on a CPU."""
    model = planted_copy(tmp_path, "vae", tensor, value)
    pipeline = ZImagePipeline.from_pretrained(model, device="cpu", dtype="bfloat16")
    with pytest.raises(NotFiniteError, match=r"bfloat16 \(try float3"):
        draw(pipeline)


@pytest.mark.parametrize(
    "cache", ["first_block:threshold=0.2", "first_block:block=layers", "taylorseer:warmup_steps=2"]
)
def test_under_a_step_cache(cache: str, embedded: Pair) -> None:
    """The step cache is the first suspect."""
    with (
        planted(transformer_weights(embedded), "layers.3.attention.out.weight", NAN, 1000),
        pytest.raises(NotFiniteError, match=f"may have caused it: the step cache {cache.split(':')[0]}"),
    ):
        draw(embedded.ours, num_inference_steps=6, step_cache=cache)


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("size", [1e20, 1e37])
def test_the_other_pictures_of_a_call_are_not_lost(
    size: float, at_once: int, embedded: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite latents that overflow, in one of three pictures; large pictures are decoded a few at a time."""
    monkeypatch.setattr("max_zimage.pipeline.stages.pictures_at_once", lambda *_: at_once)
    latents = initial_noise(3, 3, 16, 80, 112)
    expected = draw(embedded.ours, seed=None, latents=latents, num_images_per_prompt=3)
    latents[1] *= np.float32(size)
    for kind in ("np", "pil"):
        with pytest.raises(NotFiniteError, match=r"picture 1 of 3, counted from 0, .* the latents that were") as caught:
            embedded.ours(PROMPT, output_type=kind, latents=latents, num_images_per_prompt=3, **SIZE)
        first, bad, last = caught.value.images
        assert bad is None
        assert isinstance(first, Image.Image if kind == "pil" else np.ndarray)
        np.testing.assert_array_equal(np.asarray(first), expected[0])
        np.testing.assert_array_equal(np.asarray(last), expected[2])
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.suspects) == (str(caught.value), caught.value.suspects)


def test_latents_for_the_decoder_alone(embedded: Pair) -> None:
    """`decode_latents`, as MAX's documentation has it."""
    from max.driver import Buffer

    tokens = np.zeros((2, 35, 64), np.float32)
    tokens[0, 3, 4] = NAN
    with pytest.raises(NotFiniteError, match="picture 0 of 2, counted from 0, came out") as caught:
        embedded.ours.decode_latents(Buffer.from_numpy(tokens), np.empty(5), np.empty(7))
    assert caught.value.images[0] is None
    assert caught.value.images[1].shape == (80, 112, 3)


def test_what_counts_as_finite() -> None:
    values = np.zeros((6, 2, 3), np.float32)
    values[:, 1, 2] = [1.0, NAN, INF, -INF, 1e20, 1e18]
    assert are_finite(values).tolist() == [True, False, False, False, False, True]
