"""``modelless forks``: what the workers of this machine are forked from. Nobody types it."""

from __future__ import annotations

import socket
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command(hidden=True)
    def forks(descriptor: int) -> None:
        """Fork workers as the other end of the socket asks; see modelless/forking.py."""
        import uvloop  # noqa: F401

        from modelless.commands.worker import work
        from modelless.forking import serve
        from workers import supervisor  # noqa: F401

        asked = serve(socket.socket(fileno=descriptor))
        if asked is not None:
            file = asked["file"]
            raise typer.Exit(work(asked["group"], asked["name"], None if file is None else Path(file)))
