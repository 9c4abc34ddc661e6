"""The real `max serve` on the embedded model: one request over HTTP, its picture, a clean end."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from references.scenes import recognize

from max_zimage import ZImagePipeline

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "max_zimage" / "assets" / "tiny-zimage"
ARCHITECTURE = "max_zimage"
PROMPT = "a red star on a blue background"
START_SECONDS = 1200  # a cold compile on two cores, of the encoder too
STOP_SECONDS = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command(port: int) -> list[str]:
    return [
        str(Path(sys.executable).with_name("max")),
        "serve",
        "--model",
        str(EMBEDDED),
        "--served-model-name",
        "zimage",
        "--custom-architectures",
        ARCHITECTURE,
        "--devices",
        "cpu",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the server ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the server was not ready in {START_SECONDS} s:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running server. It gets a process group of its own, so that none of its processes stays."""
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MAX_SERVE_API_TYPES": '["openai","responses"]',  # the route of pictures is off by default
        "MAX_SERVE_METRICS_ENDPOINT_PORT": str(free_port()),
        "OTEL_SDK_DISABLED": "true",
        "HF_HUB_OFFLINE": "1",
    }
    log, url = folder / "server.log", f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(port),
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_ready(process, url, log)
        yield url
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_SECONDS)


def post(url: str, **body: Any) -> tuple[int, dict[str, Any]]:
    data = json.dumps({"model": "zimage", **body}).encode()
    request = urllib.request.Request(f"{url}/v1/responses", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def pictures(answer: dict[str, Any]) -> list[np.ndarray]:
    contents = answer["output"][0]["content"]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(content["image_data"])))) for content in contents]


def test_a_served_picture_is_what_was_asked_for_and_what_the_pipeline_draws(server: str) -> None:
    options = {"width": 128, "height": 128, "steps": 8, "guidance_scale": 2.0, "output_format": "png", "num_images": 2}
    status, answer = post(server, input=PROMPT, seed=7, provider_options={"image": options})
    assert status == 200, answer
    served = pictures(answer)
    assert [picture.shape for picture in served] == [(128, 128, 3)] * 2
    colour, _, background = recognize(served[0])
    assert (colour, background) == ("red", "blue")

    pipeline = ZImagePipeline.from_pretrained(EMBEDDED, device="cpu")
    drawn = pipeline(
        PROMPT, height=128, width=128, num_inference_steps=8, guidance_scale=2.0, seed=7, num_images_per_prompt=2
    )
    for picture, expected in zip(served, drawn, strict=True):
        np.testing.assert_array_equal(picture, np.asarray(expected))


def test_a_bad_request_is_told_why(server: str) -> None:
    status, answer = post(server, input=PROMPT, provider_options={"image": {"width": 136, "steps": 5000}})
    assert status == 400
    assert answer["error"]["message"] == (
        "the request has 2 problems:\n- width must be a multiple of 16, got 136; the nearest are 128 and 144\n"
        "- num_inference_steps must be from 1 to 1000, got 5000"
    )
