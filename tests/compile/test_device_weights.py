"""Weights that lie on an accelerator once: which graphs read them there, and what the memory checks say of them."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
from max.driver import CPU, Buffer, Device

from max_zimage.compile import device_weights
from max_zimage.compile.artifacts import artifact_key
from max_zimage.compile.device_weights import VARIABLE, OnDevice, are_in_place, shared
from max_zimage.compile.graphs import Prefixed
from max_zimage.components import ZImageMeshedTransformer, ZImageTransformerModel
from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.pipeline.bound_adapters import check_rebinding
from max_zimage.pipeline.estimate import check_picture
from tests.compile.test_device_graphs import NVIDIA
from tests.references.diffusers_runs import Pair

TRACED = """
import json, re, sys
from max.driver import Accelerator, set_virtual_device_api, set_virtual_device_count, set_virtual_device_target_arch

set_virtual_device_api("cuda")
set_virtual_device_target_arch("sm_90a")
set_virtual_device_count(1)
device = Accelerator()

from max.graph import DeviceRef, Module
from max_zimage.graphs.layers import trace
from max_zimage.compile.registry import made
from max_zimage.compile.ahead_of_time import FULL_MODEL, with_layers

found = {}
for name in ("denoise", "first_block_noise_refiner", "text_encoder"):
    module, types = made(name, with_layers(FULL_MODEL, 2), "bfloat16", DeviceRef.from_device(device))
    for in_place in (False, True):
        graph = str(trace(module, types, name, Module(), weights_in_place=in_place).module.mlir_module)
        places = re.findall(r'mo.constant.external .*device_ref<"(.pu)"', graph)
        found[f"{name} {in_place}"] = [places.count("cpu"), places.count("gpu"), graph.count("mo.transfer")]
print(json.dumps(found))
"""


def test_graphs_copy_weights_or_read_them_where_they_are() -> None:
    """Weights on the CPU, on the GPU, and copies between the two, of the traced graphs for an H100.

    The one copy that is left with weights in place is of the first block's answer, to the host.
    """
    done = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    for name, others in (("denoise", 0), ("first_block_noise_refiner", 1), ("text_encoder", 0)):
        copied, in_place = found[f"{name} False"], found[f"{name} True"]
        count = copied[0]
        assert count > 5
        assert (copied, in_place) == ([count, 0, count + others], [0, count, others]), name


def test_the_variable_is_shared_or_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not shared(NVIDIA)
    monkeypatch.setenv(device_weights.VARIABLE, "shared")
    assert shared(NVIDIA)
    assert not shared(CPU())
    monkeypatch.setenv(device_weights.VARIABLE, "on")
    with pytest.raises(ValueError, match="MAX_ZIMAGE_DEVICE_WEIGHTS must be shared or copied, got 'on'"):
        shared(NVIDIA)


def test_weights_are_brought_to_the_device_when_they_are_asked_for() -> None:
    host = {name: Buffer.from_numpy(np.full(3, value, np.float32)) for value, name in enumerate("abc")}
    there = OnDevice(host, CPU())
    first = there["b"]
    assert first.to_numpy().tolist() == [1, 1, 1]
    assert there["b"] is first
    assert (set(there), set(host)) == ({"a", "b", "c"}, {"a", "c"})
    there.forget_others()
    assert (set(there), len(there), host) == ({"b"}, 1, {})
    with pytest.raises(KeyError):
        there["a"]


def test_graphs_of_a_step_get_the_very_buffers_of_the_others(embedded: Pair) -> None:
    """Whatever a graph calls them; and only what a graph reads is brought to the device."""
    transformer = embedded.ours.transformer
    host = dict(transformer._weights or {})
    there = OnDevice(dict(host, unused=host["x_embedder.weight"]), CPU())
    for_step = Prefixed(there, "transformer.")
    assert for_step["transformer.x_embedder.weight"] is there["x_embedder.weight"]
    assert "transformer.unused" in set(for_step)
    assert len(for_step) == len(host) + 1
    with pytest.raises(KeyError):
        for_step["transformer.none"]


def test_where_weights_lie() -> None:
    here, there = SimpleNamespace(device=CPU()), SimpleNamespace(device=NVIDIA)
    assert not are_in_place({})
    assert not are_in_place(cast(Any, {"a": here, "b": here}))
    assert are_in_place(cast(Any, {"a": there, "b": there}))
    with pytest.raises(ValueError, match="either all on the host or all on its device"):
        are_in_place(cast(Any, {"a": here, "b": there}))


def test_graphs_that_read_weights_elsewhere_have_other_artifacts(embedded: Pair) -> None:
    module = SimpleNamespace(parameters=[])
    of = ("g", None, cast(Any, module), (), CPU())
    keys = [artifact_key(*of, weights_in_place=place, loop="pairs") for place in (False, True)]
    assert len(set(keys)) == 2


def gpu_with(nbytes: int) -> Device:
    stats = {"total_memory": nbytes}
    return cast(Device, SimpleNamespace(is_host=False, stats=stats, label="gpu", id=0, api="cuda"))


@pytest.mark.parametrize("kind", ["copied", "shared"])
def test_memory_of_a_second_copy_is_counted(kind: str, embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy for the steps, one for every other graph of a step, and the other components' weights beside."""
    transformer = embedded.ours.transformer
    nbytes, beside = transformer._nbytes, 1000
    assert 0.5 < nbytes / sum(each.num_elements * 4 for each in stored(transformer)) < 1
    fake = SimpleNamespace(
        spec=transformer.spec, dtype=transformer.dtype, device_ref=transformer.device_ref, nbytes_beside=beside,
        device=gpu_with(2 * nbytes + beside), _nbytes=nbytes, _first_block_graphs={}, provide=dict,
        _weights={} if kind == "shared" else None, graph=lambda name, *_: name, again_bytes=0, _copies=0, is_here=True,
        compile=lambda graph: None, _first_block="first_block",
    )  # fmt: skip
    fake._once_more = lambda name: ZImageTransformerModel._once_more(cast(Any, fake), name)
    monkeypatch.setattr("max_zimage.components.transformer.wait_for", lambda graphs: None)

    def ask(block: str) -> None:
        fake.again_bytes = cast(property, ZImageTransformerModel.again_bytes).fget(fake)  # type: ignore[misc]
        ZImageTransformerModel.first_block_graphs(cast(Any, fake), cast(Any, block))

    ask("noise_refiner")
    if kind == "shared":
        ask("layers")
    else:
        with pytest.raises(NotEnoughMemoryError, match=r"on gpu:0"):
            ask("layers")
        with pytest.raises(NotEnoughMemoryError, match=r"on gpu:0"):
            cast(Any, ZImageTransformerModel.nag).func(fake)
    fake.again_bytes = cast(property, ZImageTransformerModel.again_bytes).fget(fake)  # type: ignore[misc]
    assert fake.again_bytes == (0 if kind == "shared" else nbytes)


