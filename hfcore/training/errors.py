"""What can go wrong with a run on disk, each with its own type."""

from __future__ import annotations

import errno
from pathlib import Path


class RunFolderError(RuntimeError):
    """A run folder cannot be created, read or written; the message names the path and why."""


class CheckpointError(RunFolderError):
    """No usable checkpoint, or state that cannot be stored; the message names the file or key."""


class ConfigMismatchError(ValueError):
    """A run folder belongs to another config; the message names each differing key."""


class ExecutorError(RuntimeError):
    """A worker of an executor lacks what it needs, or has ended; the message says what to do."""


def cannot_write(path: Path, error: OSError) -> RunFolderError:
    """The error for a failed write, saying "disk full" where that is the reason."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunFolderError(
            f"{path}: the disk is full ({error.strerror}); what was stored before is intact, "
            "free some space and resume the run"
        )
    if isinstance(error, FileExistsError):  # what makes folders has no other use for it
        return RunFolderError(f"{path}: is a file, need a folder")
    return RunFolderError(f"{path}: cannot be written: {error.strerror or error}")
