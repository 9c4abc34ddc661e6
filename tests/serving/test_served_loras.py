"""A real server with a folder of adapters: what it lists, draws, and refuses."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage import ZImagePipeline
from max_zimage.cli.main import main
from max_zimage.request.metadata import read_parameters
from max_zimage.serving.errors import ApiError
from max_zimage.serving.http.requests import request_of
from max_zimage.serving.served_model import served_model
from max_zimage.serving.settings import ServerSettings
from tests.references.diffusers_runs import Pair
from tests.references.loras import STYLE, TEXT, write_adapter
from tests.references.servers import Server, error_of
from tests.request.test_repeat import encoded, keep, pixels, start

SIZE: dict[str, Any] = {"size": "128x128", "steps": 2, "seed": 3}
CALL: dict[str, Any] = {"width": 128, "height": 128, "num_inference_steps": 2, "seed": 3, "output_type": "np"}
PROMPT = "a red star on a blue background"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters, one that fits no module, and one that lies elsewhere."""
    root = tmp_path_factory.mktemp("adapters")
    inside = root / "loras"
    inside.mkdir()
    write_adapter(inside / "style.safetensors", STYLE, TEXT)
    write_adapter(inside / "other.safetensors", STYLE, seed=2)
    (inside / "broken.safetensors").write_bytes(b"\0" * 100)
    write_adapter(root / "secret.safetensors", STYLE, seed=3)
    (inside / "outer.safetensors").symlink_to(root / "secret.safetensors")
    return inside


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    flags = ["--lora-folder", "loras", "--batch-pictures", "2", "--mix-loras"]
    with Server(folder.parent, flags) as running:
        yield running


@pytest.fixture(autouse=True)
def _given_back(embedded: Pair) -> Iterator[None]:
    """The pipeline that tests share keeps the weights of its checkpoint."""
    yield
    embedded.ours.set_loras()


def expected(embedded: Pair, **given: Any) -> np.ndarray:
    return np.asarray(embedded.ours(PROMPT, **CALL | given))[0]


def assert_same(file: Path, picture: np.ndarray) -> None:
    """The same but for the rounding of a batch."""
    assert np.mean(np.abs(pixels(file).astype(int) - picture) <= 1) > 0.999


def test_it_lists_what_may_be_named(server: Server) -> None:
    (model,) = server.client.get("/v1/models").json()["data"]
    assert model["loras"] == ["broken.safetensors", "other.safetensors", "style.safetensors"]


def test_every_route_draws_with_them(server: Server, folder: Path, embedded: Pair, tmp_path: Path) -> None:
    file = folder / "style.safetensors"
    loras = [{"name": "style.safetensors", "scale": 0.5}]
    keep(tmp_path / "a.png", server.draw(loras=loras, **SIZE))
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), expected(embedded, loras=[(file, 0.5)]))
    (kept,) = read_parameters(tmp_path / "a.png").loras
    assert (kept["name"], kept["scale"]) == ("style.safetensors", 0.5)
    options = {"image": {"width": 128, "height": 128, "steps": 2, "output_format": "png"}}
    body: dict[str, Any] = {"model": "tiny-zimage", "input": PROMPT, "seed": 3, "provider_options": options}
    answer = server.post("/v1/responses", **body, metadata={"loras": json.dumps(loras)})
    assert answer.status_code == 200, answer.text
    (content,) = answer.json()["output"][0]["content"]
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(content["image_data"]))).convert("RGB"))
    np.testing.assert_array_equal(drawn, pixels(tmp_path / "a.png"))
    files = {"image": ("x.png", encoded(start(128, 128)))}
    form = {"prompt": PROMPT, "seed": "3", "steps": "3", "loras": json.dumps(loras)}
    keep(tmp_path / "b.png", server.client.post("/v1/images/edits", files=files, data=form))
    given: dict[str, Any] = {"image": start(128, 128), "num_inference_steps": 3, "loras": [(file, 0.5)]}
    np.testing.assert_array_equal(pixels(tmp_path / "b.png"), expected(embedded, **given))


def test_prompts_of_automatic1111_name_them(server: Server, folder: Path, embedded: Pair, tmp_path: Path) -> None:
    listed = server.client.get("/sdapi/v1/loras").json()
    assert [each["name"] for each in listed] == ["broken", "other", "style"]
    body: dict[str, Any] = {"width": 128, "height": 128, "steps": 2, "seed": 3}

    def drawn(prompt: str, **more: Any) -> Any:
        answer = server.post("/sdapi/v1/txt2img", prompt=prompt, **body, **more)
        assert answer.status_code == 200, answer.text
        picture = Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0])))
        return np.asarray(picture), json.loads(answer.json()["info"])

    loras = [(folder / "style.safetensors", 0.5), (folder / "other.safetensors", 1.0)]
    found, info = drawn(f"{PROMPT} <lora:style:0.5> <lora:other>")
    np.testing.assert_array_equal(found, expected(embedded, loras=loras))
    assert info["infotexts"][0].splitlines()[0] == f"{PROMPT} <lora:style:0.5> <lora:other:1>"
    plain, _ = drawn(f"<lora:style:0.5>{PROMPT}", disable_extra_networks=True)
    np.testing.assert_array_equal(plain, expected(embedded, loras=[]))
    gone = server.post("/sdapi/v1/txt2img", prompt="a <lora:gone:1>", **body)
    assert gone.status_code == 400
    assert "'gone.safetensors' is none of this server's adapters; it has broken.safetensors" in gone.json()["detail"]
    # On other routes it is a part of the prompt, which looks for no file.
    assert server.draw("a <lora:gone:1>", **SIZE).status_code == 200
    broken = server.post("/sdapi/v1/txt2img", prompt="a <lora:broken>", **body)
    assert (broken.status_code, broken.json()["error"]["param"]) == (400, "prompt")


