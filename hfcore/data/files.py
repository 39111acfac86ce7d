"""Where data files come from: a folder, HFCORE_DATA, or a verified download kept in the cache.

A folder holds the files either directly or under the sub-folder of their set (``mnist/``,
``olivetti/``, …). A folder that is named, by argument or by HFCORE_DATA, is binding: a file that is
missing there is an error, not a download. Files that were repacked lie at no address: without a
folder they are looked for in the cache alone.
"""

from __future__ import annotations

import hashlib
import io
import os
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hfcore.arguments import path as checked_path
from hfcore.bindings.cache import cache_folder
from hfcore.training.atomic import write_atomic
from hfcore.training.errors import RunFolderError, cannot_write

VARIABLE = "HFCORE_DATA"
TIMEOUT = 60.0  # seconds without an answer

Folder = str | os.PathLike[str] | None


class DataFileError(RuntimeError):
    """A data file is missing, damaged or another one; the message says what to put where."""


@dataclass(frozen=True)
class DataFile:
    """One known file: ``name`` of the set ``group``, its size in bytes and SHA-256."""

    group: str
    name: str
    size: int
    sha256: str
    url: str
    repacked: bool = False
    """The address holds what the file was made from, not the file."""

    def read(self, folder: Folder = None) -> bytes:
        """The verified bytes, from ``folder``, else HFCORE_DATA, else the cache or a download.

        Raises :class:`DataFileError`.
        """
        named = folder if folder is not None else os.environ.get(VARIABLE) or None
        if named is None:
            return self._from_cache()
        place = checked_path("folder", named)
        path = self.find(place)
        if path is None:
            raise DataFileError(f"{place / self.name}: is not there; {self._remedy()}")
        return self._verified(path)

    def find(self, folder: Path) -> Path | None:
        """Where the file is under ``folder``, or None."""
        places = (folder / self.group / self.name, folder / self.name)
        return next((path for path in places if path.is_file()), None)

    def _verified(self, path: Path) -> bytes:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataFileError(f"{path}: cannot be read: {error.strerror}") from error
        reason = self._damage(data)
        if reason is not None:
            raise DataFileError(f"{path}: {reason}; {self._remedy()}")
        return data

    def _damage(self, data: bytes) -> str | None:
        """Why these are not the file's bytes, or None."""
        if len(data) < self.size:
            return f"is truncated, {len(data)} of {self.size} bytes"
        digest = hashlib.sha256(data).hexdigest()
        if digest != self.sha256:
            return f"is damaged or another file, its SHA-256 begins {digest[:12]}"
        return None

    def _remedy(self) -> str:
        made = "made from" if self.repacked else "from"
        return (
            f"put {self.name} ({self.size} bytes, SHA-256 {self.sha256[:12]}…, {made} {self.url}) "
            f"into a folder and name it as folder or in {VARIABLE}"
        )

    def _from_cache(self) -> bytes:
        path = cache_folder() / self.group / self.name
        if path.is_file() and self._damage(path.read_bytes()) is None:
            return path.read_bytes()
        if self.repacked:
            raise DataFileError(f"{path}: is not there, or damaged; {self._remedy()}")
        data = self._download()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataFileError(str(cannot_write(path.parent, error))) from error
        try:
            write_atomic(path, data)
        except RunFolderError as error:
            raise DataFileError(str(error)) from error
        return data

    def _download(self) -> bytes:
        try:
            with urllib.request.urlopen(self.url, timeout=TIMEOUT) as answer:
                data = bytes(answer.read(self.size + 1))  # never more than what is known
        except (OSError, ValueError) as error:  # URLError and timeouts are OSErrors
            raise DataFileError(
                f"{self.name}: cannot be downloaded ({error}); {self._remedy()}"
            ) from error
        reason = self._damage(data)
        if reason is not None:
            raise DataFileError(f"{self.url}: what it serves {reason}; {self._remedy()}")
        return data


def read_arrays(packed: bytes, name: str, needed: Sequence[str]) -> dict[str, np.ndarray]:
    """The ``needed`` arrays ``[…]`` of an .npz file; ``name`` is for the message.

    Raises :class:`hfcore.data.DataFileError` for what is no .npz file of plain arrays, and for one
    without some of them.
    """
    try:
        with np.load(io.BytesIO(packed)) as arrays:
            missing = [key for key in needed if key not in arrays]
            found = {key: arrays[key] for key in needed if key not in missing}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise DataFileError(f"{name}: is no .npz file of plain arrays ({error})") from error
    if missing:
        raise DataFileError(f"{name}: has no array {', '.join(missing)}")
    return found
