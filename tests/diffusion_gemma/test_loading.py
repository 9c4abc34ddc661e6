"""What is looked at before weights are loaded: the device, what is said of it in the environment, and memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from max.driver import CPU, Buffer, Device

from max_zimage.compile import device_graphs, device_weights
from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.diffusion_gemma import weights
from max_zimage.diffusion_gemma.config_file import read_file
from max_zimage.diffusion_gemma.model import DiffusionGemmaForBlockDiffusionModel
from max_zimage.diffusion_gemma.model_graphs import CompiledDiffusionGemma
from max_zimage.embedded import TEXT_PATH

GPU = cast(Device, SimpleNamespace(is_host=False, api="cuda", label="gpu", id=0, stats={"total_memory": 3 * 2**30}))


@pytest.mark.parametrize("variable", [device_graphs.VARIABLE, device_weights.VARIABLE])
def test_variables_without_meaning_are_refused_first(
    monkeypatch: pytest.MonkeyPatch, variable: str, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, "maybe")
    with pytest.raises(ValueError, match=f"{variable} must be .*, got 'maybe'"):
        CompiledDiffusionGemma.from_pretrained(tmp_path / "nothing", device="cpu")
    model = object.__new__(DiffusionGemmaForBlockDiffusionModel)
    model.device = CPU()
    with pytest.raises(ValueError, match=f"{variable} must be .*, got 'maybe'"):
        model.load_model(cast(Any, None))


def test_what_does_not_fit_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> Mapping[str, Buffer]:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(weights, "available_memory", lambda: 50 * 2**30)
    monkeypatch.setattr(weights, "load", read)
    checked: Any = SimpleNamespace(nbytes=lambda dtype: {"float32": 97, "bfloat16": 48}[dtype] * 2**30)
    with pytest.raises(NotEnoughMemoryError, match=r"need 97.0 GiB, 50.0 GiB are available; .* use bfloat16 where"):
        weights.load_weights(checked, "float32", CPU())
    with pytest.raises(AssertionError, match="something was loaded"):
        weights.load_weights(checked, "bfloat16", CPU())


def test_two_graphs_have_a_copy_each_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(device_weights.VARIABLE, raising=False)
    weights.check_fit(2**30, GPU)
    with pytest.raises(NotEnoughMemoryError, match=r"need 4.0 GiB, 3.0 GiB are available on gpu:0"):
        weights.check_fit(2 * 2**30, GPU)
    with pytest.raises(NotEnoughMemoryError, match=r"need 3.5 GiB, 3.0 GiB are available on gpu:0"):
        weights.check_fit(2**30, GPU, 3 * 2**29)
    monkeypatch.setenv(device_weights.VARIABLE, "shared")
    weights.check_fit(2 * 2**30, GPU)


def test_each_graph_on_an_accelerator_turns_the_experts_second_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(device_weights.VARIABLE, raising=False)
    there = iter((CPU(), GPU))
    monkeypatch.setattr(weights, "load_devices", lambda specs: (next(there),))
    monkeypatch.setattr(weights, "device_spec", lambda name: name)
    monkeypatch.setattr(weights, "model_dtype", lambda name, device: "bfloat16")
    (on_host,) = weights.weights_of(TEXT_PATH, "cpu").values()
    (on_card,) = weights.weights_of(TEXT_PATH, "gpu").values()
    spec = read_file(TEXT_PATH).spec
    second = len(spec.layer_types) * spec.num_experts * spec.hidden_size * spec.expert_size * 2
    assert second > 0
    assert on_card == 2 * on_host + 2 * second