class Recipe(NamedTuple):
    shape: tuple[int, ...]


@pytest.mark.parametrize(("kind", "shares"), [(ZImageTransformerModel, True), (ZImageMeshedTransformer, False)])
def test_weights_that_several_devices_copy_are_counted(
    kind: type[ZImageTransformerModel], shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is said of weights on one device, each of several has copies, and gives them up for others."""
    monkeypatch.setenv(VARIABLE, "shared")
    component, weights = kind.__new__(kind), {"a": Buffer.from_numpy(np.zeros(2, np.float32))}
    now, then = (SimpleNamespace(recipes=recipes, nbytes=lambda _: 10) for recipes in ([], [Recipe((4,))]))
    own: dict[str, Any] = {"device": gpu_with(100), "is_here": True, "_weights": None, "dtype_name": "bfloat16"}
    own |= {"all_weights": lambda: weights, "plan": lambda: now, "planned": lambda _: then, "_copies": 1, "_nbytes": 5}
    vars(component).update(own)
    assert component.shares_weights == shares
    provided = component.provide()
    assert isinstance(provided, OnDevice) == shares
    assert component.kept_weights is provided if shares else component.kept_weights == {}
    assert component.again_bytes == (0 if shares else 5)
    with pytest.raises(NotEnoughMemoryError, match="on gpu:0") if shares else nullcontext():
        check_rebinding(component, (), cast(Any, SimpleNamespace(nbytes={"transformer": 95})))


def stored(transformer: ZImageTransformerModel) -> list[Buffer]:
    assert transformer._weights is not None
    return list(transformer._weights.values())


def test_a_picture_is_checked_beside_all_copies(embedded: Pair) -> None:
    sources = embedded.ours.sources
    size: dict[str, Any] = {"height": 64, "width": 64, "branches": 1, "pictures": 1}
    once = gpu_with(sum(sources.nbytes.values()) + 2**28)
    check_picture(sources, once, **size)
    with pytest.raises(NotEnoughMemoryError):
        check_picture(sources, once, **size, again=2**28)


def test_the_pipeline_knows_what_lies_beside_the_transformer(embedded: Pair) -> None:
    nbytes = embedded.ours.sources.nbytes
    assert embedded.ours.transformer.nbytes_beside == nbytes["text_encoder"] + nbytes["vae"]
    assert embedded.ours.transformer.again_bytes == 0
