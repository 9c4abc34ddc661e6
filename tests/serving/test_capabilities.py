"""What the server says that it can do is what it does: names, ranges and defaults, held to the checks themselves."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage.request.fields import ROWS
from max_zimage.request.metadata import read_parameters
from max_zimage.request.templates import Templates
from max_zimage.sampling import samplers, shapes
from max_zimage.serving.http.schema import EDIT, GENERATION
from tests.references.servers import Server, error_of

PROMPT = "a red star on a blue background"
NEEDS: dict[str, dict[str, Any]] = {
    "apg_eta": {"guidance_variant": "apg"},
    "apg_momentum": {"guidance_variant": "apg"},
    "apg_norm_threshold": {"guidance_variant": "apg"},
    "slg_start": {"slg_scale": 2.5},
    "slg_stop": {"slg_scale": 2.5},
}


@pytest.fixture(scope="module")
def found(server: Server) -> dict[str, Any]:
    answer = server.client.get("/v1/capabilities")
    assert answer.status_code == 200
    return dict(answer.json())


def field_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(next(each for each in found["fields"] if each["name"] == name))


def test_every_field_of_the_routes_is_described(found: dict[str, Any]) -> None:
    names = [each["name"] for each in found["fields"]]
    assert len(names) == len(set(names))
    refused = {name for name, field in EDIT.model_fields.items() if field.annotation is type(None)}
    aliases = {other for row in ROWS.values() if row.images for other in row.images.others}
    assert "num_inference_steps" in aliases
    assert set(names) == set(EDIT.model_fields) - refused - aliases
    for each in found["fields"]:
        assert each["help"], each
        assert each["schema"]["type"] in ("string", "integer", "number", "boolean", "array"), each
        in_generations = "/v1/images/generations" in each["routes"]
        assert in_generations == (each["name"] in GENERATION.model_fields)
    flags = {row.images.name: row.flag.name for row in ROWS.values() if row.images and row.flag and row.flag.group}
    assert {each["name"]: each["flag"] for each in found["fields"] if each["flag"]}.items() <= flags.items()


def test_names_are_those_of_the_registries(found: dict[str, Any]) -> None:
    assert found["samplers"] == sorted(path.stem for path in Path(samplers.__file__).parent.glob("[!_]*.py"))
    assert all(samplers.cost(name, 4)[0] for name in found["samplers"])
    assert found["sigma_shapes"] == list(shapes.SHAPES)
    assert found["guidance_variants"] == ["cfg", "cfg_zero_star", "apg"]
    assert found["upscale_modes"] == ["lanczos", "bicubic"]
    assert found["vae_tilings"] == ["off", "blend", "exact"]
    shipped = Templates().all
    assert {each["name"]: each["category"] for each in found["templates"]} == {
        name: template.category for name, template in shipped.items()
    }
    assert found["features"]["inpainting"]
    assert not found["features"]["loras"]
    assert found["loras"] == []


def test_limits_are_the_ones_that_refuse(found: dict[str, Any], server: Server) -> None:
    limits = found["limits"]
    assert (limits["pixels"], limits["n"], limits["prompt_characters"], limits["body_bytes"]) == (
        262144,
        3,
        500,
        2000000,
    )
    for body, param in (
        ({"steps": limits["steps"] + 1}, "steps"),
        ({"n": limits["n"] + 1}, "n"),
        ({"size": f"{limits['pixels'] // 512 + 16}x512"}, "size"),
        ({"prompt": "x" * (limits["prompt_characters"] + 1)}, "prompt"),
        ({"max_sequence_length": limits["prompt_tokens"] + 1}, "max_sequence_length"),
    ):
        assert error_of(server.draw(**body))["param"] == param


def test_ranges_end_where_the_checks_do(found: dict[str, Any], server: Server) -> None:
    """One step beyond either end of every range is refused, and the field is blamed."""
    tried = 0
    for each in found["fields"]:
        schema, name = each["schema"], each["name"]
        if schema["type"] not in ("integer", "number") or "/v1/images/generations" not in each["routes"]:
            continue
        step = schema.get("multipleOf", 1) if schema["type"] == "integer" else 0.01
        beyond = [schema["minimum"] - step] if "minimum" in schema else [schema["exclusiveMinimum"]]
        beyond += [schema["maximum"] + step] if "maximum" in schema else []
        beyond += [schema["exclusiveMaximum"]] if "exclusiveMaximum" in schema else []
        for value in beyond:
            answer = server.draw(**{**NEEDS.get(name, {}), name: value, **_streamed(name)})
            assert (answer.status_code, error_of(answer)["param"]) == (400, name), (name, value, answer.text)
            tried += 1
    assert tried > 50


def _streamed(name: str) -> dict[str, Any]:
    more: dict[str, dict[str, Any]] = {
        "partial_images": {"stream": True},
        "output_compression": {"output_format": "jpeg"},
    }
    return more.get(name, {})


def test_words_are_all_that_is_taken(found: dict[str, Any], server: Server) -> None:
    for each in found["fields"]:
        if "enum" in each["schema"]:
            body: dict[str, Any] = {each["name"]: "no-such-word"}
            error = error_of(server.draw(**body))
            assert error["param"] == each["name"], each["name"]


def test_defaults_are_what_is_drawn(found: dict[str, Any], server: Server, tmp_path: Path) -> None:
    """A picture that was asked for with nothing said, and one with all defaults said, are the same."""
    defaults = found["defaults"]
    silent = base64.b64decode(server.draw(PROMPT, seed=3).json()["data"][0]["b64_json"])
    said = {
        name: value for name, value in defaults.items() if "/v1/images/generations" in field_of(found, name)["routes"]
    }
    said = {name: value for name, value in said.items() if value not in ("", [])}
    assert len(said) > 25
    loud = base64.b64decode(server.draw(PROMPT, **said | {"seed": 3}).json()["data"][0]["b64_json"])
    files = []
    for name, content in (("silent", silent), ("loud", loud)):
        (tmp_path / name).write_bytes(content)
        files.append(read_parameters(tmp_path / name))
    assert files[0] == files[1]
    assert defaults["size"] == f"{files[0].width}x{files[0].height}"
    assert (defaults["steps"], defaults["guidance_scale"]) == (files[0].num_inference_steps, files[0].guidance_scale)
    pixels = [np.asarray(Image.open(io.BytesIO(content))) for content in (silent, loud)]
    np.testing.assert_array_equal(pixels[0], pixels[1])
