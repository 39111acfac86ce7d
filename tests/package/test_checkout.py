"""What the checkout promises: a clear word without install, layers, no pickle, a true README."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest

import hfcore

ROOT = Path(__file__).resolve().parents[2]


def test_bare_checkout_says_what_to_do(tmp_path) -> None:
    (tmp_path / "hfcore").mkdir()
    shutil.copy(ROOT / "hfcore" / "__init__.py", tmp_path / "hfcore")
    done = subprocess.run(
        # -S: without site-packages there is no installed hfcore to be found instead.
        [sys.executable, "-S", "-c", "import hfcore"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: hfcore is imported from its bare checkout")
    assert "make install" in last


def test_versions_agree() -> None:
    """What is installed, what Python says, what to cite, and a dated section of the changelog."""
    version = hfcore.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.M)
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_package_is_typed_and_layered() -> None:
    folder = Path(hfcore.__file__).parent
    assert (folder / "py.typed").exists()
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        imports = re.findall(r"^\s*(?:from|import) (hfcore[\w.]*)", path.read_text(), re.M)
        assert all(name.startswith("hfcore.kernels") for name in imports), path
    for path in sorted((ROOT / "bindings").rglob("*.py")):
        imports = re.findall(r"^\s*(?:from|import) (hfcore[\w.]*)", path.read_text(), re.M)
        assert all(name.startswith(("hfcore.bindings", "hfcore.kernels")) for name in imports), path
    for path in sorted((ROOT / "hfcore").rglob("*.py")):
        imports = re.findall(r"^\s*(?:from|import) (hfcore[\w.]*)", path.read_text(), re.M)
        assert not any(name.startswith("hfcore.kernels") for name in imports), path


def test_the_installed_package_is_what_runs() -> None:
    """Every Python file of the checkout and what was compiled; no source of that, no tests."""
    files = [PurePosixPath(str(path)) for path in metadata.files("hfcore") or ()]
    installed = {path for path in files if path.parts[0] == "hfcore" and path.suffix != ".pyc"}
    python = {
        PurePosixPath("hfcore", *path.relative_to(ROOT).parts[folder == "hfcore" :])
        for folder in ("hfcore", "bindings", "kernels")
        for pattern in ("*.py", "*.pyi", "py.typed")
        for path in (ROOT / folder).rglob(pattern)
    }
    rest = installed - python
    assert python <= installed
    assert rest
    assert all(path.name.startswith("_native.") or path.suffix == ".fatbin" for path in rest), rest


def test_no_pickle() -> None:
    forbidden = re.compile(r"\bimport pickle|(?<!safetensors\.)torch\.(load|save)\(")
    for path in sorted((ROOT / "hfcore").rglob("*.py")):
        assert not forbidden.search(path.read_text()), path


@pytest.mark.parametrize("name", ["hfcore.kernels", "hfcore.bindings"])
def test_docstrings(name) -> None:
    assert __import__(name, fromlist=["x"]).__doc__
