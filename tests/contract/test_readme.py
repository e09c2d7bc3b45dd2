"""What README.md shows can be used as it stands, and what it and docs/ point to is there."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest

from modelless.codec import decode_query
from modelless.config import Config
from modelless.headers import read_headers

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [Path("README.md"), *sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md"))]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def test_the_json_query_is_one() -> None:
    for text in blocks("json"):
        query, form = decode_query(text.strip().encode(), read_headers([]))
        assert form == "json"
        assert (query.id, query.task, query.latency_ms_max) == ("q-1", "my-task", 200)
        assert json.loads(text)["inputs"][0]["shape"] == [1, 4]


def test_configurations_and_specifications_are_toml_that_we_read() -> None:
    tables = [tomllib.loads(text) for text in blocks("toml")]
    assert len(tables) == 3
    for table in tables:
        if "groups" in table:
            Config.model_validate(table)
        else:
            assert {"name", "task", "artifact", "inputs", "outputs", "evaluation"} == table.keys()


def test_python_is_python() -> None:
    for text in blocks("python"):
        compile(text, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z]+)", "\n".join(text for _, text in BLOCKS)))))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    links = set(re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()))
    assert not {link for link in links if not link.startswith("http") and not (ROOT / page.parent / link).exists()}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_benchmarks_exist(page: Path) -> None:
    names = set(re.findall(r"benchmarks\.(\w+)[ `]", (ROOT / page).read_text()))
    assert not {name for name in names if not (ROOT / "benchmarks" / f"{name}.py").exists()}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"^modelless (\w+)", README, re.MULTILINE))))
def test_commands_exist(name: str) -> None:
    assert (ROOT / "modelless" / "commands" / f"{name}.py").exists()
