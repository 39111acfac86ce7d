"""``hfcore reproduce``: published experiments, beside the published figures.

``autoencoders.py`` trains the nets of Martens (2010), pre-trained or not; the other
files hold the tables and figures of Martens & Sutskever (2011) and Sutskever et al. (2013), one
command a file.
"""

from __future__ import annotations

from importlib.util import find_spec

import click

from hfcore.experiments.commands.ablation import ablation_command
from hfcore.experiments.commands.autoencoders import (
    curves_log_command,
    fig2_command,
    martens2010_table2_command,
)
from hfcore.experiments.commands.fig1_2013 import fig1_2013_command
from hfcore.experiments.commands.fig3 import fig3_command
from hfcore.experiments.commands.fig5 import fig5_command
from hfcore.experiments.commands.table1 import table1_command
from hfcore.experiments.commands.table1_2011 import table1_2011_command
from hfcore.experiments.commands.table2 import table2_command
from hfcore.experiments.commands.table3 import table3_command
from hfcore.experiments.commands.table5 import table5_command


@click.group("reproduce")
def reproduce_commands() -> None:
    """Run published experiments and print their figures beside the published ones."""
    if find_spec("matplotlib") is None:
        raise click.ClickException("hfcore reproduce draws plots: pip install matplotlib")


for command in (
    curves_log_command,
    martens2010_table2_command,
    fig2_command,
    table1_2011_command,
    table1_command,
    table2_command,
    table3_command,
    table5_command,
    fig5_command,
    fig3_command,
    ablation_command,
    fig1_2013_command,
):
    reproduce_commands.add_command(command)
