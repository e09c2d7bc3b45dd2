"""compose/ without a container engine: all that it names exists, and its command lines are ones that we accept."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from modelless.commands import _MODULES
from modelless.config import Config, load_config
from modelless.embedded import KAFKA_VERSION

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
DEFINITION: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = DEFINITION["services"]
BUILT = {name: service for name, service in SERVICES.items() if "build" in service}
DOCKERFILE = (COMPOSE / "Dockerfile").read_text()


def stages() -> dict[str, str]:
    """Instructions of each stage of the Dockerfile, by the stage's name."""
    parts = re.split(r"^FROM (?:\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Source by target."""
    return {entry.split(":")[1]: entry.split(":")[0] for entry in service.get("volumes", ())}


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    for service in BUILT.values():
        for name, value in service["environment"].items():
            monkeypatch.setenv(name, str(value))
    return load_config(COMPOSE / "modelless.toml")


@pytest.fixture(scope="module")
def command() -> Any:
    app = typer.Typer()
    for name in _MODULES:
        importlib.import_module(f"modelless.commands.{name}").register(app)
    return typer.main.get_command(app)


@pytest.mark.parametrize("name", sorted(BUILT))
def test_images_are_built_from_stages_that_exist(name: str) -> None:
    build = BUILT[name]["build"]
    context = (COMPOSE / build["context"]).resolve()
    assert (context / build["dockerfile"]).is_file()
    assert build["target"] in stages()


@pytest.mark.parametrize("name", sorted(BUILT))
def test_command_lines_are_accepted(name: str, command: Any) -> None:
    service = BUILT[name]
    line = [*service.get("entrypoint", ["modelless"])[1:], *service["command"]]
    _parse(command, line)


def _parse(command: Any, line: list[str]) -> None:
    """Raises what the command line would be refused with; runs nothing."""
    context = command.make_context("modelless", list(line))
    name, found, rest = command.resolve_command(context, list(line))
    assert found is not None
    if rest != ["--help"]:
        found.make_context(name, rest, parent=context)


def test_an_unknown_option_would_be_noticed(command: Any) -> None:
    with pytest.raises(Exception, match="No such option: --nmae"):
        _parse(command, ["broker", "--nmae", "x"])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_services_refer_to_is_declared(name: str) -> None:
    service = SERVICES[name]
    assert set(service.get("depends_on", ())) <= SERVICES.keys()
    for target, source in mounts(service).items():
        if source.startswith("."):
            assert (COMPOSE / source).is_file(), f"{source} is mounted at {target}"
        else:
            assert source in DEFINITION["volumes"]


@pytest.mark.parametrize("name", sorted(BUILT))
def test_folders_that_are_written_are_volumes(name: str, config: Config) -> None:
    targets = mounts(BUILT[name])
    assert str(config.state) in targets
    assert config.store.url in targets
    assert targets["/etc/modelless/modelless.toml"] == "./modelless.toml"
    assert f"WORKDIR {Path('/etc/modelless')}" in stages()["base"]
    for path in (config.state, config.store.cache):
        assert str(path) in stages()["base"], "a new volume takes its owner from the image's folder"


def test_broker_and_worker_share_the_socket(config: Config) -> None:
    assert config.link.listen == "unix"
    broker, worker = mounts(SERVICES["broker"]), mounts(SERVICES["worker"])
    assert broker[str(config.state)] == worker[str(config.state)]


def test_the_worker_runs_a_group_that_is_configured(config: Config) -> None:
    line = SERVICES["worker"]["command"]
    config.group(line[line.index("--group") + 1])


def test_kafka_is_where_the_configuration_says_and_of_the_tested_version(config: Config) -> None:
    kafka = SERVICES["kafka"]
    assert kafka["image"] == f"apache/kafka:{KAFKA_VERSION}"
    assert f"INSIDE://{config.kafka.bootstrap_servers}" in kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"]


def test_published_ports_are_loopback_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_containers_outlive_the_drain(config: Config) -> None:
    longest_s = max(config.broker.drain_s, config.worker.drain_s)
    for name in ("broker", "worker"):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > longest_s


def test_prometheus_scrapes_ports_that_are_served(config: Config) -> None:
    jobs = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())["scrape_configs"]
    targets = {target for job in jobs for entry in job["static_configs"] for target in entry["targets"]}
    assert targets == {f"broker:{config.metrics.port}", f"worker:{config.metrics.port + 100}"}


def test_images_are_unprivileged_and_copy_what_exists() -> None:
    assert re.search(r"^USER modelless$", stages()["base"], re.MULTILINE)
    for final in ("broker", "worker"):
        assert "USER" not in stages()[final]
    sources = list(_copied())
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), f"COPY {source}"


def _copied() -> Iterator[str]:
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        yield from line.split()[:-1]


def test_every_package_is_copied() -> None:
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert {package.removesuffix("*") for package in find["include"]} <= set(_copied())


def test_everything_copied_passes_the_ignore_file() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(_copied()) == kept


def test_extras_and_the_installer_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"'\.\[(\w+)\]'", DOCKERFILE):
        assert extra in project["optional-dependencies"]
    pinned = re.search(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert pinned and f"UV_VERSION={pinned[1]}" in DOCKERFILE


def test_the_broker_image_has_no_torch() -> None:
    assert "worker" not in stages()["build-broker"]
    assert "--from=build-broker" in stages()["broker"]
