"""A server whose transformer comes from a GGUF file, named by a flag, and one that lies in the checkpoint's folder."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage import ZImagePipeline
from max_zimage.cli.main import main
from max_zimage.embedded import PATH as EMBEDDED
from tests.checkpoint.test_quantized import state_of
from tests.references.gguf_files import Kind, write
from tests.references.servers import Server
from tests.references.tiny import original_transformer

PROMPT = "a red star on a blue background"


def test_a_flag_and_a_folder_give_the_same_picture(
    pipeline: ZImagePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "z-Q4_0.gguf"
    write(file, original_transformer(state_of("transformer")), Kind.Q4_0)
    other = tmp_path / "model"
    shutil.copytree(EMBEDDED, other)
    (other / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.copy(file, other / "transformer")

    call: dict[str, Any] = {"height": 128, "width": 128, "num_inference_steps": 2, "seed": 3, "output_type": "np"}
    wanted = np.asarray(ZImagePipeline.from_pretrained(other, device="cpu")(PROMPT, **call))[0]
    body = {"prompt": PROMPT, "size": "128x128", "steps": 2, "seed": 3, "response_format": "b64_json"}
    with Server(tmp_path, ["--weight-path", file.name]) as server:
        drawn = server.client.post("/v1/images/generations", json=body)
    assert drawn.status_code == 200, drawn.text
    picture = base64.b64decode(drawn.json()["data"][0]["b64_json"])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture))), wanted)
    plain = np.asarray(pipeline(PROMPT, **call))[0]
    assert (plain != wanted).any()  # or the file says nothing

    monkeypatch.chdir(tmp_path)  # the picture names the file as the flag did
    (tmp_path / "served.png").write_bytes(picture)
    assert main(["generate", "--from", str(tmp_path / "served.png"), "--output", str(tmp_path / "again.png")]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "again.png")), wanted)
