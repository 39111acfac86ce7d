"""Sutskever et al. (2013), table 5: momentum on problems with long-term dependencies.

1. The loss is the mean over sequences of ½(s − target)² at the last step, for memorisation of the
   softmax cross-entropy summed over the recalled steps. The paper does not state its scale, on
   which the learning rates depend: the grids here go beyond its decades 1e-3 to 1e-6, in half
   decades.
2. μ is 0.9 for the first 1000 updates, then μ₀; the column 0 is plain SGD from the first update.
3. Inputs and targets are centred and nets have the echo-state start of table 4 on all problems.
4. Errors are means over 10,000 test sequences a seed: shares of wrong sequences (off by more than
   0.04), for memorisation wrong steps of a sequence, the units in which the paper's "biases"
   column is 5·½ and 10·0.8.
5. Memorisation is scored on the recalled steps alone: a net of biases then errs in 8.0 of 10 steps,
   as the paper has it, while one that is scored on all steps learns to stay blank and errs in 10.
6. The paper has a final phase of smaller μ for autoencoders, not here. Where it is asked for it is
   in columns of its own: runs that escape at a large ε are thrown back later on. So is the other
   remedy, an ε that falls linearly to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hfcore as hf
from hfcore.experiments.published import TABLE5
from hfcore.experiments.tuning import Column, Procedure, Tuned, column_settings, rates_for
from hfcore.experiments.tuning_tables import beside_published, details, procedure_text, times

PROBLEMS = ("add-80", "mul-80", "mem-5-200", "mem-20-80")
COLUMNS = ("0", "0.9N", "0.98N", "0.995N", "0.9M", "0.98M", "0.995M")
KINDS = {
    "add": "addition",
    "mul": "multiplication",
    "mem-5": "memorization-5bit",
    "mem-20": "memorization-20bit",
}
TEST_SIZE = 10_000
FINAL_MOMENTUM = 0.9  # note 6
FINAL_PHASE, FALLING_RATE = "final_phase", "falling_rate"
# From large to small: note 1. Sums over steps make the gradients of memorisation larger.
RATES = {
    "add": (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6),
    "mul": (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6),
    "mem-5": (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6),
    "mem-20": (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6),
}


@dataclass(frozen=True)
class Rung:
    """One row of the table: ``add-80`` is addition at T = 80."""

    kind: str
    length: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.length}"

    @classmethod
    def parse(cls, text: str) -> Rung:
        """``add-80``, ``mem-20-80``. Raises ValueError saying what is needed."""
        match = re.fullmatch(r"(.+)-(\d+)", text.strip())
        if match is None or match[1] not in KINDS:
            names = ", ".join(f"{kind}-T" for kind in KINDS)
            raise ValueError(f"problem: got {text!r}, need {names} with a length T, like add-80")
        rung = cls(match[1], int(match[2]))
        rung.problem()
        return rung

    def problem(self, *, mixed_lengths: bool = False) -> hf.problems.SequenceProblem:
        """Centred (note 3); memorisation scored on what is recalled (note 5).

        ``mixed_lengths``: of sums and products, for Hessian-free. Memorisation has one length.
        """
        options: dict[str, Any] = {"length": self.length, "centre": True}
        if self.kind.startswith("mem"):
            options["scored"] = "recall"
        elif mixed_lengths:
            options["mixed_lengths"] = True
        problem = hf.problems.create(KINDS[self.kind], **options)
        assert isinstance(problem, hf.problems.SequenceProblem)
        return problem


def columns_of(
    rung: Rung, names: Sequence[str], rates: Mapping[str, tuple[float, ...]]
) -> list[Column]:
    """The columns of one problem with their learning rates, see :func:`rates_for`."""
    return [
        Column(name, column_settings(name), rates_for(str(rung), name, rates, RATES[rung.kind]))
        for name in names
    ]


def with_fast_momentum(columns: Sequence[Column]) -> list[Column]:
    """Those whose μ₀ a final phase lowers, on which both remedies are tried (note 6)."""
    return [column for column in columns if column.settings["momentum"] > FINAL_MOMENTUM]


@dataclass(frozen=True)
class Remedy:
    """What is tried against runs that escape and are thrown back, in columns of its own (note 6).

    The last ``updates`` are of another kind, which the text ``says``. ``key`` names it in the file
    of results, ``column`` at the end of a column's name.
    """

    key: str
    column: str
    says: str
    updates: int

    @property
    def folder(self) -> str:
        return self.key.replace("_", "-")

    def applied(self, procedure: Procedure) -> Procedure:
        """The procedure of its runs."""
        if self.key == FINAL_PHASE:
            return replace(procedure, final_updates=self.updates)
        return replace(procedure, falling_updates=self.updates)


def remedies_of(final_phase: int | None, falling_rate: int | None) -> list[Remedy]:
    """Those that are asked for, by the updates at the end which are theirs."""
    known = []
    if final_phase is not None:
        known.append(Remedy(FINAL_PHASE, "then 0.9", "have μ = 0.9", final_phase))
    if falling_rate is not None:
        known.append(Remedy(FALLING_RATE, "ε falling", "have an ε that falls", falling_rate))
    return known


# ---- the report


Remedied = Mapping[Remedy, Mapping[str, Tuned]]
"""The runs with each remedy, by problem."""


def table5_report(
    results: Mapping[str, Tuned],
    settings: Mapping[str, Any],
    folder: Path,
    remedied: Remedied | None = None,
) -> tuple[str, list[Path]]:
    """The table as markdown, and the paths of table, numbers, maps and plot in ``folder``."""
    from hfcore.experiments.tuning_files import tuned_json, write_tuned  # matplotlib is slow

    remedied = remedied or {}
    text = table5_table(results, settings, remedied)
    more = {
        remedy.key: {name: tuned_json(tuned) for name, tuned in found.items()}
        for remedy, found in remedied.items()
        if found
    }
    return text, write_tuned(folder, "table5", text, results, TABLE5, settings, **more)


def table5_table(
    results: Mapping[str, Tuned], settings: Mapping[str, Any], remedied: Remedied | None = None
) -> str:
    """Errors beside the published ones, then what each of them rests on."""
    biases = {name: Rung.parse(name).problem().bias_error for name in results}
    further: dict[str, dict[str, float | None]] = {}
    said = []
    for remedy, found in (remedied or {}).items():
        for name, tuned in found.items():
            for result in tuned.columns:
                column = f"{result.column.name}, {remedy.column}"
                further.setdefault(column, {})[name] = result.error
        if found:
            said += [
                f"Columns with '{remedy.column}' are not the paper's: the last "
                f"{remedy.updates:,} updates {remedy.says}, after a search of ε of their own.",
                details(found, TABLE5),
            ]
    return "\n\n".join(
        [
            "Errors after the last update: share of wrong sequences, for mem wrong steps of a "
            "sequence, on 10,000 test sequences a seed, averaged over seeds. "
            f"Published figures: {TABLE5.source}.",
            beside_published(results, TABLE5, before={"biases": biases}, after=further),
            f"{procedure_text(settings)} Loss: mean over sequences of ½(s − target)² at the last "
            "step, for mem of the cross-entropy summed over the recalled steps. μ: 0.9 for the "
            "first 1000 updates, then the column's; 0 is plain SGD. Inputs and targets centred, "
            f"echo-state start, {settings['hidden']} tanh units.",
            details(results, TABLE5),
            *said,
            times(results),
        ]
    )
