"""The long form of a fleet's tests: encoders of their own, and an update under load that loses nothing."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from max_zimage.cli import fleet as fleet_command
from tests.references.diffusers_runs import Pair
from tests.references.servers import free_port

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("updated")
    flags = ["--replicas", "2", "--encoders", "1", "--device", "cpu", "--batch-pictures", "1"]
    return [*flags, "--state-store", f"file://{folder}/state", "--restart"]


@pytest.fixture(scope="module")
def client(flags: list[str]) -> Iterator[httpx.Client]:
    from ray import serve

    from max_zimage.serving.ray_serve.run import NAME, cluster
    from max_zimage.serving.ray_serve.settings import FleetSettings

    port = free_port()
    with cluster(FleetSettings(address="local", replicas=2, max_replicas=4, encoders=1)):
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        serve.run(fleet_command.app({"flags": flags}), name=NAME, route_prefix="/")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=900) as made:
            yield made
        serve.shutdown()


def test_a_picture_from_an_encoders_features_is_the_pipelines(client: httpx.Client, embedded: Pair) -> None:
    asked: dict[str, Any] = {"prompt": "a red star", "size": "128x128", "steps": 4, "seed": 5, "guidance_scale": 2.0}
    for fields in (asked, asked | {"negative_prompt": "blue"}, asked | {"guidance_scale": 0.0}):
        answer = client.post("/v1/images/generations", json=fields)
        assert answer.status_code == 200, answer.text
        picture = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
        said = json.loads(picture.text["max_zimage"])  # type: ignore[attr-defined]
        assert said["prompt"] == "a red star"
        assert "features" in json.dumps(said)  # it was drawn from them
        (drawn,) = embedded.ours(
            "a red star",
            height=128,
            width=128,
            num_inference_steps=4,
            seed=5,
            guidance_scale=fields["guidance_scale"],
            negative_prompt=fields.get("negative_prompt"),
        )
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.asarray(drawn))
    idle = client.post("/v1/images/generations", json=asked | {"guidance_scale": 0.0, "negative_prompt": "blue"})
    assert (idle.status_code, idle.json()["error"]["param"]) == (400, "negative_prompt")
    refused = client.post("/v1/images/generations", json=asked | {"prompt": "x" * 10_001})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")


def test_an_update_under_load_loses_nothing(client: httpx.Client, flags: list[str], tmp_path: Path) -> None:
    from ray import serve

    from max_zimage.serving.ray_serve.run import NAME

    more = {"prompt": "a star", "steps": 60, "size": "64x64"}
    assert client.post("/v1/images/generations", json=more).status_code == 200
    statuses: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            answer = client.post("/v1/images/generations", json={"prompt": "a star", "size": "128x128", "steps": 4})
            statuses.append(answer.status_code)

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            serve.run(fleet_command.app({"flags": [*flags, "--max-steps", "50"]}), name=NAME, route_prefix="/")
        finally:
            done.set()
        for each in asking:
            each.result()  # with what a connection that was lost raised
    assert set(Counter(statuses)) == {200}
    assert len(statuses) > 4
    refused = client.post("/v1/images/generations", json=more)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "steps")
