"""Sweeps that are resumed with another number of updates although μ or ε falls at their end.

The checkpoint from which the last phase began stays; from there it can be done again elsewhere.
"""

from __future__ import annotations

from hfcore.sweeps.settings import SweepSettings
from hfcore.training.checkpoint import Checkpoints
from hfcore.training.errors import CheckpointError, ConfigMismatchError


def before_last_phase(checkpoints: Checkpoints, settings: SweepSettings, cohorts: int) -> None:
    """Make the newest checkpoint one that fits the end of the sweep as it is now.

    A sweep that has begun its last phase, of another end, goes back to where that began. Raises
    ConfigMismatchError where it cannot.
    """
    begins = settings.last_phase
    if begins is None:
        return
    newest = checkpoints.load()
    if newest is not None:
        planned, done = _progress(newest.state)
        if planned != settings.updates and done > min(planned - settings.ending, begins):
            _rewind(checkpoints, settings, planned, cohorts)
    # The number of a sweep's checkpoint is that of the updates of all cohorts.
    checkpoints.lasting = begins * cohorts


def _rewind(checkpoints: Checkpoints, settings: SweepSettings, planned: int, cohorts: int) -> None:
    begun = planned - settings.ending
    message = (
        f"updates: got {settings.updates:,}, but the sweep in {checkpoints.folder.parent} is past "
        f"the point from which its last {settings.ending:,} of {planned:,} updates begin, "
        "and "
    )
    if settings.updates < planned:
        raise ConfigMismatchError(f"{message}cannot end earlier")
    try:
        checkpoints.rewind(begun * cohorts)
    except CheckpointError as error:
        raise ConfigMismatchError(
            f"{message}has no checkpoint from there: one stays where test_every divides that point"
        ) from error


def _progress(state: dict[str, object]) -> tuple[int, int]:
    """The updates that were planned, and those that the furthest cohort has done.

    Raises CheckpointError for a state without them.
    """
    try:
        progress, cohorts = state["progress"], state["cohorts"]
        planned = progress["updates"]  # type: ignore[index]
        done = max(cohort["done"] for cohort in cohorts)  # type: ignore[attr-defined]
        return int(planned), int(done)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint is not that of a sweep: {error!r}") from error
