"""Losses, gradients, updates of many nets of one shape at once, ``theta [G,N]``, on the same data.

The nets lie on the group axis of the fused ops, which give each of them the bits it has alone. It
is what sweeps and first-order training run on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hfcore.batches import Batch
from hfcore.bindings.graphs import Graphs
from hfcore.bindings.momentum import Step, served_by_cuda, stacked, update_through
from hfcore.nets.data import Data
from hfcore.nets.net import FusedNet, Into, Update, blocks
from hfcore.nets.registry import net_of

# Bytes of activations that nets worked on together fill: on the CPU what stays in the cache.
CPU_BYTES = 8 << 20
CUDA_BYTES = 8 << 30
# Where batches are best, wherever the nets are: there their values are checked without waiting.
BATCHES_ON = torch.device("cpu")


@dataclass(frozen=True)
class Account:
    """What is kept of G nets from update to update, where they are and in place.

    ``active [G]`` bool: the nets that are trained; ``stopped [G]`` int64: the number of the update
    whose loss was not finite, −1 where there was none; ``summed [G]`` float64: the losses so far;
    ``done [1]`` int64: the number of the next update.
    """

    active: Tensor
    stopped: Tensor
    summed: Tensor
    done: Tensor

    @classmethod
    def of(cls, G: int, device: torch.device) -> Account:
        """Of nets before their first update."""
        return cls(
            torch.ones(G, dtype=torch.bool, device=device),
            torch.full((G,), -1, dtype=torch.int64, device=device),
            torch.zeros(G, dtype=torch.float64, device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
        )

    def add(self, losses: Tensor) -> None:
        """An update's ``losses [G]``; those of nets that were not active do not count."""
        finite = losses.isfinite()
        self.stopped.copy_(torch.where(self.active & ~finite, self.done, self.stopped))
        self.active.logical_and_(finite)
        self.summed.add_(torch.where(self.active, losses, 0.0))
        self.done.add_(1)


@dataclass(frozen=True)
class Row:
    """K updates of G nets in a row, on batches of ``cases`` that lie with the nets.

    ``theta, velocity [G,N]``; ``index [K,B]`` int64 there: the cases of each batch; ``steps
    [K,3 or 4,G]`` float64: the coefficients of each update, in the order of :class:`Step`.
    """

    theta: Tensor
    velocity: Tensor
    cases: Data
    index: Tensor
    steps: Tensor
    account: Account


