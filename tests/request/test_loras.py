"""Adapters of a request: what may be named, by whom, and how it travels."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from max_zimage.cli.main import _parser
from max_zimage.errors import RequestError
from max_zimage.images.save import ImageFileError
from max_zimage.request import wire
from max_zimage.request.fields import ROWS
from max_zimage.request.lora_fields import Loras
from max_zimage.request.loras import Lora, LorasOfFolder, digest_of
from max_zimage.request.metadata import GenerationParameters
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.schedule import ScheduleSpec
from max_zimage.serving.http.schema import GENERATION, LISTS, given
from tests.request.test_request import DEFAULTS, LIMITS

CONTENT = b"what is in it matters to nobody here"


def make(limits: Any = LIMITS, **arguments: Any) -> GenerationRequest:
    return GenerationRequest.create(limits=limits, defaults=DEFAULTS, prompt="x", seed=1, **arguments)


def parameters(request: GenerationRequest) -> GenerationParameters:
    return GenerationParameters.of(request, model="m", weight_paths=(), dtype="float32", device="cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two adapters here, and one in the folder above."""
    inside = tmp_path / "loras"
    inside.mkdir()
    for path in (inside / "style.safetensors", inside / "v1:2.safetensors", tmp_path / "secret.safetensors"):
        path.write_bytes(CONTENT + path.name.encode())
    monkeypatch.chdir(inside)
    return inside


def test_ways_to_name_files(folder: Path) -> None:
    style, other = folder / "style.safetensors", folder / "v1:2.safetensors"
    digests = [f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in (style, other)]
    expected = (
        Lora(path=str(style), scale=0.5, digest=digests[0]),
        Lora(path=str(other), scale=1.0, digest=digests[1]),
        Lora(path=str(style), scale=-2.0, digest=digests[0]),
    )
    named: list[Any] = [("style.safetensors", 0.5), other, {"name": str(style), "scale": -2}]
    assert make(loras=named).loras == expected
    assert make(loras=expected).loras == expected
    assert expected[0].name == "style.safetensors"
    assert make().loras == make(loras=[]).loras == make(loras=None).loras == ()
    style.write_bytes(b"another")
    assert make(loras=["style.safetensors"]).loras[0].digest == f"sha256:{hashlib.sha256(b'another').hexdigest()}"


def test_a_folder_of_pefts_is_known_by_its_configuration_too(tmp_path: Path) -> None:
    """Without which the same weights are another adapter."""
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"weights")
    alone = digest_of(weights)
    with pytest.raises(RequestError, match=r"loras\[0\]: .* is a folder; name the file in it"):
        make(loras=[tmp_path])
    config.write_bytes(b"{}")
    assert alone == f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    assert digest_of(weights) == digest_of(tmp_path) == f"sha256:{hashlib.sha256(b'{}weights').hexdigest()}"
    assert make(loras=[tmp_path]).loras[0].path == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("style.safetensors", "style.safetensors"),
        ("style.safetensors:0.8", ("style.safetensors", 0.8)),
        ("style.safetensors:-1", ("style.safetensors", -1.0)),
        ("style.safetensors:.5e0", ("style.safetensors", 0.5)),
        ("C:\\loras\\style.safetensors", "C:\\loras\\style.safetensors"),
        ("v1:2.safetensors", "v1:2.safetensors"),
        ("v1:2:3", ("v1:2", 3.0)),
        ("v1:1_0", "v1:1_0"),
        ("style.safetensors:much", "style.safetensors:much"),
        ("style.safetensors:", "style.safetensors:"),
        (":1", ":1"),
    ],
)
def test_the_last_colon_parts_where_a_number_follows(text: str, value: object) -> None:
    assert Loras().of_flag(text) == value
    assert _parser().parse_args(["generate", "x", "--lora", text, "--lora", "b"]).lora == [value, "b"]


