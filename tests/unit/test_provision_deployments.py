"""Workers as pods, against a stand-in that speaks Kubernetes' HTTP API (tests/support/kubernetes_api.py); no Kubernetes
has run this. The client is the real one, and so is all that decides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes_api import DELETION_COST, KubernetesApi

from modelless.config import Config, GroupConfig, ProvisionerConfig
from modelless.errors import ConfigurationError, ModellessError, UnavailableError
from modelless.messages import GroupTarget, Member
from modelless.provision import make
from modelless.provision.deployments import Deployments
from modelless.provision.reconcile import Group, Kill, Reconciler, Start

pytest.importorskip("kubernetes", reason='its client is not installed: pip install "modelless[kubernetes]"')
WORKER = "modelless-worker-cpu"


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with KubernetesApi(modelless_worker_cpu=1) as running:
        yield running


def configured(api: KubernetesApi, folder: Path, *groups: str) -> Config:
    return Config(
        provisioner=ProvisionerConfig(kind="kubernetes", kubernetes_config=api.kubeconfig(folder)),
        groups=tuple(GroupConfig(name=name, workers_max=4) for name in groups),
    )


class World:
    """The reconciler's decisions, carried out on the stand-in; every pod that runs is announced."""

    def __init__(self, api: KubernetesApi, folder: Path, *groups: str) -> None:
        self.api = api
        engine = make(configured(api, folder, *groups))
        assert isinstance(engine, Deployments)
        self.engine = engine
        self.reconciler = Reconciler([Group(name, 1, 4) for name in groups], 20_000.0)
        self.now_ms = 0.0

    async def settle(self, steps: int = 4) -> None:
        for _ in range(steps):
            workers = [Member("worker", name, name, "ready", group="cpu") for name in self.api.pods]
            for action in self.reconciler.decide(await self.engine.instances(), workers, self.now_ms):
                try:
                    if isinstance(action, Start):
                        await self.engine.start(action.group, action.name)
                    else:
                        await self.engine.stop(action.name, now=isinstance(action, Kill))
                except ModellessError as error:
                    if isinstance(action, Start):
                        self.reconciler.failed(action.name, action.group, str(error), self.now_ms)
                    else:
                        self.reconciler.not_asked(action.name)

    async def plan(self, workers: int, *leaving: str) -> None:
        self.reconciler.plan({"cpu": GroupTarget(workers, leaving)})
        await self.settle()


@pytest.fixture
def world(api: KubernetesApi, tmp_path: Path) -> World:
    return World(api, tmp_path, "cpu")


async def test_adopts_what_runs_and_follows_the_plan(world: World, api: KubernetesApi) -> None:
    (first,) = api.names()
    await world.settle()
    assert api.names() == [first]
    await world.plan(3)
    assert len(api.names()) == 3 and first in api.names()
    assert api.replicas == {"modelless_worker_cpu": 3}


async def test_it_is_the_one_that_the_plan_names_that_goes(world: World, api: KubernetesApi) -> None:
    await world.plan(4)
    _, second, third, _ = api.names()
    await world.plan(2, second, third)
    assert api.names(leaving=True) == [second, third]
    assert len(api.names()) == 2
    api.gone(second)
    api.gone(third)
    await world.plan(2)
    assert api.replicas == {"modelless_worker_cpu": 2} and len(api.names()) == 2


async def test_who_does_not_go_is_deleted(world: World, api: KubernetesApi) -> None:
    await world.plan(2)
    name = api.names()[1]
    await world.plan(1, name)
    assert api.names(leaving=True) == [name]
    world.now_ms = 30_000
    await world.settle()
    assert name not in api.pods and len(api.pods) == 1


async def test_a_pod_that_dies_is_replaced_by_kubernetes_and_counted_once(world: World, api: KubernetesApi) -> None:
    await world.plan(2)
    api.gone(api.names()[0])
    await world.settle()
    assert api.replicas == {"modelless_worker_cpu": 2} and len(api.names()) == 2


async def test_pods_that_kubernetes_has_besides_are_not_counted(world: World, api: KubernetesApi) -> None:
    await world.plan(2)
    api.surge(WORKER)
    await world.settle()
    assert api.replicas == {"modelless_worker_cpu": 2} and len(api.names()) == 3


async def test_why_a_pod_does_not_run_is_reported(world: World, api: KubernetesApi) -> None:
    api.is_full = True
    await world.plan(2)
    assert world.reconciler.errors()["cpu"].endswith(": Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.")
    broken = {"name": "worker", "ready": False, "restartCount": 3, "image": "i", "imageID": "", "lastState": {}}
    broken["lastState"] = {"terminated": {"exitCode": 1, "reason": "Error", "message": "no group 'cpu'"}}
    broken["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}}
    (running, pending) = api.names()
    api.pods[running]["status"]["containerStatuses"] = [broken]
    del api.pods[pending]["status"]["conditions"]
    await world.settle()
    assert world.reconciler.errors() == {"cpu": f"{running}: CrashLoopBackOff: no group 'cpu'"}


async def test_of_pods_that_wait_for_room_one_goes_first_and_the_marked_one_later(
    world: World, api: KubernetesApi
) -> None:
    """As Kubernetes ranks them; the numbers are right all along."""
    await world.plan(2)
    api.is_full = True
    await world.plan(3)
    marked = api.names()[0]
    await world.plan(2, marked)
    assert len(api.names()) == 2 and marked in api.names()
    assert api.pods[marked]["metadata"]["annotations"] == {DELETION_COST: "-1000"}


async def test_a_group_without_a_deployment_says_what_to_apply(api: KubernetesApi, tmp_path: Path) -> None:
    world = World(api, tmp_path, "cpu", "gpu")
    await world.settle()
    assert "there is no Deployment modelless-worker-gpu in namespace serving" in world.reconciler.errors()["gpu"]
    assert "cpu" not in world.reconciler.errors()


async def test_a_refusal_is_told_in_kubernetes_words(world: World, api: KubernetesApi) -> None:
    api.refuses = 403, 'pods is forbidden: User "x" cannot list resource "pods"'
    with pytest.raises(UnavailableError, match='Kubernetes refuses: pods is forbidden: User "x" cannot'):
        await world.engine.instances()


async def test_a_cluster_that_does_not_answer_is_an_error(api: KubernetesApi, tmp_path: Path) -> None:
    with KubernetesApi(modelless_worker_cpu=1) as other:
        engine = make(configured(other, tmp_path, "cpu"))
    with pytest.raises(UnavailableError, match="does not answer"):
        await engine.instances()


def test_without_a_cluster_it_says_what_to_do(tmp_path: Path) -> None:
    config = Config(provisioner=ProvisionerConfig(kind="kubernetes", kubernetes_config=tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="name a kubeconfig in provisioner"):
        make(config)
