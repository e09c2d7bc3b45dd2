from __future__ import annotations

from typing import Literal

from modelless.fleet import ALIVE_MS, Roster
from modelless.messages import Member

START_MS = 1_700_000_000_000.0


def member(name: str, state: Literal["ready", "stopped"] = "ready") -> Member:
    return Member("worker", name, incarnation="1", state=state)


def names(roster: Roster, quiet_ms: float = 0.0) -> list[str]:
    return [member.name for member in roster.alive(quiet_ms)]


def test_whoever_is_not_heard_while_others_are_dies() -> None:
    roster = Roster()
    roster.hear(member("dead"), START_MS)
    for second in range(1, 6):
        roster.hear(member("alive"), START_MS + second * 1000)
        assert names(roster) == ["alive", "dead"]
    roster.hear(member("alive"), START_MS + ALIVE_MS + 1000)
    assert names(roster) == ["alive"]


def test_a_silence_of_all_is_nobodys_death() -> None:
    roster = Roster()
    roster.hear(member("one"), START_MS)
    roster.hear(member("two"), START_MS)
    roster.hear(member("one"), START_MS + 120_000)
    assert names(roster) == ["one", "two"]
    for second in range(1, 5):
        roster.hear(member("one"), START_MS + 120_000 + second * 1000)
    assert names(roster) == ["one"]


def test_a_silence_that_kafka_confirms_is_everybodys_death_for_good() -> None:
    roster = Roster()
    roster.hear(member("one"), START_MS)
    assert names(roster, quiet_ms=ALIVE_MS) == ["one"]
    assert names(roster, quiet_ms=ALIVE_MS + 1) == []
    roster.hear(member("two"), START_MS + 6000)
    assert names(roster) == ["two"]


def test_who_stopped_is_gone_at_once_and_may_come_back() -> None:
    roster = Roster()
    roster.hear(member("one"), START_MS)
    roster.hear(member("one", "stopped"), START_MS + 10)
    assert names(roster) == []
    roster.hear(member("one"), START_MS + 20)
    assert names(roster) == ["one"]


def test_gaps_count_in_full_where_the_caller_says_so() -> None:
    roster = Roster()
    roster.hear(member("old"), START_MS)
    roster.hear(member("new"), START_MS + 60_000, gap_ms_max=ALIVE_MS + 1)
    assert names(roster) == ["new"]


def test_a_log_time_that_steps_back_lets_no_time_pass() -> None:
    roster = Roster()
    roster.hear(member("one"), START_MS)
    roster.hear(member("two"), START_MS - 3_600_000)
    assert names(roster) == ["one", "two"]


def test_a_log_time_that_steps_back_does_not_stop_the_time() -> None:
    roster = Roster()
    roster.hear(member("dead"), START_MS)
    for second in range(1, 10):
        roster.hear(member("alive"), START_MS - 3_600_000 + second * 1000)
    assert names(roster) == ["alive"]
