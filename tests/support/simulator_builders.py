"""Small simulations: two tasks, three variants, two groups, and policies that need no thought."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simulator.facts import SimulatedQuery
from simulator.files import read_fleet, read_profiles
from simulator.scenario import Scenario
from simulator.world import Device, Running, World

PROFILES = """\
task,model,variant,group,batch_size,p50_ms,p99_ms,accuracy,load_ms,memory_mb
digits,m,fast,gpu,1,5,6,0.7,100,400
digits,m,fast,gpu,4,8,12,0.7,100,400
digits,m,good,gpu,1,20,30,0.9,300,700
digits,m,good,gpu,4,40,50,0.9,300,700
faces,f,face,gpu,1,10,,0.8,50,300
faces,f,face,gpu,8,30,,0.8,50,300
digits,m,fast,cpu,1,25,30,0.7,100,400
digits,m,fast,cpu,2,45,60,0.7,100,400
"""
FLEET = """\
group,workers,memory_mb,price_per_hour
gpu,2,1000,1.2
cpu,1,500,0.3
"""


SCALING_FLEET = """\
group,workers,memory_mb,price_per_hour,workers_min,workers_max,start_ms,bill_s_min
gpu,1,1000,1.2,,3,400,2
cpu,1,500,0.3,,,,
"""


class Greedy:
    """Loads the first variants that fit and gives an idle worker what has waited longest; expires who is too late."""

    def __init__(self, name: str = "greedy", rows_max: int = 4) -> None:
        self.name, self.rows_max = name, rows_max

    def start(self, world: World) -> None:
        self.world = world
        self.waiting: list[SimulatedQuery] = []
        for device in world.devices.values():
            self._fill(device)

    def arrived(self, query: SimulatedQuery) -> None:
        if query.task not in self.world.portfolio.by_task:
            self.world.refuse(query)
            return
        self.waiting.append(query)
        self._go()

    def ran(self, device: Device, batch: Running) -> None:
        self._go()

    def loaded(self, device: Device, variant: str) -> None:
        self._go()

    def lost(self, device: Device, queries: Sequence[SimulatedQuery]) -> None:
        self.waiting = [*queries, *self.waiting]

    def back(self, device: Device) -> None:
        self._fill(device)

    def _fill(self, device: Device) -> None:
        for profile in self.world.portfolio.profiles:
            if profile.group == device.group and profile.memory_mb <= self.world.free_mb(device):
                self.world.load(device, profile.variant)

    def _go(self) -> None:
        for query in [query for query in self.waiting if query.deadline_ms < self.world.now_ms]:
            self.world.expire(query)
            self.waiting.remove(query)
        for device in self.world.devices.values():
            for variant in sorted(device.loaded):
                profile = self.world.portfolio.by_key[variant, device.group]
                rows = min(self.rows_max, profile.rows_max)
                batch = [query for query in self.waiting if query.task == profile.task][:rows]
                if batch and device.idle:
                    self.world.run(device, variant, batch)
                    self.waiting = [query for query in self.waiting if query not in batch]


class Restless(Greedy):
    """Rents and releases again and again, whatever is asked."""

    def __init__(self, every_ms: float = 700.0) -> None:
        super().__init__("restless")
        self._every_ms, self._turn = every_ms, 0

    def start(self, world: World) -> None:
        super().start(world)
        world.at(self._every_ms, self._change)

    def _change(self) -> None:
        world, self._turn = self.world, self._turn + 1
        if self._turn % 3 and world.room("gpu"):
            world.rent("gpu")
        else:
            names = sorted(name for name, device in world.devices.items() if device.group == "gpu")
            if names:
                world.release(names[self._turn % len(names)])
        world.at(world.now_ms + self._every_ms, self._change)


def write_files(folder: Path, fleet_text: str = FLEET) -> tuple[Path, Path]:
    """Profiles and fleet."""
    profiles, fleet = folder / "profiles.csv", folder / "fleet.csv"
    profiles.write_text(PROFILES)
    fleet.write_text(fleet_text)
    return profiles, fleet


def scenario(folder: Path, queries: Sequence[SimulatedQuery], fleet_text: str = FLEET, **more: object) -> Scenario:
    profiles, fleet = write_files(folder, fleet_text)
    return Scenario(read_fleet(fleet), read_profiles(profiles), queries, **more)  # type: ignore[arg-type]
