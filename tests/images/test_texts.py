"""What pictures say beside their pixels, read by other people's programs: sd-parsers, an XML parser, and by ours."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from max_zimage.images.infotext import read_infotext
from max_zimage.images.save import ImageFileError, encode_image, save_image
from max_zimage.images.texts import embedded_text, has_other_text
from max_zimage.images.xmp import Source, properties
from max_zimage.request.metadata import GenerationParameters, read_parameters
from tests.images.test_save import PARAMETERS, picture
from tests.references.image_readers import read_by_sd_parsers

KINDS = ["PNG", "JPEG", "WEBP"]
EARLIER = Path(__file__).with_name("earlier")
IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
changed: Callable[..., GenerationParameters] = replace
PLAIN = changed(PARAMETERS, strength=None, image_digest=None, image_height=None, image_width=None)
STYLE = {"name": "my style.safetensors", "scale": 0.75, "digest": f"sha256:{'0123456789abcdef' * 4}"}


def encoded(parameters: GenerationParameters, kind: str, **more: Any) -> bytes:
    return encode_image(picture(), kind, parameters.to_json(), **more)


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def said(content: bytes) -> str:
    """The text for other tools, by Pillow alone."""
    image = opened(content)
    if image.format == "PNG":
        return str(image.info["parameters"])
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment[:8] == b"UNICODE\0"
    return str(comment[8:].decode("utf-16-be"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "negative"),
    [
        ("a red star", ""),
        ('two "stars", one: red\nSteps: 3, Sampler: DDIM, CFG scale: 9, Seed: 1\nlast line', "blue\nSteps: 4"),
        ("\u7ea2\u8272\u7684\u661f\u661f, \U0001f31f", "\u0441\u0438\u043d\u0438\u0439"),
        ("star " * 1999 + "shine", "dark " * 1999 + "night"),
    ],
    ids=["plain", "steps inside", "unicode", "long"],
)
def test_sd_parsers_reads_it(kind: str, prompt: str, negative: str) -> None:
    parameters = changed(PLAIN, prompt=prompt, negative_prompt=negative, sampler="euler_ancestral", shift=3.5)
    parameters = changed(parameters, sigma_shape="comfy_karras", model="folder/Z-Image-Turbo", guidance_scale=2.5)
    found = read_by_sd_parsers(encoded(parameters, kind))
    assert found is not None
    (sampler,) = found.samplers
    assert [each.value for each in found.prompts] == [prompt]
    assert [each.value for each in found.negative_prompts] == [negative] * bool(negative)
    assert sampler.name == "Euler a"
    assert sampler.model is not None
    assert sampler.model.name == "Z-Image-Turbo"
    expected = {"scheduler": "Karras", "cfg_scale": "3.5", "seed": str(2**63 - 1), "steps": "20"}
    assert sampler.parameters == expected
    assert (found.metadata["Size"], found.metadata["Shift"]) == ("48x32", "3.5")
    assert found.metadata["Version"] == f"max_zimage {PLAIN.version}"


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=150, deadline=None)
@given(prompt=TEXT, negative=TEXT, kind=st.sampled_from(KINDS))
@example(prompt="Steps: 3", negative="", kind="JPEG")
@example(prompt="x\nNegative prompt: y\nz: 1, Seed: 2, Steps: 3", negative="Negative prompt:", kind="PNG")
@example(prompt='<lora:a:1> "quoted", ]]> &amp; \ufffe\uffff\x00\x7f\r\n', negative="\u2028", kind="WEBP")
def test_any_prompt_survives(prompt: str, negative: str, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ours to the letter; in other tools' text as they keep it, without the spaces around a line."""
    path = tmp_path_factory.mktemp("text") / "a"
    parameters = changed(PLAIN, prompt=prompt, negative_prompt=negative)
    path.write_bytes(encoded(parameters, kind))
    assert read_parameters(path) == parameters
    if "Negative prompt:" in prompt + negative:  # nobody can tell these apart
        return
    text = said(path.read_bytes())
    found = read_infotext(text)
    assert found is not None
    wanted = [each.replace("\0", "\u2400").strip().split("\n") for each in (prompt, negative)]
    stripped = ["\n".join(line.strip() for line in lines).strip() for lines in wanted]
    assert [found.prompt.strip(), found.negative_prompt.strip()] == stripped
    assert (found.pairs["Steps"], found.pairs["Seed"]) == ("20", str(2**63 - 1))
    theirs = read_by_sd_parsers(path.read_bytes())
    assert theirs is not None
    assert [each.value for each in theirs.prompts] == ([text.split("\nNegative prompt:")[0].split("\nSteps: 20,")[0]
            .strip()] if prompt.strip().replace("\0", "x") else [])  # fmt: skip


