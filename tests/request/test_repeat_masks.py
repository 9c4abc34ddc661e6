"""Pictures drawn with masks over HTTP, repeated by the command line; see `tests.request.test_repeat`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from max_zimage.request.metadata import read_parameters
from tests.references.servers import Server
from tests.request.conftest import Repeat
from tests.request.test_repeat import PROMPT, encoded, keep, pixels, start


@pytest.mark.parametrize("name", ["mask", "mask_image"])
def test_masks(name: str, server: Server, repeat: Repeat, tmp_path: Path) -> None:
    """In transparency and in greys; both are repeated from the very file that came to the server."""
    shades = np.linspace(0, 255, 96 * 64).reshape(96, 64).astype(np.uint8)
    mask = Image.fromarray(np.dstack([np.zeros((96, 64, 3), np.uint8), shades]) if name == "mask" else shades)
    mask.save(tmp_path / "mask.png")
    start().save(tmp_path / "start.png")
    files = {"image": ("x.png", encoded(start())), name: ("y.png", encoded(mask))}
    fields = {"prompt": PROMPT, "seed": "5", "steps": "3", "composite": "true", "soft_mask": "true"}
    fields |= {"outpaint": "16,0,16,32"}
    keep(tmp_path / "a.png", server.client.post("/v1/images/edits", files=files, data=fields))
    assert pixels(tmp_path / "a.png").shape == (128, 96, 3)
    code, error = repeat("--from", "a.png", "--image", "start.png")
    assert code == 2
    assert "a.png was drawn with a mask (sha256:" in error
    assert "name its file with --mask" in error
    code, error = repeat("--from", "a.png", "--image", "start.png", "--mask", "start.png")
    assert code == 2
    assert "--mask start.png is not the mask that a.png was drawn with" in error
    assert repeat("--from", "a.png", "--image", "start.png", "--mask", "mask.png", "--output", "b.png") == (0, "")
    np.testing.assert_array_equal(pixels(tmp_path / "b.png"), pixels(tmp_path / "a.png"))
    assert read_parameters(tmp_path / "b.png") == read_parameters(tmp_path / "a.png")
