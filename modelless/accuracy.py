"""How accurate a variant is, and how sure that is: the Wilson score interval of a proportion.

Evaluation sets are small, so two variants whose accuracies differ by a few rows may well be equally good; what is
chosen by is the lower bound. Wilson's interval (E. B. Wilson, Probable inference, the law of succession, and
statistical inference, J. Am. Stat. Assoc. 22, 1927) inverts the score test: with the share p of n rows right,

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)

It stays within 0 and 1, and keeps a width where nothing, or everything, was right, as the naive p ± z √(p(1-p)/n)
does not.
"""

from __future__ import annotations

from math import hypot, sqrt
from typing import NamedTuple

from modelless.messages import Correction, ModelVersion, Profile

Z_95 = 1.959963984540054
"""Quantile of the standard normal distribution at 0.975: 95 % between its negative and itself."""


class Interval(NamedTuple):
    low: float
    high: float


class Accuracy(NamedTuple):
    said: float
    """To callers, in a reply."""
    interval: Interval
    """Its lower end is chosen by."""


def wilson(right: float, rows: float, z: float = Z_95) -> Interval:
    """The interval for a share of which ``right`` of ``rows`` were seen.

    Args:
        right: 0 to ``rows``; need not be whole (rows may count by weight).
        rows: 0 or more; of none nothing is known, which is 0 to 1.
    """
    assert 0 <= right <= rows, f"{right} of {rows}"
    if rows == 0:
        return Interval(0.0, 1.0)
    share, spread = right / rows, z * z / rows
    middle = share + spread / 2
    half = sqrt(max(0.0, spread * (share * (1 - share) + spread / 4)))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return Interval(max(0.0, min(low, share)), min(1.0, max(high, share)))


def declared(accuracy: float) -> Interval:
    """The interval of what an operator says: it is believed."""
    return Interval(accuracy, accuracy)


def accuracy_of(model: ModelVersion, profile: Profile, correction: Correction | None) -> Accuracy:
    """As labels of answered queries correct it, else as measured, else as declared, else 0."""
    if correction is not None and correction.digest == model.digest:
        return Accuracy(correction.accuracy, Interval(correction.accuracy_low, correction.accuracy_high))
    said, low, high = profile.accuracy, profile.accuracy_low, profile.accuracy_high
    if said is None:
        said = model.evaluation.accuracy or 0.0
    return Accuracy(said, Interval(said if low is None else low, said if high is None else high))


def difference_low(share: float, interval: Interval, other: float, interval_of_other: Interval) -> float:
    """Lower bound of how much larger a share is than an independent other one, as sure as the intervals are.

    R. G. Newcombe, Interval estimation for the difference between independent proportions, Stat. Med. 17, 1998,
    method 10: made of Wilson's intervals, it holds for small counts and shares near 0.
    """
    return share - other - hypot(share - interval.low, interval_of_other.high - other)
