"""``modelless query``: ask one query from the shell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelless.commands import options

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelless.client_core import Result
    from modelless.config import Config
    from modelless.errors import ModellessError


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command()
    def query(
        input: Annotated[
            list[str],
            typer.Option("--input", "-i", help="name=@file.npy, name=@file.json or name=JSON; once for every input."),
        ],
        task: options.Task = None,
        model: options.Model = None,
        variant: options.Variant = None,
        latency_ms: options.LatencyMs = None,
        accuracy: options.Accuracy = None,
        cost_max: options.CostMax = None,
        prefer: options.Prefer = "cost",
        on_miss: options.OnMiss = "reject",
        tenant: Annotated[str | None, typer.Option(help="Whom it is counted for, where its topic allows that.")] = None,
        timeout: Annotated[float | None, typer.Option(help="Seconds to wait for the reply.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="JSON instead of words.")] = False,
        config: options.ConfigFile = None,
    ) -> None:
        """Ask one query and print its answer: what came out, what ran it, how long it took, what it cost.

        Numbers given as JSON take the datatype that the model declares. The first dimension is the batch.
        Exit status 0 for OK, 1 for any other outcome.

        **Examples**

        `modelless query --task digits --input pixels=@image.npy --latency-ms 50 --accuracy 0.95`

        `modelless query --model iris:2 -i 'x=[[5.1, 3.5, 1.4, 0.2]]' --prefer accuracy --json`
        """
        from modelless.commands import asking
        from modelless.config import load_config
        from modelless.errors import ModellessError

        ask: dict[str, Any] = {
            "latency_ms_max": latency_ms,
            "accuracy_min": accuracy,
            "cost_max": cost_max,
            "prefer": prefer,
            "on_miss": on_miss,
            "tenant": tenant,
            "timeout_s": timeout,
        }
        targets = {"task": task, "model": model, "variant": variant}
        ask |= {name: value for name, value in targets.items() if value is not None}
        arrays = dict(_read_input(text) for text in input)
        settings = load_config(config)
        try:
            result = asking.run(settings, _ask(settings, arrays, ask))
        except ModellessError as error:
            if as_json:
                typer.echo(json.dumps(_plain_error(error), indent=2))
                raise typer.Exit(1) from None
            raise type(error)(f"{error.code}: {error.message}") from None
        if as_json:
            typer.echo(json.dumps(_plain(result), indent=2))
        else:
            _print(result)


def _read_input(text: str) -> tuple[str, Any]:
    """``name=@file`` or ``name=JSON`` as the name and an array, or nested lists that have no datatype yet."""
    import numpy as np

    from modelless.errors import InvalidArgumentError

    name, equals, source = text.partition("=")
    if not (name and equals and source):
        raise typer.BadParameter(f"{text!r} is not name=@file.npy, name=@file.json or name=JSON")
    try:
        if source.startswith("@") and source.endswith(".npy"):
            return name, np.load(source[1:], allow_pickle=False)
        return name, json.loads(Path(source[1:]).read_text() if source.startswith("@") else source)
    except OSError as error:
        raise InvalidArgumentError(f"--input {name}: cannot read {source[1:]} ({error.strerror})") from None
    except ValueError as error:
        raise InvalidArgumentError(f"--input {name}: neither an .npy file nor JSON ({error})") from None


async def _ask(config: Config, inputs: Mapping[str, Any], ask: dict[str, Any]) -> Result:
    from modelless.client import Client

    async with Client.from_config(config) as client:
        datatypes = await _datatypes(config, ask) if any(isinstance(value, list) for value in inputs.values()) else {}
        arrays = {name: _array(name, value, datatypes.get(name)) for name, value in inputs.items()}
        return await client.infer(arrays, **ask)


async def _datatypes(config: Config, ask: Mapping[str, Any]) -> dict[str, str]:
    """By input name, of what is asked for, as registered; newer versions win."""
    from modelless.catalog import CatalogView

    view = CatalogView(config)
    await view.start()
    await view.stop()
    wanted = str(ask.get("variant") or ask.get("model") or "").partition("/")[0]
    if not wanted.rpartition(":")[2].isdigit():  # a label: all of its versions take the same
        wanted = wanted.partition(":")[0]
    return {
        spec.name: spec.datatype
        for model in view.catalog.models()
        if model.task == ask.get("task") or wanted in (model.name, model.key)
        for spec in model.inputs
    }


def _array(name: str, value: Any, datatype: str | None) -> NDArray[Any]:
    import numpy as np

    from modelless.errors import InvalidArgumentError
    from modelless.tensors import NUMPY_DTYPES

    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asarray(value, dtype=NUMPY_DTYPES[datatype] if datatype else None)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidArgumentError(f"--input {name}: is not an array of {datatype or 'numbers'} ({error})") from None


def _print(result: Result) -> None:
    import numpy as np

    missed = f", missed: {', '.join(result.missed)}" if result.missed else ""
    typer.echo(f"{result.status} from {result.variant} on {result.group}{missed}")
    typer.echo(
        f"  {result.latency_ms:.1f} ms here"
        + _optional(", {:.1f} ms queued", result.queue_ms)
        + _optional(", {:.2f} ms computed", result.execute_ms)
        + _optional(" in a batch of {}", result.batch_size)
        + _optional(", accuracy {:.4f}", result.accuracy)
        + _optional(", cost ${:.3g}", result.cost)
    )
    for name, array in result.outputs.items():
        typer.echo(f"  {name} {array.dtype}{list(array.shape)}")
        typer.echo("    " + np.array2string(array, precision=4, threshold=200, prefix="    "))


def _optional(template: str, value: float | None) -> str:
    return "" if value is None else template.format(value)


def _plain(result: Result) -> dict[str, Any]:
    return {
        "status": result.status,
        "query": result.reply.query,
        "model": result.model,
        "version": result.version,
        "variant": result.variant,
        "group": result.group,
        "accuracy": result.accuracy,
        "cost": result.cost,
        "batch_size": result.batch_size,
        "queue_ms": result.queue_ms,
        "execute_ms": result.execute_ms,
        "latency_ms": result.latency_ms,
        "missed": list(result.missed),
        "outputs": {name: array.tolist() for name, array in result.outputs.items()},
    }


def _plain_error(error: ModellessError) -> dict[str, Any]:
    return {
        "status": error.code,
        "message": error.message,
        "query": error.reply.query if error.reply else None,
        "retry_after_ms": error.retry_after_ms,
    }
