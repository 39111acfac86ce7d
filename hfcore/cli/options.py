"""What several commands share."""

from __future__ import annotations

import itertools
from pathlib import Path

import click
import torch

from hfcore.bindings import cuda

INTERRUPTED = 130  # the shell's code for a program ended by Ctrl-C


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


def check_resume(resume: bool, run_dir: Path | None) -> None:
    """UsageError for --resume without --run-dir."""
    if resume and run_dir is None:
        raise click.UsageError("--resume needs --run-dir, the run folder to continue")
