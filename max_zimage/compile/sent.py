"""What a graph has several devices send each other in one call, read from the traced graph.

The graph's text names every transfer from one accelerator to another and every gathering, with the types of what is
sent; sizes are names there, and a block that is called again counts again. A gathering has each device of a group send
its part to every other one of that group: so MAX's kernel does it.

Reference: MAX's `max.graph.ops.allgather` and `transfer_to`.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

_GRAPH = re.compile(r"mo\.graph @(?P<name>\w+)")
_CALL = re.compile(r"mo\.call @(?P<name>\w+)")
_TRANSFER = re.compile(r"mo\.transfer\S* .*: (?P<type>!mo\.tensor<.*>) to <\"gpu\", (?P<target>\d+)>")
_GATHER = re.compile(r"mo\.distributed\.allgather\(.*\[group_size = (?P<size>\d+)\] : \((?P<types>.*)\) -> ")
_TENSOR = re.compile(r"!mo\.tensor<\[(?P<shape>[^\]]*)\], (?P<dtype>\w+), gpu:(?P<device>\d+)>")
_BYTES = {"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "si32": 4, "ui32": 4, "si64": 8, "ui64": 8, "ui8": 1, "bool": 1}


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A tensor that goes from one accelerator to another.

    Attributes:
        source: Number of the accelerator that has it.
        target: Of the one that gets it.
        shape: Its sizes, in words where they differ from call to call, such as `items`.
        width: Bytes of a number.
        times: In one call of the graph.
        gathered: Whether a gathering sends it.
    """

    source: int
    target: int
    shape: tuple[str, ...]
    width: int
    times: int
    gathered: bool

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Sent:
        """What `dataclasses.asdict` has made of one, after a way through JSON."""
        return cls(**{**values, "shape": tuple(values["shape"])})

    def nbytes(self, sizes: Mapping[str, int]) -> int:
        """Bytes in one call.

        Args:
            sizes: What the words mean.

        Raises:
            KeyError: If one is missing.
        """
        return self.times * self.width * prod(_size(each, sizes) for each in self.shape)


def sent_in(text: str, graph: str) -> list[Sent]:
    """Read a traced graph.

    Args:
        text: All of its module.
        graph: Its name; the others are blocks that it calls.

    Returns:
        Equal tensors once, with how often.
    """
    found: dict[str, list[Sent]] = {}
    calls: dict[str, Counter[str]] = {}
    name = ""
    for line in text.splitlines():
        if heading := _GRAPH.search(line):
            name = heading["name"]
            found[name], calls[name] = [], Counter()
        elif call := _CALL.search(line):
            calls[name][call["name"]] += 1
        elif name:
            found[name] += _of_line(line)
    times: Counter[Sent] = Counter()
    for block, often in _runs(graph, calls):
        for each in found[block]:
            times[each] += often
    return [replace(each, times=often) for each, often in times.items()]


def nbytes_by_device(sent: Iterable[Sent], sizes: Mapping[str, int]) -> dict[int, int]:
    """Accelerator -> bytes that it sends in one call; see `Sent.nbytes`."""
    found: Counter[int] = Counter()
    for each in sent:
        found[each.source] += each.nbytes(sizes)
    return dict(sorted(found.items()))


def sizes_of(*, items: int, image: int, caption: int) -> dict[str, int]:
    """What the words of a mesh's graphs mean, see `graphs.model.mesh_parts`.

    Args:
        items: Branch rows.
        image: Image tokens of each, in whole multiples of 32.
        caption: Caption tokens of each, likewise.
    """
    found = {"items": items, "group_items": -(-items // 2), "image_tokens": image, "image_padded": image}
    return found | {"caption_padded": caption, "tokens": image + caption}


def _runs(graph: str, calls: Mapping[str, Counter[str]]) -> Iterator[tuple[str, int]]:
    """The graph and each block that it calls, with how often, blocks of blocks included."""
    yield graph, 1
    for block, often in calls[graph].items():
        for inner, times in _runs(block, calls):
            yield inner, often * times


def _of_line(line: str) -> Iterator[Sent]:
    if gather := _GATHER.search(line):
        tensors = [*_TENSOR.finditer(gather["types"])]
        size = int(gather["size"])
        for place, tensor in enumerate(tensors):
            group = tensors[place // size * size : (place // size + 1) * size]
            yield from (_sent(tensor, int(other["device"]), gathered=True) for other in group if other is not tensor)
    transfer = _TRANSFER.search(line)
    moved = transfer and _TENSOR.fullmatch(transfer["type"])  # None of what comes from the host, as weights do
    if transfer and moved and moved["device"] != transfer["target"]:
        yield _sent(moved, int(transfer["target"]), gathered=False)


def _sent(tensor: re.Match[str], target: int, *, gathered: bool) -> Sent:
    shape = tuple(_split(tensor["shape"]))
    width = _BYTES[tensor["dtype"]]
    return Sent(source=int(tensor["device"]), target=target, shape=shape, width=width, times=1, gathered=gathered)


def _split(shape: str) -> Iterator[str]:
    """The sizes of a shape, at commas outside of parentheses."""
    depth, begin = 0, 0
    for place, sign in enumerate(shape):
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            yield shape[begin:place].strip()
            begin = place + 1
    if shape.strip():
        yield shape[begin:].strip()


def _size(word: str, sizes: Mapping[str, int]) -> int:
    """A size: a number, a name, or what is computed of them, such as `div(add(items, 1), 2)`."""
    return _value(ast.parse(word, mode="eval").body, sizes)


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant):
        return int(str(node.value))
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, sizes)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        values = [_value(each, sizes) for each in node.args]
        if node.func.id == "add":
            return sum(values)
        if node.func.id in ("mul", "mul_no_wrap"):
            return prod(values)
        if node.func.id == "div":
            return values[0] // values[1]
    raise ValueError(f"a size that is not understood: {ast.unparse(node)}")
