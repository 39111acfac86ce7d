"""Whole sweeps as one batched run: learning rates × momentum × seeds on the group axis."""

from hfcore.sweeps.engine import sweep
from hfcore.sweeps.grid import RunSettings
from hfcore.sweeps.outcome import Constant, Test
from hfcore.sweeps.result import SweepResult, join
from hfcore.sweeps.rounds import sweep_in_rounds
from hfcore.sweeps.starts import AutoencoderStart, RnnStart, Start

__all__ = [
    "AutoencoderStart",
    "Constant",
    "RnnStart",
    "RunSettings",
    "Start",
    "SweepResult",
    "Test",
    "join",
    "sweep",
    "sweep_in_rounds",
]
