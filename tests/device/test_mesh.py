"""Several devices by name, what they share, and whether the model fits on each of them."""

from __future__ import annotations

import gc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from max.driver import CPU

from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.device import devices, signals
from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.device.mesh import groups_of, mesh_names, simulated_mesh
from max_zimage.device.placement import everything_on, place, with_peaks
from max_zimage.device.plans import HOST, SIGNALS, STAGES, Change, Plan, Rows, Wish
from max_zimage.device.signals import BYTES
from max_zimage.errors import RequestError
from max_zimage.graphs.model.mesh_spec import MeshSpec
from max_zimage.pipeline.estimate import shared_rows, step_bytes
from max_zimage.pipeline.load_components import check_mesh
from max_zimage.pipeline.wishes import Placing
from max_zimage.pipeline.worker_plan import SPLIT_VARIABLE, groups_for_worker, plan_for_worker
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
        ([0, 1], 'devices must be a text such as "gpu:0,1" or a list of names such as ["gpu:0", "gpu:1"], got [0, 1]'),
        (2, 'or a list of names such as ["gpu:0", "gpu:1"], got 2'),
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


@pytest.mark.usefixtures("eight")
def test_a_configured_offload_gives_way() -> None:
    """On several devices nothing takes turns, whoever says so; a file for several machines may say it all the same."""
    wish = Placing(devices="gpu:0,1", cpu_offload=True, is_offload_configured=True).read()
    assert (wish.placement, wish.mesh) == ("resident", ("gpu:0", "gpu:1"))
    assert wish.notes == (
        "cpu_offload is configured and has no effect here, where several devices hold all of their weights",
    )


MESH = ("gpu:0", "gpu:1", "gpu:2", "gpu:3")
ROWS = Rows(items=3, tokens=4225, token=1000, gathered=100, score=2)
SHARED = {**BF16, "transformer": replace(BF16["transformer"], shared=ROWS)}
WISH = Wish(devices=dict.fromkeys(STAGES, MESH[0]), mesh=MESH, groups=2, placement="resident")


def test_each_device_holds_the_transformer_and_a_share_of_its_work() -> None:
    plan = place(SHARED, {**dict.fromkeys(MESH, gb(40)), HOST: gb(64)}, WISH)
    assert (plan.mesh, plan.groups, plan.is_plain) == (MESH, 2, False)
    # Of three rows a group has two, and of their 4,225 tokens each of its devices 2,113.
    others = gb(12.31) + SIGNALS + 2 * (2113 * 1000 + 4225 * 100 + 2113 * 4225 * 2)
    assert [plan.peaks[name] for name in MESH[1:]] == [others] * 3
    weights = sum(each.weights for each in SHARED.values()) + SIGNALS
    assert plan.peaks[MESH[0]] == weights + SHARED["vae"].work
    assert "transformer on gpu:1, about" in plan.why
    assert SIGNALS == BYTES
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("items", "devices", "groups", "is_padded", "expected"),
    [
        (1, 2, 1, False, 2113 * 1000 + 4225 * 100),
        (1, 2, 1, True, 2113 * 1000 + 4225 * 100 + 2113 * 4225 * 2),
        # Both groups compute the only row, and of two each has one; a device that is a group gathers nothing.
        (1, 2, 2, False, 4225 * 1000),
        (2, 2, 2, False, 4225 * 1000 + 4225 * 4225 * 2),
        (3, 8, 2, True, 2 * (1057 * 1000 + 4225 * 100 + 1057 * 4225 * 2)),
    ],
)
def test_work_of_a_device(items: int, devices: int, groups: int, is_padded: bool, expected: int) -> None:
    assert replace(ROWS, items=items).on_each(devices, groups, is_padded=is_padded) == expected


def test_rows_of_the_published_model() -> None:
    """Alone a device would have the work of one device, and what it would gather besides."""
    dims: dict[str, Any] = {"items": 2, "tokens": 4224, "dtype": "bfloat16"}
    rows, whole = shared_rows(FULL_MODEL.transformer, **dims), step_bytes(FULL_MODEL.transformer, **dims)
    assert rows.items * rows.tokens * rows.token == whole
    assert (rows.gathered, rows.score) == (2 * 2 * 3840 * 2, 2)


def test_the_smallest_device_decides() -> None:
    memory = {**dict.fromkeys(MESH, gb(40)), HOST: gb(64), "gpu:2": gb(12.5)}
    with pytest.raises(
        NotEnoughMemoryError, match=r"does not fit \(placement resident\).* gpu:2 has 11\.6 GiB"
    ) as caught:
        place(BF16, memory, WISH)
    assert "placement=" not in str(caught.value)  # no other would have room with several devices
    with pytest.raises(NotEnoughMemoryError, match=r'max_memory="\d+MiB" would fit'):
        place(BF16, {**dict.fromkeys(MESH, gb(40)), HOST: gb(64)}, replace(WISH, max_memory=gb(12)))


