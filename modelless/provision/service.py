"""The provisioner's shell: reads plan and fleet, sees what runs, does what :mod:`modelless.provision.reconcile` says.

It announces itself, with what could not be started and why. Without Kafka it goes on with the last plan.
"""

from __future__ import annotations

import asyncio
from typing import Literal
from uuid import uuid4

import structlog

from modelless.clock import KafkaClock
from modelless.config import Config
from modelless.errors import ModellessError
from modelless.fleet import Announcer, FleetView, wait_at_most
from modelless.messages import Member
from modelless.provision import Provisioner
from modelless.provision.reconcile import Action, Group, Instance, Kill, Reconciler, Start
from modelless.registration import PlanView

_log = structlog.get_logger(__name__)


class Provisioning:
    """Keeps as many workers as the plan says, with this provisioner; a part of ``modelless up`` (modelless.up.Part)."""

    name = "provisioner"

    def __init__(self, config: Config, provisioner: Provisioner) -> None:
        self._provisioner = provisioner
        self._reconciler = Reconciler(
            [
                Group(each.name, each.workers_min, each.workers_max)
                if each.workers_max is not None
                else Group(each.name, each.workers, each.workers)
                for each in config.groups
            ],
            config.worker.drain_s * 1000,
        )
        self._config = config
        self._instances: list[Instance] = []
        self._failure: str | None = None
        self._epoch = 0
        self._state: Literal["starting", "ready", "draining", "stopped"] = "starting"
        self._task: asyncio.Task[None] | None = None
        self._lets_go = False
        self.drain_s = config.worker.drain_s

    @property
    def outlived(self) -> bool:
        """Workers go on when nobody looks after them; so there may be some from before."""
        return self._provisioner.outlived

    @property
    def wanted(self) -> frozenset[str]:
        """Names of the workers that are to be there."""
        return self._reconciler.wanted

    async def start(self) -> None:
        """Return once the first workers were started.

        Raises:
            UnavailableError: Kafka cannot be read or written.
        """
        self._incarnation = uuid4().hex
        self._looked = asyncio.Event()
        clock = KafkaClock()
        self._fleet = FleetView(self._config, clock, self._provisioner.changed.set)
        self._plans = PlanView(self._config, self._provisioner.changed.set)
        self._announcer = Announcer(self._config, clock, self._member)
        await self._announcer.start()
        await asyncio.gather(self._fleet.start(), self._plans.start())
        self._task = asyncio.create_task(self._run(), name="provisioner")
        await self._looked.wait()

    async def ended(self) -> str:
        """Wait for the end, which comes when it was asked for and everybody is gone; how, in words."""
        if self._task is None:
            return "it does not run"
        await asyncio.wait([self._task])
        return "it was asked to" if self._task.exception() is None else repr(self._task.exception())

    def ask_to_leave(self) -> None:
        """All workers drain and go; then it ends."""
        self._reconciler.leave()
        self._state = "draining"
        self._provisioner.changed.set()

    def let_go(self) -> None:
        """End, and leave the workers alone."""
        self._lets_go = True
        self._provisioner.changed.set()

    def kill(self) -> None:
        """All workers are killed; then it ends."""
        self._reconciler.leave(now=True)
        self._provisioner.changed.set()

    async def _run(self) -> None:
        try:
            while True:
                self._provisioner.changed.clear()
                await self._step()
                if self._state == "starting":
                    self._state = "ready"
                self._looked.set()
                if self._is_over():
                    return
                await self._until_due()
        finally:
            self._looked.set()
            self._state = "stopped"
            await asyncio.gather(self._plans.stop(), self._fleet.stop(), self._announcer.stop())
            await self._provisioner.close()

    def _is_over(self) -> bool:
        return self._lets_go or (self._reconciler.ends and not self._instances and self._failure is None)

    async def _until_due(self) -> None:
        wait_s = self._provisioner.poll_s
        if (wake_at_ms := self._reconciler.wake_at_ms()) is not None:
            wait_s = min(wait_s, max(0.0, wake_at_ms - _now_ms()) / 1000)
        await wait_at_most(self._provisioner.changed, wait_s)

    async def _step(self) -> None:
        """Look, and do what is to be done."""
        plan = self._plans.plan
        if plan is not None and plan.epoch != self._epoch:
            self._epoch = plan.epoch
            self._reconciler.plan(plan.fleet)
        before = self._errors()
        try:
            self._instances = list(await self._provisioner.instances())
            self._failure = None
        except (ModellessError, OSError) as error:
            self._failure = f"cannot see which workers there are: {error}"
        else:
            for action in self._reconciler.decide(self._instances, self._fleet.workers(), _now_ms()):
                await self._do(action)
        self._instances = [each for each in self._instances if each.ended is None]
        for subject, why in self._errors().items():
            if before.get(subject) != why:
                _log.warning(f"provisioning: {why}", group=subject)
        if self._errors() != before:
            self._announcer.announce()

    async def _do(self, action: Action) -> None:
        try:
            if isinstance(action, Start):
                _log.info("starting a worker", group=action.group, worker=action.name)
                await self._provisioner.start(action.group, action.name)
            else:
                _log.info("a worker is to go", worker=action.name, killed=isinstance(action, Kill))
                await self._provisioner.stop(action.name, now=isinstance(action, Kill))
        except (ModellessError, OSError) as error:
            if isinstance(action, Start):
                why = f"{action.name} cannot be started: {error}"
                self._reconciler.failed(action.name, action.group, why, _now_ms())
            else:
                _log.warning("a worker cannot be told to go, trying again", worker=action.name, error=str(error))
                self._reconciler.not_asked(action.name)

    def _errors(self) -> dict[str, str]:
        errors = self._reconciler.errors()
        return errors if self._failure is None else {**errors, self._provisioner.name: self._failure}

    def _member(self) -> Member:
        return Member(
            kind="provisioner",
            name=self._provisioner.name,
            incarnation=self._incarnation,
            state=self._state,
            statistics={
                "wanted": float(len(self.wanted)),
                "running": float(len(self._instances)),
                "plan_epoch": float(self._epoch),
            },
            errors=self._errors(),
        )


def _now_ms() -> float:
    return asyncio.get_running_loop().time() * 1000
