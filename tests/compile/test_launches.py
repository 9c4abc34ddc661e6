"""What graphs launch on a GPU that need not be there: the lists themselves, and how they are read and written."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

from max_zimage.cli.compile import listing
from max_zimage.compile import jobs, kept_launches
from max_zimage.compile.ahead_of_time import FULL_MODEL, check_graphs, compile_target
from max_zimage.compile.jobs import Report
from max_zimage.compile.kernel_lists import launches
from max_zimage.compile.launch_plans import most, read_plan
from max_zimage.compile.launches import Launches, Part, lines
from max_zimage.compile.registry import AHEAD
from tests.references.launch_page import counted
from tests.references.launches import FILES, PAGE, PINNED, page, read, sections


@pytest.fixture(scope="module")
def reports() -> Iterator[Callable[[str], Report]]:
    """What is said of a graph; all of them are listed by one process, as far as tests ask."""
    said: dict[str, Report] = {}
    listed = compile_target(FULL_MODEL, PINNED, "bfloat16", AHEAD, list_kernels=True)

    def report(graph: str) -> Report:
        while graph not in said:
            each = next(listed)
            said[each.graph] = each
        return said[graph]

    with closing(listed):
        yield report


@pytest.mark.targets
@pytest.mark.parametrize("graph", AHEAD)
def test_what_every_graph_launches_on_sm_90a(graph: str, reports: Callable[[str], Report]) -> None:
    """The whole list, so that a stray cast, or a fusion that another version of MAX no longer makes, is seen."""
    report = reports(graph)
    assert report.error is None, f"{report.error}; see {report.log}"
    assert listing(report) == sections()[graph]


def test_the_page_is_of_these_lists() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.references.launches --page"


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_lists_can_be_read(file: Path) -> None:
    for graph, text in sections(file).items():
        found = read(text)
        assert "\n".join(lines(graph, found)) == text
        assert sum(part.times * len(part.kernels) for part in counted(found.parts)) == found.total


def test_what_a_block_launches() -> None:
    """A second reading of the list: five products, attention, and four ops of the project's own between them."""
    _, _, block = sections()["denoise"].partition("## main_block, 30 times: ")
    heading, *lines = block.partition("\n## ")[0].splitlines()
    assert heading == "10 launches"
    assert Counter(line.split()[0] for line in lines) == {
        "matmul": 5,  # queries and keys are one product, and so are w1 and w3
        "rotary_heads": 1,
        "mha.ragged.no_cache": 1,
        "gated_norms": 2,
        "swiglu": 1,
    }


@pytest.mark.parametrize("graph", ["conditioning", "text_encoder", "denoise", "first_block_noise_refiner"])
def test_no_attention_is_of_the_kind_that_ampere_gets(graph: str) -> None:
    kinds = {line.split()[0] for line in sections()[graph].splitlines() if line.strip().startswith("mha.")}
    assert kinds
    assert kinds <= {"mha.no_cache", "mha.ragged.no_cache"}


@pytest.mark.parametrize(("graph", "norms"), [("decode", 30), ("encode", 22)])
def test_what_the_autoencoder_launches(graph: str, norms: int) -> None:
    """Convolutions are cuDNN's or, of one pixel, products; a group norm is two launches, and no picture is float32."""
    (part,) = read(sections()[graph]).parts
    assert not [kernel for kernel in part.kernels if re.search(r"RSCF|mha|reduce\.mean", kernel)]
    kinds = [kernel.partition(" ->")[0] for kernel in part.kernels]
    assert kinds.count("group_moments") == kinds.count("group_norm_applied") == norms
    assert kinds.count("wide_attention") == 1
    assert not [kernel for kernel in part.kernels if re.search(r", (128|256|512)\]?>?, f32", kernel)]


