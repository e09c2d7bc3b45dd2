"""docs/operations.md lists every setting and every metric, as the code has them. Run this file to write them anew."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from modelless.config import Config, GroupConfig

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations.md"
METRIC = re.compile(r"modelless_(broker|worker)_[a-z_]+")


def settings_reference() -> str:
    """A table per section, from the fields' descriptions."""
    parts = []
    for name, field in Config.model_fields.items():
        section = GroupConfig if name == "groups" else field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            parts.append(f"### `[[{name}]]`\n" if section is GroupConfig else f"### `[{name}]`\n")
            parts.append(_table(section))
        else:
            parts.insert(0, f"Before all sections: `{name}`, default `{_shown(field.default)}`. {field.description}\n")
    return "\n".join(parts)


def _table(section: type[BaseModel]) -> str:
    rows = [
        f"| `{name}` | {_shown(field.default)} | {field.description} |\n"
        for name, field in section.model_fields.items()
    ]
    return "| setting | default | meaning |\n|---|---|---|\n" + "".join(rows)


def _shown(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if default is None or default == ():
        return "none"
    return str(default)


def metrics_reference() -> str:
    rows = sorted(set(_metrics()))
    table = "".join(f"| `{name}` | {text} |\n" for name, text in rows)
    return "| metric | meaning |\n|---|---|\n" + table


def _metrics() -> Iterator[tuple[str, str]]:
    """Every call whose first argument is a metric's name, with its second, the text."""
    for path in sorted([*(ROOT / "broker").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or len(node.args) < 2:
                continue
            name, text = (argument.value if isinstance(argument, ast.Constant) else None for argument in node.args[:2])
            if isinstance(name, str) and METRIC.fullmatch(name):
                yield name, str(text)


def section(page: str, name: str) -> str:
    found = re.search(rf"<!-- {name}: .*? -->\n(.*)<!-- /{name} -->", page, re.DOTALL)
    assert found, f"docs/operations.md has no section {name}"
    return found[1]


def test_every_setting_is_documented_as_it_is() -> None:
    assert section(PAGE.read_text(), "settings") == settings_reference(), (
        "run `python tests/contract/test_operations.py`"
    )


def test_every_metric_is_documented_as_it_is() -> None:
    assert section(PAGE.read_text(), "metrics") == metrics_reference(), "run `python tests/contract/test_operations.py`"


def test_every_metric_name_in_the_code_is_found() -> None:
    """A name that is put together elsewhere would escape the list."""
    sources = [*(ROOT / "broker").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]
    named = {match[0] for path in sources for match in METRIC.finditer(path.read_text())}
    assert named == {name for name, _ in _metrics()}


def test_every_setting_says_what_it_is_for() -> None:
    for name, field in Config.model_fields.items():
        kind = GroupConfig if name == "groups" else field.annotation
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {name: field}
        for label, inner in fields.items():
            assert (inner.description or "").endswith("."), f"{name}.{label} needs a sentence"


def write() -> None:
    page = PAGE.read_text()
    for name, text in (("settings", settings_reference()), ("metrics", metrics_reference())):
        page = page.replace(f"-->\n{section(page, name)}<!-- /{name} -->", f"-->\n{text}<!-- /{name} -->")
    PAGE.write_text(page)


if __name__ == "__main__":
    write()
