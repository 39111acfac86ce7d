"""What several commands share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from hfcore.bindings import cuda
from hfcore.sweeps.grid import MOST_SEEDS

__all__ = [
    "INTERRUPTED",
    "SEED",
    "Decorator",
    "FiniteRange",
    "check_resume",
    "decorated_by",
    "device_of",
    "folder_option",
    "names",
    "new_run_dir",
    "numbers",
    "seeds_of",
]

Decorator = Callable[[Callable[..., None]], Any]

MOST_SEED = 2**63 - 1  # of torch's generators and of NumPy's
SEED = click.IntRange(0, MOST_SEED)

INTERRUPTED = 130  # the shell's code for a program ended by Ctrl-C

folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where the files are.  [default: HFCORE_DATA, else they are downloaded]",
)


class FiniteRange(click.FloatRange):
    """A range of floats without NaN and infinity, which no comparison keeps out."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number; BadParameter for text that is none, and outside of the range."""
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{found} is not a finite number.", param, ctx)
        return found


def decorated_by(options: Sequence[Decorator]) -> Decorator:
    """One decorator for several options, in their order in the help."""

    def decorate(command: Callable[..., None]) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def device_of(name: str) -> torch.device:
    """The value of --device; BadParameter says why it cannot be had."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise click.BadParameter(
            f"got {name!r}, need cpu or cuda", param_hint="--device"
        ) from error
    if device.type == "cuda" and (reason := cuda.why_no_device()) is not None:
        raise click.BadParameter(f"got {name!r}, but {reason}", param_hint="--device")
    if device.type not in ("cpu", "cuda"):
        raise click.BadParameter(f"got {name!r}, need cpu or cuda", param_hint="--device")
    return device


def new_run_dir(name: str) -> Path:
    """``runs/<name>``, numbered if that is taken."""
    candidates = (f"{name}-{i}" if i > 1 else name for i in itertools.count(1))
    return next(p for p in (Path("runs") / c for c in candidates) if not p.exists())


def numbers(text: str, option: str) -> tuple[float, ...]:
    """``1e-3,3e-4``; BadParameter for anything else, and for a number given twice."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"got {text!r}, need numbers separated by commas", param_hint=option
        ) from error
    if len(set(values)) < len(values):
        raise click.BadParameter(f"got {text!r}, need different numbers", param_hint=option)
    return values


def names(text: str, option: str) -> list[str]:
    """``add-80,mul-80``; BadParameter for an empty name, and for a name given twice."""
    values = [part.strip() for part in text.split(",")]
    if not all(values) or len(set(values)) < len(values):
        raise click.BadParameter(
            f"got {text!r}, need different names separated by commas", param_hint=option
        )
    return values


def seeds_of(text: str, option: str = "--seeds") -> list[int]:
    """``4`` is 0,1,2,3; ``0,1,5`` are these, and ``7,`` is one. BadParameter for other text."""
    try:
        values = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or min(values) < 0 or len(set(values)) < len(values):
        raise click.BadParameter(
            f"got {text!r}, need a number of seeds or different seeds separated by commas",
            param_hint=option,
        )
    if "," in text:
        if max(values) > MOST_SEED:
            raise click.BadParameter(
                f"got {text!r}, need seeds of at most {MOST_SEED}", param_hint=option
            )
        return values
    if not 1 <= values[0] <= MOST_SEEDS:
        need = "at least 1 seed" if values[0] < 1 else f"at most {MOST_SEEDS} seeds"
        raise click.BadParameter(f"got {text!r}, need {need}", param_hint=option)
    return list(range(values[0]))


def check_resume(resume: bool, run_dir: Path | None) -> None:
    """UsageError for --resume without --run-dir."""
    if resume and run_dir is None:
        raise click.UsageError("--resume needs --run-dir, the run folder to continue")
