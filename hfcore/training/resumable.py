"""What a run can be stopped and taken up with: named parts that give and take their state.

Training and sweeps stand on it alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, get_type_hints

import torch

from hfcore.distributed.ranks import Ranks
from hfcore.training.checkpoint import Checkpoint
from hfcore.training.errors import CheckpointError
from hfcore.training.run_folder import RunFolder
from hfcore.training.state_tree import packed, unpacked


class Stateful(Protocol):
    """A part of a run. Its state is what :mod:`hfcore.training.state_tree` can store."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Resumable:
    """A run in an open folder, or in none: then nothing is stored.

    Of several ``ranks`` the first has the folder; what it finds there is sent to the others.

    Args:
        folder: where it is.
        parts: what is stored, in the order in which it is restored.
        done: the number of the present checkpoint, such as the iterations done.
        what: what the parts have to fit, for the message when they do not.
        ranks: the processes of the run; None: this one.
        stores: whether the first rank has a folder; None: as this one.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        parts: Mapping[str, Stateful],
        done: Callable[[], int],
        what: str,
        *,
        ranks: Ranks | None = None,
        stores: bool | None = None,
    ) -> None:
        self.folder = folder
        self._ranks = Ranks() if ranks is None else ranks
        self._stores = folder is not None if stores is None else stores
        self.parts = parts
        self._done = done
        self._what = what
        self._stored_at: int | None = None

    def begin_or_resume(self) -> None:
        """Take up the last checkpoint; a run without one starts with checkpoint 0.

        Raises :class:`CheckpointError` for one that does not fit, or if all are lost.
        """
        if not self._stores:
            return
        checkpoint = self._last()
        if checkpoint is None:
            self.save()
        else:
            self._ranks.together(lambda: self._restore(checkpoint.iteration, checkpoint.state))
            self._stored_at = checkpoint.iteration
        if self.folder is not None:
            # Before the first iteration nothing of the log is kept: what it has is logged again.
            self.folder.start_logs(self._done() or -1)

    def _last(self) -> Checkpoint | None:
        """The last checkpoint, on every rank; None where nothing has been begun."""

        def load() -> Checkpoint | None:
            assert self.folder is not None
            found = self.folder.checkpoints.load()
            if found is None:
                self.folder.require_unstarted()
            return found

        found = self._ranks.on_first(load)
        if self._ranks.size == 1:
            return found
        mine = b"" if found is None else packed({"at": found.iteration, "state": found.state})
        sent = self._ranks.sent(mine)
        if not sent:
            return None
        known = unpacked(sent)
        return Checkpoint(known["at"], known["state"])

    def states(self, *names: str) -> dict[str, Any]:
        """The present states of these parts."""
        return {name: _plain(self.parts[name].state_dict()) for name in names}

    def save(self, earlier: Mapping[str, Any] | None = None) -> None:
        """Commit a checkpoint, unless this one is there; ``earlier``: states of parts that have
        moved on since."""
        if not self._stores or self._stored_at == self._done():
            return
        self._ranks.on_first(lambda: self._write(earlier or {}))
        self._stored_at = self._done()

    def _write(self, earlier: Mapping[str, Any]) -> None:
        assert self.folder is not None
        self.folder.checkpoint(self._done(), {**self.states(*self.parts), **earlier})

    def _restore(self, iteration: int, state: Mapping[str, Any]) -> None:
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            if self._done() != iteration:
                raise ValueError(f"its state is of iteration {self._done()}")
        except Exception as error:  # whatever a state from a file can bring about
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            where = "" if self.folder is None else f"{self.folder.checkpoints.folder}: "
            raise CheckpointError(
                f"{where}iteration {iteration} does not fit {self._what}: {reason}"
            ) from error


def _plain(state: Any) -> Any:
    """A plain dict of an OrderedDict, as modules give."""
    return dict(state) if isinstance(state, dict) else state


@dataclass
class Counters:
    """A dataclass of numbers that is a part of a run. A state of other fields or types is refused
    with ValueError."""

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        names = {field.name for field in dataclasses.fields(self)}
        if not isinstance(state, dict) or state.keys() != names:
            raise ValueError(f"{type(self).__name__}: need {', '.join(sorted(names))}")
        for name, kind in get_type_hints(type(self)).items():
            value = state[name]
            if kind is float and type(value) is int:
                value = float(value)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"{name}: got {value!r}")
            setattr(self, name, value)


class RandomStates:
    """The generators that a model may draw from: torch's, and that of its GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state_dict(self) -> dict[str, Any]:
        on_cuda = self._device.type == "cuda"
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self._device) if on_cuda else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        if self._device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self._device)
