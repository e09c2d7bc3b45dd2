"""Workers on a Ray cluster: a detached, named actor for each, which runs ``modelless worker`` as its child process.

The actor asks Ray for what the worker needs; the child has a signal handler and an executor of its own, so SIGTERM
drains it, and it dies with the actor, whatever ends that. Detached actors outlive us; whoever comes next finds those in
our namespace. Nodes need this package at the same version, as nothing but the configuration's text travels.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelless.child import KILLED, LAST_WORDS, LAST_WORDS_MAX, die_with, how_it_ended
from modelless.config import Config, GroupConfig
from modelless.errors import ConfigurationError, UnavailableError
from modelless.process import ASKED_S
from modelless.provision import worker_command
from modelless.provision.reconcile import Instance

LOOK_S = 0.25
"""For so long a look waits for the answers of actors; the others' are for the next look."""
ANSWER_S = 10.0
"""An actor that says nothing for so long, which is more than a start usually takes, has not got its resources yet, or
its node is lost."""
GONE_S = 2.0
"""The longest wait for the name of one that was killed."""
PREFIX = "MODELLESS_"


class WorkerActor:
    """Runs on a node of Ray: one worker process. Its methods return at once.

    Plain and not asynchronous, so that the child is made by the thread that lives as long as this process.

    Args:
        text: the configuration file's; None: there is none.
        settings: the variables of the environment that say more.
    """

    def __init__(self, group: str, name: str, text: str | None, settings: Mapping[str, str]) -> None:
        self._group = group
        self._is_leaving = False
        # Files without a name: nothing stays behind when this process is killed.
        self._words, source = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
        source.write(text or "")
        source.flush()
        file = Path(f"/dev/fd/{source.fileno()}") if text is not None else None
        self._process = subprocess.Popen(
            worker_command(group, name, file),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(self._words.fileno(), source.fileno()),
            env={**os.environ, **settings, LAST_WORDS: f"/dev/fd/{self._words.fileno()}"},
            preexec_fn=die_with(os.getpid()),
        )

    def state(self) -> dict[str, Any]:
        """Fields of an :class:`Instance`."""
        code = self._process.poll()
        self._words.seek(0)
        ended = None if code is None else how_it_ended(code, self._words.read(LAST_WORDS_MAX))
        return {"group": self._group, "ended": ended, "is_leaving": self._is_leaving}

    def leave(self) -> None:
        """Once: a second SIGTERM would not drain."""
        if not self._is_leaving:
            self._is_leaving = True
            self._process.terminate()


