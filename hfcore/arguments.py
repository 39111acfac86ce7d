"""Checks of plain arguments: every error names the argument, what came and what is needed."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Real
from typing import Any

import torch
from torch import Tensor

# Where counts end: they reach compiled code as 64 bits.
MOST = 2**63 - 1


def number(name: str, value: Any) -> float:
    """A real number as a float, from Python, NumPy or a tensor of one element; NaN may be one.

    Raises TypeError for anything else, booleans included, ValueError for an integer that no float
    holds.
    """
    if isinstance(value, Tensor):
        plain = value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool
        if not plain:
            raise TypeError(
                f"{name}: got a {value.dtype} tensor of shape {list(value.shape)}, need a number"
            )
        return float(value.detach())
    # NumPy's bool_ is no Real.
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {_shown(value)}, need a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name}: got an integer that no float holds, need a number") from error


def nonnegative(name: str, value: Any) -> float:
    """A finite number that is not negative."""
    found = number(name, value)
    if not (math.isfinite(found) and found >= 0):
        raise ValueError(f"{name}: got {found}, need a finite number that is not negative")
    return found


def positive(name: str, value: Any) -> float:
    """A positive finite number."""
    found = number(name, value)
    if not (math.isfinite(found) and found > 0):
        raise ValueError(f"{name}: got {found}, need a positive finite number")
    return found


def count(name: str, value: Any, least: int = 1, most: int = MOST) -> int:
    """An integer of at least ``least``."""
    if isinstance(value, bool | Tensor):
        raise TypeError(f"{name}: got {_shown(value)}, need an integer")
    try:
        found = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name}: got {_shown(value)}, need an integer") from error
    if found < least:
        raise ValueError(f"{name}: got {found}, need at least {least}")
    if found > most:
        raise ValueError(f"{name}: got more than {most}, need {least} to {most}")
    return found


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {_shown(value)}, need True or False")
    return value


def choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """One of ``choices``."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: got {value!r}, need one of {', '.join(map(repr, choices))}")
    return value


def generator(value: Any) -> None:
    """A torch.Generator, or None."""
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator: got {_shown(value)}, need a torch.Generator or None")


def unknown_option(name: str, known: Iterable[str]) -> TypeError:
    """The error for a keyword that nothing takes, with the known one it may have been meant for."""
    known = sorted(set(known))
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return TypeError(f"{name}: unknown option; {hint}")


def _shown(value: object) -> str:
    """The value where it is short, else its type."""
    return repr(value) if isinstance(value, bool | str) else type(value).__name__
