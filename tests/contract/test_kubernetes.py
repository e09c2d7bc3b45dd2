"""compose/kubernetes/ without a cluster: all that it names exists, command lines are ones that we accept, and the
provisioner's rights are exactly those that it uses (on the stand-in of tests/support/kubernetes_api.py)."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from kubernetes_api import KubernetesApi

from modelless.commands import _MODULES
from modelless.config import Config, load_config
from modelless.provision import make

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "compose" / "kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yml").read_text())
OBJECTS: list[dict[str, Any]] = [
    each for name in KUSTOMIZATION["resources"] for each in yaml.safe_load_all((FOLDER / name).read_text())
]
KEDA: dict[str, Any] = yaml.safe_load((FOLDER / "keda.yml").read_text())
SECRETS = {"modelless-link"}
"""Made by hand; the head of kustomization.yml says how."""


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] == kind}


WORKLOADS = {**named("Deployment"), **named("StatefulSet")}


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((name, each["spec"]["template"]["spec"]) for name, each in WORKLOADS.items())


def containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Workload, its pod, a container of it."""
    for name, pod in pods():
        yield from ((name, pod, each) for each in (*pod.get("initContainers", ()), *pod["containers"]))


@pytest.fixture
def config() -> Config:
    return load_config(FOLDER / "modelless.toml")


@pytest.fixture(scope="module")
def command() -> Any:
    app = typer.Typer()
    for name in _MODULES:
        importlib.import_module(f"modelless.commands.{name}").register(app)
    return typer.main.get_command(app)


def test_command_lines_are_accepted(command: Any) -> None:
    lines = [each["args"] for _, _, each in containers()]
    assert {line[0] for line in lines} == {"broker", "worker", "provisioner", "check"}
    for line in lines:
        context = command.make_context("modelless", list(line))
        name, found, rest = command.resolve_command(context, list(line))
        found.make_context(name, rest, parent=context)


def test_images_are_those_of_the_dockerfile() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (FOLDER.parent / "Dockerfile").read_text(), re.MULTILINE))
    images = {each["name"] for each in KUSTOMIZATION["images"]}
    assert {each["image"] for _, _, each in containers()} == images
    assert {image.removeprefix("modelless-") for image in images} <= targets


def test_what_is_mounted_is_declared_and_no_name_is_empty() -> None:
    maps = {each["name"]: each["files"] for each in KUSTOMIZATION["configMapGenerator"]}
    for _, pod, container in containers():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
        for volume in volumes.values():
            assert volume.get("configMap", {}).get("name", "modelless") in maps
            assert volume.get("secret", {}).get("secretName", "modelless-link") in SECRETS
            assert volume.get("persistentVolumeClaim", {}).get("claimName", "modelless-store") in named(
                "PersistentVolumeClaim"
            )
    assert all((FOLDER / file).is_file() for files in maps.values() for file in files)


def test_every_folder_and_file_of_the_configuration_is_mounted(config: Config) -> None:
    for name, _, container in containers():
        if container["args"][0] not in ("broker", "worker"):
            continue
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        files = (config.link.ca_file, config.link.certificate_file, config.link.key_file)
        assert {str(file.parent) for file in files if file is not None} <= mounted, name
        assert {str(config.state), config.store.url, str(config.store.cache), "/etc/modelless", "/tmp"} <= mounted, name


def test_every_scaling_group_has_its_deployment_and_the_plan_decides_its_size(config: Config) -> None:
    for group in config.groups:
        deployment = named("Deployment")[config.provisioner.kubernetes_deployment.format(group=group.name)]
        assert group.scales and "replicas" not in deployment["spec"]
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["worker", "--group", group.name, "--name", "$(POD_NAME)"]
        limits = container["resources"]["limits"]
        assert int(limits["cpu"]) == group.threads
        assert int(limits["memory"].removesuffix("Gi")) * 1024 >= group.memory_mb_max + 400


def test_selectors_select_the_pods_that_are_made() -> None:
    for workload in WORKLOADS.values():
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert workload["spec"]["selector"]["matchLabels"] == labels
    for service in named("Service").values():
        assert any(
            service["spec"]["selector"].items() <= workload["spec"]["template"]["metadata"]["labels"].items()
            for workload in WORKLOADS.values()
        )


def test_workers_dial_brokers_where_these_listen(config: Config) -> None:
    broker = WORKLOADS["modelless-broker"]
    assert broker["spec"]["serviceName"] in named("Service")
    (container,) = broker["spec"]["template"]["spec"]["containers"]
    address = next(each["value"] for each in container["env"] if each["name"] == "MODELLESS_LINK__ADVERTISE")
    port = config.link.listen.rpartition(":")[2]
    assert address == f"$(POD_NAME).{broker['spec']['serviceName']}:{port}"
    assert int(port) in {each["containerPort"] for each in container["ports"]}


def test_pods_outlive_the_drain(config: Config) -> None:
    for name, drain_s in (
        ("modelless-broker", config.broker.drain_s),
        ("modelless-worker-cpu-small", config.worker.drain_s),
    ):
        assert WORKLOADS[name]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > drain_s


def test_containers_are_unprivileged() -> None:
    for name, pod, container in containers():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        if container["args"][0] != "provisioner":
            assert pod["automountServiceAccountToken"] is False, f"{name} has no business with Kubernetes"


async def test_the_provisioner_has_the_rights_that_it_uses_and_no_others(tmp_path: Path) -> None:
    with KubernetesApi(modelless_worker_cpu_small=2) as api:
        settings = {"kind": "kubernetes", "kubernetes_config": api.kubeconfig(tmp_path)}
        engine = make(load_config(FOLDER / "modelless.toml", provisioner=settings))
        name = (await engine.instances())[0].name
        await engine.start("cpu-small", "any")
        await engine.stop(name)
        await engine.stop(name, now=True)
    verbs = {"PATCH": "patch", "DELETE": "delete"}
    used = set()
    for request in api.requests:
        method, path = request.split()
        parts = path.partition("/namespaces/")[2].split("/")[1:]
        resource = "/".join([parts[0], *parts[2:]])
        used.add((resource, verbs.get(method, "get" if len(parts) > 1 else "list")))
    (role,) = named("Role").values()
    given = {(what, verb) for rule in role["rules"] for what in rule["resources"] for verb in rule["verbs"]}
    assert given == used
    (binding,) = named("RoleBinding").values()
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    pod = WORKLOADS["modelless-provisioner"]["spec"]
    assert pod["template"]["spec"]["serviceAccountName"] == binding["subjects"][0]["name"]
    assert (pod["replicas"], pod["strategy"]["type"]) == (1, "Recreate")


def test_keda_goes_by_a_metric_of_ours_on_a_deployment_of_ours(config: Config) -> None:
    assert "keda.yml" not in KUSTOMIZATION["resources"], "it would fight with the provisioner"
    name = KEDA["spec"]["scaleTargetRef"]["name"]
    assert name in named("Deployment")
    (trigger,) = KEDA["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    (metric,) = re.findall(r"modelless_\w+", query)
    assert f'"{metric}"' in (ROOT / "broker" / "metrics.py").read_text()
    (group,) = re.findall(r'group="([^"]+)"', query)
    assert config.provisioner.kubernetes_deployment.format(group=config.group(group).name) == name