def test_ways_out_of_what_does_not_fit() -> None:
    """Only what several devices can do: everything stays, and the text encoder may do so on the CPU."""
    memory = {**dict.fromkeys(MESH, gb(22)), HOST: gb(64), MESH[0]: gb(16)}
    smaller = {**SHARED, "vae": replace(SHARED["vae"], work=0)}
    with pytest.raises(NotEnoughMemoryError, match='encoder_device="cpu" would fit') as caught:
        place(SHARED, memory, WISH, [Change("512x512 pixels", smaller)])
    assert "512x512" not in str(caught.value)  # in turns it would fit, which there is not on several devices
    memory[MESH[0]] = gb(21)
    with pytest.raises(NotEnoughMemoryError, match="512x512 pixels would fit"):
        place(SHARED, memory, WISH, [Change("512x512 pixels", smaller)])
    moved = replace(WISH, devices={**WISH.devices, "text_encoder": HOST, "vae": HOST}, max_memory=gb(12))
    with pytest.raises(NotEnoughMemoryError, match=r'max_memory="(\d+)MiB" would fit') as caught:
        place(SHARED, {**dict.fromkeys(MESH, gb(40)), HOST: gb(64)}, moved)
    limit = int(str(caught.value).split('max_memory="')[1].partition("MiB")[0]) * 2**20
    place(SHARED, {**dict.fromkeys(MESH, gb(40)), HOST: gb(64)}, replace(moved, max_memory=limit))


def gpu(total: float, architecture: str = "sm_90a") -> Any:
    name = {"api": "cuda", "architecture_name": architecture, "label": "gpu", "id": 1, "is_host": False}
    return SimpleNamespace(**name, stats={"total_memory": gb(total)})


def test_each_device_is_asked_before_weights_are_read() -> None:
    """Where a server of MAX's names them, for which nothing else is planned."""
    plan, sizes = everything_on(["gpu:0", "gpu:1"]), {name: need.weights for name, need in BF16.items()}
    assert (plan.mesh, plan.groups, plan.is_padded) == (("gpu:0", "gpu:1"), 1, True)
    check_mesh(sizes, plan, [gpu(24), gpu(13)])
    for small in ([gpu(20), gpu(24)], [gpu(24), gpu(12.5)]):
        with pytest.raises(NotEnoughMemoryError, match="on gpu:1"):
            check_mesh(sizes, plan, small)
    with pytest.raises(ValueError, match="of one architecture: gpu:0 is cuda sm_90a, gpu:1 is cuda sm_100a"):
        check_mesh(sizes, plan, [gpu(24), gpu(24, "sm_100a")])
    check_mesh(sizes, Plan(devices=dict.fromkeys(STAGES, HOST), mesh=(HOST, HOST)), [CPU(), CPU()])


def test_signal_buffers_go_with_the_last_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def allocate(given: Any) -> list[Any]:
        made.append(given)
        return [*given]

    monkeypatch.setattr("max.nn.comm.Signals.allocate", allocate)
    one, same = (signals.signals_of([CPU()]) for _ in range(2))
    assert one is same
    assert (len(made), one.buffers) == (1, (CPU(),))
    del one, same
    gc.collect()
    signals.signals_of([CPU()])
    assert len(made) == 2


def test_without_several_devices_nothing_is_counted_for_them() -> None:
    plan = with_peaks(everything_on(["gpu:0"]), BF16)
    assert plan.is_plain
    assert plan.peaks == {"gpu:0": sum(each.weights for each in BF16.values()) + BF16["vae"].work}


def test_a_worker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAX_ZIMAGE_PLAN", raising=False)
    for value in (None, ""):
        monkeypatch.delenv(SPLIT_VARIABLE, raising=False)
        if value is not None:
            monkeypatch.setenv(SPLIT_VARIABLE, value)
        assert plan_for_worker([CPU()]).is_plain
        assert plan_for_worker([CPU(), CPU()]).groups == 1
    monkeypatch.setenv(SPLIT_VARIABLE, "branches")
    found = plan_for_worker([CPU(), CPU()])
    assert (found.mesh, found.groups, found.is_padded) == ((HOST, HOST), 2, True)
    for value, count, message in (
        ("branches", 1, "MAX_ZIMAGE_SPLIT says what several devices share, got branches and one device; unset it"),
        ("branches", 3, "MAX_ZIMAGE_SPLIT branches halves the devices, got 3"),
        ("rows", 2, "MAX_ZIMAGE_SPLIT must be auto, tokens or branches, got 'rows'"),
        ("rows", 1, "MAX_ZIMAGE_SPLIT must be auto, tokens or branches, got 'rows'"),
    ):
        monkeypatch.setenv(SPLIT_VARIABLE, value)
        with pytest.raises(RequestError, match=message):
            plan_for_worker([CPU()] * count)
    monkeypatch.setenv("MAX_ZIMAGE_PLAN", found.to_json())  # our own server says all of it
    assert plan_for_worker([CPU(), CPU()]) == found
    assert groups_for_worker(2) == 2


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
