"""The demo's tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from modelless.demo.report import Figures
from modelless.demo.scenario import QueryClass, Scenario


def family_table(scenario: Scenario) -> Table:
    table = Table(box=SIMPLE_HEAD, title="measured at registration", title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("model")
    table.add_column("accuracy", justify="right")
    table.add_column("ms per row, best batch", justify="right")
    for model in scenario.measured:
        table.add_row(model.model, f"{model.accuracy:.3f}", f"{model.row_ms:.3f}")
    return table


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
            _number(row.cost_per_1000 and row.cost_per_1000 * 1e6, "{:.0f}"),
        )
    return table


def notes(rows: Sequence[Figures]) -> str:
    """What a table has no room for: the models that answered, and what got no answer."""
    lines = []
    for row in rows:
        chosen = ", ".join(f"{short(model)} {share:.0%}" for model, share in row.models.items())
        refused = ", ".join(f"{count} {status}" for status, count in row.not_ok.items())
        if len(row.models) > 1:
            lines.append(f"  {row.policy} chose {chosen}")
        if refused:
            lines.append(f"  {row.policy}: no answer to {refused}")
    return "\n".join(lines)


def short(model: str) -> str:
    return model.removeprefix("digits-")


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
