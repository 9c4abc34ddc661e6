"""A component that a placement moves to the CPU is quantized, and attends, as a CPU does."""

from __future__ import annotations

from typing import cast

import pytest
from max.driver import CPU, Device
from max.graph import DeviceRef

from max_zimage import ZImagePipeline
from max_zimage.device.plans import STAGES, Plan
from max_zimage.pipeline import moved
from max_zimage.pipeline.attention import with_attention
from max_zimage.pipeline.moved import as_placed

CARD = "gpu:0"


def test_storages_are_those_of_where_components_came_to_run() -> None:
    """`auto` may have moved one to the CPU after the checkpoint was read."""
    sources = ZImagePipeline.prepare(device="cpu").sources
    quantized = sources.with_storages({"text_encoder": "int8_rows", "transformer": "int8_rows"})
    plan = Plan(devices={"text_encoder": "cpu", "transformer": CARD, "vae": CARD})
    kept = {name: each.kept_as for name, each in as_placed(quantized, plan).plans.items()}
    assert kept == {"text_encoder": "int8", "transformer": "int8_rows", "vae": None}
    assert as_placed(sources, plan) == sources


def test_attention_is_that_of_where_components_came_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """MAX's is what a GPU has anyway, and not what a CPU has."""
    sources = ZImagePipeline.prepare(device="cpu").sources
    gpu = cast(Device, DeviceRef.GPU())
    monkeypatch.setattr(moved, "device_of", lambda name: CPU() if name == "cpu" else gpu)
    read = with_attention(sources, "max", dict.fromkeys(STAGES, gpu))
    assert (read.attention, read.attention_wish) == ({}, "max")
    plan = Plan(devices={"text_encoder": "cpu", "transformer": CARD, "vae": CARD})
    assert as_placed(read, plan).attention == {"text_encoder": "max"}