@pytest.mark.parametrize(
    ("loras", "message"),
    [
        ("style.safetensors", r"loras must be a list such as .*, got 'style.safetensors'"),
        (["style.safetensors"] * 33, "loras may hold 32 adapters at most, got 33"),
        (["gone.safetensors"], r"loras\[0\]: gone\.safetensors is no file; name one that is there$"),
        (["style.safetensors:much"], r"is no file; .* behind the colon of style\.safetensors a scale is a number"),
        (["."], r"loras\[0\]: \. is a folder; name the file in it"),
        ([""], r"loras\[0\] must name a file, got ''"),
        (["a\0b"], r"loras\[0\] must name a file, got 'a\\x00b'"),
        (["a\udc80b"], r"loras\[0\] holds half of a surrogate pair at character 1"),
        ([3], r"loras\[0\] must be a file, or a file and a scale, got 3 \(int\)"),
        ([("style.safetensors", 1, 2)], r"loras\[0\] must be a file, or a file and a scale"),
        (("style.safetensors", 0.8), r"loras\[1\] must be a file, or a file and a scale, got 0\.8"),
        ([{"name": "style.safetensors", "weight": 1}], r"loras\[0\] has no weight; an adapter has name and scale"),
        ([{"scale": 1}], r"loras\[0\] must be a file"),
        ([("style.safetensors", "0.8")], r"loras\[0\]\.scale must be a finite number, got '0\.8'"),
        ([("style.safetensors", True)], r"loras\[0\]\.scale must be a finite number, got True"),
        ([("style.safetensors", None)], r"loras\[0\]\.scale must be a finite number, got None"),
        *(
            ([("style.safetensors", scale)], r"loras\[0\]\.scale must be 0, or from 1\.18e-38 to 3\.4e\+38 either way")
            for scale in (float("nan"), float("inf"), -float("inf"), 1e39, -1e-40, 10**400)
        ),
    ],
)
def test_what_is_refused(folder: Path, loras: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make(loras=loras)


def test_all_that_is_wrong_is_said_together(folder: Path) -> None:
    with pytest.raises(RequestError) as caught:
        make(loras=[("gone.safetensors", float("nan")), 3], height=17)
    assert [str(problem.field) + problem.part for problem in caught.value.problems] == [
        "height",
        "loras[0].scale",
        "loras[0]",
        "loras[1]",
    ]


class TestNamesOfAFolder:
    """For callers who may read no other file."""

    def test_what_is_there(self, folder: Path) -> None:
        (folder / "notes.txt").touch()
        (folder / "sub.safetensors").mkdir()
        (folder / "inner.safetensors").symlink_to(folder / "style.safetensors")
        (folder / "outer.safetensors").symlink_to(folder.parent / "secret.safetensors")
        (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
        (folder / "dangling.safetensors").symlink_to(folder / "gone")
        files = LorasOfFolder(folder)
        assert files.names() == ("inner.safetensors", "style.safetensors", "v1:2.safetensors")
        assert LorasOfFolder(None).names() == LorasOfFolder(folder / "gone").names() == ()
        found = make(LIMITS.with_lora_folder(folder), loras=[{"name": "inner.safetensors", "scale": 2}]).loras
        assert found == make(loras=[("inner.safetensors", 2)]).loras

    @pytest.mark.parametrize(
        "name",
        [
            "../secret.safetensors",
            "../loras/style.safetensors",
            "./style.safetensors",
            "/etc/passwd",
            "outer.safetensors",
            "through/secret.safetensors",
            "through",
            "..",
            "gone.safetensors",
            "style",
            "STYLE.safetensors",
            "style.safetensors/",
        ],
    )
    def test_no_way_out(self, folder: Path, name: str) -> None:
        (folder / "outer.safetensors").symlink_to(folder.parent / "secret.safetensors")
        (folder / "through").symlink_to(folder.parent)
        limits = LIMITS.with_lora_folder(folder)
        for given_name in (name, str(folder / name)):
            with pytest.raises(RequestError) as caught:
                make(limits, loras=[given_name])
            said = "is none of this server's adapters; it has style.safetensors, v1:2.safetensors"
            assert str(caught.value) == f"loras[0]: {given_name[:80]!r} {said}"

    def test_no_folder(self, folder: Path) -> None:
        for name in ("style.safetensors", str(folder / "style.safetensors")):
            with pytest.raises(RequestError, match=r"this server has no adapters; .* with --lora-folder"):
                make(LIMITS.with_lora_folder(None), loras=[name])
        assert make(LIMITS.with_lora_folder(None)).loras == ()

    def test_many(self, folder: Path) -> None:
        for number in range(30):
            (folder / f"{number:02}.safetensors").touch()
        with pytest.raises(RequestError, match=r"it has 00\.safetensors, .* 19\.safetensors and 12 more"):
            make(LIMITS.with_lora_folder(folder), loras=["x"])


class TestTravel:
    def test_to_another_process(self, folder: Path) -> None:
        request = make(loras=[("style.safetensors", 0.1), "v1:2.safetensors"])
        assert wire.of_text(wire.to_text(request)).loras == request.loras
        sent = wire.to_wire(request)
        several: list[Any] = [{}, [{"path": "x", "scale": "1", "digest": request.loras[0].digest}], [{"path": "x"}]]
        for bad in several:
            with pytest.raises(wire.WireError, match="loras: must be a list of adapters"):
                wire.of_wire(sent | {"loras": bad})

    def test_only_equal_sets_share_a_batch(self, folder: Path) -> None:
        spec = ScheduleSpec(shift=3.0, num_train_timesteps=1000)

        def key(**arguments: Any) -> str:
            request = make(**arguments)
            return wire.sharing_key(request, request.schedule(spec))

        style = [("style.safetensors", 0.5)]
        assert key(loras=style) == key(loras=[(folder / "style.safetensors", 0.5)])
        others: list[list[Any]] = [[], [("style.safetensors", 0.6)], ["v1:2.safetensors"], [*style, *style]]
        assert len({key(loras=each) for each in (style, *others)}) == 5

    def test_in_a_picture(self, folder: Path) -> None:
        """Names and digests; where files lie is nobody else's business."""
        request = make(loras=[("style.safetensors", 0.1)])
        written = parameters(request)
        digest = request.loras[0].digest
        assert written.loras == ({"name": "style.safetensors", "scale": 0.1, "digest": digest},)
        assert str(folder) not in written.to_json()
        assert GenerationParameters.from_json(written.to_json()) == written
        assert parameters(make()).loras == ()

    def test_in_a_picture_from_before(self) -> None:
        old = json.loads(parameters(make()).to_json()) | {"format_version": 3}
        new = [name for name, row in ROWS.items() if row.kept and row.kept.since > 3]
        old = {name: value for name, value in old.items() if name not in (*new, "mask_digest")}
        assert GenerationParameters.from_json(json.dumps(old)) == parameters(make())

    @pytest.mark.parametrize(
        "changed",
        [
            {"name": "../style.safetensors"},
            {"name": "/style.safetensors"},
            {"name": 3},
            {"scale": "1"},
            {"scale": True},
            {"scale": float("nan")},
            {"digest": "sha256:0"},
            {"path": "x"},
        ],
    )
    def test_in_a_picture_that_is_damaged(self, folder: Path, changed: dict[str, Any]) -> None:
        values = json.loads(parameters(make(loras=["style.safetensors"])).to_json())
        values["loras"][0] |= changed
        with pytest.raises(ImageFileError, match="the parameters are damaged: loras cannot be"):
            GenerationParameters.from_json(json.dumps(values))


def test_in_bodies_and_where_there_is_only_text(folder: Path) -> None:
    value = [{"name": "style.safetensors", "scale": 0.5}, "v1:2.safetensors"]
    assert given(GENERATION.model_validate({"prompt": "x", "loras": value})) == {"loras": value}
    read = LISTS["loras"].read
    assert read(json.dumps(value)) == value
    assert read("style.safetensors:0.5") == [("style.safetensors", 0.5)]
    assert read("[1,") == "[1,"
    assert read("[" * 10**5) == "[" * 10**5


def test_defaults(folder: Path) -> None:
    loras = make(loras=["style.safetensors"]).loras
    defaults = dataclasses.replace(DEFAULTS, loras=loras)
    os.remove("style.safetensors")  # what is bound needs its file no more
    for asked, expected in (({}, loras), ({"loras": []}, ()), ({"loras": None}, loras)):
        made = GenerationRequest.create(limits=LIMITS, defaults=defaults, prompt="x", **asked)
        assert made.loras == expected
