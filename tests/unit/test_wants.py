"""Wants: exact for what is constant, forgotten when it is over, bounded."""

from __future__ import annotations

import pytest

from broker.wants import MEMORY_MS, WANTS_MAX, Wants


def test_a_constant_rate_is_told_and_forgotten_when_it_is_over() -> None:
    wants = Wants()
    now_ms = 0.0
    for _ in range(100):
        now_ms += 1000
        for _ in range(5):
            wants.add("a@cpu", 4)
        rates = wants.rates(now_ms)
    assert rates == {"a@cpu": pytest.approx(20, rel=0.01)}
    assert wants.rates(now_ms) == rates
    assert wants.rates(now_ms + MEMORY_MS)["a@cpu"] == pytest.approx(20 / 2.718, rel=0.02)
    assert wants.rates(now_ms + 20 * MEMORY_MS) == {}


def test_the_most_wanted_are_kept() -> None:
    wants = Wants()
    for number in range(10 * WANTS_MAX):
        wants.add(f"{number}", 1 + number % 97)
    rates = wants.rates(1000)
    assert len(rates) == WANTS_MAX
    assert list(rates.values()) == sorted(rates.values(), reverse=True)
    assert max(rates.values()) == pytest.approx(97 * 0.095, rel=0.01)
