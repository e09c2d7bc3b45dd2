"""Bisecting: find the one query that harms its batch, and spare its mates. Pure.

A run of several items that ends badly is cut in two and both halves run again; a run of one item that ends badly has
found its culprit. With one culprit among n items that takes ``1 + log2(n)`` bad ends, 6 for 32.

Two kinds of bad ends:

* **error**: the model raised. The executor lives; the halves run on it as any other work.
* **crash**: the executor died or hung. The halves run on a *quarantined* child, so that whoever waits behind them
  keeps the serving one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retry:
    """Run these parts again, each by itself."""

    parts: tuple[tuple[int, ...], ...]
    quarantined: bool


@dataclass(frozen=True, slots=True)
class Culprit:
    """This item cannot be run. ``poisoned``: it brings the executor down."""

    index: int
    poisoned: bool


def after_bad_end(indices: tuple[int, ...], *, crashed: bool, quarantined: bool) -> Retry | Culprit:
    """What follows from a run of the items ``indices`` that ended badly.

    A single item is not blamed for a crash of the serving executor, which may die of other causes (the kernel's
    memory killer, an operator): it runs once more in quarantine.
    """
    if len(indices) == 1:
        if crashed and not quarantined:
            return Retry((indices,), quarantined=True)
        return Culprit(indices[0], poisoned=crashed)
    middle = len(indices) // 2
    return Retry((indices[:middle], indices[middle:]), quarantined=crashed or quarantined)
