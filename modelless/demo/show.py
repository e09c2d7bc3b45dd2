"""The demo's tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from modelless.demo.report import Figures
from modelless.demo.scenario import QueryClass, Scenario

_COLUMNS = (
    "policy",
    "in time",
    "as asked",
    "right in time",
    "p50",
    "p99",
    "accuracy",
    "µ$/1,000",
    "no answer",
    "models",
)


def family_table(scenario: Scenario) -> Table:
    table = Table(title="What registration measured", title_justify="left", show_edge=False)
    table.add_column("model")
    table.add_column("accuracy", justify="right")
    table.add_column("ms per row, best batch", justify="right")
    for model in scenario.measured:
        table.add_row(model.model, f"{model.accuracy:.3f}", f"{model.row_ms:.3f}")
    return table


def class_table(kind: QueryClass | None, rows: Sequence[Figures]) -> Table:
    """One class (None: all queries together) under every policy."""
    table = Table(title=_title(kind, rows[0].queries), title_justify="left", show_edge=False, pad_edge=False)
    for name in _COLUMNS:
        is_text = name in ("policy", "no answer", "models")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        table.add_row(
            row.policy,
            _percent(row.in_time),
            _percent(row.as_asked),
            _percent(row.right_in_time),
            _number(row.p50_ms, "{:.1f}"),
            _number(row.p99_ms, "{:.1f}"),
            _number(row.accuracy, "{:.3f}"),
            _number(row.cost_per_1000 and row.cost_per_1000 * 1e6, "{:.2f}"),
            ", ".join(f"{count} {status.lower()}" for status, count in row.not_ok.items()) or "-",
            ", ".join(f"{model.removeprefix('digits-')} {share:.0%}" for model, share in row.models.items()),
        )
    return table


def _title(kind: QueryClass | None, queries: int) -> str:
    if kind is None:
        return f"all {queries:,} queries"
    return (
        f"{kind.name}: {queries:,} queries, latency_ms_max={kind.latency_ms_max:g} "
        f"accuracy_min={kind.accuracy_min:g} prefer={kind.prefer} on_miss={kind.on_miss}"
    )


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
