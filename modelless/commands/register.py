"""``modelless register``: make a model available."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from modelless.commands import options

if TYPE_CHECKING:
    from modelless.messages import ModelVersion
    from modelless.registration import GroupProgress, VariantProgress


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command(name="register")
    def register_model(
        specification: Annotated[Path, typer.Argument(help="The model's TOML file.", show_default=False)],
        config: options.ConfigFile = None,
        wait: Annotated[bool, typer.Option(help="Wait until every group serves it, or says why not.")] = True,
        wait_all: Annotated[
            bool, typer.Option("--wait-all", help="Wait until all its variants are built and measured, or failed.")
        ] = False,
        timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait at most.")] = 300.0,
    ) -> None:
        """Register a model: check it, copy it to the store, and wait until every group serves it.

        Each group makes and measures every variant that its hardware can run, the quickly made ones first. As soon as
        one is loaded on every group, the command returns; the others go on being made, and are used where they are
        better.
        The same content again is the same version; changed content is the next version.
        Exit status: 0 when at least one group serves it, 1 when the specification is refused or nobody serves it.

        **Examples**

        `modelless register model.toml`

        `modelless register --wait-all model.toml` — stay until all variants are there, and show each

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
        from modelless.commands import asking
        from modelless.config import load_config
        from modelless.registration import register

        with _Progress() as progress:
            settings = load_config(config)
            registered = asking.run(
                settings,
                register(
                    settings,
                    specification,
                    wait=wait or wait_all,
                    wait_all=wait_all,
                    timeout_s=timeout,
                    on_progress=progress,
                ),
            )
        model = registered.model
        typer.echo(f"{model.key} of task {model.task}: {'registered' if registered.created else 'was registered'}")
        if (wait or wait_all) and not registered.is_served:
            typer.secho("error: no group serves it", err=True, fg=typer.colors.RED)
            raise typer.Exit(1)


class _Progress:
    """A line for everything that happened to a variant or a group, and what it is waiting for on a terminal."""

    def __init__(self) -> None:
        from modelless.commands.models import wide_console

        self._console = wide_console()
        self._status = self._console.status("registering")
        self._shown: set[str] = set()

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def __call__(self, model: ModelVersion, groups: Sequence[GroupProgress]) -> None:
        for group in groups:
            for one in group.variants:
                self._say(group.group, one.variant.partition("/")[2], _of_variant(one))
            self._say(group.group, model.key, _of_group(group))
        waiting = [one.variant for group in groups for one in group.variants if one.state == "waiting"]
        self._status.update(f"making and measuring {', '.join(waiting)}" if waiting else "loading")

    def _say(self, group: str, subject: str, words: str | None) -> None:
        line = f"  {group}  {subject:<14} {words}"
        if words is not None and line not in self._shown:
            self._shown.add(line)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _of_variant(progress: VariantProgress) -> str | None:
    """What there is to tell of it; whether it is loaded is the group's matter."""
    from modelless.commands.models import describe

    profile = progress.profile
    if profile is None:
        return None
    if profile.status == "failed":
        return f"failed: {profile.reason or 'it did not say why'}"
    if profile.build_ms:
        return f"built in {profile.build_ms / 1000:,.1f} s, measured: {describe(profile)}"
    return f"{'was built before, ' if profile.build_key else ''}measured: {describe(profile)}"


def _of_group(progress: GroupProgress) -> str | None:
    match progress.state:
        case "waiting" | "loading":
            return None if progress.reason is None else f"{progress.state}: {progress.reason}"
        case "measured":
            return "measured; another version answers: `modelless label` can make this one stable, or a canary"
        case "failed":
            return "failed: no variant can be served"
        case "ready":
            return "ready"
