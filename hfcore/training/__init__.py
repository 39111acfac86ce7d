"""Training runs: the loop, its callbacks, and what it leaves on disk."""

from __future__ import annotations

from hfcore.training.callbacks import Callback, Scheduled, TrainState
from hfcore.training.errors import CheckpointError, ConfigMismatchError, RunFolderError
from hfcore.training.loop import TrainResult, train

__all__ = [
    "Callback",
    "CheckpointError",
    "ConfigMismatchError",
    "RunFolderError",
    "Scheduled",
    "TrainResult",
    "TrainState",
    "train",
]
