"""Files that are wholly there or not at all, through a kill or a power cut."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

from hfcore.training.errors import RunFolderError, cannot_write

# No other program ends its files so: what a kill left behind is known to be ours.
TEMPORARY_SUFFIX = ".hfcore.tmp"


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: temporary file, fsync, rename, fsync of the folder.

    Folders above it are made where there are none.
    Raises :class:`RunFolderError` when the disk is full or the folder cannot be written; the
    old file is then untouched and the temporary one removed.
    """
    temporary = temporary_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write_all(file, data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def temporary_of(path: Path) -> Path:
    """Where :func:`write_atomic` collects what becomes ``path``."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def write_all(file: BinaryIO, data: bytes) -> None:
    """Hand all bytes to the operating system (its own function so that tests can cut it short)."""
    file.write(data)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> int | None:
    """Hold ``folder`` for this process until :func:`unlock_folder` or its end, kill -9 included.

    Raises :class:`RunFolderError` if another process holds it. None where the system has no such
    lock (Windows, some network folders).
    """
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise RunFolderError(f"{folder}: another process is training in this folder") from error
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def unlock_folder(lock: int | None) -> None:
    """Give back what :func:`lock_folder` gave, also from processes forked meanwhile.

    A DataLoader's workers share the descriptor: closing it here would leave theirs locked.
    """
    if lock is None:
        return
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)


def remove(path: Path) -> None:
    """Remove a file if it is there. Raises :class:`RunFolderError` where it cannot be."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def remove_temporary(folder: Path) -> None:
    """Remove what a kill inside :func:`write_atomic` left behind; raises as :func:`remove`."""
    for leftover in folder.glob("*" + TEMPORARY_SUFFIX):
        remove(leftover)
