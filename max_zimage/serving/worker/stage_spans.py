"""Spans of what the worker does for a request, in the trace that the request came with."""

from __future__ import annotations

from collections.abc import Mapping

from max_zimage.pipeline.context import ZImageContext
from max_zimage.serving import tracing

DELAY = 200
"""Milliseconds until spans are sent. Nobody tells this process before it ends, and what it has not sent is lost."""


class StageSpans:
    """Tells a collector of the stages of requests, from the first one that belongs to a trace."""

    def __init__(self) -> None:
        self._wanted = tracing.is_wanted()
        self._tracing: tracing.Tracing | None = None

    def tell(self, context: ZImageContext, times: Mapping[str, tuple[float, float]]) -> None:
        """Make the spans of a request.

        Args:
            context: The request.
            times: Stage -> when it began and ended, of `time.monotonic`.
        """
        if not self._wanted or not context.traceparent:
            return
        if self._tracing is None:
            self._tracing = tracing.Tracing(delay=DELAY)
        for stage, (begin, end) in times.items():
            self._tracing.child(stage, context, begin, end)
