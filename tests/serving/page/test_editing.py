"""Pictures to start from on the page: a mask that is painted, margins, adapters, and what is said of wrong values."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, expect

from max_zimage import ZImagePipeline
from max_zimage.request.metadata import read_parameters
from tests.references.browser import Visit, pixels
from tests.references.scenes import render
from tests.references.servers import Server

SIDE = 128
SCENE = render([("red", "star", (0.3, 0.5), 0.2)], "blue")
KEPT_BOUND = 6.0
"""Mean difference in levels of what a mask keeps: the autoencoder's way there and back; 1.4 was measured."""


def png(picture: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    return content.getvalue()


def start_from(here: Visit, picture: np.ndarray) -> None:
    file: FilePayload = {"name": "start.png", "mimeType": "image/png", "buffer": png(picture)}
    here.page.set_input_files("#start-file", file)
    here.page.wait_for_selector("#started", state="visible")


def stroke(here: Visit, *points: tuple[float, float]) -> None:
    """Paint with the mouse, along points as shares of the canvas."""
    box = here.page.locator("#mask-canvas").bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    here.page.mouse.move(*places[0])
    here.page.mouse.down()
    for place in places:
        here.page.mouse.move(*place, steps=8)
    here.page.mouse.up()


def mask_of(here: Visit) -> np.ndarray:
    """The mask as it would be sent, uint8 [height, width]."""
    url = here.page.locator("#start-mask").get_attribute("src")
    assert url is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L"))


def brush(here: Visit, pixels: int) -> None:
    here.page.locator("#brush").fill(str(pixels))


def test_a_painted_mask_draws_anew_what_it_covers(
    here: Visit, pipeline: ZImagePipeline, record_property: Callable[[str, object], None]
) -> None:
    start_from(here, SCENE)
    assert float(here.page.input_value("#strength")) == 0.6
    here.page.click("#mask-open")
    brush(here, 32)
    stroke(here, (0.3, 0.1), (0.3, 0.9))
    here.page.click("#mask-done")
    expect(here.page.locator("#mask-open")).to_be_focused()
    assert float(here.page.input_value("#strength")) == 1.0
    mask = mask_of(here)
    assert mask.shape == (SIDE, SIDE)
    assert set(np.unique(mask)) == {0, 255}
    rows, columns = np.nonzero(mask)
    # A line of 32 pixels across at 0.3 of the width, over the star, from 0.1 to 0.9 of the height, with round ends.
    for found, wanted in zip(
        (*np.percentile(columns, [0, 100]), rows.min(), rows.max()), (22, 54, 0, 127), strict=True
    ):
        assert abs(found - wanted) <= 3
    here.drawn(prompt="a green circle on a blue background", seed=5, steps=6)
    drawn = pixels(here.saved())
    difference = np.abs(drawn.astype(int) - SCENE)
    kept, anew = difference[mask == 0].mean(), difference[mask > 0].mean()
    record_property("levels of what is kept", kept)
    record_property("levels of what is drawn anew", anew)
    assert kept < KEPT_BOUND
    assert anew > 3 * KEPT_BOUND
    same: dict[str, Any] = {
        "image": Image.fromarray(SCENE),
        "mask_image": mask,
        "num_inference_steps": 6,
        "seed": 5,
        "strength": 1.0,
    }
    expected = pipeline("a green circle on a blue background", **same, output_type="np")
    np.testing.assert_array_equal(drawn, np.asarray(expected)[0])
    here.page.check("#composite")
    here.drawn(seed=5)
    np.testing.assert_array_equal(pixels(here.saved())[mask == 0], SCENE[mask == 0])


def test_brush_erase_undo_invert_and_keys(here: Visit) -> None:
    start_from(here, SCENE)

    def painted() -> float:
        here.page.click("#mask-done")
        share = float((mask_of(here) > 0).mean()) if here.page.locator("#start-mask").is_visible() else 0.0
        here.page.click("#mask-open")
        brush(here, 32)
        return share

    here.page.click("#mask-open")
    brush(here, 32)
    stroke(here, (0.5, 0.5), (0.5, 0.5))
    dot = np.pi * 16**2 / SIDE**2
    assert painted() == pytest.approx(dot, rel=0.1)
    here.page.click("#invert")
    assert painted() == pytest.approx(1 - dot, rel=0.05)
    here.page.click("#undo")
    assert painted() == pytest.approx(dot, rel=0.1)
    here.page.click("#erase")
    brush(here, 16)
    stroke(here, (0.5, 0.5), (0.5, 0.5))
    assert painted() == pytest.approx(dot * 3 / 4, rel=0.1)
    here.page.locator("#mask-canvas").focus()
    here.page.keyboard.press("Control+z")
    for key in ("ArrowRight",) * 6 + (" ",):
        here.page.keyboard.press(key)
    assert painted() == pytest.approx(2 * dot, rel=0.1)
    here.page.click("#wipe")
    here.page.keyboard.press("Escape")  # given up: the mask is what it was
    expect(here.page.locator("#mask-dialog")).to_be_hidden()
    assert (mask_of(here) > 0).mean() == pytest.approx(2 * dot, rel=0.1)
    here.page.click("#mask-clear")
    expect(here.page.locator("#start-mask")).to_be_hidden()


def test_margins_around_a_picture(here: Visit) -> None:
    start_from(here, SCENE)
    here.page.fill("#out-right", "32")
    assert here.page.input_value("#width") == "160"
    here.drawn(prompt="a red star on a blue background", seed=5, steps=4)
    drawn = pixels(here.saved())
    assert drawn.shape == (SIDE, SIDE + 32, 3)
    assert np.abs(drawn[:, : SIDE - 16].astype(int) - SCENE[:, : SIDE - 16]).mean() < KEPT_BOUND


def test_a_picture_of_an_odd_size_is_resized_and_that_is_said(here: Visit, tmp_path: Path) -> None:
    start_from(here, SCENE[:100, :120])
    expect(here.page.locator("#start-facts")).to_have_text("120 \u00d7 100 pixels, resized to 128 \u00d7 96")
    here.drawn(prompt="a red star", seed=1, steps=2)
    (tmp_path / "a.png").write_bytes(here.saved())
    kept = read_parameters(tmp_path / "a.png")
    assert (kept.width, kept.height, kept.image_width, kept.strength) == (128, 96, 120, 0.6)
    here.page.get_by_role("button", name="Use as start image").click()
    expect(here.page.locator("#start-facts")).to_have_text("128 \u00d7 96 pixels")


def test_what_the_server_describes_can_be_asked_for(here: Visit, tmp_path: Path) -> None:
    page = here.page
    page.select_option("#template", "gouache-poster")
    page.click("#lora-add")
    page.get_by_label("Weight of style").fill("0.5")
    page.locator("#advanced summary").click()
    page.fill("#find", "sampler")
    expect(page.locator("[data-field=dype]")).to_be_hidden()
    page.select_option("#sampler", "dpmpp_2m")
    page.fill("#find", "")
    page.select_option("#guidance_variant", "cfg_zero_star")
    page.check("#zero_init")
    page.select_option("#dynamic_shift", "false")
    page.fill("#shift_terminal", "0.2")
    page.fill("#guidance_interval", "0, 0.8")
    page.fill("#slg_scale", "2.5")
    page.fill("#slg_layers", "1, 3")
    page.select_option("#output_format", "webp")
    here.drawn(prompt="a red star", seed=1, steps=4, guidance_scale=2)
    (tmp_path / "a.webp").write_bytes(here.saved())
    kept = read_parameters(tmp_path / "a.webp")
    wanted: dict[str, Any] = {"sampler": "dpmpp_2m", "guidance_variant": "cfg_zero_star", "zero_init": True}
    wanted |= {"guidance_interval": (0.0, 0.8), "slg_scale": 2.5, "slg_layers": (1, 3), "guidance_scale": 2.0}
    wanted |= {"dynamic_shift": False, "shift_terminal": 0.2}
    assert {name: getattr(kept, name) for name in wanted} == wanted
    assert [(each["name"], each["scale"]) for each in kept.loras] == [("style.safetensors", 0.5)]
    assert kept.system_prompt
    page.click("#reset")
    expect(page.locator("#advanced-count")).to_be_empty()
    assert (page.input_value("#sampler"), page.input_value("#dynamic_shift")) == ("euler", "")


@pytest.mark.parametrize(
    ("fields", "blamed", "message"),
    [
        ({"steps": 61}, "steps", "steps: this server allows at most 60 steps, got 61"),
        ({"steps": "2.5"}, "steps", "steps must be a whole number, got 2.5"),
        ({"width": 1024, "height": 1024}, "size", "size: this server allows at most 262144 pixels"),
        ({"width": 100}, "size", "width must be a multiple of 16, got 100; the nearest are 96 and 112"),
        ({"guidance_scale": "a"}, "guidance_scale", "guidance must be a number"),
        ({"step_cache": "x"}, "step_cache", "a step cache is off, first_block"),
        ({"seed": "x"}, "seed", "seed must be a whole number, got x"),
        ({"seed": 2**53 + 1}, "seed", "seed must be at most 9007199254740991 in a browser"),
    ],
    ids=lambda value: "",
)
def test_an_error_stands_beside_its_field(here: Visit, fields: dict[str, Any], blamed: str, message: str) -> None:
    here.set(prompt="x", **fields)
    here.page.click("#draw")
    expect(here.page.locator(f"#{blamed}-error")).to_contain_text(message)
    control = "width" if blamed == "size" else blamed
    expect(here.page.locator(f"#{control}")).to_be_focused()
    expect(here.page.locator(f"#{control}")).to_have_attribute("aria-invalid", "true")
    assert f"{blamed}-error" in str(here.page.locator(f"#{control}").get_attribute("aria-describedby"))
    expect(here.page.get_by_role("alert")).to_contain_text("Not drawn")


def test_an_error_in_what_is_hidden_is_shown(here: Visit, served: Server) -> None:
    here.page.locator("#advanced summary").click()
    here.page.fill("#apg_eta", "0.5")
    here.page.locator("#advanced summary").click()
    expect(here.page.locator("#apg_eta")).to_be_hidden()
    here.set(prompt="x")
    here.page.click("#draw")
    expect(here.page.locator("#apg_eta-error")).to_contain_text("apg_eta would do nothing; set guidance_variant to apg")
    expect(here.page.locator("#apg_eta")).to_be_focused()
    here.page.fill("#apg_eta", "1")
    here.page.fill("#variation_seed", str(2**53 + 1))  # which a browser's numbers would make 2^53
    here.page.click("#draw")
    message = "variation_seed must be at most 9007199254740991 in a browser"
    expect(here.page.locator("#variation_seed-error")).to_have_text(message)
    here.page.fill("#variation_seed", "")
    here.page.fill("#guidance_scale", "0")
    expect(here.page.locator("#negative_prompt")).to_be_disabled()
    expect(here.page.locator("#negative_prompt-help")).to_be_visible()
    here.page.fill("#nag_scale", "5")
    expect(here.page.locator("#negative_prompt")).to_be_enabled()