class GroupedGradient:
    """Loss, gradient and update of G nets that share one shape and one loss.

    A batch need not lie on the nets' device: see ``BATCHES_ON``.
    """

    def __init__(self, net: FusedNet) -> None:
        self._net = net
        self._graphs = Graphs()

    def prepare(self, batch: Batch) -> Any:
        """Check a batch once and bring it to the form that :meth:`gradient` takes."""
        return self._net.check(batch, self._net.dtype)

    def gradient(self, theta: Tensor, data: Any, out: Tensor) -> Tensor:
        """Mean losses ``[G]`` float64 of the nets ``theta [G,N]``; gradients go to ``out [G,N]``.

        Both are the loss's mean, by default over the cases (sequences), a sequence counting the sum
        over its outputs.
        """
        net, data = self._net, _beside(data, theta)
        scale = net.loss.scale([net.counted(data)])
        whole = net.whole_gradient(theta, data, Into(out, scale))
        if whole is not None:
            return whole
        losses = torch.empty(len(theta), dtype=torch.float64, device=theta.device)
        for nets in self._together(theta, data):
            at = net.forward(theta[nets], data, fresh=False)
            losses[nets] = net.value(data, at.s, scale)
            net.gradient(at, Into(out[nets], scale))
        return losses

    def tested(
        self, theta: Tensor, batch: Batch, scale: float
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some nets after the other: their outputs and scale·Σ of their losses ``[g]`` float64.

        Outputs are ``[g,T,B,k]``, of a net without time ``[g,B,k]``. The batch lies with the nets.
        """
        net = self._net
        data = net.check_tested(batch, net.dtype)
        for nets in self._together(theta, data):
            s = net.outputs(theta[nets], data)
            yield nets, s if net.timed else s[:, 0], net.value(data, s, scale)

    def update(
        self,
        theta: Tensor,
        velocity: Tensor,
        data: Any,
        step: Step,
        *,
        active: Tensor | None = None,
        out: Tensor | None = None,
        account: Account | None = None,
    ) -> Tensor:
        """One update with momentum in place (Sutskever et al. 2013, eqs. 1-4); gives the losses.

        The gradients, those of :meth:`gradient` at θ + lookahead·v, go to ``out`` where that is
        given. A net whose loss is not finite does not move. One that is not ``active [G]`` neither,
        and its loss is NaN. With an ``account``, which is kept, the active ones are its own.
        """
        if account is not None:
            active = account.active
        update = Update(theta, velocity, data, step, active, out)
        if self._is_recorded(theta):
            return self._replayed(update, account)
        return self._counted(update, account)

    def _is_recorded(self, theta: Tensor) -> bool:
        return served_by_cuda(theta) and self._net.loss.is_recordable

    def _counted(self, update: Update, account: Account | None) -> Tensor:
        losses = self._net.whole_update(update)
        if losses is None:
            losses = self._updated(update)
        if account is not None:
            account.add(losses)
        return losses

    def resident(self, batch: Batch) -> Data:
        """Check cases once from which :meth:`row` takes batches; they lie with the nets.

        Raises TypeError or ValueError as :meth:`prepare`, also for cases with weights of their own.
        """
        data = self.prepare(batch)
        if type(data) is not Data:
            raise TypeError(
                f"batches: nets like {type(self._net.model).__name__} take no cases one by one, "
                "need those of an hf.MLP or a recurrent net of hf"
            )
        if data.w is not None:
            raise ValueError(
                "mask: differs between the cases, need the same outputs of every case where they "
                "are drawn on the device"
            )
        self._net.check_values(data)
        return data

    def row(self, row: Row) -> Tensor:
        """K updates in place, as by :meth:`update`; gives their losses ``[K,G]`` float64.

        On CUDA they are replayed from one recording, which lasts while arrays and sizes stay.
        """
        if not self._is_recorded(row.theta):
            return self._one_by_one(row)
        device, account = row.theta.device, row.account
        put = self._graphs.put
        fixed = replace(
            row, index=put("index", row.index, device), steps=put("steps", row.steps, device)
        )
        cases = (row.cases.x, row.cases.y, *(() if row.cases.w is None else (row.cases.w,)))
        arrays = (row.theta, row.velocity, *cases, *vars(account).values())
        key = tuple((t.data_ptr(), t.shape) for t in (*arrays, fixed.index, fixed.steps))

        def work() -> Tensor:
            return GroupedGradient(self._net.apart())._one_by_one(fixed)

        return self._graphs.run(("row", key), work, device).clone()

    def _one_by_one(self, row: Row) -> Tensor:
        theta, velocity, account = row.theta, row.velocity, row.account
        losses = []
        for index, step in zip(row.index, row.steps, strict=True):
            data = row.cases.taken(index)
            update = Update(theta, velocity, data, Step(*step), account.active, None)
            losses.append(self._counted(update, account))
        return torch.stack(losses)

    def _updated(self, update: Update) -> Tensor:
        (theta, velocity, data, step, active, out), work = update, self._net.work
        return update_through(
            lambda point, out: self.gradient(point, data, out),
            theta,
            velocity,
            step,
            active=active,
            point=work.take("point", theta, *theta.shape),
            out=work.take("gradient", theta, *theta.shape) if out is None else out,
        )

    def _replayed(self, update: Update, account: Account | None) -> Tensor:
        """The same from a CUDA graph: batch and coefficients go to places that stay."""
        (theta, velocity, data, step, active, out), net = update, self._net
        net.check_values(data)
        key: list[object] = []

        def put(name: str, value: Tensor) -> Tensor:
            key.append((name, value.shape, value.dtype))
            return self._graphs.put(name, value, theta.device)

        there = data.placed(put)
        fixed = update._replace(data=there, step=Step(*put("step", stacked(step, theta))))
        kept = () if account is None else vars(account).values()
        for array in (theta, velocity, active, out, *kept):
            key.append(None if array is None else (array.data_ptr(), array.shape))

        def work() -> Tensor:
            # Buffers of its own: those of other shapes grow, and move.
            return GroupedGradient(net.apart())._counted(fixed, account)

        # A copy: the next update writes its losses to the same place.
        return self._graphs.run(tuple(key), work, theta.device).clone()

    def _together(self, theta: Tensor, data: Data) -> Iterator[slice]:
        """Nets worked on together."""
        budget = CUDA_BYTES if theta.device.type == "cuda" else CPU_BYTES
        one = data.count * self._net.bytes_per_case(data)
        return blocks(len(theta), max(1, budget // one))


def grouped_gradient(
    model: nn.Module, loss: Any, batch_dim: tuple[int, int] | None = None
) -> GroupedGradient | None:
    """The fused path for nets shaped like ``model``; None for a module that has none.

    ``batch_dim``: where the cases of a module of torch's recurrent ones are, see :func:`net_of`.
    None also where the fused path trains less or other parameters than the model has.
    """
    try:
        net = net_of(model, loss, batch_dim=batch_dim)
    except ValueError:  # parameters that are frozen or tied
        return None
    return GroupedGradient(net) if net is not None and net.supports_groups else None


def _beside(data: Data, theta: Tensor) -> Data:
    """The batch on the nets' device."""
    if data.device == theta.device:
        return data
    return data.placed(lambda _, value: value.to(theta.device))
