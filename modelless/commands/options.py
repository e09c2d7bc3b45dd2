"""Options that several subcommands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path | None, typer.Option(help="Configuration file; default: ./modelless.toml.")]

# What a query asks for.
Task = Annotated[str | None, typer.Option(help="Any model of this task.")]
Model = Annotated[str | None, typer.Option(help="This model: name, name:version or name:label.")]
Variant = Annotated[str | None, typer.Option(help="This variant: name:version/builder.")]
LatencyMs = Annotated[float | None, typer.Option(help="Answer within this; default 30,000.")]
Accuracy = Annotated[float | None, typer.Option(help="At least this, 0 to 1.")]
CostMax = Annotated[float | None, typer.Option(help="USD per 1,000 rows at most.")]
Prefer = Annotated[str, typer.Option(help="cost, accuracy or latency: the best at this wins.")]
OnMiss = Annotated[str, typer.Option(help="reject, late or degrade, when it cannot be met.")]
