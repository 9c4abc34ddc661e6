"""Runs in the Chrome trace-event format, which Perfetto and chrome://tracing open: one lane a component.

Reference: the Trace Event Format, complete events ("X") and metadata events ("M").
"""

from __future__ import annotations

from typing import Any

from max_zimage.profiling.recorder import Call, Span
from max_zimage.profiling.report import Profile, label_of

_PROCESS = 1
_RUNS, _STEPS = "runs", "steps"


def trace_events(profile: Profile) -> dict[str, Any]:
    """All runs of a profile, the first one and the warm-ups too.

    Returns:
        The file's contents; times are microseconds from the first run's beginning.
    """
    runs = profile.recorder.runs
    calls = [call for run in runs for call in run.calls]
    steps = [step for run in runs for step in run.steps]
    lanes = [_RUNS, *([_STEPS] if steps else []), *dict.fromkeys(call.name for call in calls)]
    numbers = {lane: number for number, lane in enumerate(lanes, start=1)}
    origin, timed = runs[0].begin, profile.recorder.synchronize or profile.recorder.device.is_host
    spans: list[tuple[str, Span, dict[str, Any]]] = [
        *((_RUNS, run, {}) for run in runs),
        *((_STEPS, step, {}) for step in steps),
        *((call.name, call, _arguments(profile, call, timed)) for call in calls),
    ]
    # Where two begin at once, the longer one holds the other.
    spans.sort(key=lambda item: (item[1].begin, -item[1].seconds))
    events = [_complete(span, numbers[lane], origin, arguments) for lane, span, arguments in spans]
    facts = {name: value for name, value in profile.facts().items() if isinstance(value, (str, int, float))}
    return {"traceEvents": [*_metadata(numbers), *events], "displayTimeUnit": "ms", "otherData": facts}


def _arguments(profile: Profile, call: Call, timed: bool) -> dict[str, Any]:
    work = profile.count(call.name, call.shapes)
    facts: dict[str, Any] = {"shapes": [list(shape) for shape in call.shapes]}
    if work is not None:
        facts |= {"gflop": work.flops / 1e9, "megabytes": work.nbytes / 1e6}
        if timed:
            facts |= {"tflop_per_s": work.flops / call.seconds / 1e12, "gb_per_s": work.nbytes / call.seconds / 1e9}
    return facts


def _complete(span: Span, lane: int, origin: float, arguments: dict[str, Any]) -> dict[str, Any]:
    begin, end = (round((moment - origin) * 1e6, 3) for moment in (span.begin, span.end))
    return {
        "name": span.name,
        "ph": "X",
        "pid": _PROCESS,
        "tid": lane,
        "ts": begin,
        "dur": round(end - begin, 3),
        "args": arguments,
    }


def _metadata(numbers: dict[str, int]) -> list[dict[str, Any]]:
    events = [_meta("process_name", 0, {"name": "max-zimage profile"})]
    for lane, number in numbers.items():
        events.append(_meta("thread_name", number, {"name": label_of(lane)}))
        events.append(_meta("thread_sort_index", number, {"sort_index": number}))
    return events


def _meta(name: str, lane: int, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": _PROCESS, "tid": lane, "args": arguments}
