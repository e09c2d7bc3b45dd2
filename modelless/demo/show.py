"""The demo's tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from modelless.demo.report import CostRatios, Figures
from modelless.demo.scenario import QueryClass, Scenario
from modelless.variants import Variant

VARIANTS_SHOWN_MAX = 4
"""Of a class, by name; the others by number."""


def family_table(found: Sequence[Variant]) -> Table:
    """A line per model: how many variants were made of it, and how far these are apart."""
    table = Table(box=SIMPLE_HEAD, title="what was made and measured", title_justify="left", padding=(0, 1, 0, 0))
    for name, justify in (("model", "left"), ("variants", "right"), ("failed", "right"), ("accuracy", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for name in ("ms for one row", "µ$/1,000 rows"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in dict.fromkeys(variant.model.name for variant in found):
        own = [variant for variant in found if variant.model.name == model]
        points = [variant.point for variant in own if variant.point is not None]
        table.add_row(
            short(model),
            str(len(points)),
            str(sum(variant.profile.status == "failed" for variant in own)),
            _range([variant.accuracy or 0.0 for variant in own if variant.point is not None], "{:.3f}"),
            _range([point.latency_ms for point in points], "{:.2f}"),
            _range([point.cost * 1e6 for point in points], "{:.1f}"),
        )
    return table


def failures(found: Sequence[Variant]) -> list[str]:
    """Each reason once."""
    reasons: dict[str, list[str]] = {}
    for variant in found:
        if variant.profile.status == "failed":
            reasons.setdefault(variant.profile.reason or "no reason given", []).append(short(variant.name))
    return [f"failed: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def policy_notes(scenario: Scenario) -> list[str]:
    """What the fixed choices are."""
    what = {
        "one for all": "the cheapest variant that meets every class's constraints",
        "cheapest": "the cheapest variant of all",
        "oracle": "for each class what is cheapest, knowing the table and the batches of this load",
    }
    lines = []
    for policy in scenario.policies:
        if policy.pins is not None:
            pins = {kind: short(variant) for kind, variant in policy.pins.items()}
            single = set(pins.values())
            words = next(iter(single)) if len(single) == 1 else ", ".join(f"{k}: {v}" for k, v in pins.items())
            lines.append(f"{policy.name}: {what.get(policy.name, 'fixed')}: {words}")
    return lines


def ratios(found: CostRatios, to_oracle_by_part: Sequence[float | None]) -> str:
    """The parts tell how far to believe the whole: they differ by what the machine did meanwhile, too."""
    parts = _range([ratio for ratio in to_oracle_by_part if ratio is not None], "{:.2f}")
    return (
        f"cost of an answer, model-less: {_number(found.to_oracle, '{:.2f}')} times the oracle's "
        f"({parts} in its turns), "
        f"{_number(found.to_single, '{:.2f}')} times that of one variant for all"
    )


def class_table(kind: QueryClass | None, rows: Sequence[Figures]) -> Table:
    """One class (None: all queries together) under every policy; 80 columns are enough."""
    table = Table(box=SIMPLE_HEAD, title=_title(kind, rows[0].queries), title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("in time", "as asked", "right", "p50 ms", "p99 ms", "acc.", "µ$/1,000"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.policy,
            _percent(row.in_time),
            _percent(row.as_asked),
            _percent(row.right_in_time),
            _number(row.p50_ms, "{:.1f}"),
            _number(row.p99_ms, "{:.1f}"),
            _number(row.accuracy, "{:.3f}"),
            _number(row.cost_per_1000 and row.cost_per_1000 * 1e6, "{:.1f}"),
        )
    return table


def notes(rows: Sequence[Figures]) -> str:
    """What a table has no room for: the variants that answered, and what got no answer."""
    lines = []
    for row in rows:
        chosen = [f"{short(variant)} {share:.0%}" for variant, share in row.variants.items()]
        more = len(chosen) - VARIANTS_SHOWN_MAX
        words = ", ".join(chosen[:VARIANTS_SHOWN_MAX]) + (f" and {more} others" if more > 0 else "")
        refused = ", ".join(f"{count} {status}" for status, count in row.not_ok.items())
        if len(row.variants) > 1:
            lines.append(f"  {row.policy} chose {words}")
        if refused:
            lines.append(f"  {row.policy}: no answer to {refused}")
    return "\n".join(lines)


def short(name: str) -> str:
    """Of a model, or of a variant: ``cnn onnx-int8``."""
    model, _, builder = name.removeprefix("digits-").partition("/")
    return f"{model.partition(':')[0]} {builder}".rstrip()


def _range(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _title(kind: QueryClass | None, queries: int) -> str:
    if kind is None:
        return f"all {queries:,} queries"
    return (
        f"{kind.name}: {queries:,} queries, within {kind.latency_ms_max:g} ms, accuracy ≥ {kind.accuracy_min:g}, "
        f"prefer {kind.prefer}, else {kind.on_miss}"
    )


def _percent(share: float) -> str:
    return f"{share * 100:.1f}%"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
