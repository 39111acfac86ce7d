"""Every block of Python in the README and on the site runs; calls that are refused say so."""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_origin

import pytest
import torch

import hfcore as hf

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST_WORDS = 1200

# Pages whose blocks are only compiled here: programs of several processes, which
# tests/hfcore/distributed/test_document_of_ranks.py runs.
COMPILED = {"docs/distributed.md"}
# What is made smaller; each text must be on its page.
ADDITION = {
    "length=30": "length=5",
    "opt, batch_size=100,": "opt, batch_size=20, minibatches=0.5, test_size=50, progress=False,",
}
SMALL_BATCH = {"batch_size=50": "batch_size=20, test_size=50, progress=False"}
QUIET = {"iterations=20)": "iterations=2), progress=False"}
SMALLER: dict[str, dict[str, str]] = {
    "README.md": {**ADDITION, **QUIET, "2_000": "20, progress=False", "Addition(20": "Addition(6"},
    "docs/index.md": ADDITION,
    "docs/how-to/data.md": {**QUIET, "iterations=10)": "iterations=2), progress=False"},
    "docs/how-to/sweeps.md": {
        "10_000": "20, test_size=50, progress=False", "seeds=4": "seeds=2", "(20,": "(6,",
    },
    "docs/how-to/resume.md": {"stop=": "test_size=50, progress=False, stop="},
    "docs/how-to/pretraining.md": {
        "[784, 400, 200, 100, 50, 25, 6]": "[784, 10, 3]",
        "curves(400, 100": "curves(100, 100",
        "epochs=20": "epochs=1",
        "iterations=2)": "iterations=1), progress=False",
    },
    "docs/how-to/gpu.md": SMALL_BATCH,
    "docs/how-to/reproducibility.md": SMALL_BATCH,
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    code: str
    refused: str | None
    """The error of a call that is refused, as the block of text behind it has it."""


def blocks(path: Path) -> list[Block]:
    found = re.findall(
        r"^```python\n(.*?)^```\n(?:\n```text\n(\w+: .*?)\n```\n)?", path.read_text(), re.S | re.M
    )
    return [Block(code, refused or None) for code, refused in found]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


WITH_CODE = [path for path in PAGES if blocks(path)]


@pytest.mark.parametrize("path", WITH_CODE, ids=name_of)
def test_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One page is one session: each block goes on where the one before ended."""
    monkeypatch.chdir(tmp_path)
    page, text = name_of(path), path.read_text()
    if page in COMPILED:
        for block in blocks(path):
            compile(block.code, page, "exec")
        return
    smaller = SMALLER.get(page, {})
    assert all(long in text for long in smaller)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in blocks(path):
        code = block.code
        for long, short in smaller.items():
            code = code.replace(long, short)
        if block.refused is None:
            exec(compile(code, page, "exec"), names)
            continue
        with pytest.raises(Exception) as error:  # noqa: PT011
            exec(compile(code, page, "exec"), names)
        said = f"{error.type.__name__}: {error.value}"
        assert " ".join(said.split()) == " ".join(block.refused.split())


def test_every_how_to_shows_a_call_that_is_refused() -> None:
    for path in sorted((ROOT / "docs" / "how-to").glob("*.md")):
        assert any(block.refused for block in blocks(path)), path.name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= MOST_WORDS


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_and_pictures_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_readme_of_the_package_has_links_that_work_where_nothing_lies_beside_it() -> None:
    """On PyPI: every relative link of the README, pictures among them, leads to the repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    source = project["urls"]["Source"]
    raw = source.replace("https://github.com/", "https://raw.githubusercontent.com/")
    links = r"(!?)\[[^\]]*\]\(([^)\s]+)\)"
    here = re.findall(links, (ROOT / "README.md").read_text())
    # The file itself: what `metadata.metadata` makes of it is another once any package that dask
    # needs has put its own reader in place of Python's.
    there = re.findall(links, metadata.distribution("hfcore").read_text("METADATA") or "")
    assert len(here) == len(there) > 20
    for (picture, target), (_, found) in zip(here, there, strict=True):
        at = f"{raw}/v{hf.__version__}" if picture else f"{source}/blob/v{hf.__version__}"
        assert found == (target if "://" in target else f"{at}/{target}")


def test_addresses_are_in_three_files_and_alike() -> None:
    """Of the repository and of the site, neither of which is confirmed."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    source, host = urls["Source"], urls["Documentation"].removeprefix("https://")
    assert urls["Issues"] == f"{source}/issues"
    assert urls["Changelog"] == f"{source}/blob/main/CHANGELOG.md"
    assert f'repository-code: "{source}"\n' in (ROOT / "CITATION.cff").read_text()
    assert f"repo_url: {source}\n" in (ROOT / "mkdocs.yml").read_text()
    for path in [*PAGES, *(ROOT / "hfcore").rglob("*.py"), *(ROOT / "docs").rglob("*.py")]:
        text = path.read_text()
        assert source not in text, path
        assert host not in text, path


def test_the_reference_is_complete() -> None:
    """Every public name has its place, once."""
    pages = (ROOT / "docs" / "reference").glob("*.md")
    places = re.findall(r"^::: hfcore\.(\S+)$", "\n".join(p.read_text() for p in pages), re.M)
    assert len(places) == len(set(places))
    modules = {name for name in hf.__all__ if type(getattr(hf, name)) is type(hf)}
    public = {f"{name}" for name in hf.__all__} - modules
    for module in modules - {"presets", "solvers"}:
        members = getattr(getattr(hf, module), "__all__", ())
        at = getattr(hf, module)
        own = [name for name in members if getattr(hf, name, None) is not getattr(at, name)]
        public |= {f"{module}.{name}" for name in own}
    assert public - set(places) == set()


def test_constants_of_the_reference_say_what_they_are() -> None:
    """A page shows a docstring behind an assignment; without one it is a name and nothing else."""
    said = set()
    for path in (ROOT / "hfcore").rglob("*.py"):
        for node, after in pairwise(ast.parse(path.read_text()).body):
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                said |= {target.id for target in targets if isinstance(target, ast.Name)}
    pages = "\n".join(p.read_text() for p in (ROOT / "docs" / "reference").glob("*.md"))
    for name in re.findall(r"^::: hfcore\.(\S+)$", pages, re.M):
        found = attrgetter(name)(hf)
        is_value = not (callable(found) or isinstance(found, ModuleType))
        if is_value or get_origin(found) is Literal:  # which can be called, to an error
            assert name.rpartition(".")[2] in said, name
