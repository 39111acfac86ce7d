"""Checks of plain arguments: every error names the argument, what came and what is needed."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from numbers import Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")

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


def device(name: str, value: Any) -> torch.device:
    """A device as torch names it. Raises TypeError or ValueError for what is none."""
    if not isinstance(value, str | int | torch.device) or isinstance(value, bool):
        raise TypeError(f"{name}: got {_shown(value)}, need a torch.device or its name")
    try:
        return torch.device(value)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: got {value!r}, need a device such as 'cpu'") from error


def path(name: str, value: Any) -> Path:
    """A path, from a text or anything that is one."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{name}: got {type(value).__name__}, need a path")
    return Path(os.fspath(value))


def real_dtype(value: Any) -> None:
    """A real floating type of torch, or None."""
    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        got = value if isinstance(value, torch.dtype) else _shown(value)
        raise TypeError(f"dtype: got {got}, need a real floating type such as torch.float32")


def placement(dtype: Any, place: Any, draw: Any) -> None:
    """The ``dtype``, ``device`` and ``generator`` of a model, each None for torch's default."""
    real_dtype(dtype)
    if place is not None:
        device("device", place)
    generator(draw)


def check_call(name: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Raise TypeError where a function of the caller's does not take these arguments."""
    try:
        # What is called of a module is its forward; its __call__ takes anything.
        taken = function.forward if isinstance(function, nn.Module) else function
        signature(taken).bind(*arguments)
    except TypeError as error:
        need = "it is called without" if not arguments else f"it is called with {len(arguments)}"
        raise TypeError(f"{name}: takes other arguments ({error}); {need}") from error
    except ValueError:  # a compiled function that does not tell
        return


def called(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a function of the caller's gives for these arguments.

    Raises TypeError for one that takes others, and for what a function that is no Python raises,
    such as ``len``: nothing else would say where it stood. What Python of the caller's raises
    stays as it is.
    """
    try:
        return function(*arguments, **options)
    except Exception as error:
        if isinstance(error, TypeError) and not options:
            check_call(name, function, *arguments)
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise
        said = f"{name}: {_shown_function(function)} raised {type(error).__name__}: {error}"
        raise TypeError(said) from error


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


def _names(function: Callable[..., Any], *kinds: Any) -> set[str]:
    """The arguments of these kinds."""
    given = signature(function).parameters.values()
    return {p.name for p in given if p.kind in kinds and p.name != "self"}


def naming_options(function: Callable[P, R]) -> Callable[P, R]:
    """A function of named options that says which one a keyword may have been meant for.

    Such a keyword raises the TypeError of :func:`unknown_option` in place of Python's own.
    """
    return naming_options_of()(function)


def optimiser_state(state_dict: Any) -> None:
    """Raise TypeError or ValueError for what is no state of an optimiser of torch's kind."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: got {type(state_dict).__name__}, need a dict")
    missing = [key for key in ("state", "param_groups") if key not in state_dict]
    if missing:
        raise ValueError(
            f"state_dict: has no {' and no '.join(map(repr, missing))}, need what an optimiser's "
            "state_dict() gives"
        )


def naming_options_of(
    *others: Callable[..., Any], elsewhere: Mapping[str, str] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The same for a function whose further keywords go to one of ``others``.

    ``elsewhere``: of names that belong to something else, how that is written.
    """
    written = elsewhere or {}

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = _names(function, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        known = known.union(*(_names(other, Parameter.KEYWORD_ONLY) for other in others))

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if not known.issuperset(kwargs):
                unknown = next(name for name in kwargs if name not in known)
                if unknown in written:
                    raise TypeError(f"{unknown}: unknown option; it is {written[unknown]}")
                raise unknown_option(unknown, known)
            return function(*args, **kwargs)

        return checked

    return decorate


def naming_fields(kind: type[C]) -> type[C]:
    """The same of a dataclass, whose ``__init__`` is written for it."""
    kind.__init__ = naming_options(kind.__init__)  # type: ignore[method-assign]
    return kind


def _shown_function(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _shown(value: object) -> str:
    """The value where it is short, else its type."""
    return repr(value) if isinstance(value, bool | str) else type(value).__name__
