"""When there are spans, where they go, and which they are where a request ends badly."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from max_zimage.cli.main import main
from max_zimage.serving import tracing
from max_zimage.serving.http.traced import TRACE, TraceMiddleware
from max_zimage.serving.tracing import Tracing
from max_zimage.serving.worker.running_batch import RunningBatch
from max_zimage.serving.worker.stage_spans import StageSpans
from max_zimage.serving.worker.step_scheduler import StepScheduler
from tests.serving.test_dispatcher import FakeWorker, context, dispatcher, outcome, settled

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PARENT = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


class Kept:
    """Tracing whose spans a test reads."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracing = Tracing(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def request(self, path: str = "/v1/x", status: int = 200, **headers: str) -> dict[str, Any]:
        """What a route sees of a request's state."""
        seen: dict[str, Any] = {}

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.update(scope.get("state", {}))
            await send({"type": "http.response.start", "status": status, "headers": []})

        async def send(message: Any) -> None:
            pass

        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": path, "headers": raw, "scheme": "http"}
        nothing: Any = None
        asyncio.run(TraceMiddleware(app, self.tracing)(scope, nothing, send))
        return seen


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({ENDPOINT: "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: "http://c:4318", "OTEL_SDK_DISABLED": "True"}, False),
        ({ENDPOINT: "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_when_there_are_spans(environment: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracing.is_wanted() == wanted
    assert StageSpans()._wanted == wanted


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER must be otlp or none, got 'zipkin'"),
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "http/json",
            "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf or grpc, got 'http/json'",
        ),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_is_loaded(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    assert main(["serve", "--port", "0"]) == 2
    assert capsys.readouterr().err == f"max-zimage: error: {says}\n"


@pytest.mark.parametrize("protocol", tracing.PROTOCOLS)
def test_every_protocol_has_its_exporter(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol)
    tracing.check()
    sender = tracing._sender(200)
    exporter = sender.span_exporter  # type: ignore[attr-defined]
    assert ("grpc" in type(exporter).__module__) == (protocol == "grpc")
    sender.shutdown()


def test_a_request_belongs_to_its_clients_trace_or_to_one_of_its_own() -> None:
    kept = Kept()
    told = kept.request(traceparent=PARENT, tracestate="x=1")[TRACE]
    (span,) = kept.spans
    assert (span.kind, span.parent and f"{span.parent.span_id:x}") == (SpanKind.SERVER, "b" * 16)
    assert told["traceparent"] == f"00-{'a' * 32}-{span.context.span_id:016x}-01"
    assert told["tracestate"] == "x=1"
    for broken in ("", "00-zz-1-01", PARENT.replace("a", "0")):
        kept.request(traceparent=broken)
        assert kept.spans[-1].parent is None
    assert kept.request("/health") == kept.request("/static/js/app.js") == {}
    assert len(kept.spans) == 4
    kept.request(status=503)
    assert kept.spans[-1].status.status_code is StatusCode.ERROR
    assert kept.spans[0].status.status_code is StatusCode.UNSET


def test_what_a_client_does_not_want_to_be_sampled_is_not() -> None:
    kept = Kept()
    told = kept.request(traceparent=PARENT.removesuffix("01") + "00")[TRACE]
    assert told["traceparent"].endswith("-00")
    assert kept.spans == ()


def test_the_wait_in_the_queue() -> None:
    """Until the worker begins, or until the request ends before it does; once each."""
    kept = Kept()

    async def body() -> None:
        queue, worker = dispatcher(in_worker=3), FakeWorker()
        queue.observers.append(kept.tracing.note)
        queue.attach(worker)  # type: ignore[arg-type]
        jobs = {}
        for name in "abc":
            asked = context(name)
            asked.traceparent = "" if name == "c" else PARENT
            jobs[name] = queue.submit(asked, name)
        await settled()
        await asyncio.sleep(0.05)
        for step in range(2):
            worker.say("a", step)
        worker.say("c", 0)
        worker.finish("a")
        assert await outcome(queue, jobs["a"]) == "done"
        queue.cancel(jobs["b"], "api")

    before = time.time_ns()
    asyncio.run(body())
    first, second = kept.spans
    assert (first.name, second.name) == ("queue", "queue")
    assert first.start_time is not None
    assert first.end_time is not None
    assert before - 5_000_000 < first.start_time < first.end_time < time.time_ns() + 5_000_000
    assert first.end_time - first.start_time > 45_000_000
    assert first.status.status_code is StatusCode.UNSET
    assert second.status.status_code is StatusCode.ERROR
    assert dict(second.attributes or {}) == {"error.type": "cancelled"}


def test_the_stages_in_the_worker() -> None:
    """Of the batch that a request was in, and its files; nothing of a request that belongs to no trace."""
    kept, asked = Kept(), context("a")
    asked.output_format, asked.traceparent = "png", PARENT
    spans = StageSpans()
    spans._wanted, spans._tracing = True, kept.tracing
    batch: Any = SimpleNamespace(seconds={}, times={})
    begins = {"captions": [4000.0], "steps": [3000.0, 2000.0], "decode": [1000.0]}
    for stage, ages in begins.items():
        for age in ages:
            RunningBatch._took(batch, stage, time.monotonic() - age)
    took = {stage: round(seconds, -3) for stage, seconds in batch.seconds.items()}
    assert took == {"captions": 4000, "steps": 5000, "decode": 1000}
    worker: Any = SimpleNamespace(_spans=spans)
    pixels, finite = np.full((1, 16, 16, 3), 9, np.uint8), np.array([True])
    before = time.time_ns()
    output = StepScheduler._encoded(worker, asked, batch.times, pixels, finite, "")
    assert len(output.output) == 1
    assert [span.name for span in kept.spans] == ["captions", "steps", "decode", "encode"]
    for span, age in zip(kept.spans, (4000, 3000, 1000, 0), strict=True):
        assert span.parent is not None
        assert (f"{span.parent.span_id:x}", f"{span.context.trace_id:x}") == ("b" * 16, "a" * 32)
        assert span.start_time is not None
        assert abs(before - span.start_time - age * 1e9) < 100e9
    asked.traceparent = ""
    StepScheduler._encoded(worker, asked, batch.times, pixels, finite, "")
    assert len(kept.spans) == 4
