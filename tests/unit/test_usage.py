"""Who used what: counts of a broker, and books that sum up to the fleet's bill whatever happened."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from broker_builders import Bench, model, profile
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from broker.core import Send
from broker.usage import COUNTED_MAX, IDLE, OTHERS, Books, Meter, tenant_of
from modelless import frames
from modelless.commands.usage import plain, render
from modelless.errors import InvalidArgumentError
from modelless.messages import MS_PER_HOUR, Member, Usage, Used
from modelless.usage import parts, since_ms

M = "m:1/onnx-fp32"
PERIOD_MS, ALIVE_MS = 60_000.0, 5_000.0
SECOND = 1000.0


def books(from_ms: float = 0.0) -> Books:
    return Books(PERIOD_MS, from_ms, ALIVE_MS)


def worker(name: str = "gpu-0", incarnation: str = "1", price: float = 3.6, state: Any = "ready") -> Member:
    statistics = {"price_per_hour": price}
    return Member("worker", name, incarnation, state, group=name.rpartition("-")[0], statistics=statistics)


def broker(*used: Used, incarnation: str = "1") -> Member:
    return Member("broker", "b", incarnation, "ready", used=used)


def every_second(of: Books, member: Member, begin_s: int, end_s: int) -> None:
    for second in range(begin_s, end_s + 1):
        of.hear(member, second * SECOND)


# --- books ------------------------------------------------------------------------------------------------------------


def test_a_bill_is_shared_as_busy_time_is_with_its_part_of_idle_time() -> None:
    of = books()
    of.hear(broker(), 0.0)
    every_second(of, worker(), 0, 50)
    of.hear(broker(Used("a", "t", "gpu", 4, 8, 10_000.0), Used("b", "t", "gpu", 1, 1, 30_000.0)), 51 * SECOND)
    every_second(of, worker(), 51, 66)
    a, b = of.closed()
    per_second = 3.6 / 3600
    assert (a.tenant, a.queries, a.rows, a.busy_ms) == ("a", 4, 8, 10_000.0)
    assert a.cost_usd == pytest.approx(10 * per_second)
    assert a.idle_usd == pytest.approx(5 * per_second), "a quarter of the 20 s that were left"
    assert (b.cost_usd, b.idle_usd) == (pytest.approx(30 * per_second), pytest.approx(15 * per_second))
    assert of.closed() == [], "each period once"


def test_a_period_is_closed_when_nothing_can_be_added_any_more() -> None:
    of = books()
    every_second(of, worker(), 0, 59)
    assert of.closed() == []
    of.hear(worker(), 64_000.0)
    assert of.closed() == []
    of.hear(broker(), 65_000.0)
    (only,) = of.closed()
    assert only.total_usd == pytest.approx(60 * 3.6 / 3600), "alive until the period's end, heard after it"


def test_a_group_that_nobody_used_is_billed_to_nobody() -> None:
    of = books()
    every_second(of, worker("gpu-0"), 0, 66)
    every_second(of, worker("cpu-0", price=0.0), 0, 66)
    (only,) = of.closed()
    assert (only.tenant, only.task, only.group, only.cost_usd) == (IDLE, "", "gpu", 0.0)
    assert only.idle_usd == pytest.approx(0.06)


def test_silence_is_death_and_a_restart_is_somebody_else() -> None:
    of = books()
    every_second(of, worker(), 0, 10)
    every_second(of, worker(), 20, 30)  # ten seconds of silence do not count
    every_second(of, worker(incarnation="2"), 31, 40)  # nor does the time between two
    of.hear(worker(incarnation="2", state="stopped"), 41 * SECOND)
    of.hear(worker(incarnation="2", state="stopped"), 42 * SECOND)
    of.hear(broker(), 70 * SECOND)
    (only,) = of.closed()
    assert only.total_usd == pytest.approx(30 * 3.6 / 3600)


def test_counts_begin_with_the_first_announcement_that_is_heard_and_never_count_twice() -> None:
    of = books()
    used = Used("a", "t", "gpu", 100, 100, 1e6)
    of.hear(broker(used), 0.0)  # the log begins here, the broker did days ago
    of.hear(broker(replace(used, queries=103)), SECOND)
    of.hear(broker(used), 0.0)  # delivered again
    of.hear(broker(replace(used, queries=103)), SECOND)
    of.hear(broker(), 66 * SECOND)
    assert [each.queries for each in of.closed()] == [3]


def test_work_of_a_group_whose_workers_are_unknown_costs_nothing() -> None:
    of = books()
    of.hear(broker(), 0.0)
    of.hear(broker(Used("a", "t", "gone", 1, 1, 10.0)), SECOND)
    of.hear(broker(), 66 * SECOND)
    assert [(each.tenant, each.queries, each.total_usd) for each in of.closed()] == [("a", 1, 0.0)]


def test_what_is_in_the_books_already_is_not_written_again() -> None:
    of = books(from_ms=60_000.0)
    every_second(of, worker(), 0, 130)
    assert [each.start_ms for each in of.closed()] == [60_000.0]


Announced = tuple[float, Member]


@st.composite
def logs(draw: st.DrawFn) -> list[Announced]:
    """Of some minutes: workers that come, go silent, restart and change their price; brokers that count."""
    log: list[Announced] = []
    for name in ("gpu-0", "gpu-1", "cpu-0"):
        now_ms, incarnation = draw(st.floats(0, 100_000)), 0
        for _ in range(draw(st.integers(0, 25))):
            price = draw(st.sampled_from((0.0, 1.0, 3.6)))
            state = draw(st.sampled_from(("ready", "ready", "ready", "stopped")))
            log.append((now_ms, worker(name, str(incarnation), price, state)))
            now_ms += draw(st.sampled_from((100.0, 1_000.0, 4_999.0, 5_000.0, 5_001.0, 30_000.0)))
            incarnation += state == "stopped" or draw(st.integers(0, 3)) == 0
    for name in ("b0", "b1"):
        now_ms, counts = draw(st.floats(0, 100_000)), defaultdict[tuple[str, str], list[float]](lambda: [0, 0, 0.0])
        for _ in range(draw(st.integers(0, 20))):
            used = tuple(Used(t, "t", g, int(q), int(r), ms) for (t, g), (q, r, ms) in counts.items())
            log.append((now_ms, broker(*used, incarnation=name)))
            count = counts[draw(st.sampled_from("xy")), draw(st.sampled_from(("gpu", "cpu")))]
            count[0] += draw(st.integers(0, 3))
            count[1] += draw(st.integers(0, 3))
            count[2] += draw(st.sampled_from((0.0, 10.0, 50_000.0)))
            now_ms += draw(st.floats(1, 10_000))
    return sorted(log, key=lambda each: each[0])


def bill_usd(log: list[Announced]) -> float:
    """Workers alive times price times time, worker by worker."""
    total, last = 0.0, dict[str, tuple[float, Member]]()
    for at_ms, member in log:
        if member.kind == "worker":
            before = last.pop(member.name, None)
            if before is not None and before[1].incarnation == member.incarnation and at_ms - before[0] <= ALIVE_MS:
                total += before[1].statistics["price_per_hour"] * (at_ms - before[0]) / MS_PER_HOUR
            if member.state != "stopped":
                last[member.name] = at_ms, member
    return total


def folded(log: list[Announced], from_ms: float = 0.0, until_ms: float = 1e9) -> list[Usage]:
    """What a leader writes that hears the log up to a time."""
    of, written = books(from_ms), list[Usage]()
    for at_ms, member in log:
        if at_ms <= until_ms:
            of.hear(member, at_ms)
            written += of.closed()
    return written


@given(logs())
def test_usage_sums_up_to_the_fleets_bill(log: list[Announced]) -> None:
    written = folded([*log, (1e7, broker(incarnation="last"))])
    assert sum(each.total_usd for each in written) == pytest.approx(bill_usd(log), rel=1e-9, abs=1e-12)
    known, counted = dict[tuple[str, Any], Used](), 0
    for _, member in log:
        for each in member.used:
            key = member.incarnation, (each.tenant, each.group)
            counted += each.queries - known.get(key, Used("", "", "")).queries
            known[key] = each
    first = {m.incarnation: m for _, m in reversed(log) if m.kind == "broker"}
    counted -= sum(each.queries for member in first.values() for each in member.used)
    assert sum(each.queries for each in written) == counted


@given(logs(), st.floats(0, 400_000))
def test_a_leader_that_takes_over_writes_what_is_missing_and_nothing_twice(
    log: list[Announced], dies_ms: float
) -> None:
    log = [*log, (1e7, broker(incarnation="last"))]
    before = folded(log, until_ms=dies_ms)
    after = folded(log, from_ms=max((each.start_ms + each.period_ms for each in before), default=0.0))
    assert before + after == folded(log)


# --- a broker's counts ------------------------------------------------------------------------------------------------


def one(**settings: Any) -> tuple[Bench, Any]:
    bench = Bench((model(), [profile(model())]), **settings)
    return bench, bench.worker(M)


def sent(bench: Bench, now_ms: float = 0.0) -> frames.Batch:
    (send,) = [each for each in bench.poll(now_ms) if isinstance(each, Send)]
    return send.batch


def test_a_runs_time_is_shared_by_rows_with_those_of_others_in_it() -> None:
    bench, worker = one()
    bench.admit(rows=1)
    bench.admit(rows=2)
    batch = sent(bench)
    bench.core.frame(worker, frames.Outcome(batch.batch, True, 12.0, 6, (), rest_ok=True), 12)
    assert bench.core.meter.used() == (Used("modelless.queries", "t", "cpu", 2, 3, 6.0),)


def test_who_names_a_model_is_counted_for_its_task() -> None:
    bench, worker = one()
    bench.admit(model="m")
    bench.answer(worker, sent(bench), 10)
    assert [each.task for each in bench.core.meter.used()] == ["t"]


def test_what_was_run_in_vain_costs_but_is_no_answered_query() -> None:
    bench, worker = one()
    bench.admit(rows=1)
    bench.admit(rows=1)
    batch = sent(bench)
    bench.core.frame(worker, frames.Outcome(batch.batch, False, 5.0, 0, ()), 5)  # it ended badly
    returned = tuple(frames.ItemOutcome(item.record, "returned", "UNAVAILABLE") for item in batch.items)
    bench.core.frame(worker, frames.Outcome(batch.batch, True, 0.0, 0, returned), 6)
    assert bench.core.meter.used() == (Used("modelless.queries", "t", "cpu", 0, 0, 5.0),)


def test_too_many_tenants_are_counted_as_others() -> None:
    meter, (bench, _) = Meter(), one()
    entry = bench.admit()
    for number in range(COUNTED_MAX + 3):
        meter.ran(f"task-{number}", "cpu", [entry], [entry], 1.0, 1)
    used = meter.used()
    assert len(used) == COUNTED_MAX + 1
    assert used[-1] == Used(OTHERS, "", "cpu", 3, 3, 3.0)
    assert sum(each.busy_ms for each in used) == COUNTED_MAX + 3
    assert tenant_of(entry) == "modelless.queries"


# --- what the command says --------------------------------------------------------------------------------------------

USAGES = (
    Usage(0.0, 60_000.0, "a", "t", "gpu", 2, 4, 1000.0, 0.25, 0.5),
    Usage(60_000.0, 60_000.0, "a", "t", "cpu", 1, 1, 500.0, 0.25, 0.0),
    Usage(60_000.0, 60_000.0, IDLE, "", "gpu", idle_usd=3.0),
)


def test_parts_are_summed_over_groups_and_periods() -> None:
    idle, a = parts(USAGES)
    assert (idle.tenant, idle.total_usd) == (IDLE, 3.0)
    assert (a.queries, a.rows, a.busy_ms, a.cost_usd, a.idle_usd, a.total_usd) == (3, 5, 1500.0, 0.5, 0.5, 1.0)
    assert plain(USAGES)["total_usd"] == 4.0


def test_the_table_ends_with_the_sum() -> None:
    console = Console(width=200)
    with console.capture() as shown:
        console.print(render(USAGES, "24h"))
        console.print(render((), "24h"))
    assert [line.split() for line in shown.get().splitlines() if line.strip().startswith("all ")] == [
        ["all", "3", "5", "1.5", "0.500000", "3.500000", "4.000000"]
    ]
    assert "nothing was written since 24h" in shown.get()


@pytest.mark.parametrize(
    ("text", "ms"),
    [("90s", 1e9 - 90e3), ("1.5h", 1e9 - 5.4e6), ("1970-01-02", 86.4e6), ("1970-01-01T01:00+01:00", 0.0)],
)
def test_since_is_a_span_or_a_time(text: str, ms: float) -> None:
    assert since_ms(text, 1e9) == ms


@pytest.mark.parametrize("text", ["", "yesterday", "5", "5w", "-1h"])
def test_since_says_what_it_expects(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="30min, 24h"):
        since_ms(text, 1e9)
