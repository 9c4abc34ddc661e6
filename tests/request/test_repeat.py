"""Pictures drawn over every route, and by the command line, repeated from what they carry: the same pixels."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage.cli.main import main
from max_zimage.images.save import ImageFileError, save_image
from max_zimage.request.metadata import UNKNOWN_IMAGE, GenerationParameters, read_parameters
from max_zimage.request.request import GenerationRequest
from max_zimage.request.start_image import digest
from tests.references.diffusers_runs import Pair
from tests.references.servers import Server
from tests.request.conftest import Repeat
from tests.tolerances import PIXEL_SHARE

PROMPT = "a green circle on a black background"
STAR = {"guidance_variant": "cfg_zero_star", "slg": "true", "slg_layers": "0-1,3", "guidance_interval": "0 0.5"}
STAR |= {"sigma_shape": "beta57", "dynamic_shift": "false"}


def start(height: int = 96, width: int = 64) -> Image.Image:
    """Soft stripes, so that every pixel counts."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows * 2, columns * 2, (rows + columns) % 256], axis=-1).astype(np.uint8))


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, format=kind, **options)
    return content.getvalue()


def data_url(picture: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(encoded(picture)).decode()}"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def keep(path: Path, answer: Any) -> None:
    """The first picture of an answer of OpenAI's routes."""
    assert answer.status_code == 200, answer.text
    path.write_bytes(base64.b64decode(answer.json()["data"][0]["b64_json"]))


@pytest.mark.parametrize(
    "asked",
    [
        {"steps": 3, "size": "64x96", "sampler": "dpmpp_sde", "sigma_shape": "karras"},
        {"quality": "low", "output_format": "webp", "sigma_shape": "bong_tangent"},
        {"steps": 3, "negative_prompt": "blue", "guidance_scale": 3.5, "cfg_normalization": 0.5, "cfg_truncation": 0.8},
        {"steps": 4, "guidance_scale": [3.0, 2, 0, 1], "guidance_variant": "apg", "apg_momentum": -0.5, "slg": True},
        {
            "steps": 4,
            "guidance_scale": 0,
            "nag_scale": 7,
            "nag_tau": 2,
            "nag_sigma_end": 0.5,
            "negative_prompt": "green",
        },
        {"passes": [{"scale": 0.5, "steps": 3}, {"scale": 1.0, "steps": 4, "strength": 0.6}], "size": "64x96"},
        {"passes": "0.5,1:0.4:shift=2", "steps": 3, "upscale": "bicubic", "guidance_scale": 2.0, "size": "96x96"},
        {"steps": 9, "shift": 5.5, "step_cache": "taylorseer:cache_interval=3,warmup_steps=2"},
        {"steps": 5, "size": "64x96", "progressive": 0.5, "dynamic_shift": True, "shift_terminal": 0.2},
        {"steps": 8, "step_cache": "first_block:threshold=0.5", "guidance_scale": 0.0, "hidden_layer": -4},
        {"steps": 2, "hidden_layer": {"-2": 0.7, "-4": 0.4}, "negative_prompt": "blue", "guidance_scale": 2.0},
        {"steps": 3, "size": "64x144", "dype": "vision_yarn", "dype_base_resolution": 64, "dype_start_sigma": 0.7},
        {"steps": 8, "step_cache": "first_block:threshold=0.5", "guidance_scale": 0.0},
        {"steps": 2, "vae_tiling": "blend", "vae_tile_size": 64, "vae_tile_overlap": 16},
    ],
    ids=lambda asked: "-".join(asked),
)
def test_generations(asked: dict[str, Any], server: Server, repeat: Repeat, tmp_path: Path) -> None:
    name = f"a.{asked.get('output_format', 'png')}"
    keep(tmp_path / name, server.draw(PROMPT, seed=11, **asked))
    assert repeat("--from", name, "--output", "again.png") == (0, "")
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), pixels(tmp_path / name))


