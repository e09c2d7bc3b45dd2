"""Workers as pods of Kubernetes: one Deployment for each group, which we scale and do not make.

A Deployment and not a StatefulSet, since the plan says *who* leaves: a StatefulSet can only end its last pod. A pod
that is to go gets the lowest deletion cost, then the Deployment is made smaller by one, and Kubernetes ends that pod:
SIGTERM drains the worker, ``terminationGracePeriodSeconds`` bounds it. (Pods that could not be scheduled yet go before
it; then it goes when the Deployment is made smaller again, or is deleted and replaced when its time is over.) Workers
are named as their pods, and who restarts the dead is Kubernetes; so the names that are asked for here only count.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelless.config import Config
from modelless.errors import ConfigurationError, UnavailableError
from modelless.provision.reconcile import Instance

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
FIRST_TO_GO = "-1000"
MISSING = "not-yet-"
"""Before the name of one that Kubernetes has not made yet; no Deployment of ours is called so."""
TIMEOUT_S = 10.0
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Deployments:
    """See :class:`modelless.provision.Provisioner`.

    Raises:
        ConfigurationError: the client is not installed, or there is no cluster that it knows of.
    """

    name = "kubernetes"
    outlived = True
    poll_s = 2.0

    def __init__(self, config: Config) -> None:
        try:
            from kubernetes import client
            from kubernetes import config as clusters
        except ImportError:
            raise ConfigurationError(
                'provisioner.kind = "kubernetes" needs the official client: pip install "modelless[kubernetes]"'
            ) from None
        own = config.provisioner
        settings = client.Configuration()
        namespace = None
        try:
            if own.kubernetes_config is None and _NAMESPACE_FILE.exists():
                clusters.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
                namespace = _NAMESPACE_FILE.read_text().strip()
            else:
                file = str(own.kubernetes_config) if own.kubernetes_config is not None else None
                clusters.load_kube_config(file, client_configuration=settings)  # type: ignore[no-untyped-call]
                namespace = clusters.list_kube_config_contexts(file)[1]["context"].get("namespace")  # type: ignore[no-untyped-call]
        except (clusters.ConfigException, OSError) as error:
            raise ConfigurationError(
                f"provisioner: no Kubernetes cluster is known here ({error}): run `modelless provisioner` in a pod "
                "(compose/kubernetes/), or name a kubeconfig in provisioner.kubernetes_config"
            ) from None
        settings.retries = False
        self.changed = asyncio.Event()
        self._groups = {group.name: own.kubernetes_deployment.format(group=group.name) for group in config.groups}
        self._namespace = own.kubernetes_namespace or namespace or "default"
        api = client.ApiClient(settings)
        self._apps, self._core = client.AppsV1Api(api), client.CoreV1Api(api)
        self._replicas: dict[str, int] = {}
        """What each group's Deployment has by now, of those that are there."""
        self._known: dict[str, Instance] = {}
        self._group_of: dict[str, str] = {}

    async def instances(self) -> Sequence[Instance]:
        return await asyncio.to_thread(self._look)

    async def start(self, group: str, name: str) -> None:
        if group not in self._replicas:
            raise ConfigurationError(
                f"there is no Deployment {self._groups[group]} in namespace {self._namespace}: apply one for this "
                "group (compose/kubernetes/worker.yml), or say in provisioner.kubernetes_deployment how yours are named"
            )
        await asyncio.to_thread(self._scale, group, 1)

    async def stop(self, name: str, *, now: bool = False) -> None:
        if name in self._known:
            await asyncio.to_thread(self._stop, self._known[name], now=now)

    async def close(self) -> None:
        return

    def _look(self) -> list[Instance]:
        found: list[Instance] = []
        self._replicas.clear()
        for group, deployment in self._groups.items():
            there = _ask(self._apps.read_namespaced_deployment, deployment, self._namespace, may_lack=True)
            if there is None:
                continue
            self._replicas[group] = 1 if there.spec.replicas is None else there.spec.replicas
            labels = ",".join(f"{key}={value}" for key, value in there.spec.selector.match_labels.items())
            pods = _ask(self._core.list_namespaced_pod, self._namespace, label_selector=labels).items
            found += seen(group, self._replicas[group], pods, there.status.conditions or ())
        self._known = {each.name: each for each in found}
        return found

    def _scale(self, group: str, by: int) -> None:
        replicas = max(0, self._replicas[group] + by)
        body = {"spec": {"replicas": replicas}}
        _ask(self._apps.patch_namespaced_deployment_scale, self._groups[group], self._namespace, body)
        self._replicas[group] = replicas

    def _stop(self, instance: Instance, *, now: bool) -> None:
        is_pod = not instance.name.startswith(MISSING)
        if not instance.is_leaving:
            if is_pod:
                mark = {"metadata": {"annotations": {DELETION_COST: FIRST_TO_GO}}}
                _ask(self._core.patch_namespaced_pod, instance.name, self._namespace, mark, may_lack=True)
            self._scale(instance.group, -1)
            self._known[instance.name] = replace(instance, is_leaving=True)
        if now and is_pod:
            _ask(
                self._core.delete_namespaced_pod,
                instance.name,
                self._namespace,
                grace_period_seconds=0,
                may_lack=True,
            )


def seen(group: str, replicas: int, pods: Iterable[Any], conditions: Iterable[Any]) -> list[Instance]:
    """The workers of one Deployment: as many as it has replicas, also where pods are missing, and those that leave.

    Pods that are there besides (a rolling update's, say) are Kubernetes' own business.
    """
    leaving: list[Instance] = []
    staying: list[Instance] = []
    for pod in pods:
        meta, phase = pod.metadata, pod.status.phase
        if phase in ("Succeeded", "Failed"):
            continue
        if meta.deletion_timestamp is not None or (meta.annotations or {}).get(DELETION_COST) == FIRST_TO_GO:
            leaving.append(Instance(meta.name, group, is_leaving=True))
        else:
            staying.append(Instance(meta.name, group, trouble=trouble_of(pod)))
    staying.sort(key=lambda each: (each.trouble is not None, each.name))
    why = next((one.message for one in conditions if one.type == "ReplicaFailure" and one.status == "True"), None)
    missing = [Instance(f"{MISSING}{group}-{n}", group, trouble=why) for n in range(replicas - len(staying))]
    return [*leaving, *staying[:replicas], *missing]


def trouble_of(pod: Any) -> str | None:
    """Why a pod does not run, in Kubernetes' words."""
    for container in pod.status.container_statuses or ():
        waiting, last = container.state.waiting, container.last_state.terminated
        if waiting is not None and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
            words = last.message if last is not None and last.message else waiting.message
            return f"{waiting.reason}: {words}" if words else str(waiting.reason)
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{condition.reason}: {condition.message}"
    return None


def _ask(call: Callable[..., Any], *arguments: Any, may_lack: bool = False, **options: Any) -> Any:
    """What the API answers; None when there is no such thing and that ``may`` be.

    Raises:
        UnavailableError: it refuses, or cannot be reached.
    """
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return call(*arguments, _request_timeout=TIMEOUT_S, **options)
    except ApiException as error:
        if error.status == 404 and may_lack:
            return None
        raise UnavailableError(f"Kubernetes refuses: {_message(error)}") from None
    except HTTPError as error:
        raise UnavailableError(f"Kubernetes does not answer: {error}") from None


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
