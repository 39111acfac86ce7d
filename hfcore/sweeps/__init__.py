"""Whole sweeps as one batched run: learning rates × momentum × seeds on the group axis."""

from hfcore.sweeps.engine import sweep
from hfcore.sweeps.grid import RunSettings, expand
from hfcore.sweeps.jobs import join_folder, run_by
from hfcore.sweeps.outcome import Constant, Outcome, Test
from hfcore.sweeps.result import SweepResult, join
from hfcore.sweeps.rounds import sweep_in_rounds
from hfcore.sweeps.starts import AutoencoderStart, RnnStart, Start, default_start

__all__ = [
    "AutoencoderStart",
    "Constant",
    "Outcome",
    "RnnStart",
    "RunSettings",
    "Start",
    "SweepResult",
    "Test",
    "default_start",
    "expand",
    "join",
    "join_folder",
    "run_by",
    "sweep",
    "sweep_in_rounds",
]
