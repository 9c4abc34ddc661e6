"""Pictures written and read back: their pixels, their parameters, and what is said when that fails."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from max_zimage.images.save import ImageFileError, check_writable, next_free_paths, save_image
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.metadata import UNKNOWN_IMAGE, GenerationParameters, read_parameters
from max_zimage.request.request import GenerationRequest

# The fields of parameters are those of the table of fields, unknown to mypy.
changed: Callable[..., GenerationParameters] = replace
REQUEST = GenerationRequest.create(
    limits=Limits.of(axes_lens=(1536, 512, 512), max_positions=2048, latent_channels=16, caption_dim=8),
    defaults=RequestDefaults(height=32, width=48, num_inference_steps=20, guidance_scale=2.0),
    prompt="a red star on a blue background",
    image=np.zeros((32, 48, 3), np.uint8),
    seed=2**63 - 1,
    step_cache="taylorseer:cache_interval=5,warmup_steps=9,max_order=1",
)
PARAMETERS = GenerationParameters.of(
    REQUEST, model="tiny-zimage", weight_paths=("vae/ae.safetensors",), dtype="float32", device="cpu"
)
NEWEST = json.loads(PARAMETERS.to_json())["format_version"]
ENDINGS = [".png", ".jpg", ".jpeg", ".webp", ".PNG"]


def picture() -> np.ndarray:
    rows, columns = np.mgrid[0:24, 0:40]
    return np.stack([rows * 10, columns * 6, (rows + columns) * 4], axis=-1).astype(np.uint8)


# What a command line, a chat or a file may put into a prompt: quotes, lines, scripts, emoji, what looks like markup.
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "prompt",
    [
        "plain",
        "",
        'it\'s a "star"\nof two\r\n\tlines \\ $PATH \x00\x1f\x7f',
        "\u7ea2\u8272\u7684\u661f\u661f, \u0437\u0432\u0435\u0437\u0434\u0430, \U0001f31f\u200d\ufeff",
        '{"program": "other"}]]><x:xmpmeta/>',
        "star " * 5000,
    ],
    ids=["plain", "empty", "control", "unicode", "markup", "long"],
)
def test_round_trip(tmp_path: Path, ending: str, prompt: str) -> None:
    path = tmp_path / f"star{ending}"
    parameters = changed(PARAMETERS, prompt=prompt, negative_prompt=prompt[::-1], sigmas=(1.0, 0.5, 1 / 3), shift=3.0)
    save_image(picture(), path, parameters.to_json())
    assert read_parameters(path) == parameters
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with Image.open(path) as saved:
        difference = np.abs(np.asarray(saved.convert("RGB")).astype(int) - picture())
    # Quality 95 without chroma subsampling; the other two are lossless.
    assert difference.max() <= (8 if ending.startswith(".j") else 0)


@settings(max_examples=50, deadline=None)
@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"])), scale=st.floats(0, 1e6), seed=st.integers(0, 2**63 - 1)
)
def test_any_text_and_number_survives_json(prompt: str, scale: float, seed: int) -> None:
    parameters = changed(PARAMETERS, prompt=prompt, guidance_scale=scale, seed=seed)
    assert GenerationParameters.from_json(parameters.to_json()) == parameters


def test_png_chunk_is_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "star.png"
    save_image(picture(), path, changed(PARAMETERS, prompt="\u7ea2").to_json())
    with Image.open(path) as saved:
        text = saved.info["max_zimage"]
    assert "\u7ea2" in text
    assert json.loads(text)["seed"] == 2**63 - 1


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "star.png"
    path.write_bytes(b"precious")
    with pytest.raises(ImageFileError, match="exists and is not overwritten"):
        save_image(picture(), path, PARAMETERS.to_json())
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: Path, content: bytes) -> None:
        self.write_text("half a pic")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(ImageFileError, match="cannot be written: No space left"):
        save_image(picture(), tmp_path / "star.png", PARAMETERS.to_json())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (picture().astype(np.float32), TypeError, "uint8, got float32"),
        (picture()[..., 0], ValueError, r"got \[24, 40\]"),
        (picture()[None], ValueError, r"got \[1, 24, 40, 3\]"),
        (picture()[:0], ValueError, r"got \[0, 40, 3\]"),
    ],
)
def test_what_is_no_picture_is_refused(
    tmp_path: Path, pixels: np.ndarray, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        save_image(pixels, tmp_path / "star.png", PARAMETERS.to_json())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("star.bmp", r"one of \.png, \.jpg, \.jpeg, \.webp, got '\.bmp'"),
        ("star", "got none"),
        ("missing/star.png", "missing does not exist; create it"),
        ("file/star.png", "is a file, so star.png cannot be saved in it"),
        ("folder.png", r"is a folder; name a file in it, such as .*folder\.png.picture\.png"),
        ("x" * 300 + ".png", "cannot be written: File name too long"),
    ],
)
def test_paths_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageFileError, match=message):
        check_writable(tmp_path / name)


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The permission itself means nothing to root, who runs tests in containers: refuse as the system would.
    def touch(self: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(ImageFileError, match=r"star\.png cannot be written: Permission denied"):
        check_writable(tmp_path / "star.png")


def test_checking_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "star.webp")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("taken", "count", "expected"),
    [
        ([], 1, ["s.png"]),
        (["s.png"], 1, ["s-1.png"]),
        (["s.png", "s-1.png", "s-2.png"], 1, ["s-3.png"]),
        ([], 3, ["s-0.png", "s-1.png", "s-2.png"]),
        (["s-0.png"], 2, ["s-1.png", "s-2.png"]),
        (["s-1.png"], 3, ["s-2.png", "s-3.png", "s-4.png"]),
        (["s-0.jpg"], 2, ["s-0.png", "s-1.png"]),
    ],
)
def test_free_names(tmp_path: Path, taken: list[str], count: int, expected: list[str]) -> None:
    for name in taken:
        (tmp_path / name).touch()
    assert [path.name for path in next_free_paths(tmp_path / "s.png", count)] == expected


@pytest.mark.parametrize("version", [1, 2])
def test_layouts_of_before(version: int) -> None:
    """The first had no step cache, and neither says whether there was an image to begin with, or the device."""
    written = json.loads(PARAMETERS.to_json()) | {"format_version": version}
    for name in ("strength", "image_digest", "image_height", "image_width", "device"):
        del written[name]
    expected = changed(
        PARAMETERS, strength=None, image_digest=UNKNOWN_IMAGE, image_height=None, image_width=None, device=None
    )
    if version == 1:
        del written["step_cache"]
        expected = changed(expected, step_cache="off")
    assert GenerationParameters.from_json(json.dumps(written)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a star\nSteps: 20, Sampler: Euler", "written by another program"),
        ("[1, 2]", "written by another program"),
        ("[" * 100_000, "written by another program"),
        ('{"program": "another"}', "written by another program"),
        ('{"program": "max_zimage"}', f"format None, this max_zimage reads 1 to {NEWEST}"),
        (
            f'{{"program": "max_zimage", "format_version": {NEWEST + 1}}}',
            f"format {NEWEST + 1}, this max_zimage reads 1 to {NEWEST}; install a newer one",
        ),
        ('{"program": "max_zimage", "format_version": 1}', "prompt is missing.*version is missing"),
    ],
)
def test_parameters_from_elsewhere(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "star.png"
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", text)
    Image.fromarray(picture()).save(path, pnginfo=chunks)
    with pytest.raises(ImageFileError, match=rf"(?s)star\.png: .*{message}"):
        read_parameters(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("height", "24", "height must be int, got '24'"),
        ("height", True, "height must be int, got True"),
        ("seed", 1.5, r"seed must be int, got 1\.5"),
        ("prompt", None, "prompt must be str, got None"),
        ("sigmas", [1.0, "x"], r"sigmas must be tuple\[float, \.\.\.\] \| None"),
        ("fuzziness", "euler", "fuzziness is unknown"),
        ("strength", None, "image_digest, image_height, image_width and strength go together"),
        ("image_digest", None, "image_digest, image_height, image_width and strength go together"),
    ],
)
def test_damaged_parameters_name_the_field(field: str, value: object, message: str) -> None:
    text = json.dumps(json.loads(PARAMETERS.to_json()) | {field: value})
    with pytest.raises(ImageFileError, match=message):
        GenerationParameters.from_json(text)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_a_picture_without_parameters(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"star{ending}"
    Image.fromarray(picture()).save(path)
    with pytest.raises(ImageFileError, match="holds no generation parameters; only pictures saved by max_zimage do"):
        read_parameters(path)


def test_no_such_file_and_no_picture(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "star.png"):
        with pytest.raises(ImageFileError, match="is no file; name a picture"):
            read_parameters(path)
    for content in (b"", b"a text", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "text.png").write_bytes(content)
        with pytest.raises(ImageFileError, match=r"text\.png is not a picture, or a damaged one"):
            read_parameters(tmp_path / "text.png")


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_damaged_files_never_end_in_another_error(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"star{ending}"
    save_image(picture(), path, PARAMETERS.to_json())
    whole = path.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        refused_or_right(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageFileError, match="not a picture, or a damaged one"):
        read_parameters(path)
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for position in random.integers(0, len(whole), 4):
            damaged[position] = random.integers(256)
        path.write_bytes(damaged)
        # Only PNG has a checksum over its text: elsewhere a changed letter cannot be told from a meant one.
        refused_or_right(path, exact=ending == ".png")


def refused_or_right(path: Path, exact: bool = True) -> None:
    try:
        found = read_parameters(path)
    except ImageFileError as error:
        assert str(path) in str(error)
    else:
        assert found == PARAMETERS or not exact
