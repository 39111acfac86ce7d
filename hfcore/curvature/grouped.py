"""Losses, gradients, updates of many nets of one shape at once, ``theta [G,N]``, on the same data.

The nets lie on the group axis of the fused ops, which give each of them the bits it has alone. It
is what sweeps and first-order training run on; curvature is not needed here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from hfcore.batches import Batch
from hfcore.bindings import loss as loss_ops
from hfcore.bindings import recurrence as ops
from hfcore.bindings.dense import Scratch
from hfcore.bindings.graphs import Graphs
from hfcore.bindings.momentum import Step, served_by_cuda, stacked, update_through
from hfcore.bindings.net import Net, net_gradient, net_update
from hfcore.bindings.recurrence import RnnWeights, split_flat
from hfcore.curvature.mlp_cases import Cases, check_cases
from hfcore.curvature.mlp_passes import Layers
from hfcore.curvature.rnn import Sequences, check_batch
from hfcore.losses import Loss
from hfcore.models.mlp import MLP, Autoencoder
from hfcore.models.rnn import RNN
from hfcore.nets.unaltered import why_not_fused

# Bytes of activations that nets worked on together fill: on the CPU what stays in the cache.
CPU_BYTES = 8 << 20
CUDA_BYTES = 8 << 30
# Cases up to which whole nets are one call on the CPU, if their activations fill no more than that;
# above, the layers' own ops share the cases out among more threads.
MINIBATCH = 4096
# Where batches are best, wherever the nets are: there their values are checked without waiting.
BATCHES_ON = torch.device("cpu")


class Data(Protocol):
    """A checked batch: Sequences or Cases."""

    @property
    def device(self) -> torch.device: ...

    def placed(self, place: Callable[[str, Tensor], Tensor]) -> Self: ...


D = TypeVar("D", bound=Data)


class GroupedGradient(ABC):
    """Loss, gradient and update of G nets that share one shape and one loss.

    A batch need not lie on the nets' device: see ``BATCHES_ON``.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.loss = loss
        self._parameter = next(model.parameters())  # whose dtype is that of all
        self._work = Scratch()
        self._graphs = Graphs()

    @abstractmethod
    def prepare(self, batch: Batch) -> Any:
        """Check a batch once and bring it to the form that :meth:`gradient` takes."""

    @abstractmethod
    def _check_classes(self, data: Any) -> None:
        """Check what :meth:`prepare` leaves to the ops: they cannot look while being recorded."""

    @abstractmethod
    def gradient(self, theta: Tensor, data: Any, out: Tensor) -> Tensor:
        """Mean losses ``[G]`` float64 of the nets ``theta [G,N]``; gradients go to ``out [G,N]``.

        Both are means over the cases (sequences), a sequence counting the sum over its outputs.
        """

    @abstractmethod
    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """Outputs ``[G,T,B,k]``, of an MLP ``[G,B,k]``, for ``inputs [T,B,n]`` or ``[B,n]``."""

    def tested(
        self, theta: Tensor, batch: Batch, scale: float
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some nets after the other: their outputs and scale·Σ of their losses ``[g]`` float64.

        The batch lies with the nets.
        """
        cases = batch.inputs.shape[:-1].numel()
        for nets in _blocks(theta, cases * self._units()):
            s = self.outputs(theta[nets], batch.inputs)
            missing = (None,) * (2 if s.ndim == 3 else 1)  # group, and time where there is none
            mask = None if batch.mask is None else batch.mask[missing]
            by_steps = s.unsqueeze(1) if s.ndim == 3 else s
            kind, targets = self.loss.kind, batch.targets[missing]
            yield nets, s, loss_ops.loss_value(kind, by_steps, targets, mask, scale=scale)

    @abstractmethod
    def _units(self) -> int:
        """Activations of one net for one case, and one step."""

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
        update = self._replayed if served_by_cuda(theta) else self._updated
        return update(theta, velocity, data, step, active, out)

    def _updated(
        self,
        theta: Tensor,
        velocity: Tensor,
        data: Data,
        step: Step,
        active: Tensor | None,
        out: Tensor | None,
    ) -> Tensor:
        return update_through(
            lambda point, out: self.gradient(point, data, out),
            theta,
            velocity,
            step,
            active=active,
            point=self._work.take("point", theta, *theta.shape),
            out=self._work.take("gradient", theta, *theta.shape) if out is None else out,
        )

    def _replayed(
        self,
        theta: Tensor,
        velocity: Tensor,
        data: Data,
        step: Step,
        active: Tensor | None,
        out: Tensor | None,
    ) -> Tensor:
        """The same from a CUDA graph: batch and coefficients go to places that stay."""
        self._check_classes(data)
        key: list[object] = []

        def put(name: str, value: Tensor) -> Tensor:
            key.append((name, value.shape, value.dtype))
            return self._graphs.put(name, value, theta.device)

        there = data.placed(put)
        fixed = Step(*put("step", stacked(step, theta)))
        for array in (theta, velocity, active, out):
            key.append(None if array is None else (array.data_ptr(), array.shape))

        def work() -> Tensor:
            # Buffers of its own: those of other shapes grow, and move.
            kept, self._work = self._work, Scratch()
            try:
                return self._updated(theta, velocity, there, fixed, active, out)
            finally:
                self._work = kept

        # A copy: the next update writes its losses to the same place.
        return self._graphs.run(tuple(key), work, theta.device).clone()


def grouped_gradient(model: nn.Module, loss: Loss) -> GroupedGradient | None:
    """The fused path for nets shaped like ``model``; None for a module that has none."""
    if type(model) not in (RNN, MLP, Autoencoder):  # one derived from them may compute otherwise
        return None
    if why_not_fused(model) is not None:
        return None
    if isinstance(model, RNN):
        return GroupedRnn(model, loss) if _is_plain(model) else None
    assert isinstance(model, MLP)
    return GroupedMlp(model, loss) if _is_plain(model) else None


def _is_plain(model: RNN | MLP) -> bool:
    """Its parameters are those it was made with, none frozen, tied or computed; no sparse W_hh."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    if isinstance(model, RNN):
        return names == list(RnnWeights._fields) and not model.sparse
    layers = range(len(model.layers))
    return names == [f"layers.{l}.{part}" for l in layers for part in ("weight", "bias")]


class GroupedRnn(GroupedGradient):
    """Nets shaped like one :class:`hfcore.RNN`."""

    def __init__(self, model: RNN, loss: Loss) -> None:
        super().__init__(model, loss)
        self.model = model

    def prepare(self, batch: Batch) -> Sequences:
        return check_batch(self.model, self.loss, batch, dtype=self._parameter.dtype)

    def _check_classes(self, data: Sequences) -> None:
        loss_ops.check_values(self.loss.kind, self.model.output_size, data.targets, data.mask)

    def gradient(self, theta: Tensor, data: Sequences, out: Tensor) -> Tensor:
        data = _beside(data, theta)
        kind, e, scale = self.loss.kind, self.model.nonlinearity, 1.0 / data.count
        losses = torch.empty(len(theta), dtype=torch.float64, device=theta.device)
        T, B, H = data.x.shape[1], data.count, self.model.hidden_size
        for nets in _blocks(theta, T * B * H):
            w = split_flat(theta[nets], self.model.shape)
            # One buffer for all updates: fresh pages cost as much as the arithmetic.
            states = self._work.take("states", theta, nets.stop - nets.start, T, B, H)
            h, s = ops.rnn_forward(data.x, w, nonlinearity=e, steps=data.steps, out=states)
            assert h is not None
            losses[nets] = loss_ops.loss_value(kind, s, data.targets, data.mask, scale=scale)
            gs = loss_ops.loss_gradient(kind, s, data.targets, data.mask, scale=scale)
            ops.rnn_backward(data.x, h, w, gs, nonlinearity=e, steps=data.steps, out=out[nets])
        return losses

    def _units(self) -> int:
        return self.model.hidden_size + self.model.output_size

    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        w = split_flat(theta, self.model.shape)
        e = self.model.nonlinearity
        return ops.rnn_forward(inputs.unsqueeze(0), w, nonlinearity=e, states=False)[1]


class GroupedMlp(GroupedGradient):
    """Nets shaped like one :class:`hfcore.MLP`."""

    def __init__(self, model: MLP, loss: Loss) -> None:
        super().__init__(model, loss)
        self.model = model
        self._net = Net(loss.kind, model.sizes, model.activations)

    def prepare(self, batch: Batch) -> Cases:
        return check_cases(self.model, self.loss, batch, dtype=self._parameter.dtype)

    def _check_classes(self, data: Cases) -> None:
        loss_ops.check_values(self.loss.kind, self.model.sizes[-1], data.targets, None)

    def gradient(self, theta: Tensor, data: Cases, out: Tensor) -> Tensor:
        data = _beside(data, theta)
        if self._as_whole_nets(theta, data):
            scale, y = 1.0 / data.count, data.targets
            return net_gradient(self._net, data.x, y, theta, scale=scale, out=out)[0]
        losses = torch.empty(len(theta), dtype=torch.float64, device=theta.device)
        for nets in _blocks(theta, self._activations(data)):
            losses[nets] = self._by_layers(theta[nets], data, out[nets])
        return losses

    def update(
        self,
        theta: Tensor,
        velocity: Tensor,
        data: Cases,
        step: Step,
        *,
        active: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        if not self._as_whole_nets(theta, data):
            return super().update(theta, velocity, data, step, active=active, out=out)
        return net_update(
            self._net,
            data.x,
            data.targets,
            theta,
            velocity,
            step,
            scale=1.0 / data.count,
            active=active,
            out=out,
            checked=True,
        )

    def _units(self) -> int:
        return sum(self.model.sizes)

    def _activations(self, data: Cases) -> int:
        return self._units() * data.count

    def _as_whole_nets(self, theta: Tensor, data: Cases) -> bool:
        fits = self._activations(data) * theta.element_size() <= CPU_BYTES
        return theta.device.type == "cpu" and data.count <= MINIBATCH and fits

    def _by_layers(self, theta: Tensor, data: Cases, out: Tensor) -> Tensor:
        kind, scale = self.loss.kind, 1.0 / data.count
        layers = Layers(theta, self.model.sizes, self.model.activations, self._work)
        ys = layers.states(data.x, "state")
        s = ys[-1].unsqueeze(1)
        losses = loss_ops.loss_value(kind, s, data.of_steps, None, scale=scale)
        gs = self._work.take("gs", s, *s.shape)
        loss_ops.loss_gradient(kind, s, data.of_steps, None, out=gs)
        layers.backward(ys, layers.through_output(gs[:, 0], ys), out, scale=scale)
        return losses

    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        layers = Layers(theta, self.model.sizes, self.model.activations, self._work)
        return layers.outputs(inputs.unsqueeze(0))


def _beside(data: D, theta: Tensor) -> D:
    """The batch on the nets' device."""
    if data.device == theta.device:
        return data
    return data.placed(lambda _, value: value.to(theta.device))


def _blocks(theta: Tensor, activations: int) -> Iterator[slice]:
    """Nets worked on together, each with so many ``activations``."""
    budget = CUDA_BYTES if theta.device.type == "cuda" else CPU_BYTES
    size = max(1, budget // (activations * theta.element_size()))
    for start in range(0, len(theta), size):
        yield slice(start, min(start + size, len(theta)))
