"""Nets trained in step: one seed's runs, or as many of them as memory holds.

Nets of one seed see the same batches, so a batch is drawn once. Parameters and velocities lie in
``[G,N]`` arrays; a run that diverges is left alone from then on, and its row is taken out at the
next test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfcore.bindings.momentum import Step, stacked
from hfcore.counted_batches import CountedBatches
from hfcore.counted_draws import CountedDraws
from hfcore.momentum_schedules import Schedule
from hfcore.nets.data import Data
from hfcore.nets.grouped import Account, GroupedGradient, Row
from hfcore.sweeps.grid import RunSettings
from hfcore.training.data import TrainingData

# Updates that are done in a row where the cases lie on the device: one recording of a GPU.
AT_ONCE = 64
ARRAYS = 4  # θ, v and, for nets that are not updated in one go, θ + μv and the gradient


@dataclass(frozen=True)
class Resident:
    """Cases that lie with the nets, and which of them are in which batch.

    There are always the same, or those of ``batches`` that were drawn last.
    """

    cases: Data
    batches: CountedBatches | CountedDraws

    def state(self) -> dict[str, Any]:
        """None: the number of the update says all."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        pass


class Cohort:
    """Runs of one seed and their state.

    ``indices`` are the runs' places in the sweep; ``theta [G,N]`` their initial parameters;
    ``schedules`` give μ of each run, ``rate_factor`` what all rates are multiplied by, both from
    the number of updates done.
    """

    def __init__(
        self,
        indices: Sequence[int],
        runs: Sequence[RunSettings],
        theta: Tensor,
        schedules: Sequence[Schedule],
        passes: GroupedGradient,
        data: TrainingData | Resident,
        *,
        batch_size: int,
        weight_decay: float,
        rate_factor: Callable[[int], float],
    ) -> None:
        self.indices = list(indices)
        self.size = len(self.indices)  # diverged runs included
        self.runs = list(runs)
        self.schedules = list(schedules)
        self.theta = theta
        self.velocity = torch.zeros_like(theta)
        self.done = 0
        self.diverged_at: dict[int, int] = {}
        self._passes = passes
        self._data = data
        self._batch_size = batch_size
        self._weight_decay = weight_decay
        self._rate_factor = rate_factor
        self._begin_rows()

    def _begin_rows(self) -> None:
        """What depends on which runs are in the rows."""
        G, device = len(self.indices), self.theta.device
        self._rate = self._column(run.learning_rate for run in self.runs)
        self._looks = self._column(float(run.method == "nag") for run in self.runs)
        self._l2 = self._column(self._weight_decay for _ in self.runs)
        self._scheduled: list[float] = []
        self._coefficients = self._stacked_step = Step(0.0, 0.0)
        self._table = torch.empty(0, device="cpu")
        self._account = Account.of(G, device)
        self._summed = 0

    @staticmethod
    def _column(values: Iterable[float]) -> Tensor:
        """On the CPU, wherever the nets are: the ops bring it there without waiting."""
        return torch.tensor(list(values), dtype=torch.float64, device="cpu")

    def advance(self, most: int) -> int:
        """1 to ``most`` updates of every run that has not diverged; gives how many were done.

        Sutskever et al. (2013), eqs. 1-4.
        """
        count = most if not self.indices else self._updated(most)
        self.done += count
        return count

    def _updated(self, most: int) -> int:
        account, data = self._account, self._data
        account.done.fill_(self.done)
        if isinstance(data, Resident):
            most = data.batches.most(self.done, min(most, AT_ONCE))
            count = 1 << (most.bit_length() - 1)  # few lengths: each is recorded
            steps = torch.stack([self._stacked(self.done + i) for i in range(count)])
            index = data.batches(self.done, count)
            row = Row(self.theta, self.velocity, data.cases, index, steps, account)
            self._passes.row(row)
        else:
            count = 1
            (batch,) = data.batches(1, self._batch_size)
            prepared, step = self._passes.prepare(batch), self._step(self.done)
            self._passes.update(self.theta, self.velocity, prepared, step, account=account)
        self._summed += count
        return count

    def _stacked(self, t: int) -> Tensor:
        """:meth:`_step` as one array ``[3 or 4,G]``, made anew where a schedule moves."""
        step = self._step(t)
        if self._stacked_step is not step:
            self._stacked_step, self._table = step, stacked(step, self.theta)
        return self._table

    def _step(self, t: int) -> Step:
        """Coefficients after t updates; made anew where a schedule moves."""
        momenta, factor = [schedule(t) for schedule in self.schedules], self._rate_factor(t)
        if (scheduled := [factor, *momenta]) != self._scheduled:
            momentum = self._column(momenta)
            l2 = self._l2 if self._weight_decay else None
            self._scheduled = scheduled
            self._coefficients = Step(self._rate * factor, momentum, self._looks * momentum, l2)
        return self._coefficients

    def retire(self) -> None:
        """Take the runs that diverged out of the rows."""
        stopped = self._account.stopped.tolist()
        for index, at in zip(self.indices, stopped, strict=True):
            if at >= 0:
                self.diverged_at[index] = at
        self.keep([row for row, at in enumerate(stopped) if at < 0])

    def mean_losses(self) -> dict[int, float]:
        """Mean training loss of each run since the last call."""
        means = (self._account.summed / max(self._summed, 1)).tolist()
        self._account.summed.zero_()
        self._summed = 0
        return dict(zip(self.indices, means, strict=True))

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows; the others are gone."""
        if len(rows) == len(self.indices):
            return
        at = torch.tensor(rows, dtype=torch.int64, device=self.theta.device)
        losses, summed = self._account.summed[at], self._summed
        self.indices = [self.indices[row] for row in rows]
        self.runs = [self.runs[row] for row in rows]
        self.schedules = [self.schedules[row] for row in rows]
        self.theta, self.velocity = self.theta[at], self.velocity[at]
        self._begin_rows()
        self._account.summed.copy_(losses)
        self._summed = summed

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {
            "indices": self.indices,
            "done": self.done,
            "diverged_at": {str(index): at for index, at in self.diverged_at.items()},
            "theta": self.theta,
            "velocity": self.velocity,
            "active": self._account.active,
            "stopped": self._account.stopped,
            "losses": self._account.summed,
            "summed": self._summed,
            "data": self._data.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, to the bit."""
        rows = [self.indices.index(index) for index in state["indices"]]
        self.keep(rows)
        self.done = state["done"]
        self.diverged_at = {int(index): at for index, at in state["diverged_at"].items()}
        for name in ("theta", "velocity"):
            getattr(self, name).copy_(state[name])
        self._account.active.copy_(state["active"])
        self._account.stopped.copy_(state["stopped"])
        self._account.summed.copy_(state["losses"])
        self._summed = state["summed"]
        self._data.load_state(state["data"])


class Cohorts(list[Cohort]):
    """All cohorts of a sweep, as one part of its checkpoints."""

    def state_dict(self) -> list[dict[str, Any]]:
        return [cohort.state_dict() for cohort in self]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        for cohort, its_state in zip(self, state, strict=True):
            cohort.load_state_dict(its_state)
