"""Provisioners: they start and end workers, so that there are as many as the plan says.

::

    plan topic, fleet topic -> service (the shell) -> reconcile (pure: what to do next) -> a Provisioner does it

A :class:`Provisioner` starts workers on something: :mod:`modelless.provision.local` (processes of this machine, the
default), :mod:`modelless.provision.actors` (Ray), :mod:`modelless.provision.deployments` (Kubernetes). It decides
nothing, and its methods may be called again after they failed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from modelless.config import Config
from modelless.provision.reconcile import Instance


class Provisioner(Protocol):
    """Where workers run. All methods but the constructor raise ModellessError or OSError when it cannot be done."""

    name: str
    """As it is announced in the fleet: of those that look after the same workers the same."""
    outlived: bool
    """What it started goes on when it is gone; the next one finds it."""
    changed: asyncio.Event
    """Set when something ended, where that can be noticed."""
    poll_s: float
    """How often to look, where it cannot."""

    async def instances(self) -> Sequence[Instance]:
        """What was started (by one before it too) and is there; once more what has ended since the last call."""

    async def start(self, group: str, name: str) -> None:
        """Returns before the worker is ready."""

    async def stop(self, name: str, *, now: bool = False) -> None:
        """Ask it to drain and go, or with ``now`` kill it. Does not wait; no error when it is gone already."""

    async def close(self) -> None:
        """Let go. What is not outlived by what it started has ended that by then."""


def make(config: Config, file: Path | None = None) -> Provisioner:
    """The configured one. ``file``: the configuration's, for the workers.

    Raises:
        ConfigurationError: what it needs is not installed, or not configured; says what to change.
    """
    if config.provisioner.kind == "ray":
        from modelless.provision.actors import RayActors

        return RayActors(config, file)
    if config.provisioner.kind == "kubernetes":
        from modelless.provision.deployments import Deployments

        return Deployments(config)
    from modelless.provision.local import LocalProcesses

    return LocalProcesses(config, file)


def worker_command(group: str, name: str, file: Path | None, python: str = sys.executable) -> tuple[str, ...]:
    """Command line of a worker process."""
    options = ("--config", str(file)) if file is not None else ()
    return python, "-m", "modelless", "worker", "--group", group, "--name", name, *options
