"""AUTOMATIC1111's "only masked" inpainting: the part is drawn, and what is answered is the whole image."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import webuiapi
from PIL import Image

from max_zimage import ZImagePipeline
from max_zimage.images.a1111_masks import blurred
from tests.references.servers import Server
from tests.serving.test_a1111 import PROMPT, SMALL, client, drawn, encoded, pixels, post, start

__all__ = ["client"]


def test_the_masked_part_alone(client: webuiapi.WebUIApi, server: Server, pipeline: ZImagePipeline) -> None:
    """What it draws is the part in the size asked for, and what it answers is the whole image with that put back."""
    image, hole = np.tile(pixels(start()), (2, 2, 1))[:, :224], np.zeros((256, 224), np.uint8)
    hole[100:140, 60:90] = 255
    whole, white = Image.fromarray(image), Image.fromarray(hole)
    asked: dict[str, Any] = {"prompt": PROMPT, "denoising_strength": 0.6, "cfg_scale": 3.0, **SMALL}
    made = client.img2img(
        **asked, images=[whole], mask_image=white, inpaint_full_res=True, inpaint_full_res_padding=8, mask_blur=0,
        inpainting_fill=1,
    )  # fmt: skip
    # 40 and 30 pixels with 8 around them are 56 and 46, grown to a square: 128 of what is drawn.
    box = (47, 92, 103, 148)
    part, mask_of_part = (each.crop(box).resize((128, 128), Image.Resampling.LANCZOS) for each in (whole, white))
    drawn_part = drawn(pipeline, image=part, mask_image=mask_of_part, strength=0.6, guidance_scale=2.0)[0]
    back = np.asarray(Image.fromarray(drawn_part).resize((56, 56), Image.Resampling.LANCZOS))
    expected = image.copy()
    expected[100:140, 60:90] = back[8:48, 13:43]
    np.testing.assert_array_equal(pixels(made.image), expected)
    usual = client.img2img(**asked, images=[whole], mask_image=white)  # which is so if nothing is said, with a blur
    difference = np.abs(pixels(usual.image).astype(int) - image).max(axis=2)
    assert difference[hole > 0].mean() > 5
    assert difference[blurred(hole, 4, 4) == 0].max() == 0
    assert (difference[blurred(hole, 4, 4) > 0] > 0).mean() > 0.5
    text = made.info["infotexts"][0]
    assert "Size: 128x128" in text
    assert "Inpaint area: Only masked, Masked area padding: 8" in text
    file = base64.b64decode(
        post(server, "img2img", init_images=[encoded(whole)], mask=encoded(white)).json()["images"][0]
    )
    assert (
        server.post("/sdapi/v1/png-info", image=base64.b64encode(file).decode())
        .json()["info"]
        .endswith("Inpaint area: Only masked, Masked area padding: 0")
    )
    assert max_zimage_json(file) is None  # from which a picture could not be drawn again
    assert max_zimage_json(base64.b64decode(post(server).json()["images"][0])) is not None
    bare = {"enable_pnginfo": False}
    silent = post(server, "img2img", init_images=[encoded(whole)], mask=encoded(white), override_settings=bare).json()
    assert Image.open(io.BytesIO(base64.b64decode(silent["images"][0]))).info == {}


def max_zimage_json(file: bytes) -> str | None:
    return Image.open(io.BytesIO(file)).info.get("max_zimage")
