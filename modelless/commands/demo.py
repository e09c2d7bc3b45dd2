"""``modelless demo``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from modelless.errors import ConfigurationError

_NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "sklearn", "matplotlib")


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("demo")(demo)


def demo(
    rate: Annotated[
        float, typer.Option(min=1, help="Queries per second at the end; it begins at a sixth, bursts are 3.5 times.")
    ] = 300,
    seconds: Annotated[float, typer.Option(min=2, help="How long each of the four policies is driven.")] = 15,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 7,
    compile: Annotated[
        bool, typer.Option("--compile", help="Make the compiled variants too, which takes about twice as long.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the system running until Ctrl-C.")] = False,
    bootstrap_servers: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A cluster of your own instead of the embedded Kafka.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Whose [kafka] section to use: for a cluster with TLS or SASL.")
    ] = None,
    results: Annotated[Path, typer.Option(metavar="DIR", help="Where figures and picture go.")] = Path("demo-results"),
) -> None:
    """Train a small family of models, serve real images through real Kafka, and compare with fixed choices.

    Of each of the five models the system makes and measures what variants it can. Three classes of queries (tight
    latency, high accuracy, cheapest) arrive at a rising rate with bursts. The system chooses a variant for each; the
    same queries are asked of the best single variant for all classes, of the cheapest, and of what an oracle would
    choose for each class that knows the measurements and, from a rehearsal, the load. The four take turns, since all
    share the machine. Exit status 0 only if every query got exactly one reply, counted in Kafka.

    Examples:

        modelless demo

        modelless demo --rate 100 --seconds 10

        modelless demo --bootstrap-servers 127.0.0.1:9092 --keep
    """
    from rich.console import Console

    from modelless.config import LogConfig, load_config
    from modelless.logs import configure

    _require_extra()
    from modelless.demo.run import Options, run

    configure(LogConfig(level="warning"), "demo")
    base = load_config(config) if config is not None else None
    if bootstrap_servers is not None:
        kafka = base.kafka.model_dump(exclude_unset=True) if base is not None else {}
        base = load_config(config, kafka=kafka | {"bootstrap_servers": bootstrap_servers})
    options = Options(rate=rate, seconds=seconds, seed=seed, compile=compile, keep=keep, results=results)
    if not run(options, base, Console()):
        sys.exit(1)


def _require_extra() -> None:
    """Raises ConfigurationError before anything is begun."""
    for name in _NEEDED:
        try:
            is_there = find_spec(name) is not None
        except ModuleNotFoundError:
            is_there = False
        if not is_there:
            raise ConfigurationError(f"the demo needs {name}: install its extra, `pip install 'modelless[demo]'`")