MOJO = """
# FusionInfo:
#   mo.matmul : (!mo.tensor<[n, 4], bf16, gpu:0>) -> !mo.tensor<[param_expr_12, 4], bf16, gpu:0>

def __matmul_1(arg__0: Int):
    with Trace[TraceLevel.OP, target = StaticString("gpu")]("matmul", task_id = get(arg__0)):
        MatmulGPU.execute[transpose_b = True](arg__0)

# FusionInfo:
#   mo.conv : (!mo.tensor<[4], bf16, gpu:0>) -> !mo.tensor<[4], bf16, gpu:0>

def __conv(arg__0: Int):
    with Trace[TraceLevel.OP, target = StaticString("gpu")]("conv", task_id = get(arg__0)):
        ConvGPU.execute[filter_layout = "FCRS", target = "gpu"](arg__0)

# FusionInfo:
#   mo.cast : (!mo.tensor<[4], bf16>) -> !mo.tensor<[4], f32>

def __cast(arg__0: Int):
    with Trace[TraceLevel.OP, target = StaticString("cpu")]("cast", task_id = get(arg__0)):
        Cast.execute[target = "cpu"](arg__0)

# FusionInfo:
#   two

@export
def __both_async(arg__0: Pointer):
        __conv(arg__0)
        __cast(arg__0)
        __matmul_1(arg__0)

# FusionInfo:
#   one

@export
def __one_async(arg__0: Pointer):
        __matmul_1(arg__0)
"""
PLAN = """
module {
  mgp.model @whole : mof {argument_device_indices = []} {
    "mogg.compiled.load"() <{symbols = ["__one_async"]}> : () -> () loc(#loc)
    %0 = mogg.compiled.call @__one_async(%1) : i1 loc(#loc)
    mef.output %0 : !mef.chain loc(#loc)
  } execute (%arg0: !mef.chain loc(unknown)) : !mef.chain {
    %0 = mogg.compiled.call @__both_async(%arg0) : i1 loc(#loc)
    %1:3 = mgp.call @block(%arg0) prefix = "layers.0." : !mef.chain loc(#loc)
    %2:3 = mgp.call @block(%1#0) prefix = "layers.1." : !mef.chain loc(#loc)
    %3:2 = grt.if %0 (%arg0 as %arg1: !mef.chain) -> (!mef.chain) {
      %4 = mogg.compiled.call @__one_async(%arg1) : i1 loc(#loc)
      mef.output %4 : !mef.chain loc(#loc)
    } else {
      %5 = mogg.compiled.call @__both_async(%arg1) : i1 loc(#loc)
      %6:3 = mgp.call @block(%1#0) prefix = "layers.2." : !mef.chain loc(#loc)
      mef.output %5 : !mef.chain loc(#loc)
    } loc(#loc)
    mef.output %3 : !mef.chain loc(#loc)
  } loc(#loc)
  mgp.model @block subgraph : mof {argument_device_indices = []} {
    mef.output %0 : !mef.chain loc(#loc)
  } execute (%arg0: !mef.chain loc(unknown)) : !mef.chain {
    %0 = mogg.compiled.call @__one_async(%arg0) : i1 loc(#loc)
    %1 = mogg.compiled.call @__both_async(%arg0) : i1 loc(#loc)
  } loc(#loc)
  mogg.kernel.decl @other
"""
MATMUL = "matmul -> !mo.tensor<[n, 4], bf16, gpu:0>"
CONV = 'conv filter_layout = "FCRS" -> !mo.tensor<[4], bf16, gpu:0>'


def test_reading() -> None:
    found = launches(MOJO, PLAN)
    assert found == Launches(
        total=2 + 2 * 3 + (2 + 3),
        parts=(
            Part(name="whole", times=1, kernels=(CONV, MATMUL)),
            Part(name="whole.if", times=1, kernels=(MATMUL,)),
            Part(name="whole.else", times=1, kernels=(CONV, MATMUL)),
            Part(name="block", times=3, kernels=(MATMUL, CONV, MATMUL)),
        ),
        loading=(MATMUL,),
    )
    assert Launches.of(json.loads(json.dumps(asdict(found)))) == found
    assert read("\n".join(lines("whole", found))) == found
    assert list(lines("whole", found)) == [
        "# whole: at most 13 launches",
        CONV,
        MATMUL,
        "## whole.if: 1 launch",
        MATMUL,
        "## whole.else: 2 launches",
        CONV,
        MATMUL,
        "## block, 3 times: 3 launches",
        MATMUL,
        CONV,
        MATMUL,
        "## before, at loading: 1 launch",
        MATMUL,
    ]


