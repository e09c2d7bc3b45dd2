"""Prometheus metrics of a broker: everything is read from the core's statistics when it is scraped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from broker.conditions import STATES
from broker.core import Core
from broker.statistics import Histogram
from broker.tally import TallyStatistics


@dataclass(frozen=True, slots=True)
class Outside:
    """What the shell knows beside the core."""

    now_ms: float
    loop_lag_seconds: float
    paused: bool
    leads: bool
    commit_failures: int
    lag: dict[tuple[str, int], int]
    feedback: TallyStatistics
    drifted: Sequence[str]


class BrokerCollector(Collector):
    def __init__(self, core: Core, outside: Callable[[], Outside]) -> None:
        self._core, self._outside = core, outside

    def collect(self) -> Iterable[Metric]:
        core, outside = self._core, self._outside()
        statistics = core.statistics
        yield _counter("modelless_broker_queries_read", "Records read from query topics.", statistics.read)
        yield _counter("modelless_broker_queries_skipped", "Records finished by an earlier owner.", statistics.skipped)
        yield _counter("modelless_broker_queries_malformed", "Records that are no valid query.", statistics.malformed)
        yield _counter("modelless_broker_queries_retried", "Queries sent again after a loss.", statistics.retried)
        yield _counter(
            "modelless_broker_queries_recalled", "Queries that a straggling worker gave back.", statistics.recalled
        )
        yield _counter(
            "modelless_broker_queries_hedged", "Queries sent to a second worker while one straggled.", statistics.hedged
        )
        yield _counter(
            "modelless_broker_duplicates_avoided",
            "Hedged queries that only one of the two workers answered.",
            statistics.duplicates_avoided,
        )
        yield _counter("modelless_broker_dead_letters", "Dead letters written.", statistics.dead_letters)
        yield _counter("modelless_broker_workers_lost", "Links that ended unasked.", statistics.lost_workers)
        yield _counter("modelless_broker_commit_failures", "Commits that had to be repeated.", outside.commit_failures)
        outcomes = CounterMetricFamily(
            "modelless_broker_outcomes", "Terminal outcomes by status.", labels=["status", "task"]
        )
        for (status, task), number in statistics.outcomes.items():
            outcomes.add_metric([status, task], number)
        yield outcomes
        in_time = CounterMetricFamily(
            "modelless_broker_in_time", "OK outcomes within the latency asked for; divide by outcomes.", labels=["task"]
        )
        for task, number in statistics.in_time.items():
            in_time.add_metric([task], number)
        yield in_time
        shed = CounterMetricFamily(
            "modelless_broker_shed",
            "Not answered: would be late by the load, or by its topic's share; expired; or its tenant's quota.",
            labels=["task", "topic", "reason"],
        )
        for each, number in statistics.shed.items():
            shed.add_metric(each, number)
        yield shed
        seconds = CounterMetricFamily(
            "modelless_broker_topic_device_seconds",
            "Predicted device time of batches, since there are several query topics.",
            labels=["topic"],
        )
        for topic, device_seconds in statistics.topic_seconds.items():
            seconds.add_metric([topic], device_seconds)
        yield seconds
        cost = CounterMetricFamily("modelless_broker_cost_usd", "Predicted device cost of batches.", labels=["task"])
        for task, usd in statistics.cost_usd.items():
            cost.add_metric([task], usd)
        yield cost
        yield _histogram("modelless_broker_batch_rows", "Rows per batch sent.", statistics.batch_rows)
        yield _histogram(
            "modelless_broker_queue_seconds", "From a query's log time to its dispatch.", statistics.queue_seconds
        )
        yield _histogram(
            "modelless_broker_worker_seconds", "From the dispatch to the outcome.", statistics.worker_seconds
        )
        oldest_ms = core.ledger.oldest_arrival_ms()
        age_seconds = 0.0 if oldest_ms is None else max(0.0, (outside.now_ms - oldest_ms) / 1000)
        yield GaugeMetricFamily("modelless_broker_oldest_unfinished_age_seconds", "Since its log time.", age_seconds)
        yield GaugeMetricFamily("modelless_broker_unfinished_queries", "Held now.", core.ledger.queries)
        yield GaugeMetricFamily("modelless_broker_unfinished_bytes", "Held now.", core.ledger.bytes)
        yield GaugeMetricFamily("modelless_broker_loop_lag_seconds", "Lateness of timers.", outside.loop_lag_seconds)
        yield GaugeMetricFamily(
            "modelless_broker_reading_paused", "1 while it is full, if of one topic only.", float(outside.paused)
        )
        yield GaugeMetricFamily("modelless_broker_leads", "1 on the broker that plans.", float(outside.leads))
        yield from self._groups(outside.now_ms)
        yield from self._variants()
        yield from _feedback(outside)
        lag = GaugeMetricFamily("modelless_broker_kafka_lag_records", "Not read yet.", labels=["topic", "partition"])
        for (topic, partition), records in outside.lag.items():
            lag.add_metric([topic, str(partition)], records)
        yield lag

    def _groups(self, now_ms: float) -> Iterable[Metric]:
        backlog = GaugeMetricFamily(
            "modelless_broker_backlog_seconds", "Predicted work that waits or runs.", labels=["group"]
        )
        workers = GaugeMetricFamily("modelless_broker_workers", "Linked workers.", labels=["group"])
        withheld = GaugeMetricFamily(
            "modelless_broker_offline_withheld_seconds",
            "What the next offline query takes, if that is too long to begin beside those in a hurry.",
            labels=["group"],
        )
        for name, group in self._core.groups.items():
            _, waiting_ms, _ = self._core.waiting(name)
            outstanding_ms = sum(worker.outstanding_ms(now_ms) for worker in group.workers.values())
            backlog.add_metric([name], (waiting_ms + outstanding_ms) / 1000)
            workers.add_metric([name], len(group.workers))
            withheld.add_metric([name], group.withheld_ms(now_ms)[0] / 1000)
        yield withheld
        yield backlog
        yield workers

    def _variants(self) -> Iterable[Metric]:
        states = self._core.conditions.states()
        numbers = GaugeMetricFamily("modelless_broker_variants", "Loaded or lately so.", labels=["group", "state"])
        groups = sorted({key.rpartition("@")[2] for key in states})
        counts = Counter((key.rpartition("@")[2], state) for key, state in states.items())
        for group in groups:
            for state in STATES:
                numbers.add_metric([group, state], counts[group, state])
        yield numbers
        ratio = GaugeMetricFamily(
            "modelless_broker_latency_ratio", "Living median over the profile's.", labels=["variant", "group"]
        )
        for key in states:
            variant, _, group = key.rpartition("@")
            candidate = self._core.catalog.candidate(variant, group)
            if candidate is not None:
                ratio.add_metric([variant, group], candidate.table.scale)
        yield ratio


def _feedback(outside: Outside) -> Iterable[Metric]:
    yield _counter("modelless_broker_feedback_rows", "Labelled rows that were counted.", outside.feedback.rows)
    dropped = CounterMetricFamily(
        "modelless_broker_feedback_dropped",
        "Feedback that was malformed, of an unknown variant, of unequal lengths, or a duplicate.",
        labels=["reason"],
    )
    for reason, number in outside.feedback.dropped.items():
        dropped.add_metric([reason], number)
    yield dropped
    drifted = GaugeMetricFamily(
        "modelless_broker_drifted",
        "1 for a variant that labels show to be less accurate than measured.",
        labels=["variant"],
    )
    for variant in outside.drifted:
        drifted.add_metric([variant], 1)
    yield drifted


def registry(core: Core, outside: Callable[[], Outside]) -> CollectorRegistry:
    """A registry of its own, so that nothing of the process's default one leaks in."""
    result = CollectorRegistry(auto_describe=False)
    result.register(BrokerCollector(core, outside))
    return result


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    buckets, total = [], 0
    for bound, number in zip([*histogram.bounds, float("inf")], histogram.counts, strict=True):
        total += number
        buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=histogram.sum)
