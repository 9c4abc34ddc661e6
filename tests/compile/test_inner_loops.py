"""Which way a CPU multiplies bfloat16 in: said, measured, kept, and a part of what a graph is known by."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from max.driver import CPU
from max.dtype import DType
from max.experimental.nn import Linear
from max.graph import DeviceRef, TensorType

from max_zimage import ZImagePipeline
from max_zimage.compile import inner_loops
from max_zimage.compile.artifacts import artifact_key
from max_zimage.compile.inner_loops import VARIABLE, Measured, decided, described, given, loop_of
from max_zimage.embedded import PATH
from max_zimage.graphs import cpu
from max_zimage.graphs.cpu import InnerLoop
from max_zimage.graphs.layers import build
from tests.references.diffusers_runs import Call, Pair, relative_l2
from tests.tolerances import BFLOAT16_RATIO

BOTH: tuple[InnerLoop, ...] = ("pairs", "widened")
ALL: tuple[InnerLoop, ...] = (*BOTH, "tiles")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of artifacts in which nothing is kept yet, on a processor that can do both."""
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(cpu, "inner_loops", lambda: BOTH)
    decided.cache_clear()
    yield tmp_path
    decided.cache_clear()


def takes(monkeypatch: pytest.MonkeyPatch, pairs: float, widened: float, tiles: float | None = None) -> list[int]:
    """Have a measurement come to this; counts how often one is made."""
    made: list[int] = []

    def seconds() -> dict[InnerLoop, float]:
        made.append(1)
        return {"pairs": pairs, "widened": widened, **({} if tiles is None else {"tiles": tiles})}

    monkeypatch.setattr(inner_loops, "_seconds", seconds)
    return made


@pytest.mark.parametrize(("widened", "loop"), [(0.5, "widened"), (0.94, "widened"), (0.96, "pairs"), (2.0, "pairs")])
def test_the_faster_one_is_taken_and_kept(
    widened: float, loop: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = takes(monkeypatch, 1.0, widened)
    assert described() == "pairs or widened, measured when the first bfloat16 graph is made"
    assert decided() == Measured(loop=loop, seconds={"pairs": 1.0, "widened": widened})  # type: ignore[arg-type]
    (file,) = folder.glob("inner-loop-*.json")
    assert json.loads(file.read_text())["loop"] == loop
    decided.cache_clear()  # another process
    takes(monkeypatch, 1.0, 1 / widened)
    assert decided().loop == loop
    assert len(made) == 1
    assert described() == f"{loop}, as measured: pairs 1000.00 ms, widened {1e3 * widened:.2f} ms"


@pytest.mark.parametrize(
    ("seconds", "loop"),
    [
        ((1.0, 0.9, 0.2), "tiles"),
        ((1.0, 0.2, 0.9), "widened"),
        ((1.0, 0.96, 0.97), "pairs"),
    ],
)
def test_of_three_the_fastest(
    seconds: tuple[float, float, float], loop: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "inner_loops", lambda: ALL)
    takes(monkeypatch, *seconds)
    assert described() == "pairs or widened or tiles, measured when the first bfloat16 graph is made"
    assert decided().loop == loop
    decided.cache_clear()  # another process
    assert decided() == Measured(loop=loop, seconds=dict(zip(ALL, seconds, strict=True)))
    each = ", ".join(f"{name} {1e3 * one:.2f} ms" for name, one in zip(ALL, seconds, strict=True))
    assert described() == f"{loop}, as measured: {each}"


def test_without_pairs_another_one_is_taken_for_as_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inner_loops, "_seconds", lambda: {"widened": 1.0, "tiles": 0.96})
    assert decided().loop == "widened"


def test_a_product_that_is_wrong_is_left_out(notes: list[str]) -> None:
    right = np.linspace(-100, 100, 96, dtype=np.float32).reshape(8, 12)
    nearly = right + np.float32(0.5)
    assert inner_loops.alike({"pairs": right, "widened": nearly, "tiles": right}) == list(ALL)
    assert notes == []
    for wrong in (right.T.reshape(8, 12), right * np.nan, np.zeros_like(right)):
        assert inner_loops.alike({"pairs": right, "widened": nearly, "tiles": wrong}) == list(BOTH)
        assert notes.pop().startswith("tiles multiplies wrongly on this processor and is left out")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"loop": "both", "seconds": {"pairs": 1, "widened": 1}}',
        '{"loop": "pairs"}',
        '{"loop": "tiles", "seconds": {"pairs": 1, "widened": 1}}',
        '{"loop": "pairs", "seconds": [1, 2]}',
    ],
)
def test_a_damaged_file_is_measured_anew(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    takes(monkeypatch, 1.0, 0.5)
    decided()
    (file,) = folder.glob("inner-loop-*.json")
    file.write_text(text)
    decided.cache_clear()
    made = takes(monkeypatch, 1.0, 2.0)
    assert (decided().loop, len(made)) == ("pairs", 1)
    assert json.loads(file.read_text())["loop"] == "pairs"


def test_of_two_processes_the_first_is_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile() -> dict[InnerLoop, float]:
        takes(monkeypatch, 1.0, 0.5)
        inner_loops._keep(Measured(loop="widened", seconds={"pairs": 1.0, "widened": 0.5}))
        return {"pairs": 1.0, "widened": 2.0}

    monkeypatch.setattr(inner_loops, "_seconds", meanwhile)
    assert decided().loop == "widened"


def test_without_a_folder_or_a_measurement(folder: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]) -> None:
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(folder / "file" / "below"))
    (folder / "file").write_text("")
    takes(monkeypatch, 1.0, 0.5)
    assert decided().loop == "widened"
    decided.cache_clear()

    def fails() -> dict[InnerLoop, float]:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(inner_loops, "_seconds", fails)
    assert decided().loop == "pairs"
    assert notes[-1] == "which inner loop is faster here could not be measured, pairs are taken: no compiler"


