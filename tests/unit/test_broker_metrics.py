"""What Prometheus reads of a broker is what happened in its core."""

from __future__ import annotations

from collections import Counter

from broker_builders import Bench, model, profile
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from broker.metrics import Outside, registry
from broker.tally import TallyStatistics
from modelless import frames


def scrape(bench: Bench, now_ms: float) -> dict[str, float]:
    outside = Outside(
        now_ms=now_ms,
        loop_lag_seconds=0.25,
        paused=True,
        leads=False,
        commit_failures=3,
        lag={("modelless.queries", 0): 7},
        feedback=TallyStatistics(rows=12, dropped=Counter({"duplicate": 2})),
        drifted=["m:1/onnx-fp32"],
    )
    text = generate_latest(registry(bench.core, lambda: outside)).decode()
    return {
        sample.name + "".join(f"|{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_tell_what_happened() -> None:
    bench = Bench((model(), [profile(model())]))
    worker = bench.worker("m:1/onnx-fp32", window_ms=1)
    bench.admit()
    bench.admit(id="none", task="none")
    bench.poll(500)
    bench.admit(500)
    bench.poll(500)
    seen = scrape(bench, 2000)
    assert seen["modelless_broker_unfinished_queries"] == 3
    assert seen["modelless_broker_oldest_unfinished_age_seconds"] == 2.0
    assert (
        seen["modelless_broker_backlog_seconds|cpu"] == 0.00125
    )  # an eighth of a batch of eight; what was sent has run
    assert seen["modelless_broker_workers|cpu"] == 1
    assert seen["modelless_broker_queue_seconds_count"] == 1
    assert seen["modelless_broker_queue_seconds_sum"] == 0.5
    assert seen["modelless_broker_kafka_lag_records|0|modelless.queries"] == 7
    assert (seen["modelless_broker_reading_paused"], seen["modelless_broker_leads"]) == (1, 0)
    assert seen["modelless_broker_commit_failures_total"] == 3
    assert seen["modelless_broker_feedback_rows_total"] == 12
    assert seen["modelless_broker_feedback_dropped_total|duplicate"] == 2
    assert seen["modelless_broker_drifted|m:1/onnx-fp32"] == 1
    bench.core.frame(worker, frames.Outcome(1, True, 9.0, 1, (), rest_ok=True), 600)
    bench.core.lost(worker, 700)
    seen = scrape(bench, 2000)
    assert seen["modelless_broker_outcomes_total|OK|t"] == 1
    assert seen["modelless_broker_in_time_total|t"] == 1
    assert seen["modelless_broker_cost_usd_total|t"] > 0
    assert seen["modelless_broker_workers_lost_total"] == 1
    assert seen["modelless_broker_workers|cpu"] == 0


def test_metrics_tell_how_variants_live() -> None:
    of = model()
    bench = Bench((of, [profile(of)]))
    worker = bench.worker("m:1/onnx-fp32")
    slow = frames.VariantState("m:1/onnx-fp32", "ready", 0, ((8, 30.0),) * 100, 800, 3000.0)
    bench.core.frame(worker, frames.State((slow,), 0, 0.0, 1), 1000)
    bench.core.judge(1000)
    seen = scrape(bench, 1000)
    assert seen["modelless_broker_variants|cpu|interfered"] == 1
    assert seen["modelless_broker_variants|cpu|active"] == 0
    assert 2.5 < seen["modelless_broker_latency_ratio|cpu|m:1/onnx-fp32"] < 3.1


def test_metrics_tell_what_is_shed_and_why() -> None:
    bench = Bench((model(), [profile(model())]))
    bench.worker("m:1/onnx-fp32", window_ms=1)
    for _ in range(40):
        bench.admit(latency_ms_max=45)
    bench.poll()
    bench.admit(1000, arrival_ms=0, latency_ms_max=45)
    bench.poll(1000)
    seen = scrape(bench, 1000)
    refused = seen["modelless_broker_shed_total|load|t|modelless.queries"]
    assert 0 < refused < 40
    assert seen["modelless_broker_shed_total|expired|t|modelless.queries"] > 1
