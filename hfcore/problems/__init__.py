"""Problems by name: sources of cases with a loss and a measure of error."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

from hfcore.problems.addition import Addition
from hfcore.problems.base import FixedTest, Problem, SequenceProblem, ZeroOne
from hfcore.problems.memorization import Memorization5, Memorization20
from hfcore.problems.multiplication import Multiplication
from hfcore.problems.reconstruction import DATASETS, Reconstruction

__all__ = [
    "PROBLEMS",
    "SEQUENCES",
    "Addition",
    "FixedTest",
    "Memorization5",
    "Memorization20",
    "Multiplication",
    "Problem",
    "Reconstruction",
    "SequenceProblem",
    "ZeroOne",
    "create",
]

SEQUENCES: dict[str, Callable[..., SequenceProblem]] = {
    Addition.name: Addition,
    Multiplication.name: Multiplication,
    Memorization5.name: Memorization5,
    Memorization20.name: Memorization20,
}
PROBLEMS: dict[str, Callable[..., Problem]] = {
    **SEQUENCES,
    **{name: partial(Reconstruction, name) for name in DATASETS},
}


def create(name: str, **options: object) -> Problem:
    """The problem called ``name``, with its constructor's options.

    ``create(**problem.config())`` rebuilds a problem. Raises ValueError for an unknown name or
    option, listing the known ones; the constructor checks the values.
    """
    if name not in PROBLEMS:
        raise ValueError(f"problem: got {name!r}, need one of {', '.join(sorted(PROBLEMS))}")
    known = list(inspect.signature(PROBLEMS[name]).parameters)
    for option in options:
        if option not in known:
            raise ValueError(f"problem {name!r}: got option {option!r}, need {', '.join(known)}")
    return PROBLEMS[name](**options)
