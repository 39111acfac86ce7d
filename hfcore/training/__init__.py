"""Training runs: the loop, its limits and callbacks, and what it leaves on disk."""

from __future__ import annotations

from hfcore.training.atomic import write_atomic
from hfcore.training.callbacks import Callback, Scheduled, TrainState
from hfcore.training.environment import describe_environment
from hfcore.training.errors import CheckpointError, ConfigMismatchError, RunFolderError
from hfcore.training.limits import Limits
from hfcore.training.load import LoadedRun, load_run
from hfcore.training.loop import train
from hfcore.training.phased import Phased
from hfcore.training.result import TrainResult
from hfcore.training.run_folder import read_metrics
from hfcore.training.stopping import BestModel, EarlyStopping

__all__ = [
    "BestModel",
    "Callback",
    "CheckpointError",
    "ConfigMismatchError",
    "EarlyStopping",
    "Limits",
    "LoadedRun",
    "Phased",
    "RunFolderError",
    "Scheduled",
    "TrainResult",
    "TrainState",
    "describe_environment",
    "load_run",
    "read_metrics",
    "train",
    "write_atomic",
]
