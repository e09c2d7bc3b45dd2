"""The ``modelless`` command. One module per subcommand; each imports what it needs when it runs."""

from __future__ import annotations

import importlib
import sys

import typer

from modelless import __version__
from modelless.child import leave_word
from modelless.errors import ModellessError

# Subcommand modules, in the order of `--help`. Each has `register(app)`, and is called as what it registers.
_MODULES = (
    "demo", "up", "kafka", "broker", "worker", "forks", "provisioner", "check", "register", "models", "explain",
    "label", "query", "job", "status", "plan", "usage", "simulate",
)  # fmt: skip

app = typer.Typer(
    name="modelless",
    help="Model-less inference serving over Apache Kafka: say what you need, the system chooses the rest.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"modelless {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Model-less inference serving over Apache Kafka."""


def main() -> None:
    """Entry point: a ModellessError becomes one line on stderr and exit status 1 (2 for usage, by typer)."""
    for name in set(sys.argv[1:2]).intersection(_MODULES) or _MODULES:
        importlib.import_module(f"modelless.commands.{name}").register(app)
    try:
        app()
    except ModellessError as error:
        leave_word(error.message)
        typer.secho(f"error: {error.message}", err=True, fg=typer.colors.RED)
        sys.exit(1)
    except Exception as error:
        leave_word(repr(error))
        raise
