"""The command ``hfcore`` in this process, and the tables that it prints."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from hfcore.cli import main


def invoke(*arguments: str | Path) -> Result:
    """What ``hfcore ARGUMENTS`` prints and exits with."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def table_of(text: str) -> list[list[str]]:
    """Cells of all rows of markdown tables in ``text``, heads and the lines below them included."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [row.removeprefix("| ").removesuffix(" |").split(" | ") for row in rows]


def tables_of(text: str) -> list[list[list[str]]]:
    """Cells of the markdown tables in ``text``, which blank lines part."""
    return [table for part in text.split("\n\n") if (table := table_of(part))]
