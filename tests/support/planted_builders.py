"""Builders of a third party, for tests: each builds a file in its own way, or fails to."""

from __future__ import annotations

from pathlib import Path

NAMES = {"planted": ".onnx", "refused": ".fails", "dying": ".dies", "endless": ".hangs", "bulky": ".bulky"}


class Planted:
    devices = ("cpu",)
    module = "planted_module"

    def __init__(self, name: str, suffix: str) -> None:
        self.name = name
        self.formats = {"onnx": suffix}

    def version(self) -> str:
        return "1"

    def refusal(self, device: str) -> str | None:
        return None


planted, refused, dying, endless, bulky = (Planted(name, suffix) for name, suffix in NAMES.items())


def install(folder: Path) -> None:
    """Write a distribution with these builders into ``folder``, which then has to be on the path."""
    metadata = folder / "planted-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
    lines = "".join(f"{name} = planted_builders:{name}\n" for name in NAMES)
    (metadata / "entry_points.txt").write_text(f"[modelless.builders]\n{lines}")
