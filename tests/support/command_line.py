"""The command ``hfcore`` in this process, and the tables that it prints."""

from __future__ import annotations

from collections.abc import Sequence
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


def assert_another_run_is_refused(arguments: Sequence[str | Path], *other: str | Path) -> None:
    """``ARGUMENTS`` begin a run, which neither they nor the options ``other`` can take up."""
    assert invoke(*arguments).exit_code == 0
    again = invoke(*arguments)
    assert again.exit_code == 1
    assert "already holds a run" in again.output
    differing = invoke(*arguments, *other, "--resume")
    assert differing.exit_code == 1
    assert "belongs to another config" in differing.output
    assert "Traceback" not in differing.output
