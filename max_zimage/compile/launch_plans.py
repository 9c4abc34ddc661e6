"""MAX's plan of a compiled graph: models that call functions and each other, and conditions with two ways.

    mgp.model @denoise ... execute (...)          the graph; blocks that it calls are models too, called "subgraph"
      %1 = mogg.compiled.call @function(...)      runs some kernels
      %2 = mgp.call @main_block(...)
      %3 = grt.if ... { ... } else { ... }

What stands before "execute" runs once, when the model is loaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_MODEL, _EXECUTE, _END = re.compile(r"  mgp\.model @(\w+)"), re.compile(r"  \} execute \("), re.compile(r"  \} loc")
_CALL = re.compile(r" +(?:%[\w:]+ = )?(?P<what>mogg\.compiled\.call|mgp\.call) @(?P<name>\w+)\(")
_IF, _ELSE, _IF_END = (
    re.compile(r" +(?:%[\w:]+ = )?grt\.if .*\{$"),
    re.compile(r" +\} else \{$"),
    re.compile(r" +\} loc"),
)


@dataclass(frozen=True)
class Way:
    """What runs one after the other.

    Attributes:
        name: Of the model; behind a condition with ".if" or ".else" and, from the second one on, its number.
        functions: Functions that it calls.
        models: Models that it calls.
        conditions: The two ways of each condition.
        loading: Functions that a model has called before, when it was loaded.
    """

    name: str
    functions: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    conditions: list[tuple[Way, Way]] = field(default_factory=list)
    loading: list[str] = field(default_factory=list)

    def all_ways(self) -> Iterator[Way]:
        """This one and those of its conditions."""
        yield self
        for both in self.conditions:
            for way in both:
                yield from way.all_ways()


def read_plan(plan: str) -> dict[str, Way]:
    """What every model does when it runs, the graph first.

    Raises:
        RuntimeError: If the plan is not written as is known here.
    """
    models: dict[str, Way] = {}
    lines = iter(plan.splitlines())
    for line in lines:
        if found := _MODEL.match(line):
            before, _ = _way(found[1], lines, _EXECUTE)
            models[found[1]], _ = _way(found[1], lines, _END)
            models[found[1]].loading.extend(before.functions)
    if not models:
        raise otherwise("its plan has no model")
    if unknown := {name for way in models.values() for each in way.all_ways() for name in each.models} - models.keys():
        raise otherwise(f"its plan has no model {min(unknown)}")
    return models


def runs(models: Mapping[str, Way]) -> Iterator[tuple[Way, int]]:
    """Every way in the order of first calls, and how often it runs in one run of the graph, conditions both ways."""
    times, order = Counter[str](), dict[str, None]()

    def run(model: str, often: int) -> None:
        times[model] += often
        order[model] = None
        for called, count in Counter(name for way in models[model].all_ways() for name in way.models).items():
            run(called, often * count)

    run(next(iter(models)), 1)
    for model in order:
        for way in models[model].all_ways():
            yield way, times[model]


def most(models: Mapping[str, Way], counts: Mapping[str, int]) -> int:
    """What one run of the graph comes to, by the dearer way of each condition.

    Args:
        models: From `read_plan`.
        counts: What each function counts.
    """

    def cost(way: Way) -> int:
        own = sum(counts[name] for name in way.functions) + sum(cost(models[name]) for name in way.models)
        return own + sum(max(cost(one), cost(other)) for one, other in way.conditions)

    return cost(next(iter(models.values())))


def otherwise(what: str) -> RuntimeError:
    """The error for what another version of MAX may write."""
    return RuntimeError(f"MAX writes what it compiles otherwise than is known here: {what}")


def _way(name: str, lines: Iterator[str], end: re.Pattern[str]) -> tuple[Way, str]:
    """Read on to the line that ends a way, and return that line too."""
    way = Way(name)
    for line in lines:
        if end.match(line) or _ELSE.match(line):
            return way, line
        if found := _CALL.match(line):
            (way.models if found["what"] == "mgp.call" else way.functions).append(found["name"])
        elif _IF.match(line):
            number = len(way.conditions) + 1 if way.conditions else ""
            first, closing = _way(f"{name}.if{number}", lines, _IF_END)
            second = _way(f"{name}.else{number}", lines, _IF_END)[0] if _ELSE.match(closing) else Way(f"{name}.else")
            way.conditions.append((first, second))
        elif line.endswith("{") or "call @" in line:
            raise otherwise(f"its plan has a line {line.strip()[:80]!r}")
    raise otherwise(f"its plan ends within {name}")
