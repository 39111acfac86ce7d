"""Problems by name: sources of fresh sequences with a loss and a zero-one criterion."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from hfcore.problems.addition import Addition
from hfcore.problems.base import Problem
from hfcore.problems.memorization import Memorization5, Memorization20
from hfcore.problems.multiplication import Multiplication

__all__ = [
    "PROBLEMS",
    "Addition",
    "Memorization5",
    "Memorization20",
    "Multiplication",
    "Problem",
    "create",
]

PROBLEMS: dict[str, Callable[..., Problem]] = {
    Addition.name: Addition,
    Multiplication.name: Multiplication,
    Memorization5.name: Memorization5,
    Memorization20.name: Memorization20,
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