@pytest.mark.parametrize("resized", [False, True], ids=["as it is", "resized"])
def test_edits(resized: bool, server: Server, repeat: Repeat, tmp_path: Path) -> None:
    """By a form, and repeated from the same picture in another format."""
    picture = start(100, 70) if resized else start()
    fields = {"prompt": PROMPT, "seed": "5", "steps": "4", "strength": "0.7"} | ({"resize": "true"} if resized else {})
    fields |= {"guidance_scale": "2,0,1.5,1", "guidance_interval": "0 0.9", "slg": "true", "slg_layers": "1-2"}
    fields |= {"hidden_layer": "-3"}
    keep(
        tmp_path / "a.png",
        server.client.post("/v1/images/edits", files={"image": ("x.png", encoded(picture))}, data=fields),
    )
    (tmp_path / "other.webp").write_bytes(encoded(picture, "WEBP", lossless=True))
    code, error = repeat("--from", "a.png")
    assert code == 2
    assert f"a.png was drawn from an image ({picture.width}x{picture.height} pixels, sha256:" in error
    assert "name its file with --image" in error
    assert repeat("--from", "a.png", "--img2img", "other.webp", "--output", "again.png") == (0, "")
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), pixels(tmp_path / "a.png"))
    assert read_parameters(tmp_path / "again.png") == read_parameters(tmp_path / "a.png")
    assert read_parameters(tmp_path / "a.png").is_resized == resized


def test_edits_to_a_size_of_its_own(server: Server, repeat: Repeat, tmp_path: Path) -> None:
    body: dict[str, Any] = {"image": data_url(start(50, 30)), "prompt": PROMPT, "seed": 5, "steps": 2}
    keep(tmp_path / "a.png", server.post("/v1/images/edits", **body, size="96x64", resize=True))
    start(50, 30).save(tmp_path / "start.png")
    assert repeat("--from", "a.png", "--image", "start.png", "--output", "again.png") == (0, "")
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), pixels(tmp_path / "a.png"))


@pytest.mark.parametrize("image", [None, start()], ids=["text", "image"])
def test_responses(image: Image.Image | None, server: Server, repeat: Repeat, tmp_path: Path) -> None:
    options = {"width": 128, "height": 128, "steps": 6, "flow_shift": 4.0, "guidance_scale": 1.5} | (
        {
            "cfg_normalization": image is not None,
            "cfg_truncation": 0.9,
            "negative_prompt": "red",
            "output_format": "png",
        }
    )
    content: list[dict[str, str]] = [{"type": "input_text", "text": PROMPT}]
    if image is not None:
        content.append({"type": "input_image", "image_url": data_url(start(128, 128))})
        options["strength"] = 0.8
    mask = start(128, 128).convert("L")
    mask.save(tmp_path / "mask.png")
    body: dict[str, Any] = {"model": "tiny-zimage", "input": [{"role": "user", "content": content}], "seed": 3}
    body["metadata"] = {"step_cache": "taylorseer:cache_interval=2,warmup_steps=1"} if image else dict(STAR)
    if image is not None:
        body["metadata"] |= {"mask_image": data_url(mask), "soft_mask": "true", "shift_terminal": "0.1"}
    body["metadata"] |= {"sampler": "euler_ancestral", "hidden_layer": "-2:0.5,-3:0.5"}
    answer = server.post("/v1/responses", provider_options={"image": options}, **body)
    assert answer.status_code == 200, answer.text
    (tmp_path / "a.png").write_bytes(base64.b64decode(answer.json()["output"][0]["content"][0]["image_data"]))
    start(128, 128).save(tmp_path / "start.png")
    more = [] if image is None else ["--image", "start.png", "--mask", "mask.png"]
    assert repeat("--from", "a.png", *more, "--output", "again.png") == (0, "")
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), pixels(tmp_path / "a.png"))


def test_pictures_that_were_drawn_together(server: Server, repeat: Repeat, tmp_path: Path) -> None:
    """Another batch sums in another order: of one request, and of two that shared their steps."""
    start().save(tmp_path / "start.png")
    body: dict[str, Any] = {"image": data_url(start()), "prompt": PROMPT, "seed": 5, "steps": 4, "n": 2}
    items = server.post("/v1/images/edits", **body).json()["data"]
    with ThreadPoolExecutor(3) as pool:  # the first one is drawn while the others wait for each other
        asked = [{"seed": seed, "steps": 20 if seed == 7 else 4, "prompt": PROMPT} for seed in (7, 8, 9)]
        shared = [each.json()["data"][0] for each in pool.map(lambda each: server.draw(**each), asked)]
    for number, item in enumerate([*items, *shared]):
        (tmp_path / f"{number}.png").write_bytes(base64.b64decode(item["b64_json"]))
        more = ["--image", "start.png"] if number < 2 else []
        assert repeat("--from", f"{number}.png", *more, "--output", f"again-{number}.png") == (0, "")
        first, again = pixels(tmp_path / f"{number}.png").astype(int), pixels(tmp_path / f"again-{number}.png")
        assert read_parameters(tmp_path / f"{number}.png").seed == item["seed"]
        assert np.mean(np.abs(first - again) <= 1) >= PIXEL_SHARE


