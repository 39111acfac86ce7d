"""The runs of a sweep: every combination of the values of a grid, with every seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hfcore.arguments import count
from hfcore.arguments import number as as_number

# A number of seeds beyond it, all of which are written down, was meant to be something else.
MOST_SEEDS = 10**6

METHODS = ("nag", "cm", "sgd")
OPTIMISER_KEYS = ("learning_rate", "momentum", "method")

Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class RunSettings:
    """What tells one run of a sweep from the others.

    ``momentum`` is μ₀ of the schedule; with the method ``"sgd"`` it is 0 from the first update to
    the last. ``options`` are those of the start: initial scales.
    """

    method: str
    learning_rate: float
    momentum: float
    seed: int
    options: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method with its momentum as the paper's tables name it: 0, 0.995N, 0.995M."""
        if self.method == "sgd":
            return "0"
        return f"{self.momentum:g}{'N' if self.method == 'nag' else 'M'}"

    def row(self) -> dict[str, Any]:
        """As columns of a table."""
        return {
            "method": self.method,
            "momentum": self.momentum,
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            **self.options,
        }


def expand(
    grid: Grid | Sequence[Grid] | Sequence[RunSettings],
    seeds: int | Sequence[int],
    options: Sequence[str],
) -> list[RunSettings]:
    """The runs of a grid, or of several grids one after the other, seeds varying fastest.

    The runs themselves may be given too, each with its seed; ``seeds`` does not count then.

    Keys are ``learning_rate`` (needed), ``momentum`` (default 0.9), ``method`` (default ``"nag"``;
    ``"cm"``, ``"sgd"``) and the ``options`` of the start. Momentum 0 is plain SGD whatever the
    method, and counts once. ``seeds`` is a number of seeds from 0, or the seeds themselves.

    Raises TypeError or ValueError naming the key: unknown or missing, no values, values given
    twice, out of range, or a run that two grids share.
    """
    if not isinstance(grid, Mapping | Sequence):
        raise TypeError(
            f"grid: got {type(grid).__name__}, need a mapping from keys to values or a list"
        )
    grids = [grid] if isinstance(grid, Mapping) else list(grid)
    if not grids:
        raise ValueError("grid: got none, need at least one")
    if isinstance(grids[0], RunSettings):
        return _checked_runs(grids, options)
    several: list[Any] = [one for one in grids if not isinstance(one, RunSettings)]
    if len(several) < len(grids):
        raise TypeError("grid: got grids and a RunSettings, need one kind")
    chosen = _checked_seeds(seeds)
    runs: list[RunSettings] = []
    for one in several:
        new = _one_grid(one, chosen, options)
        shared = next((run for run in new if run in runs), None)
        if shared is not None:
            raise ValueError(f"grid: two of the grids hold the same run, {shared.row()}")
        runs += new
    return runs


def _checked_runs(runs: Sequence[Any], options: Sequence[str]) -> list[RunSettings]:
    for i, run in enumerate(runs):
        if not isinstance(run, RunSettings):
            raise TypeError(f"grid: got runs and a {type(run).__name__}, need one kind")
        if run in runs[:i]:
            raise ValueError(f"grid: got the run {run.row()} twice")
        _one_grid({key: [value] for key, value in run.row().items() if key != "seed"}, [0], options)
        _checked_seeds([run.seed])
    return list(runs)


def _one_grid(grid: Grid, seeds: Sequence[int], options: Sequence[str]) -> list[RunSettings]:
    if not isinstance(grid, Mapping):
        raise TypeError(f"grid: got {type(grid).__name__}, need a mapping from keys to values")
    known = (*OPTIMISER_KEYS, *options)
    for key in grid:
        if key not in known:
            raise ValueError(f"grid: got the key {key!r}, need one of {', '.join(known)}")
    if "learning_rate" not in grid:
        raise ValueError("grid: has no learning_rate, need at least one value")
    axes = {key: _checked_values(key, values) for key, values in grid.items()}
    axes = {"method": ["nag"], "momentum": [0.9], **axes}
    runs: dict[str, RunSettings] = {}
    names = list(axes)
    for values in itertools.product(*axes.values()):
        at = dict(zip(names, values, strict=True))
        if at["method"] == "sgd" or at["momentum"] == 0:
            at |= {"method": "sgd", "momentum": 0.0}
        for seed in seeds:
            run = RunSettings(
                at["method"],
                at["learning_rate"],
                at["momentum"],
                seed,
                {name: at[name] for name in options if name in at},
            )
            runs.setdefault(repr(run), run)
    return list(runs.values())


def _checked_values(key: str, values: Sequence[Any]) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"grid[{key!r}]: got {values!r}, need a list of values")
    if not values:
        raise ValueError(f"grid[{key!r}]: got no values, need at least one")
    checked = [_checked(key, value) for value in values]
    for i, value in enumerate(checked):
        if value in checked[:i]:
            raise ValueError(f"grid[{key!r}]: got {value!r} twice")
    return checked


def _checked(key: str, value: Any) -> Any:
    if key == "method":
        if value not in METHODS:
            raise ValueError(f"grid['method']: got {value!r}, need one of {', '.join(METHODS)}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"grid[{key!r}]: got {value!r}, need a number")
    number = as_number(f"grid[{key!r}]", value)
    if key == "momentum" and not 0 <= number < 1:
        raise ValueError(f"grid['momentum']: got {value!r}, need at least 0 and below 1")
    if key == "learning_rate" and not 0 < number < math.inf:
        raise ValueError(f"grid['learning_rate']: got {value!r}, need a positive finite number")
    if not 0 <= number < math.inf:
        raise ValueError(f"grid[{key!r}]: got {value!r}, need a finite number of at least 0")
    return number


def _checked_seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        return list(range(count("seeds", seeds, most=MOST_SEEDS)))
    if not isinstance(seeds, list | tuple | range) or not seeds:
        raise TypeError(f"seeds: got {seeds!r}, need a number of seeds or a list of them")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"seeds: got {seed!r}, need ints of at least 0")
        count("seeds", seed, least=0)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {list(seeds)}, need different ones")
    return list(seeds)
