"""Martens & Sutskever (2011), figure 3: minibatches to success on eight pathological problems.

1. A minibatch is a gradient, a pass of a preconditioner or a curvature product over 1000 sequences,
   of the 5-bit problem over its 32; objective evaluations are counted apart. A run of more than the
   limit, 50,000, is a failure.
2. A problem is solved when less than 1 % of 10,000 test sequences are wrong, of the 5-bit problem
   none of all 32. The paper takes the criterion of Hochreiter & Schmidhuber (1997), which is logged
   beside it: the column ``1997`` has the minibatches at which it was first met.
3. Nets, damping, batches and start are those of ``hf.presets.rnn2011``, 100 tanh units, where the
   paper's supplement is not to be had; each unit has 15 incoming weights, of the inputs too where
   there are more.
4. Every sequence has a length of its own, as in 1997 and in the release of 2011. Where all of a
   batch have one, curvature, backtracking and line search are each on another length, and a step
   that is good for one is bad for the next: of sums and products at T = 10 half of the steps fail.
5. Starts other than the sparse one, and preconditioners, are not in the figure: Sutskever et al.
   (2013, section 4.2) expect more of Hessian-free from an echo-state start, and footnote 2 of the
   paper leaves preconditioning out. Input weights of the echo-state start are N(0, 0.1²) on every
   problem: the 0.001 of their table 4 for sums and products is momentum's, and leaves Hessian-free
   at the constant answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import hfcore as hf

LIMIT = 50_000
LENGTHS = (30, 50, 100, 200)
# Sequences of a batch and of the test set, batches of a gradient, hidden units.
BATCH_SIZE, TEST_SIZE, GRADIENT_BATCHES, HIDDEN = 1000, 10_000, 10, 100

PAPER_LAYOUT = {"layout": "martens2011"}
MIXED = {"mixed_lengths": True}  # note 4
PROBLEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "add": ("addition", MIXED),
    "mul": ("multiplication", MIXED),
    "xor": ("xor", MIXED),
    "order-2": ("temporal-order-2bit", MIXED),
    "order-3": ("temporal-order-3bit", MIXED),
    "perm": ("random-permutation", {}),
    "mem-5": ("memorization-5bit", PAPER_LAYOUT),
    "mem-20": ("memorization-20bit", PAPER_LAYOUT),
}
STRUCTURAL, TIKHONOV = "structural", "tikhonov"
DAMPINGS = (STRUCTURAL, TIKHONOV)
SPARSE, ESN = "sparse", "esn"
STARTS = (SPARSE, ESN)
ESN_INPUT_SCALE = 0.1  # note 5
NONE = "none"
PRECONDITIONERS = (NONE, "fisher", "ggn_diagonal")


@dataclass(frozen=True)
class Case:
    """One run of the figure; ``length`` is T."""

    problem: str
    length: int
    damping: str = STRUCTURAL
    start: str = SPARSE
    preconditioner: str = NONE
    seed: int = 0

    @property
    def variant(self) -> str:
        """What is compared with each other: the damping, and what is not the paper's."""
        more = [self.start] * (self.start != SPARSE)
        more += [self.preconditioner] * (self.preconditioner != NONE)
        return ", ".join([self.damping, *more])

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.problem}-T{self.length}-{self.variant.replace(', ', '-')}-seed{self.seed}"

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Case:
        """The case of a row. Raises KeyError where it has none."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})

    def task(self) -> hf.problems.SequenceProblem:
        """The problem. Raises ValueError for a T that is too short for it."""
        name, options = PROBLEMS[self.problem]
        task = hf.problems.create(name, length=self.length, **options)
        assert isinstance(task, hf.problems.SequenceProblem)
        return task


def cases_of(
    problems: Sequence[str],
    lengths: Sequence[int],
    dampings: Sequence[str],
    starts: Sequence[str],
    preconditioners: Sequence[str],
    seeds: Sequence[int],
) -> list[Case]:
    """All of them, in breadth first: every problem with one seed before longer ones and more."""
    axes = (seeds, lengths, preconditioners, starts, dampings, problems)
    return [
        Case(problem, length, damping, start, preconditioner, seed)
        for seed, length, preconditioner, start, damping, problem in itertools.product(*axes)
    ]


@dataclass(frozen=True)
class Settings:
    """What all runs of a figure share."""

    limit: float = LIMIT
    hidden: int = HIDDEN
    batch_size: int = BATCH_SIZE
    test_size: int = TEST_SIZE

    @property
    def identity(self) -> dict[str, Any]:
        """What rows must have in common to stand in one table."""
        shared = {name: value for name, value in asdict(self).items() if name != "limit"}
        return {**shared, "mixed_lengths": True}
