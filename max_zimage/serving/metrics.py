"""Figures for operators, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """All figures of one server, and those of its processes that prometheus_client knows.

    Attributes:
        worker_pid: Of the worker process; None while there is none.
        info: What is served, as labels of a figure that is always 1.
        store_errors: Times that the store of requests and pictures could not be used.
        requests: Answers, by route and status.
        rejections: Requests that were refused, by the reason's code.
        cancellations: Requests that ended early, by who ended them: client, api, timeout, shutdown.
        waiting: Requests in the queue.
        running: Requests that the worker has begun.
        waited: Seconds from arrival to the first step.
        stage_seconds: Seconds in captions, steps, decode, of the batch that each request was in.
        request_seconds: Seconds from arrival to the answer.
        steps: Denoising steps taken, counted for each request.
        images: Pictures delivered.
        batch_pictures: Pictures that shared steps with each request, its own included.
        graph_cache: Modules of graphs that the worker has found on disk (hits) or compiled (misses).
        embedding_cache: Of features that the worker keeps: look-ups that found some (hits) or none (misses), entries
            and bytes.
        worker_up: 1 while the worker takes requests.
        worker_starts: Starts of the worker process.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.worker_pid: int | None = None
        PlatformCollector(registry=registry)
        ProcessCollector(registry=registry)
        ProcessCollector("zimage_worker", lambda: self.worker_pid or "none", registry=registry)
        self.info = Info("zimage", "What is served", registry=registry)
        self.store_errors = Counter("zimage_store_errors", "Failures of the store", registry=registry)
        self.requests = Counter("zimage_requests", "Answers", ["route", "status"], registry=registry)
        self.rejections = Counter("zimage_rejections", "Requests refused", ["code"], registry=registry)
        self.cancellations = Counter("zimage_cancellations", "Requests ended early", ["by"], registry=registry)
        self.waiting = Gauge("zimage_queue_depth", "Requests that wait", registry=registry)
        self.running = Gauge("zimage_running", "Requests being drawn", registry=registry)
        self.waited = Histogram("zimage_queue_seconds", "Arrival to first step", buckets=_SECONDS, registry=registry)
        self.stage_seconds = Histogram(
            "zimage_stage_seconds", "Seconds a stage", ["stage"], buckets=_SECONDS, registry=registry
        )
        self.request_seconds = Histogram(
            "zimage_request_seconds", "Arrival to answer", buckets=_SECONDS, registry=registry
        )
        self.steps = Counter("zimage_steps", "Denoising steps, one a request", registry=registry)
        self.images = Counter("zimage_images", "Pictures delivered", registry=registry)
        self.batch_pictures = Histogram(
            "zimage_batch_pictures", "Pictures that share steps", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.worker_up = Gauge("zimage_worker_up", "Whether the worker takes requests", registry=registry)
        self.worker_starts = Counter("zimage_worker_starts", "Starts of the worker", registry=registry)
        self.graph_cache = Gauge(
            "zimage_graph_cache", "Graphs found on disk, or compiled", ["result"], registry=registry
        )

        self.embedding_cache = Gauge(
            "zimage_embedding_cache", "Features of prompts in memory", ["figure"], registry=registry
        )

    def describe(self, facts: Mapping[str, str]) -> None:
        """Say what is served.

        Args:
            facts: Label -> value.
        """
        self.info.info(dict(facts))

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)