def test_what_there_is_a_name_for_is_said() -> None:
    parameters = changed(
        PARAMETERS, prompt="a star", noise="torch", variation_seed=5, variation_strength=0.25, loras=(STYLE,),
        sigmas=(1.0, 0.5), guidance_scale=(0.0, 4.0), model="folder/a, b: c",
    )  # fmt: skip
    text = said(encoded(parameters, "PNG"))
    assert text.split("\n")[0] == "a star <lora:my style:0.75>"
    assert text.split("\n")[-1] == (
        f'Steps: 20, Sampler: Euler, CFG scale: 5, Seed: {2**63 - 1}, Size: 48x32, Model: "a, b: c", '
        'Variation seed: 5, Variation seed strength: 0.25, Denoising strength: 0.6, RNG: CPU, Sigmas: "1, 0.5", '
        f'Lora hashes: "my style: 0123456789", Version: max_zimage {PARAMETERS.version}'
    )
    found = read_infotext(text)
    assert found is not None
    assert (found.pairs["Model"], found.pairs["Sigmas"]) == ("a, b: c", "1, 0.5")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", Source)
def test_what_made_it_is_said(kind: str, source: Source) -> None:
    """As IPTC has it, with parameters and without; read by an XML parser that knows nothing of this program."""
    for parameters in (PLAIN.to_json(), ""):
        xmp = opened(encode_image(picture(), kind, parameters, source=source)).info["xmp"]
        (found,) = ElementTree.fromstring(xmp.decode()).iter(TYPE)
        assert found.text == IPTC + source.value


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_alone(kind: str) -> None:
    bare = encode_image(picture(), kind, PLAIN.to_json(), source=None)
    assert not {"xmp", "exif", "parameters", "max_zimage"} & set(opened(bare).info)
    assert b"star" not in bare
    full = encoded(PLAIN, kind)
    np.testing.assert_array_equal(np.asarray(opened(full)), np.asarray(opened(bare)))
    assert len(full) > len(bare)


@pytest.mark.parametrize("kind", KINDS)
def test_as_much_as_a_server_takes(kind: str, tmp_path: Path) -> None:
    """Three texts of 10,000 characters, in a script that takes three bytes of UTF-8 for each."""
    letters = np.random.default_rng(0).integers(0x4E00, 0x9FFF, 30_000)
    prompt, negative, system = ("".join(map(chr, each)) for each in letters.reshape(3, -1))
    parameters = changed(PLAIN, prompt=prompt, negative_prompt=negative, system_prompt=system)
    path = tmp_path / "a"
    path.write_bytes(encoded(parameters, kind))
    assert read_parameters(path) == parameters
    found = read_by_sd_parsers(path.read_bytes())
    assert found is not None
    assert [each.value for each in (*found.prompts, *found.negative_prompts)] == [prompt, negative]
    if kind == "JPEG":
        whole = path.read_bytes()
        place = whole.index(b"http://ns.adobe.com/xmp/extension/") + 200
        path.write_bytes(whole[:place] + b"?" + whole[place + 1 :])
        text = embedded_text(path)  # what is left is other tools' text
        assert text.startswith(prompt)


