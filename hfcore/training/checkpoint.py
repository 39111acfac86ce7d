"""Checkpoints: tensors in safetensors, everything else in JSON, committed by one rename.

``checkpoints/00000012.safetensors`` is written first, then ``checkpoints/00000012.json``, which
holds the tensor file's size and SHA-256. A checkpoint exists from the moment its JSON does, so a
kill at any point leaves the previous one in force. The newest two are kept.

Files with other names are somebody else's: they are neither read nor removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from hfcore.training.atomic import remove, remove_temporary, write_atomic
from hfcore.training.errors import CheckpointError, RunFolderError, cannot_write
from hfcore.training.state_tree import Json, flatten, unflatten

logger = logging.getLogger("hfcore")

FORMAT = 2

# Names of ours, of 8 digits or more.
COMMITTED = re.compile(r"(\d{8,})\.json")
TENSORS = re.compile(r"(\d{8,})\.safetensors")
MAX_JSON_BYTES = 1 << 30


@dataclass(frozen=True)
class Checkpoint:
    """The whole state of a run after ``iteration`` steps."""

    iteration: int
    state: dict[str, Any]


class _Damaged(Exception):
    """One checkpoint is not readable; the message names the file and says why."""


class Checkpoints:
    """The checkpoints in ``folder`` that belong to the run with this config ``fingerprint``."""

    def __init__(self, folder: Path, fingerprint: str, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep: got {keep}, need at least 1")
        self.folder = folder
        self.fingerprint = fingerprint
        self.keep = keep
        self.lasting: int | None = None
        """An iteration whose checkpoint stays beside the newest ones."""

    def save(self, iteration: int, state: Mapping[str, object]) -> Path:
        """Write one checkpoint and drop old ones; returns the JSON's path.

        Raises :class:`CheckpointError` for state that cannot be stored and
        :class:`RunFolderError` for a full or unwritable disk; earlier checkpoints stay intact.
        """
        tensors: dict[str, Tensor] = {}
        tree = {key: flatten(value, key, tensors) for key, value in state.items()}
        data = safetensors.torch.save(tensors)
        tensor_path = self.folder / f"{iteration:08d}.safetensors"
        body = {
            "format": FORMAT,
            "iteration": iteration,
            "config_fingerprint": self.fingerprint,
            "tensors": tensor_path.name,
            "tensors_bytes": len(data),
            "tensors_sha256": hashlib.sha256(data).hexdigest(),
            "state": tree,
        }
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        path = self.folder / f"{iteration:08d}.json"
        try:
            write_atomic(tensor_path, data)
            write_atomic(path, _seal(body))
        except RunFolderError:
            if not path.exists():
                with suppress(RunFolderError):
                    remove(tensor_path)
            raise
        self._prune(iteration)
        return path

    def load(self, iteration: int | None = None) -> Checkpoint | None:
        """The newest good checkpoint, or None if none was ever committed; or that of ``iteration``.

        A damaged one is skipped with a warning. Raises :class:`CheckpointError` naming the files
        if all are damaged, if one belongs to another config, or if there is none of ``iteration``.
        """
        damage: list[str] = []
        committed = self._committed()
        if iteration is not None:
            committed = [path for path in committed if int(path.stem) == iteration]
            if not committed:
                there = ", ".join(path.stem.lstrip("0") or "0" for path in self._committed())
                raise CheckpointError(
                    f"{self.folder}: has no checkpoint of iteration {iteration}, there are "
                    f"{there or 'none'}"
                )
        for path in committed:
            try:
                checkpoint = self._read(path)
            except _Damaged as error:
                damage.append(str(error))
                continue
            for reason in damage:
                logger.warning(
                    "skipping a damaged checkpoint: %s; going back to iteration %d (%s)",
                    reason,
                    checkpoint.iteration,
                    path,
                )
            return checkpoint
        if damage:
            raise CheckpointError(f"no good checkpoint: {'; '.join(damage)}")
        return None

    def rewind(self, iteration: int) -> None:
        """Drop what is newer than the checkpoint of ``iteration``.

        Raises :class:`CheckpointError` if that is not there or damaged; then nothing is dropped.
        """
        self.load(iteration)
        for path in self._committed():
            if int(path.stem) > iteration:
                _drop(path)

    def clean(self) -> None:
        """Remove what a kill inside :meth:`save` left behind."""
        remove_temporary(self.folder)
        committed = {path.stem for path in self._committed()}
        for path in self._named(TENSORS):
            if path.stem not in committed:
                remove(path)

    def _named(self, pattern: re.Pattern[str]) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if pattern.fullmatch(path.name)]

    def _committed(self) -> list[Path]:
        """Paths of all committed checkpoints, the newest first."""
        return sorted(self._named(COMMITTED), key=lambda p: int(p.stem), reverse=True)

    def _prune(self, newest: int) -> None:
        """Drop those that are older than the ``keep`` last ones up to the one just written."""
        older = [path for path in self._committed() if int(path.stem) <= newest]
        for path in older[self.keep :]:
            if int(path.stem) == self.lasting:
                continue
            _drop(path)

    def _read(self, path: Path) -> Checkpoint:
        body = _unseal(path)
        if body["config_fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{path}: belongs to a run with another config (fingerprint "
                f"{body['config_fingerprint'][:12]}, this run's is {self.fingerprint[:12]})"
            )
        # The name is not taken from the file: a path in it could lead anywhere.
        tensor_path = path.with_suffix(".safetensors")
        data = _read_bytes(tensor_path, body["tensors_bytes"])
        if hashlib.sha256(data).hexdigest() != body["tensors_sha256"]:
            raise _Damaged(
                f"{tensor_path}: {len(data)} bytes whose SHA-256 is not the one in {path.name}: "
                "truncated or corrupt"
            )
        try:
            state = unflatten(body["state"], safetensors.torch.load(data))
        except Exception as error:  # whatever a sealed but senseless state can bring about
            raise _Damaged(f"{path}: holds no state: {type(error).__name__}: {error}") from error
        if not isinstance(state, dict):
            raise _Damaged(f"{path}: holds no state, but {type(state).__name__}")
        return Checkpoint(body["iteration"], state)


def _drop(path: Path) -> None:
    """Remove a checkpoint, by the path of its JSON: that first, without it the rest is nothing."""
    remove(path)
    remove(path.with_suffix(".safetensors"))


def _read_bytes(path: Path, most: int, exactly: bool = True) -> bytes:
    """The content of a regular file of ``most`` bytes. Raises :class:`_Damaged`."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise _Damaged(f"{path}: is no regular file")
        if status.st_size > most or (exactly and status.st_size != most):
            raise _Damaged(f"{path}: has {status.st_size} bytes, need {most}: truncated or corrupt")
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise _Damaged(f"{path}: {error.strerror}") from error


