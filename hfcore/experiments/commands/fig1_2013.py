"""``hfcore reproduce fig1-2013``: classical and Nesterov's momentum drawn."""

from __future__ import annotations

from typing import Any

import click

from hfcore.cli.invocation import Invocation, run_options


@click.command("fig1-2013")
@run_options(resume="Draw again in --run-dir.", quiet="Has no effect here.")
def fig1_2013_command(**options: Any) -> None:
    """Figures 1 and 2 of Sutskever et al. (2013): one update, and paths on a quadratic.

    Prints how far each method comes and how far it goes to and fro across the valley; writes table
    (markdown), numbers (JSON) and both plots into the run folder.
    """
    from hfcore.experiments.momentum_figures import figures_report  # matplotlib is slow to import

    invocation = Invocation("fig1-2013", options)
    with invocation.errors_shown():
        invocation.folder.mkdir(parents=True, exist_ok=True)
        invocation.show(*figures_report(invocation.folder))
