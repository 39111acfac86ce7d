"""A run folder: config.json, metrics.jsonl, TensorBoard events, plots and checkpoints.

RUN/config.json       what was trained, how, and on what machine
RUN/metrics.jsonl     one line an iteration, see metrics_log.py; non-finite numbers as "nan", "inf"
RUN/result.json       how training ended, once it has
RUN/tensorboard/      the same numbers as TensorBoard events, where TensorBoard is installed
RUN/plots/            PNG files, drawn when training ends, where matplotlib is installed
RUN/checkpoints/      see checkpoint.py
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from hfcore.extras import missing
from hfcore.training.atomic import (
    lock_folder,
    remove,
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
from hfcore.training.metrics_log import cut_metrics, plain, read_metrics, sealed_line

__all__ = ["RunFolder", "fingerprint", "read_config", "read_metrics"]

logger = logging.getLogger("hfcore")

# Sections of the config that may differ on resume: neither changes what a step computes.
MAY_DIFFER = ("run", "environment")
# Of the folder; 1 is that of the versions before, whose config.json has none.
FORMAT = 2
MAX_CONFIG_BYTES = 1 << 26
MAX_SHOWN = 120  # characters of a value in a message


class RunFolder:
    """One run on disk. Use :meth:`create` or :meth:`resume`, then :meth:`start_logs`."""

    def __init__(self, path: Path, config: Mapping[str, Any], *, keep: int = 2) -> None:
        self.path = path
        self.config = config
        self.checkpoints = Checkpoints(path / "checkpoints", fingerprint(config), keep=keep)
        self.lines = 0
        """Lines in the log when it was opened."""
        self._lock = lock_folder(path)
        self._metrics: TextIO | None = None
        self._events: Any = None

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], *, keep: int = 2) -> RunFolder:
        """A new folder; it holds a run from the moment its config.json is there.

        A run that made no iteration, as when its first one raised, is begun anew. Raises
        :class:`RunFolderError` if there is another run, or cannot be one.
        """
        config_path = path / "config.json"
        try:
            path.mkdir(parents=True, exist_ok=True)
            entries = list(path.iterdir())
        except OSError as error:
            raise cannot_write(path, error) from error
        if not config_path.exists() and set(entries) - {temporary_of(config_path)}:
            # a kill before config.json left that one
            raise RunFolderError(f"{path}: is neither empty nor a run folder; name another")
        folder = cls(path, config, keep=keep)
        try:
            if config_path.exists():
                folder._clear_unstarted()
            folder._write_config()
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def resume(cls, path: Path, config: Mapping[str, Any], *, keep: int = 2) -> RunFolder:
        """An existing folder.

        Raises :class:`RunFolderError` if there is none, :class:`ConfigMismatchError` naming the
        keys if it belongs to another config.
        """
        if not path.is_dir():
            raise RunFolderError(f"{path}: there is no run folder to resume")
        folder = cls(path, config, keep=keep)
        try:
            remove_temporary(path)
            stored = read_config(path / "config.json")
            if stored is None:
                if any(path.iterdir()):
                    raise RunFolderError(f"{path}: has no config.json, it is not a run folder")
                logger.info("%s: the run was stopped before it began, starting it", path)
            else:
                _compare(path, stored, config)
                folder.checkpoints.clean()
                remove(path / "result.json")  # of the part before
            folder._write_config()
        except BaseException:
            folder.close()
            raise
        return folder

    def _clear_unstarted(self) -> None:
        """Remove a run without an iteration; :class:`RunFolderError` where there is more."""
        checkpoints, events = self.checkpoints.folder, self.path / "tensorboard"
        first = [checkpoints / f"{0:08d}{suffix}" for suffix in (".json", ".safetensors")]
        logged, config = self.path / "metrics.jsonl", self.path / "config.json"
        ours = {config, logged, checkpoints, events, *first, *events.glob("events.*")}
        ours |= {temporary_of(path) for path in ours}
        found = [p for folder in (self.path, checkpoints, events) for p in folder.glob("*")]
        if set(found) - ours or (logged.exists() and logged.stat().st_size):
            raise RunFolderError(
                f"{self.path}: already holds a run; resume it (resume=True, --resume) or name "
                "another"
            )
        logger.info("%s: holds a run without an iteration, which is begun anew", self.path)
        # config.json last: until then a kill leaves what can be begun anew.
        for path in sorted(found, key=lambda path: path == config):
            if not path.is_dir():
                remove(path)

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

        Later lines, and a last line torn by a kill, are dropped, of ``after`` -1 all of them;
        TensorBoard is told to forget later points. Without TensorBoard there are no events.
        """
        path = self.path / "metrics.jsonl"
        try:
            self.lines = cut_metrics(path, after)
            self._metrics = path.open("a", encoding="utf-8")
            self._events = _event_writer(self.path / "tensorboard", after)
        except OSError as error:
            raise cannot_write(path, error) from error

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one iteration to metrics.jsonl and the events."""
        assert self._metrics is not None, "start_logs comes first"
        try:
            self._metrics.write(sealed_line(plain(line)))
            self._metrics.flush()
            for key, value in line.items() if self._events is not None else ():
                if isinstance(value, int | float) and key != "iteration":
                    self._events.add_scalar(key, float(value), line["iteration"])
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def checkpoint(self, iteration: int, state: Mapping[str, object]) -> None:
        """Make the log durable up to here, then commit a checkpoint."""
        if self._metrics is not None:
            try:
                os.fsync(self._metrics.fileno())
                if self._events is not None:
                    self._events.flush()
            except OSError as error:
                raise cannot_write(self.path, error) from error
        self.checkpoints.save(iteration, state)

    def draw(self, *, solved_below: float | None) -> tuple[Path, ...]:
        """Draw the plots from metrics.jsonl; returns their paths, none without matplotlib."""
        if missing("matplotlib", "no plots"):
            return ()
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

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write how training ended."""
        self._write("result.json", result)

    def _write_config(self) -> None:
        self._write("config.json", {"format": FORMAT, **self.config})

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(plain(content), indent=2, allow_nan=False) + "\n"
        write_atomic(self.path / name, text.encode())


