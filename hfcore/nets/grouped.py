"""Losses, gradients, updates of many nets of one shape at once, ``theta [G,N]``, on the same data.

The nets lie on the group axis of the fused ops, which give each of them the bits it has alone. It
is what sweeps and first-order training run on.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    ) -> Tensor:
        """One update with momentum in place (Sutskever et al. 2013, eqs. 1-4); gives the losses.

        The gradients, those of :meth:`gradient` at θ + lookahead·v, go to ``out`` where that is
        given. A net whose loss is not finite does not move. One that is not ``active [G]`` neither,
        and its loss is NaN.
        """
        update = Update(theta, velocity, data, step, active, out)
        whole = self._net.whole_update(update)
        if whole is not None:
            return whole
        recorded = served_by_cuda(theta) and self._net.loss.is_recordable
        return self._replayed(update) if recorded else self._updated(update)

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

    def _replayed(self, update: Update) -> Tensor:
        """The same from a CUDA graph: batch and coefficients go to places that stay."""
        (theta, velocity, data, step, active, out), net = update, self._net
        net.check_values(data)
        key: list[object] = []

        def put(name: str, value: Tensor) -> Tensor:
            key.append((name, value.shape, value.dtype))
            return self._graphs.put(name, value, theta.device)

        there = data.placed(put)
        fixed = update._replace(data=there, step=Step(*put("step", stacked(step, theta))))
        for array in (theta, velocity, active, out):
            key.append(None if array is None else (array.data_ptr(), array.shape))

        def work() -> Tensor:
            # Buffers of its own: those of other shapes grow, and move.
            return GroupedGradient(net.apart())._updated(fixed)

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
