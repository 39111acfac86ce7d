"""What MkDocs asks while it builds: links to the sources, generated pages, the gallery."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from notebooks import notebook  # noqa: E402

GALLERY = ROOT / "docs" / "gallery"
OUT = ROOT / "build" / "gallery"
# Beside docs/, and on the site under the same name: what the pages take their numbers from.
BESIDE = "bench"
SHOWN = (".md", ".png", ".json", ".csv")


def on_config(config: Any) -> Any:
    """The gallery's pages, in the order of their names."""
    if pages := [{_title(script): f"gallery/{script.stem}.md"} for script in _scripts()]:
        config.nav.insert(4, {"Gallery": pages})
    return config


def on_files(files: Files, config: Any) -> Files:
    for script in _scripts():
        picture, printed = _run(script)
        files.append(
            File.generated(
                config, f"gallery/{script.stem}.md", content=_page(script, picture, printed)
            )
        )
        written = json.dumps(notebook(script.read_text()), indent=1)
        files.append(File.generated(config, f"gallery/{script.stem}.ipynb", content=written))
        if picture is not None:
            files.append(
                File.generated(config, f"gallery/{picture.name}", abs_src_path=str(picture))
            )
    for path in sorted((ROOT / BESIDE).rglob("*")):
        if path.suffix in SHOWN:
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to bench/ stay on the site; ``{{ NAME }}`` is what a function writes."""
    markdown = re.sub(rf"\]\(((?:\.\./)*)\.\./{BESIDE}/", rf"](\1{BESIDE}/", markdown)
    markdown = re.sub(r"\]\(((?:\.\./)*gallery/\w+)\.py\)", r"](\1.md)", markdown)
    for name, write in (("departures", departures), ("commands", commands)):
        if f"{{{{ {name} }}}}" in markdown:
            markdown = markdown.replace(f"{{{{ {name} }}}}", write())
    return markdown


def departures() -> str:
    """The numbered notes of every module's docstring, by module."""
    parts = []
    for path in sorted((ROOT / "hfcore").rglob("*.py")):
        for owner, text in _docstrings(path):
            notes = re.findall(r"^ {0,8}(\d+)\. (.*(?:\n(?! *\d+\. )[ ]{2,}\S.*)*)", text, re.M)
            if notes:
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                parts.append(f"## `{'.'.join(filter(None, [module, owner]))}`\n")
                parts += [f"{number}. {_plain(note)}" for number, note in notes]
                parts.append("")
    return "\n".join(parts)


def commands() -> str:
    """The help of every command."""
    import click

    from hfcore.cli import main

    parts: list[str] = []

    def add(command: click.Command, name: str, parent: click.Context | None) -> None:
        settings = command.context_settings
        context = click.Context(command, info_name=name.split()[-1], parent=parent, **settings)
        context.terminal_width = 88  # what a page is wide
        parts.append(f"## `{name}`\n\n```text\n{command.get_help(context)}\n```\n")
        if isinstance(command, click.Group):
            for sub in command.list_commands(context):
                if (inner := command.get_command(context, sub)) is not None:
                    add(inner, f"{name} {sub}", context)

    add(main, "hfcore", None)
    return "\n".join(parts)


def _docstrings(path: Path) -> list[tuple[str, str]]:
    """The module's docstring and those of its classes and functions."""
    tree = ast.parse(path.read_text())
    found = [("", ast.get_docstring(tree) or "")]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            found.append((node.name, ast.get_docstring(node) or ""))
    return found


def _plain(text: str) -> str:
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
    return re.sub(r"\s*\n\s*", " ", text)


def _scripts() -> list[Path]:
    return sorted(path for path in GALLERY.glob("*.py") if not path.name.startswith("_"))


def _title(script: Path) -> str:
    first = (ast.get_docstring(ast.parse(script.read_text())) or script.stem).splitlines()[0]
    return first.removesuffix(".").split(": ")[0]


def _run(script: Path) -> tuple[Path | None, str]:
    """Run a script if it is newer than what it left; its picture and what it printed."""
    folder = OUT / script.stem
    printed = folder / "printed.txt"
    if not printed.exists() or printed.stat().st_mtime < script.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, str(script), "--out", str(folder)],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        if done.returncode or "pip install" in done.stdout:  # it lacks what it is compared with
            raise RuntimeError(f"{script}: {done.stderr or done.stdout}")
        printed.write_text(done.stdout)
    return next(iter(sorted(folder.glob("*.png"))), None), printed.read_text()


def _page(script: Path, picture: Path | None, printed: str) -> str:
    text = script.read_text()
    docstring = ast.get_docstring(ast.parse(text)) or ""
    title, _, rest = docstring.partition("\n")
    lead = "" if title.removesuffix(".") == _title(script) else title  # a heading says it already
    shown = f"![{title}]({picture.name})\n" if picture is not None else ""
    link = f"[As a notebook]({script.stem}.ipynb){{: download}}"
    code = text[text.index('"""', text.index('"""') + 3) + 3 :].strip()
    return (
        f"---\nhide: [toc]\n---\n\n# {_title(script)}\n\n{lead}\n{_plain_keep(rest)}\n\n{shown}\n"
        f"## What it prints\n\n"
        f"```text\n{printed}```\n\n## The script\n\n{link}\n\n"
        f"```{{.python .gallery}}\n{code}\n```\n"
    )


def _plain_keep(text: str) -> str:
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