def test_a_jpeg_holds_so_much_of_other_tools_text(tmp_path: Path) -> None:
    longest = changed(PLAIN, prompt="\U0001f31f" * 16_000)
    assert len(said(encoded(longest, "JPEG"))) > 16_000
    longer = changed(PLAIN, prompt="\U0001f31f" * 16_250)
    assert "exif" not in opened(encoded(longer, "JPEG")).info
    assert [has_other_text(kind, longer.to_json()) for kind in KINDS] == [True, False, True]
    (tmp_path / "a.jpg").write_bytes(encoded(longer, "JPEG"))
    assert read_parameters(tmp_path / "a.jpg") == longer


@pytest.mark.parametrize("path", sorted(EARLIER.iterdir()), ids=lambda path: path.name)
def test_pictures_of_earlier_versions(path: Path) -> None:
    """Files that those versions wrote, of every format of the parameters and of the file."""
    version = int(path.name.split("-")[1].split(".")[0])
    found = read_parameters(path)
    assert json.loads(embedded_text(path))["format_version"] == version
    prompt = "a red star" if "ascii" in path.name else 'a "red" star,\n\u7ea2\u8272'
    assert (found.prompt, found.negative_prompt, found.seed, found.shift) == (prompt, "blue", 7, 2.5)
    assert (found.step_cache != "off") == (version >= 2)
    assert (found.strength, found.device) == ((0.6, "cpu") if version >= 3 else (None, None))
    assert (found.sampler, found.sigma_shape) == (("heun", "karras") if version >= 4 else ("euler", "linear"))


def saved_by_others(path: Path, text: str, way: str) -> None:
    image = Image.fromarray(picture())
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.UserComment: b"UNICODE\0" + text.encode("utf-16-be")}
    namespace = "https://github.com/leejet/stable-diffusion.cpp/ns/1.0/"
    xmp = (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r xmlns:s="{namespace}"><s:parameters>'
        f"{text.replace('<', '&lt;')}</s:parameters></r></x:xmpmeta>"
    )
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "webui jpeg": ("JPEG", {"exif": exif}),
        "webui webp": ("WEBP", {"exif": exif}),
        "sd.cpp jpeg": ("JPEG", {"comment": b"parameters\0" + text.encode() + b"\0"}),
        "sd.cpp webp": ("WEBP", {"xmp": xmp.encode()}),
    }
    kind, options = ways[way]
    image.save(path, kind, **options)


@pytest.mark.parametrize("way", ["webui jpeg", "webui webp", "sd.cpp jpeg", "sd.cpp webp"])
def test_where_others_keep_their_text(tmp_path: Path, way: str) -> None:
    text = "a star <lora:x:1>, \u7ea2\nSteps: 4, Sampler: Euler, Seed: 1"
    saved_by_others(tmp_path / "a", text, way)
    assert embedded_text(tmp_path / "a") == text


def test_pictures_whose_parameters_are_not_read_say_whose_they_are(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("prompt", "{}")
    chunks.add_text("workflow", "{}")
    Image.fromarray(picture()).save(tmp_path / "a.png", pnginfo=chunks)
    with pytest.raises(ImageFileError, match="holds the parameters of ComfyUI, which are not read; give the prompt"):
        embedded_text(tmp_path / "a.png")


def test_entities_of_xml_are_not_expanded() -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><x>&b;</x>'
    assert properties(bomb) == {}
    assert properties(b"<x><y>") == {}
    assert properties(b'<x xmlns:p="urn:q" p:z="1"><p:y>2</p:y></x>') == {"urn:q z": "1", "urn:q y": "2"}


def test_saved_by_name(tmp_path: Path) -> None:
    save_image(picture(), tmp_path / "a.webp", PLAIN.to_json(), Source.COMPOSITE)
    assert Source.COMPOSITE.value in opened((tmp_path / "a.webp").read_bytes()).info["xmp"].decode()
