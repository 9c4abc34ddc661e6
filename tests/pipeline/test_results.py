"""A call's result, and a call's arguments, as code written for diffusers has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage.device.devices import as_buffer
from max_zimage.pipeline.results import Pictures
from max_zimage.request.metadata import read_parameters
from tests.references.diffusers_runs import Pair

PROMPT = "a red star on a blue background"


def test_a_result_is_a_list_and_more(embedded: Pair, tmp_path: Path) -> None:
    pipe = embedded.ours
    pipe(PROMPT, num_inference_steps=1, seed=3).images[0].save(tmp_path / "x.png")
    result = pipe(PROMPT, num_inference_steps=1, seed=3)
    assert isinstance(result, list)
    assert result.images is result
    result.save(tmp_path / "y.png")
    result.save(str(tmp_path / "z.jpg"), quality=50)
    result.save(tmp_path / "w", format="PNG")
    for name in ("x.png", "y.png", "w"):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), np.asarray(result[0]))
    assert Image.open(tmp_path / "z.jpg").format == "JPEG"
    several = pipe(PROMPT, num_inference_steps=1, num_images_per_prompt=2)
    assert len(several.images) == 2
    with pytest.raises(
        ValueError, match=r"the result holds 2 pictures; save each by itself, such as result\[0\]\.save"
    ):
        several.save(tmp_path / "v.png")
    assert not (tmp_path / "v.png").exists()


def test_a_result_is_an_array_and_more(embedded: Pair, tmp_path: Path) -> None:
    pipe = embedded.ours
    result = pipe(PROMPT, num_inference_steps=1, seed=3, output_type="np")
    assert isinstance(result, np.ndarray)
    assert result.images is result
    assert {type(result[0]), type(result[..., 0]), type(result / 255)} == {np.ndarray}
    assert not isinstance(result.max(), np.ndarray)
    result.save(tmp_path / "x.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), result[0])
    latents = pipe(PROMPT, num_inference_steps=1, seed=3, output_type="latent")
    assert isinstance(latents, np.ndarray)
    assert latents.images.shape == (1, 16, 16, 16)
    np.testing.assert_array_equal(as_buffer(latents).to_numpy(), latents)
    with pytest.raises(TypeError, match="latents are no pictures"):
        latents.save(tmp_path / "y.png")
    with pytest.raises(ValueError, match="the result holds 2 pictures"):
        pipe(PROMPT, num_inference_steps=1, num_images_per_prompt=2, output_type="np").save(tmp_path / "y.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"return_dict": False}, "return_dict: the result is the pictures, and answers to .images"),
        ({"joint_attention_kwargs": {"scale": 1}}, "joint_attention_kwargs: attention is compiled"),
        (
            {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
            "callback_on_step_end_tensor_inputs: callbacks are",
        ),
        ({"num_steps": 3, "width_": 1}, "num_steps: there is no such argument; leave it out; width_: there is"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_other_arguments_are_refused_by_name(arguments: dict[str, Any], message: str, embedded: Pair) -> None:
    with pytest.raises(TypeError, match=message):
        embedded.ours(PROMPT, **arguments)


def test_arguments_of_diffusers_that_mean_what_happens(embedded: Pair) -> None:
    common: dict[str, Any] = {"num_inference_steps": 1, "seed": 3, "output_type": "np"}
    others: dict[str, Any] = {"generator": None, "return_dict": True, "joint_attention_kwargs": None}
    others |= {"callback_on_step_end_tensor_inputs": ["latents"]}
    np.testing.assert_array_equal(embedded.ours(PROMPT, **common, **others), embedded.ours(PROMPT, **common))


def test_a_result_says_what_it_was_drawn_with(embedded: Pair, tmp_path: Path) -> None:
    """By Pillow's own saving: options of the caller come first, and pixels are the same without."""
    pipe = embedded.ours
    pipe.named = ("tiny-zimage", ())
    for output_type in ("pil", "np"):
        result = pipe(PROMPT, num_inference_steps=1, seed=3, output_type=output_type)
        for name in ("a.png", "a.jpg", "a.webp"):
            result.save(tmp_path / name)
            found = read_parameters(tmp_path / name)
            assert (found.prompt, found.seed, found.model, found.device) == (PROMPT, 3, "tiny-zimage", "cpu")
            assert b"/trainedAlgorithmicMedia<" in Image.open(tmp_path / name).info["xmp"]
        result.save(tmp_path / "b.png", metadata=False)
        result.save(tmp_path / "c.bmp")
        for name in ("b.png", "c.bmp"):
            assert not {"xmp", "parameters"} & set(Image.open(tmp_path / name).info)
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), np.asarray(result[0]))
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(result[0]))
    start = result[0]
    pictures = pipe([PROMPT, "a ring"], num_inference_steps=2, seed=5, image=start)
    assert isinstance(pictures, Pictures)
    first, second = pictures.parameters
    assert first is not None
    assert second is not None
    assert (first.prompt, second.prompt, first.seed, second.seed) == (PROMPT, "a ring", 5, 6)
    pipe(PROMPT, num_inference_steps=2, seed=5, image=start).save(tmp_path / "d.png")
    assert b"/compositeWithTrainedAlgorithmicMedia<" in Image.open(tmp_path / "d.png").info["xmp"]


def test_a_result_that_nothing_repeats_says_what_made_it(embedded: Pair, tmp_path: Path) -> None:
    def replaced(pipe: Any, step: int, timestep: float, values: dict[str, Any]) -> dict[str, Any]:
        return values

    pipe = embedded.ours
    latents = np.zeros((1, 16, 16, 16), np.float32)
    for more in ({"latents": latents}, {"seed": 3, "callback_on_step_end": replaced}):
        result = pipe(PROMPT, num_inference_steps=1, **more)
        assert isinstance(result, Pictures)
        assert result.parameters == [None]
        result.save(tmp_path / "a.png")
        assert "parameters" not in Image.open(tmp_path / "a.png").info
        assert b"/trainedAlgorithmicMedia<" in Image.open(tmp_path / "a.png").info["xmp"]
