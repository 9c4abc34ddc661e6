"""Pictures of a server with what they were drawn with, and without."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage.checkpoint.locate import COMPONENTS
from max_zimage.pipeline.attention import VARIABLE
from max_zimage.serving.drawn_by import DrawnBy, source_of
from max_zimage.serving.errors import ApiError
from max_zimage.serving.http.requests import ServedModel, make_context
from max_zimage.serving.settings import ServerLimits
from tests.references.image_readers import read_by_sd_parsers
from tests.references.servers import Server
from tests.request.test_repeat import data_url, start


def file_of(answer: Any) -> bytes:
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_image_routes(server: Server, kind: str) -> None:
    asked: dict[str, Any] = {"seed": 11, "steps": 1, "size": "64x64", "output_format": kind}
    full = file_of(server.draw("a white ring", **asked))
    found = read_by_sd_parsers(full)
    assert found is not None
    assert [each.value for each in found.prompts] == ["a white ring"]
    assert found.samplers[0].parameters["seed"] == "11"
    picture = Image.open(io.BytesIO(full))
    assert b"/trainedAlgorithmicMedia<" in picture.info["xmp"]
    bare = Image.open(io.BytesIO(file_of(server.draw("a white ring", **asked, metadata=False))))
    assert not {"xmp", "exif", "parameters", "max_zimage"} & set(bare.info)
    np.testing.assert_array_equal(np.asarray(bare), np.asarray(picture))


def test_edits(server: Server) -> None:
    body: dict[str, Any] = {"image": data_url(start()), "prompt": "a ring", "seed": 5, "steps": 2}
    picture = Image.open(io.BytesIO(file_of(server.post("/v1/images/edits", **body))))
    assert b"/compositeWithTrainedAlgorithmicMedia<" in picture.info["xmp"]
    assert "Denoising strength: 0.6" in picture.info["parameters"]


def test_responses(server: Server) -> None:
    body: dict[str, Any] = {"model": "tiny-zimage", "input": "a ring", "seed": 3}
    options = {"image": {"width": 128, "height": 128, "steps": 1, "output_format": "png"}}
    for metadata, expected in (({}, True), ({"metadata": "true"}, True), ({"metadata": "false"}, False)):
        answer = server.post("/v1/responses", provider_options=options, metadata=metadata, **body)
        assert answer.status_code == 200, answer.text
        content = base64.b64decode(answer.json()["output"][0]["content"][0]["image_data"])
        assert ({"parameters", "xmp"} <= set(Image.open(io.BytesIO(content)).info)) == expected
    answer = server.post("/v1/responses", provider_options=options, metadata={"metadata": "no"}, **body)
    assert answer.status_code == 400
    assert 'metadata.metadata must be "true" or "false"' in answer.json()["error"]["message"]


def test_what_is_neither_true_nor_false_is_refused(server: Server) -> None:
    answer = server.draw("a ring", metadata="no")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "metadata")


@pytest.mark.parametrize(
    ("said", "named"), [(None, ""), ("auto", ""), ("sdpa", ""), ("plain", "plain"), ("max", "max")]
)
def test_under_max_serve_pictures_name_their_attention(
    said: str | None, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `max-zimage serve` has it: what the device chooses has no name, so that it is chosen again."""
    monkeypatch.delenv(VARIABLE, raising=False)
    if said is not None:
        monkeypatch.setenv(VARIABLE, said)

    def part(name: str) -> Any:
        device = SimpleNamespace(device_type="cpu")
        return SimpleNamespace(
            quantization_encoding="float32",
            model_path="m",
            subfolder=name,
            huggingface_model_revision="main",
            weight_path=[],
            device_specs=[device],
        )

    found = source_of("m", {name: part(name) for name in COMPONENTS})
    assert found is not None
    assert found.attention_backend == named


def test_a_server_may_write_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `serve --no-metadata`: its flag, and what requests may say."""
    from max_zimage.cli.main import _parser
    from max_zimage.cli.server_settings import settings_of

    assert not settings_of(_parser().parse_args(["serve", "--no-metadata"])).metadata
    assert settings_of(_parser().parse_args(["serve"])).metadata

    class Tokenizer:
        def make_context(self, asked: object, **values: Any) -> dict[str, Any]:
            return values

    class Asked:
        loras = ()

    source = DrawnBy(model="m", dtype="float32", device="cpu", quantize="")
    made: Any = {"name": "m", "drawn_by": source, "tokenizer": Tokenizer(), "limits": ServerLimits()}
    asked: Any = Asked()
    for metadata in (None, False):
        found: Any = make_context(ServedModel(**made, metadata=False), asked, "png", metadata=metadata)
        assert (found["metadata"], found["parameters"]) == (False, [])
    with pytest.raises(ApiError, match="this server's pictures carry none; leave it out"):
        make_context(ServedModel(**made, metadata=False), asked, "png", metadata=True)
