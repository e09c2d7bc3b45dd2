"""Workers as actors on a real Ray of one node, on a real Kafka: as many as the plan says, the dead replaced, adopted.

Without Ray (`pip install "modelless[ray]"`) these are skipped, and say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated_system import running, write_configuration
from provisioned import author, processes

from benchmarks.ray_cluster import ray_cluster
from modelless.config import load_config
from modelless.embedded import EmbeddedKafka
from modelless.messages import START_MS
from modelless.process import ASKED_S
from modelless.topic_settings import create_missing

pytest.importorskip("ray", reason='Ray is not installed: pip install "modelless[ray]"')
pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    with ray_cluster() as address:
        yield address


@pytest.fixture
def needs() -> str:
    return "{}"


@pytest.fixture
def file(kafka: EmbeddedKafka, ray_address: str, tmp_path: Path, needs: str) -> Path:
    group = f"workers_min = 1\nworkers_max = 3\nray_resources = {needs}\n"
    path = write_configuration(tmp_path, kafka.bootstrap_servers, group)
    path.write_text(path.read_text() + f'[provisioner]\nkind = "ray"\nray_address = "{ray_address}"\n')
    return path


async def test_actors_follow_the_plan_and_outlive_the_provisioner(file: Path) -> None:
    await create_missing(load_config(file))
    async with author(load_config(file)) as boss:
        async with running(file, "provisioner"):
            await boss.until(lambda: boss.ready() == ["emulated-0"], 90)
            await boss.plan(3)
            await boss.until(lambda: boss.ready() == ["emulated-0", "emulated-1", "emulated-2"], 90)

            before = processes(file)
            asked_s = float(before["emulated-2"].environ()[ASKED_S])
            placed_ms = (before["emulated-2"].create_time() - asked_s) * 1000
            (told,) = [worker for worker in boss.fleet.workers() if worker.name == "emulated-2"]
            assert 0 < placed_ms < told.statistics[START_MS], "what Ray took for its actor is a part of a start"
            before["emulated-1"].kill()
            await boss.until(lambda: processes(file).get("emulated-1", before["emulated-1"]) != before["emulated-1"])
            actor = processes(file)["emulated-2"].parent()
            assert actor is not None
            actor.kill()
            await boss.until(lambda: processes(file).get("emulated-2", before["emulated-2"]) != before["emulated-2"])
            await boss.until(lambda: not boss.provisioner().errors and len(boss.ready()) == 3, 90)
            await boss.plan(2, "emulated-0")
            await boss.until(lambda: boss.ready() == ["emulated-1", "emulated-2"])
        there = processes(file)
        assert there.keys() == {"emulated-1", "emulated-2"}, "they go on without it"
        await boss.plan(1, "emulated-2")
        async with running(file, "provisioner", "--end-workers"):
            await boss.until(lambda: processes(file).keys() == {"emulated-1"})
            assert processes(file)["emulated-1"] == there["emulated-1"], "adopted, not started anew"
        assert not processes(file)


@pytest.mark.parametrize("needs", ["{ moon = 1 }"])
async def test_what_no_node_can_carry_is_reported(file: Path) -> None:
    await create_missing(load_config(file))
    async with author(load_config(file)) as boss, running(file, "provisioner", "--end-workers"):
        await boss.until(lambda: bool(boss.fleet.members()) and bool(boss.provisioner().errors), 60)
        assert "'moon': 1.0" in boss.provisioner().errors["emulated"]
    assert not processes(file)
