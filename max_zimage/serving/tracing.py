"""Spans of OpenTelemetry: a request, and what it waited for and what was done for it as its children.

    POST /v1/images/generations      the server's process, from the request to the end of its answer
      queue                          until the worker begins, or the request ends before it does
      captions, steps, decode        the worker's process, of the batch that the request was in
      encode                         pixels to files

Nothing is measured for it: spans take the times that are taken for metrics. No span has a prompt. Where no collector is
named by the environment there are none, and nothing of this is imported.

Reference: W3C Trace Context; OpenTelemetry specification, OTLP exporter configuration; semantic conventions for HTTP.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from max_zimage.pipeline.context import ZImageContext
from max_zimage.serving.errors import ApiError
from max_zimage.serving.job import Change, Job
from max_zimage.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

PROTOCOLS = ("http/protobuf", "grpc")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER, _DISABLED = "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"
_PATIENCE = 5000  # milliseconds for the last spans to get out


def is_wanted() -> bool:
    """Whether the environment names a collector of spans."""
    disabled = os.environ.get(_DISABLED, "").strip().lower() == "true"
    return not disabled and os.environ.get(_EXPORTER) != "none" and any(os.environ.get(name) for name in _ENDPOINTS)


def check() -> None:
    """Refuse what the environment asks of spans and cannot be had.

    Raises:
        ValueError: If it names another exporter or protocol.
    """
    if not is_wanted():
        return
    if os.environ.get(_EXPORTER, "otlp") != "otlp":
        raise ValueError(f"{_EXPORTER} must be otlp or none, got {os.environ[_EXPORTER]!r}")
    name, protocol = _protocol()
    if protocol not in PROTOCOLS:
        raise ValueError(f"{name} must be {' or '.join(PROTOCOLS)}, got {protocol!r}")


def _protocol() -> tuple[str, str]:
    """The variable that names it, and what it says."""
    return next(
        ((name, os.environ[name]) for name in _PROTOCOLS if os.environ.get(name)), (_PROTOCOLS[0], PROTOCOLS[0])
    )


class Tracing:
    """Makes spans, and sends them to the collector that the environment names.

    Args:
        processor: Gets the spans; None for one that sends them.
        delay: Milliseconds between two of its messages, where the environment does not say; None for its own default.
    """

    def __init__(self, processor: SpanProcessor | None = None, delay: int | None = None) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider

        about = Resource.create(
            {"service.name": "max_zimage", "service.version": __version__, "process.pid": os.getpid()}
        )
        # A provider of its own: MAX's, where there is one, is for spans of another kind.
        self._provider = TracerProvider(resource=about.merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(processor or _sender(delay))
        self._tracer = self._provider.get_tracer("max_zimage", __version__)

    def begin(self, name: str, headers: Mapping[str, str]) -> Span:
        """The span of an HTTP request.

        Args:
            name: Its method.
            headers: In lower case; with `traceparent` it belongs to the client's trace.
        """
        from opentelemetry.trace import SpanKind

        return self._tracer.start_span(name, _extracted(headers), kind=SpanKind.SERVER)

    def note(self, job: Job, change: Change) -> None:
        """Write down the wait of a request when it is over."""
        if change == "begun" or (change == "ended" and job.progress is None):
            reason = job.end.code if isinstance(job.end, ApiError) else None
            self.child("queue", job.context, job.arrived, time.monotonic(), error=reason)

    def child(
        self, name: str, context: ZImageContext, begin: float, end: float, error: str | None = None, **facts: Any
    ) -> None:
        """A span of something that is over.

        Args:
            name: What it was.
            context: The request's; without `traceparent` there is no span.
            begin: Of `time.monotonic`, which is `time.perf_counter`'s clock on Linux and macOS.
            end: Likewise.
            error: A short name of why it ended badly.
            **facts: Attributes, as `zimage.NAME`.
        """
        if not context.traceparent:
            return
        from opentelemetry.trace import StatusCode

        parent = _extracted({"traceparent": context.traceparent, "tracestate": context.tracestate})
        named = {f"zimage.{key}": value for key, value in facts.items()}
        span = self._tracer.start_span(name, parent, attributes=named, start_time=_unix(begin))
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(StatusCode.ERROR)
        span.end(_unix(end))

    def close(self) -> None:
        """Send what is left."""
        self._provider.force_flush(_PATIENCE)
        self._provider.shutdown()


def carrier(span: Span) -> dict[str, str]:
    """What has spans elsewhere belong to this one: `traceparent`, and `tracestate` where there is some."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    said: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(said, trace.set_span_in_context(span))
    return said


def facts_of(context: ZImageContext) -> dict[str, Any]:
    """Attributes of a request's span."""
    if context.encodes:
        return {"zimage.tokens": len(context.tokens.array)}
    return {
        "zimage.width": context.width,
        "zimage.height": context.height,
        "zimage.images": context.num_images_per_prompt,
        "zimage.steps": context.steps_in_all,
        "zimage.guidance_scale": float(context.guidance_scale),
        "zimage.tokens": len(context.tokens.array),
    }


def _extracted(headers: Mapping[str, str]) -> Context:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    given = {name: headers[name] for name in ("traceparent", "tracestate") if headers.get(name)}
    return TraceContextTextMapPropagator().extract(given)


def _sender(delay: int | None) -> SpanProcessor:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

    exporter: SpanExporter
    if _protocol()[1] == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        exporter = Grpc()
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

        exporter = Http()
    said = "OTEL_BSP_SCHEDULE_DELAY" in os.environ
    return BatchSpanProcessor(exporter, schedule_delay_millis=None if said else delay)


def _unix(monotonic: float) -> int:
    """Nanoseconds of Unix time."""
    return time.time_ns() - int((time.monotonic() - monotonic) * 1e9)
