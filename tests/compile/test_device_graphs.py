"""Recorded and replayed calls of a small model that keeps to MAX's rules."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from max.driver import CPU, Buffer, Device

from max_zimage.compile import device_graphs
from max_zimage.compile.compiler import CompiledGraph
from max_zimage.compile.device_graphs import CALLS_TO_REPLACE, KEPT, DeviceGraphs
from max_zimage.compile.modules import GraphDefinition
from tests.references.strict_model import StrictModel

NVIDIA = cast(Device, SimpleNamespace(is_host=False, api="cuda", label="gpu"))
AMD = cast(Device, SimpleNamespace(is_host=False, api="hip", label="gpu"))


pytestmark = pytest.mark.usefixtures("device_graphs_on")


class Scaled:
    """x · factor and x + factor; the factor is a number on the host."""

    def execute(self, *args: Any) -> list[Buffer]:
        x, factor = (each.to_numpy() for each in args)
        return [Buffer.from_numpy(x * factor), Buffer.from_numpy(x + factor)]


def numbers(*values: float) -> Buffer:
    return Buffer.from_numpy(np.array(values, np.float32))


def small() -> tuple[DeviceGraphs, StrictModel]:
    model = StrictModel(Scaled(), (False, True))
    # The CPU stands for the device, where "on the host" and "on the device" are one.
    return DeviceGraphs("small", model, CPU(), (False, True)), model


def run(graphs: DeviceGraphs, x: Buffer, factor: float = 2.0) -> list[list[float]]:
    return [each.to_numpy().tolist() for each in graphs([x, numbers(factor)])]


def test_the_second_call_records_and_later_ones_replay() -> None:
    graphs, model = small()
    for call in range(5):
        assert run(graphs, numbers(call, 1)) == [[2.0 * call, 2.0], [call + 2.0, 3.0]]
    assert model.calls == {"execute": 2, "capture": 1, "replay": 4}
    assert len(graphs) == 1


def test_what_a_call_returned_is_not_overwritten_by_later_ones() -> None:
    graphs, _ = small()
    results = [graphs([numbers(call, 1), numbers(2)]) for call in range(6)]
    for call, (product, total) in enumerate(results):
        assert product.to_numpy().tolist() == [2.0 * call, 2.0]
        assert total.to_numpy().tolist() == [call + 2.0, 3.0]


def test_what_a_call_returned_may_be_the_next_ones_input() -> None:
    graphs, _ = small()
    x = numbers(1, 3)
    for _ in range(6):
        x = graphs([x, numbers(2)])[0]
    assert x.to_numpy().tolist() == [64, 192]


def test_numbers_on_the_host_are_part_of_a_recording() -> None:
    graphs, _ = small()
    for _ in range(4):
        assert run(graphs, numbers(3), 2.0)[0] == [6]
        assert run(graphs, numbers(3), 5.0)[0] == [15]
    assert len(graphs) == 2


def test_threads_take_turns() -> None:
    graphs, model = small()

    def call(number: int) -> bool:
        return run(graphs, numbers(number, 1)) == [[2.0 * number, 2.0], [number + 2.0, 3.0]]

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(call, range(400)))
    assert (len(graphs), model.calls["capture"]) == (1, 1)


def test_views_and_empty_inputs() -> None:
    graphs, _ = small()
    table = Buffer.from_numpy(np.arange(12, dtype=np.float32).reshape(4, 3))
    for row in range(4):
        assert run(graphs, table[row : row + 1, :])[0] == [[6.0 * row, 6 * row + 2, 6 * row + 4]]
        assert run(graphs, numbers())[0] == []
    assert len(graphs) == 2


def test_few_recordings_are_kept_and_the_one_used_longest_ago_goes() -> None:
    graphs, model = small()
    sizes = [numbers(*range(size)) for size in range(1, KEPT + 2)]
    for x in sizes[:KEPT]:
        run(graphs, x), run(graphs, x)
    assert len(graphs) == KEPT
    run(graphs, sizes[0])  # now the second one is the oldest
    for _ in range(CALLS_TO_REPLACE - 1):
        run(graphs, sizes[KEPT])
    assert (len(model.recorded), model.calls["release"]) == (KEPT, 0)
    run(graphs, sizes[KEPT])
    assert (len(graphs), len(model.recorded), model.calls["release"]) == (KEPT, KEPT, 1)
    before = model.calls["execute"]
    for x in (sizes[0], *sizes[2:]):
        assert run(graphs, x)[0] == [2.0 * value for value in range(len(x.to_numpy()))]
    assert model.calls["execute"] == before
    run(graphs, sizes[1])
    assert model.calls["execute"] == before + 1


def test_sizes_that_change_all_the_time_are_not_recorded_nor_remembered_for_ever() -> None:
    graphs, model = small()
    for size in range(1, 1000):
        run(graphs, numbers(*range(size)))
    assert (model.calls["capture"], len(graphs._calls)) == (0, 256)
    run(graphs, numbers(*range(999)))
    assert model.calls["capture"] == 1


def failing(name: str, *, once: bool = False) -> tuple[DeviceGraphs, StrictModel]:
    graphs, model = small()
    original, failures = getattr(model, name), [0]

    def fail(*arguments: Any) -> Any:
        if once and failures[0]:
            return original(*arguments)
        failures[0] += 1
        raise RuntimeError("not while a stream is captured")

    setattr(model, name, fail)
    return graphs, model


@pytest.mark.parametrize("name", ["capture", "replay"])
def test_a_failure_costs_no_result_and_is_noted_once(name: str, notes: list[str]) -> None:
    graphs, model = failing(name)
    for call in range(10):
        assert run(graphs, numbers(call))[0] == [2.0 * call]
        assert run(graphs, numbers(call, call))[0] == [2.0 * call] * 2
    done = {"capture": "recorded", "replay": "replayed"}[name]
    assert notes == [f"small cannot be {done} as a device graph and runs as without: not while a stream is captured"]
    assert (len(graphs), model.recorded) == (0, {})


def test_sizes_that_cannot_be_recorded_do_not_keep_others_from_it(notes: list[str]) -> None:
    graphs, model = failing("capture", once=True)
    for _ in range(5):
        run(graphs, numbers(1)), run(graphs, numbers(1, 2))
    assert (len(graphs), model.calls["execute"], len(notes)) == (1, 5 + 2, 1)


def test_a_replay_with_other_numbers_is_not_used(notes: list[str]) -> None:
    graphs, model = small()
    replay, seven = model.replay, numbers(7)

    def wrong(graph_keys: int, *inputs: Buffer) -> None:
        replay(graph_keys, *inputs)
        model.recorded[graph_keys].outputs[1].inplace_copy_from(seven)

    model.replay = wrong  # type: ignore[method-assign]
    for _ in range(5):
        assert run(graphs, numbers(1))[1] == [3]
    assert notes == ["small cannot be replayed as a device graph and runs as without: its replay gives other numbers"]
    assert (len(graphs), model.calls["capture"]) == (0, 1)


def test_verify_asks_for_every_recording() -> None:
    graphs, model = small()
    for _ in range(2):
        run(graphs, numbers(1)), run(graphs, numbers(1, 2))
    graphs.verify()
    assert model.calls["verify"] == 2


def test_wrong_inputs_are_left_to_max() -> None:
    graphs, model = small()
    table = Buffer.from_numpy(np.zeros((3, 4), np.float32))
    for _ in range(3):
        graphs([table[:, 1:2], numbers(1)])  # not contiguous
    assert (model.calls["execute"], model.calls["capture"]) == (3, 0)


@pytest.mark.parametrize("value", ["On", "1", "", "true"])
def test_the_variable_is_on_or_off(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device_graphs.VARIABLE, value)
    with pytest.raises(ValueError, match=f"MAX_ZIMAGE_DEVICE_GRAPHS must be on or off, got '{value}'"):
        device_graphs.check(NVIDIA)


def test_off_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_graphs.wanted()
    monkeypatch.delenv(device_graphs.VARIABLE)
    assert not device_graphs.wanted()


def test_where_it_has_no_effect_that_is_said_once(notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    device_graphs._say_without_effect.cache_clear()
    device_graphs.check(NVIDIA)
    assert notes == []
    for _ in range(2):
        device_graphs.check(CPU())
    assert notes == [
        "MAX_ZIMAGE_DEVICE_GRAPHS=on has no effect here: device graphs are for NVIDIA GPUs, and this runs on cpu"
    ]
    device_graphs.check(AMD)
    monkeypatch.setenv(device_graphs.VARIABLE, "off")
    device_graphs._say_without_effect.cache_clear()
    device_graphs.check(CPU())
    assert len(notes) == 2


@pytest.mark.parametrize(("device", "replayed"), [(NVIDIA, True), (NVIDIA, False), (AMD, True), (CPU(), True)])
def test_graphs_that_may_be_replayed_are_on_nvidia(device: Device, replayed: bool) -> None:
    places = [SimpleNamespace(device=SimpleNamespace(is_cpu=lambda value=value: value)) for value in (False, True)]
    module = SimpleNamespace(parameters=())
    given: dict[str, Any] = {"module": module, "session": None, "spec": None, "weights": {}}
    given["input_types"] = tuple(places)
    graph = CompiledGraph(GraphDefinition(name="small", device=device, replayed=replayed, **given))
    graph.finish(cast(Any, StrictModel(Scaled(), (False, True))))
    assert (graph.device_graphs is not None) is (replayed and device is NVIDIA)
    if graph.device_graphs is not None:
        assert graph.device_graphs._on_host == (False, True)