@pytest.mark.parametrize(
    ("value", "there", "says"),
    [
        ("vnni", BOTH, "MAX_ZIMAGE_INNER_LOOP must be pairs, widened or tiles, or not be set, got 'vnni'"),
        ("", BOTH, "or not be set, got ''"),
        ("pairs", ("widened",), "is pairs, and this processor has no instruction for it (avx512_bf16), or Linux does"),
        ("tiles", BOTH, "is tiles, and this processor has no instruction for it (amx_bf16), or Linux does not"),
    ],
)
def test_a_variable_without_meaning(
    value: str, there: tuple[InnerLoop, ...], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "inner_loops", lambda: there)
    monkeypatch.setenv(VARIABLE, value)
    for ask in (given, described, lambda: ZImagePipeline.prepare(PATH, device="cpu")):
        with pytest.raises(ValueError, match=re.escape(says)):
            ask()


def test_what_a_graph_is_known_by(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = takes(monkeypatch, 1.0, 0.5)

    def key(dtype: DType) -> str:
        module = build(lambda: Linear(4, 4, bias=False), dtype, DeviceRef.CPU())
        types = [TensorType(dtype, [1, 4], DeviceRef.CPU())]
        return artifact_key("a", None, module, types, CPU(), loop=loop_of(module, CPU()))

    float32 = key(DType.float32)
    assert made == []  # which has one way alone
    keys = {key(DType.bfloat16)}
    for value in BOTH:
        monkeypatch.setenv(VARIABLE, value)
        keys.add(key(DType.bfloat16))
        assert described() == f"{value}, as MAX_ZIMAGE_INNER_LOOP says"
    assert len(keys) == 2
    assert key(DType.float32) == float32
    monkeypatch.setattr(cpu, "inner_loops", lambda: ("widened",))
    monkeypatch.delenv(VARIABLE)
    assert described() == "widened, for the processor has no AVX-512 BF16"


@pytest.mark.parametrize(
    ("flags", "lends", "expected"),
    [
        ("avx2", True, ("widened",)),
        ("avx512_bf16", True, BOTH),
        ("avx512_bf16 amx_tile amx_bf16", True, ALL),
        ("avx512_bf16 amx_tile amx_bf16", False, BOTH),
        ("amx_tile amx_bf16", True, ("widened", "tiles")),
    ],
)
def test_what_a_processor_has(
    flags: str, lends: bool, expected: tuple[InnerLoop, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "instructions", lambda: frozenset(flags.split()))
    monkeypatch.setattr(cpu, "_may_use_tiles", lambda: lends)
    assert cpu.inner_loops.__wrapped__() == expected


def test_linux_lends_tiles_where_there_are_some() -> None:
    """It says no without an error where the processor has none, or another system is asked."""
    assert not cpu._may_use_tiles() or "amx_tile" in cpu.instructions()


def test_calls_are_timed_in_turn() -> None:
    order: list[str] = []

    def call(name: str) -> Callable[[], object]:
        return lambda: order.append(name)

    found = inner_loops.fastest({"pairs": call("p"), "widened": call("w")}, 3)
    assert "".join(order) == "pw" * 4
    assert all(seconds > 0 for seconds in found.values())


def test_a_measurement(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels do without what the processor has not, so that all ways can be measured everywhere."""
    monkeypatch.setattr(cpu, "inner_loops", lambda: ALL)
    found = inner_loops._seconds()
    assert set(found) == set(ALL)
    # 0.4 GFLOP: between what no processor reaches and what a loop without vectors takes.
    assert all(1e-5 < seconds < 1 for seconds in found.values())


@pytest.mark.slow  # the transformer is compiled once more
@pytest.mark.parametrize("loop", ALL)
def test_pictures_of_each_are_as_near_as_the_reference(
    loop: str, embedded: Pair, embedded_bfloat16: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "inner_loops", lambda: ALL)
    monkeypatch.setenv(VARIABLE, loop)
    call = Call()
    exact = embedded.run_theirs(call).latents[-1]
    theirs = embedded_bfloat16.run_theirs(call).latents[-1]
    pair = Pair(ZImagePipeline.from_pretrained(PATH, device="cpu", dtype="bfloat16"), embedded_bfloat16.theirs)
    ours = pair.run_ours(call).latents[-1]
    assert np.isfinite(ours).all()
    assert relative_l2(ours, exact) <= BFLOAT16_RATIO * relative_l2(theirs, exact)
