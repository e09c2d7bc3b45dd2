"""So much room that no more than a share of the work is lost."""

from __future__ import annotations

import numpy as np
import pytest

from broker.headroom import deviation, room


@pytest.mark.parametrize("missed", [0.001, 0.01, 0.05])
@pytest.mark.parametrize("spread", [0.05, 0.2, 0.6])
def test_no_more_is_lost_than_may_be(spread: float, missed: float) -> None:
    loads = np.random.default_rng(1).normal(1.0, spread, 1_000_000)
    lost = np.maximum(0.0, loads - 1.0 - (found := room(spread, missed))).mean()
    assert lost == pytest.approx(missed, rel=0.05) or (found == 0.0 and lost < missed)


def test_bursts_take_the_room_that_they_need_by_how_long_they_are() -> None:
    bursts = np.array([-0.05] * 95 + [0.95] * 5)
    assert room(0.0, 0.01, bursts) == pytest.approx(0.95 - 0.01 / 0.05)
    assert room(0.0, 0.05, bursts) == pytest.approx(0.0, abs=0.01)
    assert room(0.1, 0.01, bursts) > room(0.0, 0.01, bursts)


def test_an_even_load_needs_none() -> None:
    assert room(0.0, 0.01) == room(0.01, 0.01) == 0.0


@pytest.mark.parametrize("spread", [0.1, 0.5, 3.0])
def test_the_inverse(spread: float) -> None:
    assert deviation(room(spread, 0.005), 0.005) == pytest.approx(spread, rel=1e-4)
