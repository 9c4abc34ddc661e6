"""Tests by name, as llm-dit's profiler has them: how long encoding and drawing take, and what memory they held.

Reference: `reference/generation.md` section 11, Profiler; llm-dit scripts/profiler.py.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from max_zimage.profiling.peak_memory import meter

if TYPE_CHECKING:
    from max_zimage.pipeline.zimage import ZImagePipeline
    from max_zimage.request.request import GenerationRequest

GROUPS: Mapping[str, tuple[str, ...]] = {
    "encode": ("encode_short", "encode_medium", "encode_with_template", "encode_with_thinking", "repeated_encode"),
    "generate": ("full_generation",),
}
"""Group -> its tests."""
MEANINGLESS: Mapping[str, str] = {
    "generate_text": "the text encoder's head is not loaded here",
    "cuda_sync": "every test waits for the device already",
    "load_encoder": "loading is measured before all tests, as load_seconds",
    "load_pipeline": "loading is measured before all tests, as load_seconds",
}
"""Tests of llm-dit's that are none here, and why."""
ENCODE, GENERATE = "encode_medium", "full_generation"
"""The tests that stand for their groups in comparisons."""

_SHORT = "a red star"
_MEDIUM = "a red star on a blue background, painted with a broad brush, soft evening light from the left, a calm mood"
_TIMES = 5


def named_tests(text: str) -> tuple[str, ...]:
    """Read a list of groups and tests.

    Args:
        text: Such as "encode,generate" or "encode_short".

    Returns:
        Tests, in the order of `GROUPS`.

    Raises:
        ValueError: With every name that is none.
    """
    known = [name for names in GROUPS.values() for name in names]
    wanted: set[str] = set()
    problems = []
    for name in (each.strip() for each in text.split(",")):
        if name in MEANINGLESS:
            problems.append(f"{name} is no test here: {MEANINGLESS[name]}")
        elif name in GROUPS or name in known:
            wanted |= set(GROUPS.get(name, (name,)))
        else:
            near = difflib.get_close_matches(name, [*GROUPS, *known], 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            problems.append(f"{name!r} is no test{hint} There are {', '.join([*GROUPS, *known])}")
    if problems:
        raise ValueError(f"--tests: {'; '.join(problems)}")
    return tuple(name for name in known if name in wanted)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a test.

    Attributes:
        name: Its.
        seconds: Of each run that counts.
        before: Bytes held before the first run; None where nobody knows.
        peak: Bytes held at most in the first run, or when it had ended; see `max_zimage.profiling.peak_memory`.
        extra: What else there is to say, such as the number of tokens.
        error: Why it failed; empty where it did not.
    """

    name: str
    seconds: tuple[float, ...] = ()
    before: int | None = None
    peak: int | None = None
    extra: Mapping[str, float]
    error: str = ""

    def facts(self) -> dict[str, Any]:
        """For JSON: milliseconds of the run in the middle, and bytes."""
        return {
            "test": self.name,
            "success": not self.error,
            "error": self.error or None,
            "duration_ms": 1e3 * median(self.seconds) if self.seconds else None,
            "runs_ms": [1e3 * each for each in self.seconds],
            "memory_before": self.before,
            "memory_peak": self.peak,
            **self.extra,
        }


def run_tests(
    pipeline: ZImagePipeline, request: GenerationRequest, names: Sequence[str], *, warmups: int, repeats: int
) -> list[Outcome]:
    """Run tests, one after the other.

    Args:
        pipeline: Loaded.
        request: What `full_generation` draws.
        names: From `named_tests`.
        warmups: Runs of each between the first, in which memory is measured, and those that count.
        repeats: Runs of each that count.
    """
    return [_run(pipeline, name, _work(pipeline, request, name), warmups, repeats) for name in names]


def _run(
    pipeline: ZImagePipeline, name: str, work: Callable[[], dict[str, float]], warmups: int, repeats: int
) -> Outcome:
    held = meter(pipeline.device)
    before = held.begin()
    try:
        extra = work()
        peak = held.end()
        seconds = tuple(_seconds(pipeline, work) for _ in range(warmups + repeats))[warmups:]
    except Exception as error:  # a test that fails says so, and the others are run
        return Outcome(name=name, extra={}, error=f"{type(error).__name__}: {error}")
    if tokens := extra.get("token_count"):
        extra["tokens_per_sec"] = tokens / median(seconds)
    return Outcome(name=name, seconds=seconds, before=before, peak=peak, extra=extra)


def _seconds(pipeline: ZImagePipeline, work: Callable[[], object]) -> float:
    pipeline.device.synchronize()
    begin = time.perf_counter()
    work()
    pipeline.device.synchronize()
    return time.perf_counter() - begin


def _work(pipeline: ZImagePipeline, request: GenerationRequest, name: str) -> Callable[[], dict[str, float]]:
    if name == GENERATE:

        def draw() -> dict[str, float]:
            pipeline.generate(request)
            return {"steps": request.num_inference_steps}

        return draw
    settings: dict[str, dict[str, Any]] = {
        "encode_short": {"prompt": _SHORT},
        "encode_medium": {"prompt": _MEDIUM},
        "encode_with_template": {"prompt": _MEDIUM, "template": next(iter(pipeline.sources.defaults.templates.all))},
        "encode_with_thinking": {"prompt": _MEDIUM, "thinking_content": "The star stands in the middle."},
        "repeated_encode": {"prompt": _MEDIUM},
    }
    times = _TIMES if name == "repeated_encode" else 1

    def encode() -> dict[str, float]:
        found = [pipeline.encode(**settings[name]) for _ in range(times)]
        return {"token_count": sum(each.tokens for each in found)}

    return encode