def _event_writer(folder: Path, after: int) -> Any:
    """What writes TensorBoard's events behind iteration ``after``; None without TensorBoard."""
    if missing("tensorboard", "no TensorBoard events"):
        return None
    from torch.utils.tensorboard import SummaryWriter  # slow to import, not every user needs it

    return SummaryWriter(str(folder), purge_step=after + 1 if after > 0 else None)


def fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of the part of ``config`` that determines the trajectory."""
    identity = {k: v for k, v in config.items() if k not in MAY_DIFFER}
    return hashlib.sha256(json.dumps(plain(identity), sort_keys=True).encode()).hexdigest()


def read_config(path: Path) -> dict[str, Any] | None:
    """The settings in a config.json without their format, None if there is no such file.

    Raises :class:`RunFolderError` for one that cannot be read, is corrupt or of another format.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"no regular file of at most {MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path}: corrupt, it is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise RunFolderError(f"{path}: corrupt, it holds no settings")
    found = config.pop("format", 1)
    if found != FORMAT:
        raise RunFolderError(
            f"{path}: is of run folder format {found}, this version of hfcore reads {FORMAT}; "
            "go on with the version that began the run, or begin it anew in another folder"
        )
    return config


def _compare(path: Path, stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    there, here = dotted(stored), dotted(plain(config))
    differing = [
        f"{key} is {_shown(there, key)} there and {_shown(here, key)} here"
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


def dotted(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with keys like ``problem.length``."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(dotted(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _shown(flat: Mapping[str, Any], key: str) -> str:
    text = repr(flat.get(key, "absent"))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