def test_python(embedded: Pair, repeat: Repeat, tmp_path: Path) -> None:
    """Two prompts of two pictures each, from an image that was resized, by a sampler that draws noise."""
    pipeline = embedded.ours
    request = GenerationRequest.create(
        limits=pipeline.sources.limits, defaults=pipeline.sources.defaults, prompt=[PROMPT, "a red star"],
        negative_prompt=["red", "green"],
        image=start(50, 30),
        height=64,
        width=48,
        resize=True,
        strength=0.5,
        sigmas=[1.0, 0.9, 0.4, 0.1],
        sampler="er_sde",
        num_images_per_prompt=2,
        seed=2,
        output_type="np",
    )  # fmt: skip
    for number, picture in enumerate(np.asarray(pipeline.generate(request))):
        written = GenerationParameters.of(
            request, model="tiny-zimage", weight_paths=(), dtype="float32", device="cpu", picture=number
        )
        assert (written.prompt, written.negative_prompt) == ((PROMPT, "red"), ("a red star", "green"))[number // 2]
        save_image(picture, tmp_path / f"{number}.png", written.to_json())
        start(50, 30).save(tmp_path / "start.png")
        more = ("--image", "start.png", "--output", f"again-{number}.png")
        assert repeat("--from", f"{number}.png", *more) == (0, "")
        again = pixels(tmp_path / f"again-{number}.png").astype(int)
        assert np.mean(np.abs(again - picture) <= 1) >= PIXEL_SHARE


def test_what_no_parameters_can_repeat_gets_none(embedded: Pair) -> None:
    sources, spec = embedded.ours.sources, embedded.ours.transformer.spec
    features = [np.zeros((3, spec.caption_dim), np.float32)]
    cases: dict[str, dict[str, Any]] = {
        "latents": {"prompt": PROMPT, "latents": np.zeros((1, 16, 16, 16), np.float32)},
        "prompt_embeds": {"prompt_embeds": features, "guidance_scale": 0.0},
        "negative_prompt_embeds": {"prompt": PROMPT, "negative_prompt_embeds": features},
    }
    for name, arguments in cases.items():
        request = GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, **arguments)
        with pytest.raises(ImageFileError, match=f"made from {name} cannot be repeated from its parameters"):
            GenerationParameters.of(request, model="x", weight_paths=(), dtype="float32", device="cpu")


def test_flags_come_before_what_the_picture_says(repeat: Repeat, tmp_path: Path) -> None:
    start().save(tmp_path / "start.png")
    quick = ("--steps", "3", "--seed", "4", "--image", "start.png")
    assert repeat(PROMPT, *quick, "--strength", "0.9", "--output", "a.png") == (0, "")
    assert repeat("--from", "a.png", "--image", "start.png", "--strength", "0.4", "--output", "b.png") == (0, "")
    assert repeat(PROMPT, *quick, "--strength", "0.4", "--output", "c.png") == (0, "")
    first, other, direct = (pixels(tmp_path / f"{name}.png") for name in "abc")
    np.testing.assert_array_equal(other, direct)
    assert (np.abs(first.astype(int) - other) > 8).mean() > 0.1
    found = read_parameters(tmp_path / "b.png")
    assert (found.strength, found.image_digest) == (0.4, digest(np.asarray(start())))
    assert (found.height, found.width, found.image_height, found.image_width) == (96, 64, 96, 64)


