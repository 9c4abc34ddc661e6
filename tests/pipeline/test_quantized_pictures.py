"""Pictures of quantized weights: near those of the whole ones, remembered, refused where they cannot be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from max.driver import Buffer, Device

from benchmarks.measure import psnr
from max_zimage import ZImagePipeline, ZImageTextEncoder
from max_zimage.checkpoint.adapters import added, open_adapter
from max_zimage.checkpoint.digest import digest_of_weights
from max_zimage.cli.main import main
from max_zimage.compile import modules
from max_zimage.components import ZImageComponent
from max_zimage.pipeline.storages import VARIABLE, storages_of
from max_zimage.request.metadata import read_parameters
from tests.recording import RecordProperty
from tests.references.diffusers_runs import Pair
from tests.references.loras import STYLE, TEXT, write_adapter

WORDS = "text_encoder=q4,transformer=int8"
CALL: dict[str, Any] = {"seed": 3, "num_inference_steps": 4, "height": 128, "width": 128, "guidance_scale": 2.0}
NEAR_DB = 38.0
"""Codes of four bits in a text encoder of the embedded model's widths move its pictures by about 1 %."""


def draw(pipeline: ZImagePipeline, **given: Any) -> npt.NDArray[np.uint8]:
    return np.asarray(pipeline("a red star on a blue background", output_type="np", **CALL | given))[0]


@pytest.fixture(scope="module")
def quantized() -> ZImagePipeline:
    return ZImagePipeline.from_pretrained(device="cpu", quantize=WORDS)


def test_pictures_are_near_and_weights_small(
    quantized: ZImagePipeline, embedded: Pair, record_property: RecordProperty
) -> None:
    found = psnr(draw(quantized), draw(embedded.ours))
    record_property("PSNR in dB", found)
    assert found > NEAR_DB
    whole, small = embedded.ours.sources.nbytes, quantized.sources.nbytes
    assert small["vae"] == whole["vae"]
    assert small["transformer"] < 0.6 * whole["transformer"]  # much of the embedded model is modulation
    assert small["text_encoder"] < 0.6 * whole["text_encoder"]
    weights = quantized.transformer.kept_weights
    there = sum(data.num_elements * data.dtype.size_in_bytes for data in weights.values())
    assert small["transformer"] <= there < 1.01 * small["transformer"]  # the last panels are filled up


def test_hidden_layers_and_adapters(quantized: ZImagePipeline, tmp_path: Path) -> None:
    """What is rounded is the sum; without the adapter the codes are those of before, and nothing is compiled."""
    base, other = draw(quantized), draw(quantized, hidden_layer=-3)
    assert not np.array_equal(base, other)
    adapter = write_adapter(tmp_path / "style.safetensors", STYLE, TEXT)
    before = modules.counts["misses"]
    with_it = draw(quantized, loras=[(str(adapter.path), 0.5)])
    assert not np.array_equal(base, with_it)
    np.testing.assert_array_equal(draw(quantized), base)
    assert modules.counts["misses"] == before


def test_features_of_an_encoder_alone(quantized: ZImagePipeline) -> None:
    """The same numbers under the same digest, which is not that of whole weights."""
    alone = ZImageTextEncoder.from_pretrained(device="cpu", quantize=WORDS)
    ours, theirs = quantized.encode("a red star"), alone.encode("a red star")
    np.testing.assert_array_equal(ours.positive, theirs.positive)
    assert ours.made_by.encoder_digest == theirs.made_by.encoder_digest
    whole = ZImageTextEncoder.prepare(device="cpu").plan
    assert digest_of_weights(whole) != theirs.made_by.encoder_digest
    assert digest_of_weights(replace(whole, kept_as="q4")) == theirs.made_by.encoder_digest


def test_a_switch_that_fails_leaves_codes_and_scales(
    quantized: ZImagePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = draw(quantized)
    adapter = write_adapter(tmp_path / "style.safetensors", STYLE)
    component, bind = quantized.transformer, ZImageComponent._bind

    def failing(self: ZImageComponent, weights: Mapping[str, Buffer]) -> None:
        bind(self, weights)
        monkeypatch.setattr(ZImageComponent, "_bind", bind)
        raise OSError("gone")

    monkeypatch.setattr(ZImageComponent, "_bind", failing)
    with pytest.raises(Exception, match="gone"):
        component.bind([added([(open_adapter(adapter.path, quantized.sources.specs), 3.0)], "transformer")])
    np.testing.assert_array_equal(draw(quantized), base)


def test_the_command_line_remembers(quantized: ZImagePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del quantized  # its graphs are compiled
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, VARIABLE, "transformer=q4")  # comes last
    small = ["--height", "64", "--width", "64", "--steps", "1", "--quiet", "--device", "cpu"]
    assert main(["generate", "a red star", "--seed", "1", "--output", "a.png", "--quantize", WORDS, *small]) == 0
    assert read_parameters(Path("a.png")).quantize == WORDS
    assert main(["generate", "--from", "a.png", "--output", "b.png", "--quiet", "--device", "cpu"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("vae=int8", "quantize takes COMPONENT=STORAGE with a component of text_encoder, transformer"),
        ("transformer=fp8", "a storage of int8, q4, got transformer=fp8"),
        ("int8", "got int8="),
        ("transformer=int8,transformer=q4", "quantize names transformer twice"),
        ({"transformer": "int4"}, "got transformer=int4"),
    ],
)
def test_what_cannot_be(asked: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"^quantize ") as error:
        ZImagePipeline.prepare(device="cpu", quantize=asked)
    assert message in str(error.value)
    if isinstance(asked, str):
        assert main(["info", "--device", "cpu", "--quantize", asked]) == 2
        assert message in capsys.readouterr().err


def test_the_variable_is_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = cast(Device, SimpleNamespace(is_host=False, label="gpu"))
    assert storages_of("", gpu) == storages_of(None, gpu) == {}
    monkeypatch.setenv(VARIABLE, "transformer=q4")
    assert ZImagePipeline.prepare(device="cpu").sources.quantize == "transformer=q4"
    assert ZImagePipeline.prepare(device="cpu", quantize="").sources.quantize == ""
    assert ZImagePipeline.prepare(device="cpu", quantize={"text_encoder": "q4"}).sources.quantize == "text_encoder=q4"
