"""What a graph launches on a GPU, without the GPU: told by MAX's compiler, stopped before it makes machine code.

MAX writes one Mojo function for each kernel that fusion has left, its parts and types in a comment, other functions
that call some of these in the order of their launches, and a plan that calls those: one for the graph, one for each
block that the graph calls, however often. There it stops when it is asked to, after seconds where the whole way takes
minutes. A product that lost its epilogue, or a stray cast, shows in the list.

Reference: MAX engine/api.py, InferenceSession.debug.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from max.engine import InferenceSession
from max.engine.api import CompilationStopped

from max_zimage.compile.launch_plans import most, otherwise, read_plan, runs
from max_zimage.compile.launches import Launches, Part

_FUNCTION = re.compile(
    r"^# FusionInfo:\n(?P<parts>(?:#[^\n]*\n)+)\n(?:@export\n)?def (?P<name>\w+)\((?P<body>.*?)(?=^# FusionInfo:|\Z)",
    re.M | re.S,
)
_TRACE = re.compile(r'target = StaticString\("gpu"\)\]\("(.*?)", task_id = ')
_CALL = re.compile(r"^ +(\w+)\(", re.M)
_NUMBERED = re.compile(r"\b(param_expr|_dim)_?\d+")
_DECIDES = re.compile(r'\b(filter_layout|mask_str) = "\w+"')
"""Parameters that send a convolution or an attention to one kernel or another."""


def kernels_of(session: InferenceSession, compile_graph: Callable[[], object]) -> Launches:
    """The kernels that a graph launches.

    Args:
        session: With a GPU in it, which may be a virtual one.
        compile_graph: Compiles the graph with this session.

    Returns:
        Them, with how often each block runs.

    Raises:
        RuntimeError: If MAX cannot trace or fuse the graph, does not stop where it should, or writes it down otherwise.
    """
    # The stages that MAX writes beside the Mojo take hundreds of megabytes.
    with tempfile.TemporaryDirectory(prefix="max-zimage-kernels-") as folder:
        before = session.debug.pre_jit, session.debug.ir_output_dir
        session.debug.pre_jit, session.debug.ir_output_dir = True, folder
        try:
            compile_graph()
        except CompilationStopped:
            mojo, plan = (_written(Path(folder), end) for end in ("mojo", "mgp.mlir"))
            return launches(mojo, plan)
        finally:  # they are of the whole process
            session.debug.pre_jit, session.debug.ir_output_dir = before
    raise RuntimeError("MAX compiled the graph to its end instead of stopping before machine code")


def launches(mojo: str, plan: str) -> Launches:
    """Read the launches from what MAX has written for a graph.

    Args:
        mojo: Kernels, and functions that call some of them.
        plan: What calls these functions; see `max_zimage.compile.launch_plans`.

    Raises:
        RuntimeError: If it is not written as is known here.
    """
    functions = {match["name"]: match for match in _FUNCTION.finditer(mojo)}
    kernels = {name: _described(match) for name, match in functions.items() if _TRACE.search(match["body"])}
    sequences = {
        name: [called for called in _CALL.findall(match["body"]) if called in kernels]
        for name, match in functions.items()
        if name not in kernels
    }
    models = read_plan(plan)
    ways = [way for model in models.values() for way in model.all_ways()]
    if unknown := {name for way in ways for name in (*way.functions, *way.loading)} - sequences.keys():
        raise otherwise(f"there is no function {min(unknown)}")

    def described(names: list[str]) -> tuple[str, ...]:
        return tuple(kernels[kernel] for name in names for kernel in sequences[name])

    found = Launches(
        total=most(models, {name: len(names) for name, names in sequences.items()}),
        parts=tuple(Part(name=way.name, times=often, kernels=described(way.functions)) for way, often in runs(models)),
        loading=described([name for way in ways for name in way.loading]),
    )
    called = {kernel for way in ways for name in (*way.functions, *way.loading) for kernel in sequences[name]}
    if missing := kernels.keys() - called:
        raise otherwise(f"nothing calls {sorted(missing)}")
    return found


def _written(folder: Path, end: str) -> str:
    files = sorted(folder.glob(f"*.{end}"))
    if not files:
        raise otherwise(f"there is no file *.{end}")
    return "".join(file.read_text(encoding="utf-8") for file in files)


def _described(function: re.Match[str]) -> str:
    trace = _TRACE.search(function["body"])
    decides = "".join(f" {found[0]}" for found in _DECIDES.finditer(function["body"]))
    result = function["parts"].rstrip().rpartition(" -> ")[2]
    return f"{trace[1] if trace else function['name']}{decides} -> {_NUMBERED.sub('n', result)}"