def _canonical(body: Json) -> bytes:
    return json.dumps(body, allow_nan=False, separators=(",", ":"), sort_keys=False).encode()


def _seal(body: Json) -> bytes:
    """The JSON file: the body and its own SHA-256, so that a flipped digit is noticed."""
    digest = hashlib.sha256(_canonical(body)).hexdigest()
    return json.dumps({"sha256": digest, "body": body}, allow_nan=False).encode()


FIELDS = {
    "iteration": int,
    "config_fingerprint": str,
    "tensors": str,
    "tensors_bytes": int,
    "tensors_sha256": str,
    "state": dict,
}


def _unseal(path: Path) -> dict[str, Any]:
    """The body of a sealed file. Raises :class:`_Damaged`."""
    try:
        sealed = json.loads(_read_bytes(path, MAX_JSON_BYTES, exactly=False))
        body: dict[str, Any] = sealed["body"]
        digest = sealed["sha256"]
        found = hashlib.sha256(_canonical(body)).hexdigest()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _Damaged(f"{path}: truncated or corrupt, not a checkpoint's JSON") from error
    if found != digest or not isinstance(body, dict):
        raise _Damaged(f"{path}: corrupt, its content does not match its SHA-256")
    if body.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: has checkpoint format {body.get('format')!r}, this version reads {FORMAT}"
        )
    for name, kind in FIELDS.items():
        if type(body.get(name)) is not kind:
            raise _Damaged(f"{path}: has no {name}")
    if not 0 <= body["iteration"] == int(path.stem) or body["tensors_bytes"] < 0:
        raise _Damaged(f"{path}: is not of iteration {path.stem}")
    return body
