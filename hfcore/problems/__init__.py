"""Problems by name: sources of cases with a loss and a measure of error.

A problem of one's own is an object with what :class:`Problem` names, in any module; nothing is
subclassed or registered. ``hf.train(model, problem, optimizer)`` and ``hf.sweep`` then take it:

>>> class LastInput:
...     "Give back the last of T numbers; wrong when off by more than 0.1."
...     name, input_size, output_size = "last-input", 1, 1
...     loss = hf.losses.SquaredError()
...
...     def batch(self, size, generator, dtype=torch.float32):
...         x = torch.from_numpy(generator.standard_normal((9, size, 1))).to(dtype)   # [T,B,n]
...         mask = torch.zeros(9, size, dtype=torch.bool)
...         mask[-1] = True
...         return hf.Batch(x, x.clone(), mask)
...
...     def wrong(self, s, batch):
...         return (s[..., -1, :, 0] - batch.targets[-1, :, 0]).abs() > 0.1
...
...     def errors(self, s, batch):
...         return self.wrong(s, batch).double()
...
...     def config(self):
...         return {"name": self.name}

``batch`` draws from the generator alone, so that a run can be resumed; ``config`` is what tells one
run from another. What more a problem may bring, each for one use:

- ``wrong`` (:class:`ZeroOne`): the problem can be solved, which ends a run;
- ``centre``, ``esn_input_scale``, ``mean_target``, ``mean_input``, ``bias_error``
  (:class:`SequenceProblem`): the echo-state start, :func:`hfcore.presets.esn2013`;
- ``all_cases`` (:class:`FiniteProblem`): the policies of :mod:`hfcore.minibatches`;
- ``counted_words``, ``counted_batches``, ``counted_steps`` (:class:`CountedProblem`):
  ``hf.sweep(…, on_device=True)`` with fresh cases;
- ``test_set`` (:class:`FixedTest`): a test on given cases;
- ``criterion_1997``, ``deviation`` (:class:`Judged1997`): three more columns in the log.

Where lengths are random, give every sequence of a batch one of its own, padded, with the mask where
it counts (``lengths.py``): Hessian-free takes its curvature, its line search and ρ from different
batches, and if each has another length, a step that is good for one is bad for the next.

A problem in the package is one file here with a line in ``SEQUENCES`` below, which gives it a name
in the shell (``hfcore train NAME``) and lets :func:`create` and :func:`hfcore.load_run` rebuild it;
``temporal_order.py`` is a short one to start from.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

from hfcore.problems.addition import Addition
from hfcore.problems.base import (
    CountedProblem,
    Criterion1997,
    FiniteProblem,
    FixedTest,
    Judged1997,
    Problem,
    SequenceProblem,
    ZeroOne,
)
from hfcore.problems.memorization import Memorization5, Memorization20
from hfcore.problems.multiplication import Multiplication
from hfcore.problems.next_step import BouncingBalls, NextStep, PianoRolls, SpokenDigits
from hfcore.problems.random_permutation import RandomPermutation
from hfcore.problems.reconstruction import DATASETS, Reconstruction
from hfcore.problems.temporal_order import TemporalOrder2, TemporalOrder3
from hfcore.problems.xor import Xor

__all__ = [
    "PROBLEMS",
    "SEQUENCES",
    "Addition",
    "BouncingBalls",
    "CountedProblem",
    "Criterion1997",
    "FiniteProblem",
    "FixedTest",
    "Judged1997",
    "Memorization5",
    "Memorization20",
    "Multiplication",
    "NextStep",
    "PianoRolls",
    "Problem",
    "RandomPermutation",
    "Reconstruction",
    "SequenceProblem",
    "SpokenDigits",
    "TemporalOrder2",
    "TemporalOrder3",
    "Xor",
    "ZeroOne",
    "create",
]

SEQUENCES: dict[str, Callable[..., SequenceProblem]] = {
    problem.name: problem
    for problem in (
        Addition,
        Multiplication,
        Xor,
        TemporalOrder2,
        TemporalOrder3,
        RandomPermutation,
        Memorization5,
        Memorization20,
    )
}
"""The problems of sequences of Martens & Sutskever (2011), by the names that commands take."""
PROBLEMS: dict[str, Callable[..., Problem]] = {
    **SEQUENCES,
    **{problem.name: problem for problem in (BouncingBalls, PianoRolls, SpokenDigits)},
    **{name: partial(Reconstruction, name) for name in DATASETS},
}
"""All of them by name: :data:`SEQUENCES`, next-step prediction, and reconstruction of images."""


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
