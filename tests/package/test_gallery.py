"""Every script of the gallery runs, with tiny settings, and stays short; so is its notebook."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "docs" / "gallery").glob("*.py"))
MOST_LINES = 120
# Those that need a file of data may say so in the place of a picture.
NEED_DATA = {"spoken_digits"}


def loaded(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_prints_and_draws(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded(path, f"gallery_{path.stem}").main(tmp_path, quick=True)
    printed = capsys.readouterr().out
    assert printed.endswith("\n")
    if path.stem not in NEED_DATA or "no " not in printed:
        assert (tmp_path / f"{path.stem}.png").stat().st_size > 1000


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    first, _, rest = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")
    assert first.endswith(".")
    assert len(rest.split()) > 20


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_its_notebook_is_made_of_it(path: Path) -> None:
    cells = loaded(ROOT / "docs" / "notebooks.py", "notebooks").notebook(path.read_text())["cells"]
    assert [cell["cell_type"] for cell in cells[:2]] == ["markdown", "code"]
    code = "".join(
        "".join(cell["source"]) + "\n\n" for cell in cells if cell["cell_type"] == "code"
    )
    names = {node.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)}
    own = ast.walk(ast.parse(path.read_text()))
    assert names == {node.name for node in own if isinstance(node, ast.FunctionDef)}
    assert "argparse" not in code
    assert 'main(Path("."))' in code