def test_sets_that_meet_in_the_queue(server: Server, folder: Path, embedded: Pair, tmp_path: Path) -> None:
    """Sent together, and each drawn with its own."""
    sets: list[list[tuple[str, float]]] = [
        [("style.safetensors", 0.5)],
        [],
        [("other.safetensors", 1.0)],
        [("other.safetensors", 0.5), ("style.safetensors", -0.25)],
    ] * 2

    def draw(number: int) -> Any:
        return server.draw(**SIZE, loras=[{"name": name, "scale": scale} for name, scale in sets[number]])

    with ThreadPoolExecutor(len(sets)) as pool:
        answers = list(pool.map(draw, range(len(sets))))
    for number, (answer, each) in enumerate(zip(answers, sets, strict=True)):
        keep(tmp_path / f"{number}.png", answer)
        wanted = expected(embedded, loras=[(folder / name, scale) for name, scale in each])
        assert_same(tmp_path / f"{number}.png", wanted)


@pytest.mark.parametrize(
    ("loras", "message"),
    [
        *(
            (
                [{"name": name}],
                f"loras[0]: {name!r} is none of this server's adapters; it has broken.safetensors, other",
            )
            for name in ("../secret.safetensors", "outer.safetensors", "/etc/passwd", "style", "sub/style.safetensors")
        ),
        ([{"name": "style.safetensors", "scale": "much"}], "loras[0].scale must be a finite number, got 'much'"),
        ([{"name": "style.safetensors", "scale": 1e300}], "loras[0].scale must be 0, or from"),
        ([{"name": "style.safetensors", "strength": 1}], "loras[0] has no strength; an adapter has name and scale"),
        ([["style.safetensors", 1]], "loras"),
        ("style.safetensors", "loras"),
        ([{"name": "broken.safetensors"}], "loras: broken.safetensors"),
    ],
)
def test_what_is_refused(server: Server, folder: Path, loras: Any, message: str) -> None:
    answer = server.draw(loras=loras, **SIZE)
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"].startswith("loras")
    assert message in error["message"]
    assert str(folder) not in answer.text


def test_a_server_without_a_folder(folder: Path) -> None:
    """Has no adapters for anybody, whatever the checkpoint allows in Python."""
    served = served_model(ServerSettings(name="x"), ZImagePipeline.prepare())
    assert served.tokenizer.limits.lora_files.names() == ()
    for name in ("style.safetensors", str(folder / "style.safetensors")):
        with pytest.raises(ApiError, match=r"this server has no adapters; .* with --lora-folder"):
            request_of(served, prompt="x", loras=[{"name": name}])


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--lora-folder", str(tmp_path / "gone")]) == 2
    assert f"--lora-folder {tmp_path / 'gone'} is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--mix-loras would do nothing without --lora-folder"),
        (
            ["--lora-folder", ".", "--batch-pictures", "2", "--step-cache", "first_block"],
            "--mix-loras would do nothing where all requests have a step cache",
        ),
        (["--lora-folder", "."], "--mix-loras would do nothing where one picture is drawn at a time"),
        (
            ["--lora-folder", ".", "--batch-pictures", "4", "--quantize", "transformer=int8"],
            "--mix-loras is for a transformer that is neither quantized nor streamed",
        ),
    ],
)
def test_mixing_where_it_could_do_nothing(flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--device", "cpu", "--mix-loras", *flags]) == 2
    assert says in capsys.readouterr().err


def test_different_adapters_share_steps(server: Server, folder: Path, embedded: Pair, tmp_path: Path) -> None:
    """Where they wait together: one that has some, and one that has none."""
    before = server.metric("zimage_batch_pictures_sum"), server.metric("zimage_batch_pictures_count")
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(server.draw, PROMPT, {"X-Request-ID": "mixed"}, steps=40, size="256x256")
        server.wait_for_status("mixed", "running")
        loras = [{"name": "other.safetensors", "scale": 0.5}]
        others = [pool.submit(server.draw, PROMPT, None, **SIZE | more) for more in ({"loras": loras}, {})]
        answers = [future.result() for future in (first, *others)]
    assert [answer.status_code for answer in answers] == [200] * 3
    after = server.metric("zimage_batch_pictures_sum"), server.metric("zimage_batch_pictures_count")
    assert (after[0] - before[0], after[1] - before[1]) == (5, 3)
    for answer, own in zip(answers[1:], ([(folder / "other.safetensors", 0.5)], []), strict=True):
        keep(tmp_path / "a.png", answer)
        assert_same(tmp_path / "a.png", expected(embedded, loras=own))
