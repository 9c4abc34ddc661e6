"""What a graph launches on a GPU, without the GPU: told by MAX's compiler, stopped before it makes machine code.

MAX writes one Mojo function for each kernel that fusion has left, its parts and types in a comment, and the calls of
these functions in the order of their launches. There it stops when it is asked to, after seconds where the whole way
takes minutes. What a block launches is listed once, however many blocks a model has. A product that lost its epilogue,
or a stray cast, shows in the list.

Reference: MAX engine/api.py, InferenceSession.debug.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from max.engine import InferenceSession
from max.engine.api import CompilationStopped

_FUNCTION = re.compile(
    r"^# FusionInfo:\n(?P<parts>(?:#[^\n]*\n)+)\n(?:@export\n)?def (?P<name>\w+)\((?P<body>.*?)(?=^# FusionInfo:|\Z)",
    re.M | re.S,
)
_TRACE = re.compile(r'target = StaticString\("gpu"\)\]\("(.*?)", task_id = ')
_CALL = re.compile(r"^ +(\w+)\(", re.M)
_NUMBERED = re.compile(r"\b(param_expr|_dim)_?\d+")


def kernels_of(session: InferenceSession, compile_graph: Callable[[], object]) -> tuple[str, ...]:
    """The kernels that a graph launches.

    Args:
        session: With a GPU in it, which may be a virtual one; it compiles nothing to the end afterwards.
        compile_graph: Compiles the graph with this session.

    Returns:
        One line a launch, what is fused into it and the type of its result: those of the graph in order, then those of
        each of its blocks.

    Raises:
        RuntimeError: If MAX cannot trace or fuse the graph, or does not stop where it should.
    """
    # The stages that MAX writes beside the Mojo take hundreds of megabytes.
    with tempfile.TemporaryDirectory(prefix="max-zimage-kernels-") as folder:
        session.debug.pre_jit = True
        session.debug.ir_output_dir = folder
        try:
            compile_graph()
        except CompilationStopped:
            return launches("".join(file.read_text(encoding="utf-8") for file in sorted(Path(folder).glob("*.mojo"))))
    raise RuntimeError("MAX compiled the graph to its end instead of stopping before machine code")


def launches(mojo: str) -> tuple[str, ...]:
    """Read the launches from the Mojo source that MAX has written for a graph."""
    functions = {match["name"]: match for match in _FUNCTION.finditer(mojo)}
    kernels = {name: _described(match) for name, match in functions.items() if _TRACE.search(match["body"])}
    # MAX writes what runs last first.
    sequences = [match["body"] for name, match in reversed(functions.items()) if name not in kernels]
    called = [name for body in sequences for name in _CALL.findall(body) if name in kernels]
    if missing := kernels.keys() - called:
        raise RuntimeError(f"MAX writes its Mojo otherwise than is known here: nothing calls {sorted(missing)}")
    return tuple(kernels[name] for name in called)


def _described(function: re.Match[str]) -> str:
    trace = _TRACE.search(function["body"])
    result = function["parts"].rstrip().rpartition(" -> ")[2]
    return f"{trace[1] if trace else function['name']} -> {_NUMBERED.sub('n', result)}"
