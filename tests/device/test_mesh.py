"""Several devices by name, what they share, and whether the model fits on each of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from max.driver import CPU

from max_zimage.device import devices
from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.device.mesh import groups_of, mesh_names, simulated_mesh
from max_zimage.device.placement import everything_on, place, with_peaks
from max_zimage.device.plans import HOST, SIGNALS, STAGES, Plan, Wish
from max_zimage.device.signals import BYTES
from max_zimage.errors import RequestError
from max_zimage.graphs.model.mesh_spec import MeshSpec
from max_zimage.pipeline.placing import SPLIT_VARIABLE, plan_for_worker
from max_zimage.pipeline.wishes import Placing
from tests.device.test_placement import BF16, gb
from tests.references.meshes import SPEC


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "accelerator_count", lambda: 9)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("gpu:0,1", ("gpu:0", "gpu:1")),
        ("gpu:3, gpu:1", ("gpu:3", "gpu:1")),
        ("cuda:2,0,1", ("gpu:2", "gpu:0", "gpu:1")),
        ("gpu,1", ("gpu:0", "gpu:1")),
        (["gpu:0", "gpu:7"], ("gpu:0", "gpu:7")),
        (",".join(f"gpu:{number}" for number in range(8)), tuple(f"gpu:{number}" for number in range(8))),
    ],
)
def test_names(given: Any, names: tuple[str, ...]) -> None:
    assert mesh_names(given) == names


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gpu:0", "devices must name 2 to 8 devices, got 1; for one take device"),
        ("gpu:0,1,2,3,4,5,6,7,8", "devices must name 2 to 8 devices, got 9"),
        ("gpu:1,gpu:0,cuda:1", "devices must name each device once, got gpu:1 twice"),
        ("cpu,cpu", "devices are GPUs that compute together, got cpu, cpu; a CPU is one device: name it with device"),
        ("gpu:0,cpu", "devices are GPUs that compute together, got gpu:0, cpu"),
        ("gpu:0,gpu:11", "devices 'gpu:11' was asked for, and only 9 accelerators are available here"),
        ("gpu:0,", 'devices must be "auto", "cpu", "gpu" or "gpu:N", got \'\''),
        ("0,1", "devices must be"),
        ([], "devices must name 2 to 8 devices, got 0"),
    ],
)
def test_bad_names(given: Any, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        mesh_names(given)
    assert message in str(caught.value)


def test_a_simulated_mesh_is_asked_for() -> None:
    with simulated_mesh():
        assert mesh_names("cpu,cpu,cpu") == ("cpu",) * 3
    with pytest.raises(RequestError, match="are GPUs"):
        mesh_names("cpu,cpu,cpu")


def test_what_devices_share() -> None:
    assert [groups_of("auto", 2, is_guided=guided) for guided in (False, True)] == [1, 2]
    assert [groups_of("auto", count, is_guided=True) for count in (3, 4)] == [1, 2]
    assert [groups_of(split, 4, is_guided=True) for split in ("tokens", "branches")] == [1, 2]
    with pytest.raises(RequestError, match="split branches halves the devices, got 3; name one more or one less"):
        groups_of("branches", 3, is_guided=True)
    with pytest.raises(RequestError, match="split must be auto, tokens or branches, got 'rows'"):
        groups_of("rows", 2, is_guided=True)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "gpu:0"}, "devices and device exclude each other; leave one out"),
        ({"dit_device": "gpu:1"}, "devices and dit_device exclude each other"),
        ({"placement": "streamed"}, 'devices and placement="streamed" exclude each other'),
        ({"placement": "sequential"}, 'devices and placement="sequential" exclude each other'),
        ({"cpu_offload": True}, "devices and cpu_offload exclude each other"),
        ({"split": "heads"}, "split must be auto, tokens or branches, got 'heads'"),
        ({"devices": "gpu:0,1,2", "split": "branches"}, "split branches halves the devices, got 3"),
        ({"devices": None, "split": "tokens"}, "split says what several devices share, and none are named"),
    ],
)
def test_what_excludes_several_devices(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Placing(**{"devices": "gpu:0,1", **given}).read()
    assert message in str(caught.value)


@pytest.mark.usefixtures("eight")
def test_the_first_one_has_the_other_components() -> None:
    wish = Placing(devices="gpu:2,1", encoder_device="cpu").read()
    assert wish.devices == {"text_encoder": HOST, "transformer": "gpu:2", "vae": "gpu:2"}
    assert (wish.mesh, wish.placement, wish.split, wish.asks) == (("gpu:2", "gpu:1"), "resident", "auto", True)


MESH = ("gpu:0", "gpu:1", "gpu:2", "gpu:3")
WISH = Wish(devices=dict.fromkeys(STAGES, MESH[0]), mesh=MESH, groups=2, placement="resident")


def test_each_device_holds_the_transformer_and_a_share_of_its_work() -> None:
    plan = place(BF16, {**dict.fromkeys(MESH, gb(40)), HOST: gb(64)}, WISH)
    assert (plan.mesh, plan.groups, plan.is_plain) == (MESH, 2, False)
    others = gb(12.31) + SIGNALS + gb(0.84) // 4
    assert [plan.peaks[name] for name in MESH[1:]] == [others] * 3
    weights = sum(each.weights for each in BF16.values()) + SIGNALS
    assert plan.peaks[MESH[0]] == weights + BF16["vae"].work
    assert "transformer on gpu:1, about" in plan.why
    assert SIGNALS == BYTES
    assert Plan.from_json(plan.to_json()) == plan


def test_the_smallest_device_decides() -> None:
    memory = {**dict.fromkeys(MESH, gb(40)), HOST: gb(64), "gpu:2": gb(12.5)}
    with pytest.raises(
        NotEnoughMemoryError, match=r"does not fit \(placement resident\).* gpu:2 has 11\.6 GiB"
    ) as caught:
        place(BF16, memory, WISH)
    assert "placement=" not in str(caught.value)  # no other would have room with several devices
    with pytest.raises(NotEnoughMemoryError, match=r'max_memory="\d+MiB" would fit'):
        place(BF16, {**dict.fromkeys(MESH, gb(40)), HOST: gb(64)}, replace(WISH, max_memory=gb(12)))


def test_without_several_devices_nothing_is_counted_for_them() -> None:
    plan = with_peaks(everything_on(["gpu:0"]), BF16)
    assert plan.is_plain
    assert plan.peaks == {"gpu:0": sum(each.weights for each in BF16.values()) + BF16["vae"].work}


def test_a_worker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAX_ZIMAGE_PLAN", raising=False)
    assert plan_for_worker([CPU()]).is_plain
    assert plan_for_worker([CPU(), CPU()]).groups == 1
    monkeypatch.setenv(SPLIT_VARIABLE, "branches")
    found = plan_for_worker([CPU(), CPU()])
    assert (found.mesh, found.groups) == ((HOST, HOST), 2)


@pytest.mark.parametrize(
    ("places", "groups", "message"),
    [
        ((0,), 1, "a mesh has 2 to 8 devices, got 1"),
        (tuple(range(9)), 1, "a mesh has 2 to 8 devices, got 9"),
        ((0, 1, 0), 1, "a mesh has each device once, got 0, 1, 0"),
        ((0, 1, 2), 2, "3 devices do not fall into 2 equal groups"),
        ((0, 1, 2), 3, "of which there are 1 or 2"),
    ],
)
def test_a_mesh_that_cannot_be(places: tuple[int, ...], groups: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeshSpec(transformer=SPEC, places=places, groups=groups)
