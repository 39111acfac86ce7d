"""Notebooks of the gallery's scripts: the docstring as text, then imports, functions, the call."""

from __future__ import annotations

import ast
from typing import Any

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebook(script: str) -> dict[str, Any]:
    """The script as a notebook of format 4.5, to be written as JSON."""
    tree, lines = ast.parse(script), script.splitlines()
    title, _, text = (ast.get_docstring(tree) or "").partition("\n\n")
    cells = [_cell("markdown", f"# {title.removesuffix('.')}\n\n{text}".replace("``", "`"))]
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    needed = [n for n in imports if ast.unparse(n) != "import argparse"]
    cells.append(_cell("code", "\n".join(_source(lines, node) for node in needed)))
    rest = [node for node in tree.body[1:] if node not in imports and not isinstance(node, ast.If)]
    constants = [node for node in rest if isinstance(node, ast.Assign)]
    if constants:
        cells.append(_cell("code", "\n".join(_source(lines, node) for node in constants)))
    cells += [_cell("code", _source(lines, node)) for node in rest if node not in constants]
    cells.append(_cell("code", 'main(Path("."))'))
    picture = "from IPython.display import Image\n\nImage(str(max(Path('.').glob('*.png'), "
    cells.append(_cell("code", picture + "key=lambda path: path.stat().st_mtime)))"))
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    return {"cells": cells, "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}


def _source(lines: list[str], node: Any) -> str:
    """A statement with its decorators, as it stands in the script."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return "\n".join(lines[first - 1 : node.end_lineno])


def _cell(kind: str, source: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": source}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})