@pytest.mark.parametrize(
    ("mojo", "plan", "message"),
    [
        (MOJO, "", "its plan has no model"),
        (MOJO, PLAN.replace("@block(", "@other("), "its plan has no model other"),
        (MOJO.replace("__one_async", "__two_async"), PLAN, "there is no function __one_async"),
        (MOJO, PLAN.replace("@__both_async", "@__one_async"), "nothing calls ['__conv']"),
        (MOJO, PLAN.replace("grt.if", "grt.while"), "its plan has a line '%3:2 = grt.while"),
        (MOJO, PLAN.replace("mgp.call", "mgp.apply.call"), "its plan has a line '%1:3 = mgp.apply.call"),
        (MOJO, PLAN.partition("  } loc(#loc)\n  mgp")[0], "its plan ends within whole"),
    ],
)
def test_what_is_not_known_is_not_read(mojo: str, plan: str, message: str) -> None:
    with pytest.raises(RuntimeError) as error:
        launches(mojo, plan)
    assert str(error.value).startswith("MAX writes what it compiles otherwise than is known here: ")
    assert message in str(error.value)


def test_a_second_condition_and_one_inside() -> None:
    both = PLAN.split("    %3:2 = ")[1].split("    mef.output %3")[0]
    inner = both.replace(
        "    } else", "    %9 = grt.if %0 (%arg0) {\n    } else {\n" + "    } loc(#loc)\n    } else", 1
    )
    models = read_plan(PLAN.replace(both, both + "    %7 = " + inner))
    names = [way.name for way in models["whole"].all_ways()]
    assert names[:5] == ["whole", "whole.if", "whole.else", "whole.if2", "whole.if2.if"]
    assert names[5:] == ["whole.if2.else", "whole.else2"]
    assert most(models, {"__one_async": 1, "__both_async": 2}) == 13 + 5


def test_writing_repeats_once() -> None:
    first, again = ["a", "b", "b", "c"], ["d", "d", "d"]
    text = list(
        lines("g", Launches(total=0, parts=(Part(name="g", times=1, kernels=("e", *first * 3, *again)),), loading=()))
    )
    assert text == ["# g: 0 launches", "e", "3 times these 4:", "  a", "  b  x 2", "  c", "d  x 3"]


def test_a_list_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(tmp_path / "kept"))
    found = launches(MOJO, PLAN)
    assert kept_launches.find("whole", "a key") is None
    kept_launches.keep("whole", "a key", found)
    assert kept_launches.find("whole", "a key") == found
    assert kept_launches.find("whole", "another key") is None
    assert kept_launches.find("other", "a key") is None
    (file,) = (tmp_path / "kept").iterdir()
    for damaged in (file.read_bytes().replace(b"conv", b"conw"), b"\xff", b""):
        file.write_bytes(damaged)
        assert kept_launches.find("whole", "a key") is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(tmp_path / "file"))
    kept_launches.keep("whole", "a key", found)  # nowhere to be kept, which is no error


@pytest.mark.targets
def test_one_process_lists_several_graphs_and_knows_them_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(tmp_path))
    small = ["pack", "prepare_scheduler"]
    first = list(compile_target(FULL_MODEL, PINNED, "bfloat16", small, list_kernels=True))
    again = list(compile_target(FULL_MODEL, PINNED, "bfloat16", small, list_kernels=True))
    assert [listing(report) for report in first] == [listing(report) for report in again]
    assert [listing(report) for report in first] == [sections()[graph] for graph in small]
    assert [report.trace_seconds == 0.0 for report in (*first, *again)] == [False, False, True, True]


def test_a_child_that_dies_costs_one_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one it was at; another child does the rest, and its log stays."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, pickle, sys\n"
        "for job in pickle.load(sys.stdin.buffer):\n"
        "    if job.graph == 'modulation':\n"
        "        sys.exit('no memory')\n"
        "    print(json.dumps({'error': None, 'seconds': 1.0}), flush=True)\n"
    )
    monkeypatch.setattr("max_zimage.compile.jobs.tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(jobs, "WORKER", [str(worker)])
    found = list(compile_target(FULL_MODEL, PINNED, "bfloat16", check_graphs(()), list_kernels=True))
    assert [report.graph for report in found] == [*AHEAD]
    (failed,) = [report for report in found if report.error is not None]
    assert (failed.graph, failed.error) == ("modulation", "the compiler's process ended with status 1: no memory")
    assert list(tmp_path.glob("*.log")) == [failed.log]
