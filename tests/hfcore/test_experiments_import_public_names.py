"""``hfcore/experiments`` is an application: it takes from hfcore public names alone."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import hfcore as hf
import hfcore.experiments

FOLDER = Path(hfcore.experiments.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
OWN = "hfcore.experiments"
# Beside ``hfcore`` itself: what command lines on top of it are built from.
COMMAND_LINES = tuple(
    f"hfcore.cli.{name}" for name in ("executors", "invocation", "options", "tables")
)


def not_public(source: str) -> Iterator[str]:
    """What a file takes from hfcore that is no public name of a public module."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "hfcore" and (alias.name, alias.asname) != (
                    "hfcore",
                    "hf",
                ):
                    yield f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            yield from _imported(node)
        elif isinstance(node, ast.Attribute):
            path = _path(node)
            if path is not None and (hidden := _hidden(hf, path)) is not None:
                yield hidden


def _imported(node: ast.ImportFrom) -> Iterator[str]:
    module = node.module or ""
    if node.level:
        yield f"from {'.' * node.level}{module}"
    elif module in COMMAND_LINES:
        public = importlib.import_module(module).__all__
        yield from (f"{module}.{a.name}" for a in node.names if a.name not in public)
    elif module.split(".")[0] == "hfcore" and not f"{module}.".startswith(f"{OWN}."):
        yield f"from {module}"


def _path(node: ast.expr) -> list[str] | None:
    """``hf.data.curves`` as ["data", "curves"]; None for what does not begin with hf."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return names if isinstance(node, ast.Name) and node.id == "hf" else None


def _hidden(module: ModuleType, path: list[str]) -> str | None:
    """The first name on the way that is not public in its module, None if all are."""
    name = path[0]
    if not _public(module, name):
        return f"{module.__name__}.{name}"
    value = getattr(module, name)
    inside = isinstance(value, ModuleType) and len(path) > 1
    return _hidden(value, path[1:]) if inside else None


def _public(module: ModuleType, name: str) -> bool:
    """In ``__all__``; where there is none, made in the module itself and without underscore."""
    if hasattr(module, "__all__"):
        return name in module.__all__
    value = getattr(module, name)
    made_in = getattr(value, "__module__", module.__name__)
    return (
        not name.startswith("_")
        and not isinstance(value, ModuleType)
        and (made_in == module.__name__)
    )


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(FOLDER)))
def test_experiments_take_public_names_alone(file: Path) -> None:
    assert sorted(set(not_public(file.read_text()))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import hfcore", "import hfcore"),
        ("import hfcore.flat as hf", "import hfcore.flat"),
        ("from hfcore.training.loop import train", "from hfcore.training.loop"),
        ("from hfcore import flat", "from hfcore"),
        ("from ..training import train", "from ..training"),
        ("from hfcore.experimentsx import a", "from hfcore.experimentsx"),
        ("from hfcore.cli.options import cuda", "hfcore.cli.options.cuda"),
        ("import hfcore as hf\nhf.flat.FlatParameters", "hfcore.flat"),
        ("import hfcore as hf\nhf.training.loop.Progress", "hfcore.training.loop"),
        ("def f(x: hf.sweeps.engine) -> None: ...", "hfcore.sweeps.engine"),
    ],
)
def test_what_is_not_public_is_found(source: str, found: str) -> None:
    assert set(not_public(source)) == {found}
