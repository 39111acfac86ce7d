"""A run folder: config.json, metrics.jsonl, TensorBoard events, plots and checkpoints.

RUN/config.json       what was trained, how, and on what machine
RUN/metrics.jsonl     one line an iteration; non-finite numbers as "nan", "inf", "-inf"
RUN/tensorboard/      the same numbers as TensorBoard events
RUN/plots/            PNG files, drawn when training ends
RUN/checkpoints/      see checkpoint.py
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from hfcore.training.atomic import (
    lock_folder,
    remove_temporary,
    temporary_of,
    unlock_folder,
    write_atomic,
)
from hfcore.training.checkpoint import Checkpoints
from hfcore.training.errors import (
    CheckpointError,
    ConfigMismatchError,
    RunFolderError,
    cannot_write,
)

logger = logging.getLogger("hfcore")

# Sections of the config that may differ on resume: neither changes what a step computes.
MAY_DIFFER = ("run", "environment")


class RunFolder:
    """One run on disk. Use :meth:`create` or :meth:`resume`, then :meth:`start_logs`."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = config
        self.checkpoints = Checkpoints(path / "checkpoints", fingerprint(config))
        self._lock = lock_folder(path)
        self._metrics: TextIO | None = None
        self._events: Any = None

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> RunFolder:
        """A new folder; it holds a run from the moment its config.json is there.

        Raises :class:`RunFolderError` if there is a run, or cannot be one.
        """
        config_path = path / "config.json"
        try:
            path.mkdir(parents=True, exist_ok=True)
            entries = list(path.iterdir())
        except OSError as error:
            raise cannot_write(path, error) from error
        if config_path.exists():
            raise RunFolderError(
                f"{path}: already holds a run; resume it (resume=True, --resume) or name another"
            )
        if set(entries) - {temporary_of(config_path)}:  # a kill before config.json left that
            raise RunFolderError(f"{path}: is neither empty nor a run folder; name another")
        folder = cls(path, config)
        try:
            folder._write_config()
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def resume(cls, path: Path, config: Mapping[str, Any]) -> RunFolder:
        """An existing folder.

        Raises :class:`RunFolderError` if there is none, :class:`ConfigMismatchError` naming the
        keys if it belongs to another config.
        """
        if not path.is_dir():
            raise RunFolderError(f"{path}: there is no run folder to resume")
        folder = cls(path, config)
        try:
            remove_temporary(path)
            stored = _read_config(path / "config.json")
            if stored is None:
                if any(path.iterdir()):
                    raise RunFolderError(f"{path}: has no config.json, it is not a run folder")
                logger.info("%s: the run was stopped before it began, starting it", path)
            else:
                _compare(path, stored, config)
                folder.checkpoints.clean()
            folder._write_config()
        except BaseException:
            folder.close()
            raise
        return folder

    def require_unstarted(self) -> None:
        """Raise :class:`CheckpointError` if iterations were logged: their checkpoint is lost."""
        path = self.path / "metrics.jsonl"
        if path.exists() and path.stat().st_size:
            raise CheckpointError(
                f"{self.checkpoints.folder}: holds no checkpoint although {path.name} has "
                "iterations; the run cannot be resumed"
            )

    def start_logs(self, after: int) -> None:
        """Open metrics and events for appending, cut back to what belongs to iteration ``after``.

        Later lines, and a last line torn by a kill, are dropped; TensorBoard is told to forget
        later points.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import, not every user needs it

        path = self.path / "metrics.jsonl"
        try:
            _cut_metrics(path, after)
            self._metrics = path.open("a", encoding="utf-8")
            self._events = SummaryWriter(
                str(self.path / "tensorboard"), purge_step=after + 1 if after else None
            )
        except OSError as error:
            raise cannot_write(path, error) from error

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one iteration to metrics.jsonl and the events."""
        assert self._metrics is not None, "start_logs comes first"
        try:
            self._metrics.write(json.dumps(_plain(line), allow_nan=False) + "\n")
            self._metrics.flush()
            for key, value in line.items():
                if isinstance(value, int | float) and key != "iteration":
                    self._events.add_scalar(key, float(value), line["iteration"])
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def checkpoint(self, iteration: int, state: Mapping[str, object]) -> None:
        """Make the log durable up to here, then commit a checkpoint."""
        if self._metrics is not None:
            try:
                os.fsync(self._metrics.fileno())
                self._events.flush()
            except OSError as error:
                raise cannot_write(self.path, error) from error
        self.checkpoints.save(iteration, state)

    def draw(self, *, solved_below: float | None) -> tuple[Path, ...]:
        """Draw the plots from metrics.jsonl; returns their paths."""
        from hfcore.training.plots import draw_plots  # matplotlib is slow to import

        folder = self.path / "plots"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        metrics = read_metrics(self.path / "metrics.jsonl")
        return draw_plots(metrics, folder, solved_below=solved_below)

    def close(self) -> None:
        """Close the logs; what was written stays."""
        try:
            if self._metrics is not None:
                self._metrics.close()
            if self._events is not None:
                self._events.close()
        finally:
            unlock_folder(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except OSError as error:
            if value is None:  # never hide the error that ended the run
                raise cannot_write(self.path, error) from error

    def _write_config(self) -> None:
        text = json.dumps(_plain(self.config), indent=2, allow_nan=False) + "\n"
        write_atomic(self.path / "config.json", text.encode())


def fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of the part of ``config`` that determines the trajectory."""
    identity = {k: v for k, v in config.items() if k not in MAY_DIFFER}
    return hashlib.sha256(json.dumps(_plain(identity), sort_keys=True).encode()).hexdigest()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, numbers as numbers; a torn last line is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break  # a kill tears only the last line
        lines.append({k: _number(v) for k, v in line.items()})
    return lines


def _cut_metrics(path: Path, after: int) -> None:
    if not path.exists():
        if after:
            logger.warning("%s: is missing, the log starts at iteration %d", path, after + 1)
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = []
    for line in text.splitlines(keepends=True):
        try:
            iteration = json.loads(line)["iteration"]
        except ValueError:
            break
        if iteration <= after and line.endswith("\n"):
            kept.append(line)
    if "".join(kept) != text:
        write_atomic(path, "".join(kept).encode())


def _read_config(path: Path) -> dict[str, Any] | None:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RunFolderError(f"{path}: corrupt, it is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise RunFolderError(f"{path}: corrupt, it holds no settings")
    return config


def _compare(path: Path, stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    there, here = _dotted(stored), _dotted(_plain(config))
    differing = [
        f"{key} is {there.get(key, 'absent')!r} there and {here.get(key, 'absent')!r} here"
        for key in sorted(there.keys() | here.keys())
        if key.split(".")[0] not in MAY_DIFFER and there.get(key) != here.get(key)
    ]
    if differing:
        raise ConfigMismatchError(
            f"{path}: this run folder belongs to another config: {'; '.join(differing)}"
        )
    for key, value in here.items():
        if key.startswith("environment.") and there.get(key) != value:
            logger.warning(
                "%s: was begun with %s = %r, now %r: the same bits are not promised",
                path,
                key.removeprefix("environment."),
                there.get(key),
                value,
            )


def _dotted(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with keys like ``problem.length``."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_dotted(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _plain(value: Any) -> Any:
    """JSON without NaN and Infinity, which the format does not know."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(float(value))
    return value


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value