def test_a_picture_from_before_may_have_begun_with_an_image(
    embedded: Pair, repeat: Repeat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert repeat(PROMPT, "--steps", "1", "--seed", "4", "--output", "a.png") == (0, "")
    values = json.loads(read_parameters(tmp_path / "a.png").to_json()) | {"format_version": 2}
    for name in ("strength", "image_digest", "image_height", "image_width", "device"):
        del values[name]
    old = GenerationParameters.from_json(json.dumps(values))
    assert (old.image_digest, old.strength) == (UNKNOWN_IMAGE, None)
    save_image(pixels(tmp_path / "a.png"), tmp_path / "old.png", old.to_json())
    assert main(["generate", "--from", "old.png", "--output", "b.png"]) == 0
    assert (
        "old.png is from a version that did not note whether a picture began with an image" in capsys.readouterr().err
    )
    np.testing.assert_array_equal(pixels(tmp_path / "b.png"), pixels(tmp_path / "a.png"))
    assert read_parameters(tmp_path / "b.png").image_digest is None


def test_another_device_is_told(repeat: Repeat, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert repeat(PROMPT, "--steps", "1", "--seed", "4", "--output", "a.png") == (0, "")
    values = json.loads(read_parameters(tmp_path / "a.png").to_json()) | {"device": "gpu"}
    found = GenerationParameters.from_json(json.dumps(values))
    save_image(pixels(tmp_path / "a.png"), tmp_path / "gpu.png", found.to_json())
    assert main(["generate", "--from", "gpu.png", "--output", "b.png"]) == 0
    assert "warning: gpu.png was drawn on a gpu; on a cpu some levels may differ" in capsys.readouterr().err


REFUSED = {
    "wrong image": (["--from", "drawn.png", "--image", "odd.png"], "odd.png is not the image that drawn.png was drawn"),
    "wrong pixel": (["--from", "drawn.png", "--image", "near.png"], "near.png is not the image that drawn.png was"),
    "no image": (["--from", "drawn.png"], "drawn.png was drawn from an image (64x96 pixels, sha256:"),
    "other size": (
        ["--from", "drawn.png", "--image", "start.png", "--height", "64"],
        "image: it has 64x96 pixels and the request asks for 64x64; ask for the image's size, resize it, or give --res",
    ),
    "odd": (
        ["--image", "odd.png"],
        "image: its sides must be multiples of 16, it has 70x100 pixels; the nearest size that fits is 64x96; resize "
        "it, or give --resize",
    ),
    "odd and a size": (
        ["--image", "odd.png", "--height", "96", "--width", "96"],
        "it has 70x100 pixels and the request asks for 96x96; ask for 64x96, the nearest to the image's size, resize",
    ),
    "strength alone": (["--strength", "0.5"], "--strength is given without an image, got 0.5; give the image too"),
    "resize alone": (["--resize"], "--resize is set without an image; give the image too, or leave it out"),
    "strength": (["--image", "start.png", "--strength", "1.5"], "--strength must be at most 1, got 1.5"),
    "strength 0": (["--image", "start.png", "--strength", "0"], "--strength must be"),
    "no file": (["--image", "nowhere.png"], "nowhere.png"),
    "a folder": (["--image", "."], "--image . "),
    "no picture": (["--image", "text.png"], "text.png"),
    "size": (["--image", "start.png", "--width", "100"], "width must be a multiple of 16, got 100; the nearest are 96"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input(arguments: list[str], message: str, loads_nothing: Repeat, tmp_path: Path, embedded: Pair) -> None:
    picture = start()
    picture.save(tmp_path / "start.png")
    start(100, 70).save(tmp_path / "odd.png")
    near = np.asarray(picture).copy()
    near[-1, -1, -1] ^= 1
    Image.fromarray(near).save(tmp_path / "near.png")
    (tmp_path / "text.png").write_text("a text")
    sources = embedded.ours.sources
    known: dict[str, Any] = {"limits": sources.limits, "defaults": sources.defaults, "prompt": PROMPT}
    request = GenerationRequest.create(image=picture, seed=1, **known)
    written = GenerationParameters.of(request, model="tiny-zimage", weight_paths=(), dtype="float32", device="cpu")
    save_image(np.asarray(picture), tmp_path / "drawn.png", written.to_json())
    code, error = loads_nothing(*arguments, "--output", "out.png")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("max-zimage: error: ")
    assert message in error
    assert not (tmp_path / "out.png").exists()
