"""Masks of the page that are no strokes: from a file, and with soft edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from playwright.sync_api import FilePayload, expect

from max_zimage import ZImagePipeline
from tests.references.browser import Visit, pixels
from tests.serving.page.test_drawing import drop
from tests.serving.page.test_editing import SCENE, SIDE, brush, mask_of, png, start_from, stroke

PROMPT = "a green circle on a blue background"


def grey_mask() -> np.ndarray:
    """Black on the left, white on the right, and every grey between them."""
    ramp = np.clip(np.linspace(-64, 320, SIDE), 0, 255).astype(np.uint8)
    return np.broadcast_to(ramp, (SIDE, SIDE)).copy()


def choose_mask(here: Visit, picture: np.ndarray) -> None:
    file: FilePayload = {"name": "mask.png", "mimeType": "image/png", "buffer": png(picture)}
    here.page.set_input_files("#mask-file", file)


def test_a_dropped_mask_with_greys_is_a_soft_one(here: Visit, pipeline: ZImagePipeline) -> None:
    start_from(here, SCENE)
    drop(here, "#drop-mask", png(grey_mask()), "mask.png")
    expect(here.page.locator("#mask-said")).to_have_text("Mask: mask.png.")
    expect(here.page.locator("#soft_mask")).to_be_checked()
    assert float(here.page.input_value("#strength")) == 1.0
    np.testing.assert_array_equal(mask_of(here), grey_mask())
    here.drawn(prompt=PROMPT, seed=5, steps=3)
    same: dict[str, Any] = {"image": Image.fromarray(SCENE), "mask_image": grey_mask(), "soft_mask": True}
    expected = pipeline(PROMPT, **same, seed=5, num_inference_steps=3, strength=1.0, output_type="np")
    np.testing.assert_array_equal(pixels(here.saved()), np.asarray(expected)[0])
    here.page.uncheck("#soft_mask")
    here.drawn(seed=5)
    expected = pipeline(PROMPT, **same | {"soft_mask": False}, seed=5, num_inference_steps=3, output_type="np")
    np.testing.assert_array_equal(pixels(here.saved()), np.asarray(expected)[0])
    here.page.click("#mask-clear")
    expect(here.page.locator("#mask-fields")).to_be_hidden()
    expect(here.page.locator("#mask-said")).to_be_empty()


def test_a_chosen_mask_is_told_apart_by_transparency_and_resized(here: Visit) -> None:
    start_from(here, SCENE)
    white = np.zeros((32, 64), np.uint8)
    white[:, 32:] = 255
    choose_mask(here, white)
    expect(here.page.locator("#mask-said")).to_have_text("Mask: mask.png; resized from 64 \u00d7 32 to 128 \u00d7 128.")
    mask = mask_of(here)
    assert mask.shape == (SIDE, SIDE)
    assert (mask[:, :60] == 0).all()
    assert (mask[:, 68:] == 255).all()
    clear = np.full((SIDE, SIDE, 4), 200, np.uint8)
    clear[:, :, 3] = 255 - grey_mask()
    choose_mask(here, clear)
    expect(here.page.locator("#mask-said")).to_contain_text("it has transparent pixels, and those are drawn anew")
    np.testing.assert_array_equal(mask_of(here), grey_mask())
    choose_mask(here, np.zeros((8, 8), np.uint8))
    expect(here.page.locator("#mask_image-error")).to_contain_text("nothing of mask.png would be drawn anew: white is")
    np.testing.assert_array_equal(mask_of(here), grey_mask())  # it stays what it was
    drop(here, "#drop-mask", b"no picture", "x.png")
    expect(here.page.locator("#mask_image-error")).to_contain_text("this file is no picture that the browser can show")


def test_painting_goes_on_from_a_mask_of_a_file(here: Visit) -> None:
    start_from(here, SCENE)
    choose_mask(here, grey_mask())
    here.page.click("#mask-open")
    brush(here, 32)
    stroke(here, (0.1, 0.5), (0.1, 0.5))
    here.page.click("#mask-done")
    mask = mask_of(here)
    assert (mask[56:72, 8:18] == 255).all()
    np.testing.assert_array_equal(mask[:40], grey_mask()[:40])
    here.page.click("#mask-open")
    here.page.click("#invert")
    here.page.click("#mask-done")
    np.testing.assert_array_equal(mask_of(here), 255 - mask)


def test_soft_edges_of_a_painted_mask(here: Visit, pipeline: ZImagePipeline) -> None:
    start_from(here, SCENE)
    here.page.click("#mask-open")
    brush(here, 48)
    stroke(here, (0.0, 0.5), (0.4, 0.5))
    here.page.click("#mask-done")
    hard = mask_of(here)
    assert set(np.unique(hard)) == {0, 255}
    expect(here.page.locator("#soft_mask")).not_to_be_checked()
    here.page.fill("#feather", "6")
    expect(here.page.locator("#soft_mask")).to_be_checked()
    expect(here.page.locator("#feather-range")).to_have_value("6")
    here.page.wait_for_function("() => new Set(document.querySelector('#start-mask').src).size > 0")
    here.page.wait_for_timeout(100)  # it is drawn with the next frame
    soft = mask_of(here)
    # Pillow's blur of the same deviation, which makes it of three boxes too and rounds after each of them.
    blurred = np.asarray(Image.fromarray(hard).filter(ImageFilter.GaussianBlur(6)))
    assert np.abs(soft.astype(int) - blurred).max() <= 3
    assert len(np.unique(soft)) > 100
    here.drawn(prompt=PROMPT, seed=5, steps=3)
    same: dict[str, Any] = {"image": Image.fromarray(SCENE), "mask_image": soft, "soft_mask": True}
    expected = pipeline(PROMPT, **same, seed=5, num_inference_steps=3, strength=1.0, output_type="np")
    np.testing.assert_array_equal(pixels(here.saved()), np.asarray(expected)[0])
    here.page.fill("#feather", "-1")
    here.page.click("#draw")
    expect(here.page.locator("#feather-error")).to_have_text("the soft edge must be from 0 to 256 pixels, got -1")
    here.page.fill("#feather", "0")
    expect(here.page.locator("#soft_mask")).not_to_be_checked()


@pytest.mark.parametrize("deviation", [0.3, 1, 4, 12])
def test_a_blur_is_that_of_a_gaussian(here: Visit, deviation: float) -> None:
    """Against the sum by hand, with pixels outside as those of the edge."""
    mask = np.zeros((96, 160), np.uint8)
    mask[30:60, 50:110] = 255
    found = here.page.evaluate(
        """async ([values, height, width, deviation]) => {
            const { feathered } = await import("/static/js/greys.js");
            return [...feathered({ width, height, values: Uint8ClampedArray.from(values) }, deviation).values];
        }""",
        [mask.ravel().tolist(), *mask.shape, deviation],
    )
    reach = int(5 * deviation) + 2
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel /= kernel.sum()
    exact = mask.astype(np.float64)
    for axis in (0, 1):
        wide = np.pad(exact, [(reach, reach) if each == axis else (0, 0) for each in (0, 1)], mode="edge")
        exact = np.apply_along_axis(np.convolve, axis, wide, kernel, mode="valid")
    difference = np.abs(np.reshape(found, mask.shape) - exact)
    assert difference.max() < (25 if deviation < 0.5 else 6)  # three boxes are no bell below half a pixel
    assert difference.mean() < 2
