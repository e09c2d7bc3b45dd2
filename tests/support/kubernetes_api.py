"""A stand-in for Kubernetes: the real API's paths, bodies and status codes for Deployments and pods, over HTTP.

It is **no Kubernetes**: it knows what :mod:`modelless.provision.deployments` asks, and does what the controllers for
Deployments and ReplicaSets are documented to do about it: of too many pods those that are not scheduled go first, then
those of the lowest deletion cost; missing ones are made. Terminating pods stay until :meth:`KubernetesApi.gone`.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
NAMESPACE = "serving"
_DEPLOYMENT = re.compile(r"/apis/apps/v1/namespaces/(?P<namespace>[^/]+)/deployments/(?P<name>[^/]+)(?P<scale>/scale)?")
_PODS = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/pods(?:/(?P<name>[^/]+))?")
_MERGES = ("application/strategic-merge-patch+json", "application/merge-patch+json")


class KubernetesApi:
    """Of one namespace; ``url`` while it is entered."""

    def __init__(self, **replicas: int) -> None:
        self.replicas = replicas
        """By the Deployment's name with underscores for dashes."""
        self.pods: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.refuses: tuple[int, str] | None = None
        self.is_full = False
        """No node has room: new pods are not scheduled."""
        self._made = 0
        self._lock = threading.Lock()
        self._control()

    def __enter__(self) -> KubernetesApi:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def kubeconfig(self, folder: Path) -> Path:
        path = folder / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "contexts": [
                        {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE}}
                    ],
                    "clusters": [{"name": "test", "cluster": {"server": self.url}}],
                    "users": [{"name": "test", "user": {}}],
                }
            )
        )
        return path

    def names(self, *, leaving: bool = False) -> list[str]:
        return [n for n, pod in self.pods.items() if ("deletionTimestamp" in pod["metadata"]) == leaving]

    def gone(self, name: str) -> None:
        with self._lock:
            del self.pods[name]
            self._control()

    def surge(self, deployment: str) -> None:
        """One more than its replicas, as while a Deployment's template is rolled out."""
        with self._lock:
            self._make(deployment)

    # --- what its controllers do --------------------------------------------------------------------------------------

    def _control(self) -> None:
        for key, number in self.replicas.items():
            deployment = key.replace("_", "-")
            own = [
                pod
                for pod in self.pods.values()
                if pod["metadata"]["labels"]["app"] == deployment and "deletionTimestamp" not in pod["metadata"]
            ]
            own.sort(key=_who_goes_first)
            for pod in own[: max(0, len(own) - number)]:
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            for _ in range(number - len(own)):
                self._make(deployment)

    def _make(self, deployment: str) -> None:
        self._made += 1
        name = f"{deployment}-5d4f8b9c7d-{self._made:05x}"
        status: dict[str, Any] = {"phase": "Running", "conditions": [], "containerStatuses": []}
        if self.is_full:
            why = "0/3 nodes are available: 3 Insufficient cpu."
            unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
            status = {"phase": "Pending", "conditions": [unscheduled]}
        self.pods[name] = {
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": deployment}},
            "spec": {"containers": [{"name": "worker"}]},
            "status": status,
        }

    # --- what is asked ------------------------------------------------------------------------------------------------

    def answer(self, method: str, url: str, kind: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        parts = urlsplit(url)
        with self._lock:
            self.requests.append(f"{method} {parts.path}")
            if self.refuses is not None:
                return _failure(*self.refuses)
            if method == "PATCH" and kind not in _MERGES:
                return _failure(415, f"the body of the request was in an unknown format: {kind}")
            for pattern, answer in ((_DEPLOYMENT, self._deployment), (_PODS, self._pod)):
                match = pattern.fullmatch(parts.path)
                if match is not None and match["namespace"] == NAMESPACE:
                    return answer(method, match, body, parse_qs(parts.query))
            return _failure(404, f"the server could not find {parts.path}")

    def _deployment(
        self, method: str, match: re.Match[str], body: dict[str, Any], _: dict[str, list[str]]
    ) -> tuple[int, dict[str, Any]]:
        name = match["name"]
        key = name.replace("-", "_")
        if key not in self.replicas:
            return _failure(404, f'deployments.apps "{name}" not found')
        meta = {"name": name, "namespace": NAMESPACE}
        if method == "PATCH" and match["scale"]:
            self.replicas[key] = body["spec"]["replicas"]
            self._control()
            spec = {"replicas": self.replicas[key]}
            return 200, {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta, "spec": spec}
        if method != "GET" or match["scale"]:
            return _failure(405, "the server does not allow this method on the requested resource")
        selector = {"matchLabels": {"app": name}}
        spec = {"replicas": self.replicas[key], "selector": selector, "template": {"metadata": {}, "spec": None}}
        deployment = {"kind": "Deployment", "apiVersion": "apps/v1", "metadata": meta, "spec": spec, "status": {}}
        return 200, deployment

    def _pod(
        self, method: str, match: re.Match[str], body: dict[str, Any], query: dict[str, list[str]]
    ) -> tuple[int, dict[str, Any]]:
        name = match["name"]
        if name is None and method == "GET":
            wanted = dict(part.split("=") for part in query["labelSelector"][0].split(","))
            items = [pod for pod in self.pods.values() if wanted.items() <= pod["metadata"]["labels"].items()]
            return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
        if name not in self.pods:
            return _failure(404, f'pods "{name}" not found')
        pod = self.pods[name]
        if method == "PATCH":
            pod["metadata"].setdefault("annotations", {}).update(body["metadata"]["annotations"])
        elif method == "DELETE":
            del self.pods[name]
            self._control()
        return 200, {"kind": "Pod", "apiVersion": "v1", **pod}


def _who_goes_first(pod: dict[str, Any]) -> tuple[bool, int]:
    """As the ReplicaSet's controller ranks pods that are one too many."""
    cost = pod["metadata"].get("annotations", {}).get(DELETION_COST, "0")
    return pod["status"]["phase"] == "Running", int(cost)


def _failure(code: int, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


def _handler(api: KubernetesApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind = self.headers.get("Content-Type", "")
            code, said = api.answer(self.command, self.path, kind, json.loads(body) if body else {})
            text = json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET: Callable[[], None] = _answer  # noqa: N815
        do_PATCH: Callable[[], None] = _answer  # noqa: N815
        do_DELETE: Callable[[], None] = _answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler
