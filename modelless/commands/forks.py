"""``modelless forks``: what the brokers, or the workers, of this machine are forked from. Nobody types it."""

from __future__ import annotations

import socket
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command(hidden=True)
    def forks(kind: str, descriptor: int) -> None:
        """Fork what the other end of the socket asks for, "broker" or "worker"; see modelless/forking.py."""
        import uvloop  # noqa: F401

        from modelless.commands.broker import route
        from modelless.commands.worker import work
        from modelless.forking import serve

        if kind == "broker":
            from broker import service  # noqa: F401
        else:
            from workers import supervisor  # noqa: F401

        asked = serve(socket.socket(fileno=descriptor))
        if asked is None:
            return
        file = None if asked["file"] is None else Path(asked["file"])
        if kind == "broker":
            raise typer.Exit(route(asked["name"], file))
        raise typer.Exit(work(asked["group"], asked["name"], file))
