"""What ``table1``, ``table2`` and ``table3`` share: options, a tuned problem for each data set."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import click

import hfcore as hf
from hfcore.cli.executors import executor_of
from hfcore.cli.invocation import Invocation
from hfcore.cli.options import Decorator, decorated_by, folder_option, names
from hfcore.experiments.commands.tuned import (
    pace_of_sweeps,
    procedure_of,
    settings_of,
    tuned_options,
)
from hfcore.experiments.momentum_autoencoders import (
    BATCH_SIZE,
    DATASETS,
    FINAL_UPDATES,
    UPDATES,
    problem_of,
)
from hfcore.experiments.tuning import Column, Procedure, Tuned

SEARCH_SHARE = 10


def autoencoder_options() -> Decorator:
    """The options of a table of autoencoders."""
    return decorated_by(
        [
            tuned_options(
                UPDATES, BATCH_SIZE, seeds="1", test_every=1000, search_share=SEARCH_SHARE
            ),
            click.option(
                "--final-updates",
                type=click.IntRange(0),
                default=FINAL_UPDATES,
                help="At the end, with μ = 0.9.",
            ),
            click.option("--images", type=click.IntRange(1), help="Only the first so many."),
            folder_option,
        ]
    )


datasets_option = click.option(
    "--datasets", default=",".join(DATASETS), help="Separated by commas."
)


def datasets_of(text: str) -> list[str]:
    """--datasets; BadParameter for an unknown one."""
    chosen = names(text, "--datasets")
    for name in chosen:
        if name not in DATASETS:
            known = ", ".join(DATASETS)
            raise click.BadParameter(f"got {name!r}, need {known}", param_hint="--datasets")
    return chosen


class AutoencoderTable:
    """The runs of one call: one tuned problem after the other."""

    def __init__(self, invocation: Invocation) -> None:
        self.invocation = invocation
        self.procedure: Procedure = procedure_of(
            invocation, search_share=SEARCH_SHARE, schedule="increasing"
        )
        self.settings = settings_of(
            self.procedure,
            images=invocation.options["images"],
            final_updates=self.procedure.final_updates,
        )

    def run(
        self, datasets: Sequence[str], columns: Callable[[str], list[Column]]
    ) -> dict[str, Tuned]:
        """Each data set with its columns; ends early after Ctrl-C. With --cohort a part of each."""
        results: dict[str, Tuned] = {}
        folder, problems = self.invocation.folder, {name: self.problem(name) for name in datasets}
        work: dict[Hashable, float] = {}
        for name, problem in problems.items():
            work |= self.procedure.operations(problem, columns(name), folder / name)
        pace = pace_of_sweeps(self.invocation, work)
        with executor_of(self.invocation.options, folder) as by:
            for name, problem in problems.items():
                procedure = self.procedure.having(test_size=len(problem.images), **by)
                procedure = replace(procedure, pace=pace)
                results[name] = procedure(problem, columns(name), folder / name)
                if not (results[name].finished or results[name].waits):
                    break
        return results

    def problem(self, name: str) -> hf.problems.Reconstruction:
        options: dict[str, Any] = self.invocation.options
        return problem_of(name, options["folder"], options["images"])
