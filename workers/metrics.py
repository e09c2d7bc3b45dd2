"""What a worker shows to Prometheus: base units, names ``modelless_worker_*``. Nothing is decided from it."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class WorkerMetrics:
    """All series of one worker, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(f"modelless_worker_{name}", text, buckets=tuple(buckets), registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"modelless_worker_{name}", text, registry=registry)

        self.queries = Counter(
            "modelless_worker_queries", "Queries settled.", ("status", "disposition"), registry=registry
        )
        self.deaths = Counter("modelless_worker_child_deaths", "Executors that died or hung.", registry=registry)
        self.builds = Counter(
            "modelless_worker_builds",
            "Files that variants need: made here, found as built before, or failed.",
            ("outcome",),
            registry=registry,
        )
        self.busy_seconds = Counter(
            "modelless_worker_device_busy_seconds", "Time that the device executed live batches.", registry=registry
        )
        self.batch_rows = histogram("batch_rows", "Rows of the batches that arrived.", _ROWS)
        self.execute_seconds = histogram("execute_seconds", "Device time of a batch.", _SECONDS)
        self.queue_seconds = histogram(
            "queue_seconds", "From a batch's oldest query in its topic to its start on the device.", _SECONDS
        )
        self.backlog_seconds = gauge("backlog_seconds", "Predicted work that is queued or running.")
        self.busy_ratio = gauge("device_busy_ratio", "Share of the last second that the device was busy.")
        self.memory_bytes = gauge("loaded_memory_bytes", "Memory of the loaded variants, by their profiles.")
        self.loaded = gauge("loaded_variants", "Variants that are ready.")
        self.links = gauge("links", "Brokers that are connected.")
        self.unsettled = gauge("unsettled_queries", "Queries held that have no outcome yet.")
        self.replies_pending = gauge("replies_pending", "Replies that Kafka has not acknowledged yet.")
        self.promotion_seconds = gauge("promotion_seconds", "How long the last replacement of a dead executor took.")
        self.loop_lag_seconds = gauge("loop_lag_seconds", "How late the event loop ran its last timer.")
