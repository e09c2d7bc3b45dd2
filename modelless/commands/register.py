"""``modelless register``: make a model available."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from modelless.messages import ModelVersion
    from modelless.registration import GroupProgress


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command(name="register")
    def register_model(
        specification: Annotated[Path, typer.Argument(help="The model's TOML file.", show_default=False)],
        config: Annotated[Path | None, typer.Option(help="Configuration file; default: ./modelless.toml.")] = None,
        wait: Annotated[bool, typer.Option(help="Wait until every group serves it, or says why not.")] = True,
        timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait at most.")] = 300.0,
    ) -> None:
        """Register a model: check it, copy it to the store, and wait until the workers measured and loaded it.

        The same content again is the same version; changed content is the next version.
        Exit status: 0 when at least one group serves it, 1 when the specification is refused or nobody serves it.

        **Examples**

        `modelless register model.toml`

        `modelless register --no-wait model.toml` — write it, and let `modelless models` show how it goes on

        **A model.toml**

        ```
        name = "digits-cnn"
        task = "digits"
        artifact = "digits_cnn.onnx"    # or .safetensors with factory = "package.module:function"
        [inputs.pixels]
        datatype = "FP32"
        shape = [-1, 1, 8, 8]           # -1: the batch
        [outputs.logits]
        datatype = "FP32"
        shape = [-1, 10]
        [evaluation]
        data = "digits_eval.npz"        # arrays named as the inputs, and "labels"; or accuracy = 0.97
        ```
        """
        from modelless.config import load_config
        from modelless.registration import register

        registered = asyncio.run(
            register(load_config(config), specification, wait=wait, timeout_s=timeout, on_progress=_Progress())
        )
        model = registered.model
        typer.echo(f"{model.key} of task {model.task}: {'registered' if registered.created else 'was registered'}")
        if wait and not registered.is_served:
            typer.secho("error: no group serves it", err=True, fg=typer.colors.RED)
            raise typer.Exit(1)


class _Progress:
    """A line for every group whose state changed."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}

    def __call__(self, model: ModelVersion, groups: Sequence[GroupProgress]) -> None:
        for group in groups:
            words = _words(group)
            if self._shown.get(group.group) != words:
                self._shown[group.group] = words
                typer.echo(f"  {group.group}: {words}")


def _words(progress: GroupProgress) -> str:
    from modelless.commands.models import describe

    match progress.state:
        case "waiting":
            return "measuring" + (f" ({progress.reason})" if progress.reason else "")
        case "loading":
            return "measured, loading" + (f" ({progress.reason})" if progress.reason else "")
        case "failed":
            return f"failed: {progress.reason or 'it did not say why'}"
        case "ready":
            return f"ready: {describe(progress.profile)}" if progress.profile else "ready"