class RayActors:
    """See :class:`modelless.provision.Provisioner`. ``file``: the configuration's, for the workers.

    Raises:
        ConfigurationError: Ray is not installed, or there is no cluster at the address.
    """

    name = "ray"
    outlived = True
    poll_s = 1.0

    def __init__(self, config: Config, file: Path | None) -> None:
        try:
            import ray
        except ImportError:
            raise ConfigurationError(
                'provisioner.kind = "ray" needs Ray, here and on its nodes: pip install "modelless[ray]"'
            ) from None
        self._ray = ray
        self.changed = asyncio.Event()
        self._groups = {group.name: group for group in config.groups}
        self._text = file.read_text() if file is not None else None
        self._namespace = config.provisioner.ray_namespace or config.kafka.topic_prefix
        self._known: dict[str, Instance] = {}
        """What ran when it was last seen."""
        self._asked: dict[str, tuple[float, Any]] = {}
        """Actors that have not said how they are: since when they are asked, and their answer to come."""
        address = config.provisioner.ray_address
        try:
            ray.init(address, namespace=self._namespace, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            raise ConfigurationError(
                f"provisioner.ray_address {address!r}: no Ray cluster ({str(error).splitlines()[0]}): "
                "start one with `ray start --head`, or give the address of yours"
            ) from None

    async def instances(self) -> Sequence[Instance]:
        found: Sequence[Instance] = await self._ask(self._look)
        return found

    async def start(self, group: str, name: str) -> None:
        await self._ask(self._start, self._groups[group], name)
        self._known[name] = Instance(name, group)

    async def stop(self, name: str, *, now: bool = False) -> None:
        await self._ask(self._stop, name, now)

    async def close(self) -> None:
        await asyncio.to_thread(self._ray.shutdown)

    def _look(self) -> Sequence[Instance]:
        """Those in our namespace, and those that were in it and are gone."""
        actors = {name: self._ray.get_actor(name) for name in self._ray.util.list_named_actors()}
        now_s = time.monotonic()
        self._asked = {name: self._asked.get(name) or (now_s, actor.state.remote()) for name, actor in actors.items()}
        answers = [answer for _, answer in self._asked.values()]
        if answers:
            self._ray.wait(answers, num_returns=len(answers), timeout=LOOK_S)
        found = [self._seen(name, actor) for name, actor in actors.items()]
        gone = [
            Instance(name, known.group, ended="its actor is gone", is_leaving=known.is_leaving)
            for name, known in self._known.items()
            if name not in actors
        ]
        self._known = {each.name: each for each in found if each.ended is None}
        return [*found, *gone]

    def _seen(self, name: str, actor: Any) -> Instance:
        known = self._known.get(name, Instance(name, name.rpartition("-")[0]))
        since_s, answer = self._asked[name]
        if not self._ray.wait([answer], timeout=0)[0]:
            trouble = self._lacks(known.group) if time.monotonic() - since_s > ANSWER_S else None
            return Instance(name, known.group, is_leaving=known.is_leaving, trouble=trouble)
        del self._asked[name]
        try:
            state = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            state = {"group": known.group, "ended": f"its actor died: {_first_line(error)}"}
        if state["ended"] is not None:
            self._kill(name, actor)
        return Instance(name, was_killed=state["ended"] == KILLED, **state)

    def _kill(self, name: str, actor: Any) -> None:
        """And wait for a moment until its name is free again."""
        self._ray.kill(actor)
        self._asked.pop(name, None)
        until_s = time.monotonic() + GONE_S
        while name in self._ray.util.list_named_actors() and time.monotonic() < until_s:
            time.sleep(0.05)

    def _lacks(self, group: str) -> str:
        needs = _resources(self._groups[group]) if group in self._groups else {}
        return f"Ray has no node that answers with {needs} to spare: `ray status` says more"

    def _start(self, group: GroupConfig, name: str) -> None:
        needs = dict(_resources(group))
        remote = self._ray.remote(WorkerActor).options(
            name=name,
            lifetime="detached",
            max_restarts=0,
            num_cpus=needs.pop("CPU"),
            num_gpus=needs.pop("GPU", 0),
            resources=needs,
        )
        settings = {name: value for name, value in os.environ.items() if name.startswith(PREFIX) and name != LAST_WORDS}
        settings[ASKED_S] = str(time.time())
        remote.remote(group.name, name, self._text, settings)

    def _stop(self, name: str, now: bool) -> None:
        try:
            actor = self._ray.get_actor(name)
        except ValueError:  # there is none
            return
        known = self._known.get(name)
        if now or (known is not None and known.trouble):  # one that does not answer has nothing to drain
            self._kill(name, actor)
        else:
            actor.leave.remote()  # as soon as it is up; one that is lost is killed when it should have drained

    async def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Raises UnavailableError when Ray cannot do it."""
        try:
            return await asyncio.to_thread(call, *arguments)
        except (self._ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
            raise UnavailableError(f"Ray: {_first_line(error)}") from error


def _resources(group: GroupConfig) -> Mapping[str, float]:
    """What one worker of the group asks Ray for."""
    cpus = 0 if group.device == "emulated" else group.threads
    gpus = {"GPU": 1.0} if group.device.startswith("cuda") else {}
    return {"CPU": float(cpus), **gpus, **group.ray_resources}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
