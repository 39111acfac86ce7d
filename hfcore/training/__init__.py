"""Training runs: the loop, its callbacks, and what it leaves on disk."""

from __future__ import annotations

from hfcore.training.atomic import write_atomic
from hfcore.training.callbacks import Callback, Scheduled, TrainState
from hfcore.training.environment import describe_environment
from hfcore.training.errors import CheckpointError, ConfigMismatchError, RunFolderError
from hfcore.training.loop import TrainResult, train
from hfcore.training.run_folder import read_metrics

__all__ = [
    "Callback",
    "CheckpointError",
    "ConfigMismatchError",
    "RunFolderError",
    "Scheduled",
    "TrainResult",
    "TrainState",
    "describe_environment",
    "read_metrics",
    "train",
    "write_atomic",
]
