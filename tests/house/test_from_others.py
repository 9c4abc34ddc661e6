"""Pages for those who come from elsewhere name everything that is there, and nothing here that is not."""

from __future__ import annotations

import inspect
import re

import diffusers
import pytest

from max_zimage import ZImagePipeline
from max_zimage.pipeline.results import _OTHERS
from max_zimage.request.fields import ROWS
from max_zimage.sampling.names import SAMPLERS, SIGMA_SHAPES
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "from-diffusers.md").read_text(encoding="utf-8")
COMFYUI = (ROOT / "docs" / "from-comfyui.md").read_text(encoding="utf-8")
PIPELINES = (diffusers.ZImagePipeline, diffusers.ZImageImg2ImgPipeline, diffusers.ZImageInpaintPipeline)


def rows(heading: str) -> list[tuple[str, str]]:
    """The first two cells of each row of a section's table."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| (.*?) \| (.*?) \|", section, re.MULTILINE)
    return [each for each in found if each[0] not in ("diffusers", "---")]


def named(cell: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", cell))


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.__name__)
def test_every_argument_of_diffusers_has_a_row(pipeline: type) -> None:
    wanted = set(inspect.signature(pipeline.__call__).parameters) - {"self"}
    assert wanted - {name for cell, _ in rows("Arguments of the call") for name in named(cell)} == set()


def test_what_a_row_promises_is_there() -> None:
    ours = {*inspect.signature(ZImagePipeline.__call__).parameters, *ROWS, "generator"}
    for theirs, here in rows("Arguments of the call"):
        if here.startswith("left out"):
            assert named(theirs) <= {*_OTHERS, "masked_image_latents"}
            assert not named(theirs) & ours
        else:
            promised = named(theirs) if here == "the same" else named(here)
            assert promised <= ours, promised - ours


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.__name__)
def test_every_switch_and_every_method_of_adapters_is_named(pipeline: type) -> None:
    wanted = {name for name in dir(pipeline) if name.startswith(("enable_", "disable_"))}
    wanted |= {name for name in dir(pipeline) if ("lora" in name or "adapters" in name) and name[0] != "_"}
    properties = {"fused_loras", "num_fused_loras", "lora_scale", "write_lora_layers"}
    assert {name for name in wanted - properties if not re.search(rf"`{name}\b", PAGE)} == set()


def test_methods_of_adapters_that_are_the_same_are_there() -> None:
    for theirs, here in rows("Adapters (LoRA)"):
        names = re.findall(r"`(\w+)", theirs)
        assert all(hasattr(ZImagePipeline, name) == here.startswith("the same") for name in names), names


def test_schedulers_are_diffusers_and_samplers_are_ours() -> None:
    for theirs, here in rows("Schedulers"):
        for scheduler in re.findall(r"`(\w+Scheduler)", theirs):
            assert hasattr(diffusers, scheduler)
        for kind, name in re.findall(r'(sampler|sigma_shape)="(\w+)"', here):
            assert name in (SAMPLERS if kind == "sampler" else SIGMA_SHAPES)


def test_comfyui_nodes_lead_to_names_that_are_there() -> None:
    for line in COMFYUI.splitlines():
        words = line.partition("`sampler`: ")[2]
        assert named(words) <= {*SAMPLERS, "dpmpp_2m"}
        words = line.partition("`sigma_shape`: ")[2]
        assert named(words) <= {*SIGMA_SHAPES, "comfy_"}
    for name in ("negative_prompt", "guidance_rescale", "slg_scale", "vae_tile_size", "outpaint", "mask_image"):
        assert f"`{name}`" in COMFYUI
        assert name in ROWS
