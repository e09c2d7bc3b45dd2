"""``modelless provisioner``: starts and ends workers as the plan says, elsewhere than `modelless up` does."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from modelless.commands import options

if TYPE_CHECKING:
    from pathlib import Path

    from modelless.config import Config


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command(rich_help_panel="Processes")
    def provisioner(
        config: options.ConfigFile = None,
        end_workers: Annotated[
            bool, typer.Option("--end-workers", help="On SIGTERM, workers that would go on drain and end too.")
        ] = False,
    ) -> None:
        """Keep as many workers of each group as the plan says: on Ray, on Kubernetes, or on this machine.

        Groups with `workers` have that number, those with `workers_max` as many as the plan says. What cannot be
        started is tried again, and `modelless status` says why. Workers drain before they go. Run one for each system:
        `modelless up` has its own.

        SIGTERM: on Ray and Kubernetes the workers go on, and the next provisioner finds them; processes of this
        machine drain and end. A second one kills those that would end.

        **Examples**

        `MODELLESS_PROVISIONER__KIND=ray modelless provisioner` — workers as actors on this machine's Ray cluster

        `modelless provisioner --config modelless.toml` — with `[provisioner] kind = "kubernetes"` in it, in a pod of
        compose/kubernetes/

        `modelless status` — from another terminal: groups, how many workers they are to have, and what is wrong
        """
        from modelless.config import load_config
        from modelless.logs import configure

        settings = load_config(config)
        configure(settings.log, "provisioner")
        asyncio.run(_serve(settings, config, end_workers=end_workers))


async def _serve(config: Config, file: Path | None, *, end_workers: bool) -> None:
    from modelless import provision
    from modelless.errors import InternalError
    from modelless.provision.service import Provisioning

    engine = provision.make(config, file)
    provisioning = Provisioning(config, engine)
    asked = False

    def leave() -> None:
        nonlocal asked
        if engine.outlived and not end_workers:
            provisioning.let_go()
        elif asked:
            provisioning.kill()
        else:
            provisioning.ask_to_leave()
        asked = True

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, leave)
    await provisioning.start()
    how = await provisioning.ended()
    if not asked:
        raise InternalError(f"the provisioner failed: {how}")
