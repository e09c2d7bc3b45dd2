"""One picture of a run: what came, how fast it was answered, by what, and how often as asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelless.demo.report import OK, Answer
from modelless.demo.scenario import Scenario
from modelless.demo.show import short

BIN_S = 0.5
VARIANTS_SHOWN_MAX = 9
"""Of those that answered, by a colour of their own."""


def plot(path: Path, scenario: Scenario, answers: Sequence[Answer], seconds: float) -> None:
    """Write a PNG. The first three panels show the first policy, the last compares all."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    ours = [answer for answer in answers if answer.policy == scenario.policies[0].name]
    edges = np.arange(0, seconds + BIN_S, BIN_S)
    figure, (arrivals, latencies, models, met) = pyplot.subplots(4, 1, figsize=(10, 12), sharex=True)

    names = [kind.name for kind in scenario.classes]
    rates = np.array([_per_bin([a for a in ours if a.kind == name], edges) for name in names]) / BIN_S
    arrivals.stackplot(edges, _to_the_end(rates), labels=names, step="post")
    arrivals.set_ylabel("queries per second")
    arrivals.set_title("what came in", loc="left")

    for index, kind in enumerate(scenario.classes):
        mine = [answer for answer in ours if answer.kind == kind.name and answer.status == OK]
        latencies.scatter([a.at_s for a in mine], [a.latency_ms for a in mine], s=3, color=f"C{index}", label=kind.name)
        latencies.axhline(kind.latency_ms_max, color=f"C{index}", linewidth=0.8, linestyle="--")
    latencies.set_yscale("log")
    latencies.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    latencies.set_ylabel("latency, ms")
    latencies.set_title("how fast it was answered (dashed: what was asked)", loc="left")

    frequent = [name for name, _ in Counter(a.variant for a in ours if a.variant).most_common()]
    shown = frequent[:VARIANTS_SHOWN_MAX]
    counts = [_per_bin([a for a in ours if a.variant == name], edges) for name in shown]
    labels, colours = [short(name) for name in shown], [f"C{index % 10}" for index in range(len(shown))]
    if others := frequent[VARIANTS_SHOWN_MAX:]:
        counts.append(_per_bin([a for a in ours if a.variant in others], edges))
        labels, colours = [*labels, f"{len(others)} others"], [*colours, "0.8"]
    parts = np.array(counts, dtype=float)
    models.stackplot(
        edges,
        _to_the_end(parts / np.maximum(parts.sum(axis=0), 1)),
        labels=labels,
        colors=colours,
        step="post",
    )
    models.set_ylabel("share of answers")
    models.set_title("which variants answered", loc="left")

    kinds = {kind.name: kind for kind in scenario.classes}
    for policy in scenario.policies:
        mine = [answer for answer in answers if answer.policy == policy.name]
        good = [answer for answer in mine if answer.is_as_asked(kinds[answer.kind])]
        share = _per_bin(good, edges) / np.maximum(_per_bin(mine, edges), 1)
        met.plot(edges[:-1] + BIN_S / 2, share, label=policy.name)
    met.set_ylim(0, 1.03)
    met.set_ylabel("share")
    met.set_xlabel("seconds")
    met.set_title("answered as asked", loc="left")

    for axes in (arrivals, latencies, models, met):
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
        axes.set_xlim(0, seconds)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _per_bin(answers: Sequence[Answer], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.histogram([answer.at_s for answer in answers], bins=edges)[0]


def _to_the_end(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The last bin once more, so that its step has an end; [series, bins] to [series, bins + 1]."""
    return np.concatenate([rows, rows[:, -1:]], axis=1)
