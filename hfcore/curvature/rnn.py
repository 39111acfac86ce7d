"""Objective and Gauss-Newton curvature of :class:`hfcore.RNN`, on the fused recurrence ops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.bindings import loss as loss_ops
from hfcore.bindings import recurrence as ops
from hfcore.bindings.checks import check_choice, check_positive, check_tensor
from hfcore.bindings.conjugate_gradient import dot
from hfcore.bindings.recurrence import RnnWeights, split_flat
from hfcore.curvature.rnn_passes import States, backward, case_squares
from hfcore.curvature.values import all_finite
from hfcore.losses import Loss
from hfcore.models.rnn import RNN
from hfcore.objective import Curvature, CurvatureKind

Normalize = Literal["sequences", "outputs"]
StructuralDistance = Literal["matching", "quarter"]
Memory = Literal["cached", "recompute"]

# D'' of the structural term in units of e'(t). Note 1: the paper derives D'' = 1 − h² for tanh; the
# original release multiplies by 0.25, so that the same μ is four times weaker there.
STRUCTURAL_FACTOR: dict[str, float] = {"matching": 1.0, "quarter": 0.25}

# Sequences whose states are held at once while a gradient is accumulated.
GRADIENT_CHUNK = 1024
# Bytes of states that the probes of a diagonal fill at once, on the group axis.
PROBE_BYTES = 64 << 20


@dataclass(frozen=True)
class Sequences:
    """A checked batch: only the steps that have outputs are kept in targets and mask.

    ``x [1,T,B,n]``; ``steps`` int64 ``[T_out]`` or None for all; ``targets [1,T_out,B,…]``;
    ``mask [1,T_out,B]`` or None; ``outputs`` counts the unmasked ones.
    """

    x: Tensor
    steps: Tensor | None
    targets: Tensor
    mask: Tensor | None
    outputs: int

    @property
    def count(self) -> int:
        return self.x.shape[2]

    @property
    def device(self) -> torch.device:
        return self.x.device

    def placed(self, place: Callable[[str, Tensor], Tensor]) -> Sequences:
        """The same data where ``place`` puts each array, by name."""
        return Sequences(
            place("x", self.x),
            None if self.steps is None else place("steps", self.steps),
            place("targets", self.targets),
            None if self.mask is None else place("mask", self.mask),
            self.outputs,
        )

    def chunks(self, size: int) -> Iterator[Sequences]:
        """The same data in pieces of at most ``size`` sequences."""
        return (part for part, _ in self.pieces(size))

    def pieces(self, size: int) -> Iterator[tuple[Sequences, slice]]:
        """The same, each with the sequences it holds."""
        if self.count <= size:
            yield self, slice(0, self.count)
            return
        for at in range(0, self.count, size):
            part = slice(at, min(at + size, self.count))
            mask = None if self.mask is None else self.mask[:, :, part]
            yield (
                Sequences(
                    self.x[:, :, part], self.steps, self.targets[:, :, part], mask, self.outputs
                ),
                part,
            )


def check_batch(
    model: RNN, loss: Loss, batch: Batch, *, dtype: torch.dtype | None = None
) -> Sequences:
    """Check one batch against the model and the loss, and cut it to the steps with outputs.

    ``dtype``: what its values must have; None: that of the model, on whose device it then must lie.

    Raises TypeError or ValueError naming the argument: wrong rank, shape, dtype or device, empty
    batch, no time steps, a mask of nothing, NaN or Inf in inputs or in unmasked targets.
    """
    like = model.W_hh if dtype is None else None
    x = check_tensor("inputs", batch.inputs, ["T", "B", model.input_size], like=like, dtype=dtype)
    T, B = x.shape[:2]
    if T == 0 or B == 0:
        what = "time steps" if T == 0 else "sequences"
        raise ValueError(f"inputs: got shape {list(x.shape)}, need at least one of its {what}")
    if not isinstance(batch.targets, Tensor):
        raise TypeError(f"targets: got {type(batch.targets).__name__}, need a torch.Tensor")
    loss.check_targets(torch.Size([T, B, model.output_size]), batch.targets, x.dtype)
    if batch.targets.device != x.device:
        raise ValueError(f"targets: is on {batch.targets.device}, need {x.device}")
    if not all_finite(x):
        raise ValueError("inputs: holds NaN or Inf, need finite values")
    steps, targets, mask, outputs = _cut_to_outputs(batch, T, B)
    _check_target_values(loss, targets, mask)
    x = x.unsqueeze(0).contiguous()
    return Sequences(x, steps, targets.unsqueeze(0).contiguous(), _grouped(mask), outputs)


def _grouped(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.unsqueeze(0).contiguous()


def _cut_to_outputs(
    batch: Batch, T: int, B: int
) -> tuple[Tensor | None, Tensor, Tensor | None, int]:
    """(steps, targets, mask, unmasked outputs); steps and mask are None if nothing is masked."""
    if batch.mask is None:
        return None, batch.targets, None, T * B
    mask = check_tensor("mask", batch.mask, [T, B])
    if mask.device != batch.inputs.device:
        raise ValueError(f"mask: is on {mask.device}, need {batch.inputs.device}")
    if mask.dtype != torch.bool:
        if mask.dtype != batch.inputs.dtype:
            raise TypeError(f"mask: got {mask.dtype}, need torch.bool or {batch.inputs.dtype}")
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("mask: holds values other than 0 and 1")
        mask = mask.bool()
    seen = mask.numpy(force=True)  # looked at once, wherever it lies
    outputs = int(np.count_nonzero(seen))
    if outputs == 0:
        raise ValueError("mask: masks every output, need at least one that counts")
    present = np.flatnonzero(seen.any(axis=1))
    steps: Tensor | None = None
    targets = batch.targets
    if len(present) < T:
        steps = torch.from_numpy(present).to(mask.device)
        first, last = int(present[0]), int(present[-1])
        # One run of steps, above all the last one alone, is a view and not a gather.
        where = slice(first, last + 1) if last - first + 1 == len(present) else steps
        targets, mask = targets[where], mask[where]
    return steps, targets, None if outputs == len(present) * B else mask, outputs


def _check_target_values(loss: Loss, targets: Tensor, mask: Tensor | None) -> None:
    if not targets.is_floating_point() or (loss.kind != "logistic" and all_finite(targets)):
        return
    bad = ~torch.isfinite(targets)
    if loss.kind == "logistic":
        bad |= (targets < 0) | (targets > 1)
    if mask is not None:
        bad &= mask.unsqueeze(-1)
    if bool(bad.any()):
        need = "values in [0,1]" if loss.kind == "logistic" else "finite values"
        raise ValueError(f"targets: an unmasked target is {targets[bad][0].item()}, need {need}")


class RnnObjective:
    """Mean loss of an RNN over sequences, + ½ l2 ‖θ‖².

    ``normalize="sequences"``: sums over a sequence's unmasked outputs, averaged over sequences
    (Martens & Sutskever 2011). ``"outputs"``: averaged over unmasked outputs, as the original
    release does.

    ``memory="cached"`` keeps all hidden states of the curvature's data; ``"recompute"`` rebuilds
    them inside every product, to the same result.
    """

    supports_structural = True
    supports_stop = True

    def __init__(
        self,
        model: RNN,
        loss: Loss,
        *,
        l2: float = 0.0,
        normalize: Normalize = "sequences",
        structural_distance: StructuralDistance = "matching",
        memory: Memory = "cached",
    ) -> None:
        check_choice("normalize", normalize, ("sequences", "outputs"))
        check_choice("memory", memory, ("cached", "recompute"))
        check_choice("structural_distance", structural_distance, tuple(STRUCTURAL_FACTOR))
        self.model = model
        self.loss_function = loss
        self.l2 = l2
        self.normalize = normalize
        self.memory = memory
        self.structural_factor = STRUCTURAL_FACTOR[structural_distance]

    def prepare(self, data: Batch | Sequence[Batch]) -> list[Sequences]:
        """Check batches; one batch, or a list whose mean (weighted by size) is the objective."""
        batches = [data] if isinstance(data, Batch) else list(data)
        if not batches:
            raise ValueError("data: got no batch, need at least one")
        return [check_batch(self.model, self.loss_function, Batch(*b)) for b in batches]

    def minibatches(self, data: list[Sequences]) -> int:
        return len(data)

    def damping_start(self, data: list[Sequences]) -> float:
        return self.model.damping_start(data[0].x[0])

    def scale(self, data: list[Sequences]) -> float:
        """What a sum over all sequences and outputs is multiplied by."""
        if self.normalize == "sequences":
            return 1.0 / sum(part.count for part in data)
        return 1.0 / sum(part.outputs for part in data)

    def weights(self, theta: Tensor) -> RnnWeights:
        return split_flat(theta.unsqueeze(0), self.model.shape)

    def regulariser(self, theta: Tensor) -> float:
        return 0.5 * self.l2 * dot(theta, theta) if self.l2 else 0.0

    def loss(self, data: list[Sequences], theta: Tensor) -> float:
        w, scale = self.weights(theta), self.scale(data)
        total = 0.0
        for part in data:
            s = self.forward(part, w, states=False)[1]
            total += self.loss_at(part, s, scale)
        return total + self.regulariser(theta)

    def gradient(self, data: list[Sequences], theta: Tensor) -> tuple[float, Tensor]:
        w, scale = self.weights(theta), self.scale(data)
        total, gradient = 0.0, torch.zeros_like(theta)
        chunks = [chunk for whole in data for chunk in whole.chunks(GRADIENT_CHUNK)]
        # One buffer for the states of every chunk: fresh pages cost as much as the arithmetic.
        sizes = [(part.x.shape[1], part.count, self.model.hidden_size) for part in chunks]
        buffer = theta.new_empty(max(T * B * H for T, B, H in sizes))
        for part, (T, B, H) in zip(chunks, sizes, strict=True):
            states = buffer[: T * B * H].view(1, T, B, H)
            h, s = self.forward(part, w, states=True, out=states)
            total += self.loss_at(part, s, scale)
            gs = loss_ops.loss_gradient(
                self.loss_function.kind, s, part.targets, part.mask, scale=scale
            )
            assert h is not None
            gradient += ops.rnn_backward(
                part.x, h, w, gs, nonlinearity=self.model.nonlinearity, steps=part.steps
            )[0]
        if self.l2:
            gradient.add_(theta, alpha=self.l2)
        return total + self.regulariser(theta), gradient

    def squared_gradients(self, data: list[Sequences], theta: Tensor) -> Tensor:
        """Mean over sequences of the squared gradient of each ``[N]``, without the L2 term.

        A sequence's gradient is summed over time before it is squared.
        """
        w = self.weights(theta)
        total = torch.zeros_like(theta)
        for whole in data:
            for part in whole.chunks(GRADIENT_CHUNK):
                at, s = self.states_and_outputs(part, w)
                gs = self.output_gradient(part, s)
                total += case_squares(at, backward(at, gs), gs)
        return total.mul_(self.square_scale(data))

    def square_scale(self, data: list[Sequences]) -> float:
        """What a sum of squared gradients of single sequences (summed losses) is multiplied by.

        f is the mean of the sequences' losses, each of them sum·scale·count.
        """
        return self.scale(data) ** 2 * sum(part.count for part in data)

    def curvature(
        self, data: list[Sequences], theta: Tensor, kind: CurvatureKind = "ggn"
    ) -> Curvature:
        """``kind`` is "ggn", "hessian" (R-op) or "fisher"."""
        check_choice("kind", kind, ("ggn", "hessian", "fisher"))
        if kind == "ggn":
            return RnnCurvature(self, data, theta)
        from hfcore.curvature.rnn_exact import RnnFisher, RnnHessian

        return (RnnHessian if kind == "hessian" else RnnFisher)(self, data, theta)

    def states_and_outputs(self, part: Sequences, w: RnnWeights) -> tuple[States, Tensor]:
        h, s = self.forward(part, w, states=True)
        return self.states(part, w, h), s

    def states(self, part: Sequences, w: RnnWeights, h: Tensor | None) -> States:
        """What the passes of ``rnn_passes`` take; ``h`` None is recomputed."""
        if h is None:
            h, _ = self.forward(part, w, states=True)
        assert h is not None
        return States(part.x, h, w, self.model.nonlinearity, part.steps)

    def output_gradient(self, part: Sequences, s: Tensor) -> Tensor:
        """∂L/∂s, unscaled."""
        return loss_ops.loss_gradient(self.loss_function.kind, s, part.targets, part.mask)

    def forward(
        self, part: Sequences, w: RnnWeights, *, states: bool, out: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        return ops.rnn_forward(
            part.x,
            w,
            nonlinearity=self.model.nonlinearity,
            steps=part.steps,
            states=states,
            out=out,
        )

    def loss_at(self, part: Sequences, s: Tensor, scale: float) -> float:
        value = loss_ops.loss_value(
            self.loss_function.kind, s, part.targets, part.mask, scale=scale
        )
        return float(value)


def _blocks(rows: int, size: int) -> Iterator[slice]:
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


@dataclass(frozen=True)
class _Linearisation:
    """What a product needs of one batch: inputs, states (None: recomputed), the diagonal of L''."""

    part: Sequences
    h: Tensor | None
    c: Tensor


class RnnCurvature:
    """Gauss-Newton matrix of an RNN at fixed parameters and data."""

    def __init__(self, objective: RnnObjective, data: list[Sequences], theta: Tensor) -> None:
        self._objective = objective
        self._w = objective.weights(theta)
        self._scale = objective.scale(data)
        self._parts: list[_Linearisation] = []
        self._scratch = ops.Scratch()
        kind = objective.loss_function.kind
        total = 0.0
        for part in data:
            h, s = objective.forward(part, self._w, states=objective.memory == "cached")
            total += objective.loss_at(part, s, self._scale)
            c = loss_ops.loss_curvature(kind, s, part.targets, part.mask)
            self._parts.append(_Linearisation(part, h, c))
        self.loss = total + objective.regulariser(theta)

    def product(
        self,
        v: Tensor,
        *,
        damping: float = 0.0,
        structural: float = 0.0,
        out: Tensor | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        """(G + l2·I + damping·I + structural·G_S) v for ``v [N]``."""
        grouped = None if out is None else out.unsqueeze(0)
        return self.products(v.unsqueeze(0), damping, structural, grouped, stop)[0]

    def products(
        self,
        v: Tensor,
        damping: float = 0.0,
        structural: float = 0.0,
        out: Tensor | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        """The same for the rows of ``v [m,N]`` in one pass, on the group axis."""
        objective = self._objective
        total: Tensor | None = None
        for lin in self._parts:
            total = ops.rnn_gauss_newton(
                lin.part.x,
                lin.h,
                self._w,
                v,
                lin.c,
                rank_one=objective.loss_function.rank_one,
                nonlinearity=objective.model.nonlinearity,
                steps=lin.part.steps,
                scale=self._scale,
                structural=structural * objective.structural_factor,
                damping=damping + objective.l2 if total is None else 0.0,
                out=out if total is None else total,
                accumulate=total is not None,
                stop=stop,
                # Kept for CG alone: for many tangents at once it would hold as many times more.
                scratch=self._scratch if len(v) == 1 else None,
            )
        assert total is not None
        return total

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag(G) ``[N]`` without L2 and damping; see :class:`hfcore.Objective`.

        A case is a sequence: its backpropagated probe is summed over time before it is squared.
        Probes are ±1 over the outputs of each sequence, drawn from ``generator`` (None: torch's
        global one). ``probes=None`` takes one backward pass for each of a sequence's outputs.
        """
        if probes is not None:
            check_positive(probes=probes)
        scale = self._scale if probes is None else self._scale / probes
        total = self._w.W_hh.new_zeros(self._objective.model.shape.numel)
        for lin in self._parts:
            for at, c in self._chunks(lin):
                _, T_out, B, k = c.shape
                count = T_out * k if probes is None else probes
                size = max(1, PROBE_BYTES // (at.h.numel() * at.h.element_size()))
                for rows in _blocks(count, size):
                    if probes is None:
                        u = _unit_probes(rows, c)
                    else:
                        u = random_signs((rows.stop - rows.start, T_out, B, k), c, generator)
                    gs = loss_root(c, u, self._objective.loss_function.rank_one)
                    total += scale * case_squares(at, backward(at, gs), gs)
        return total

    def _chunks(self, lin: _Linearisation) -> Iterator[tuple[States, Tensor]]:
        """Chunks of a batch's sequences with their states and c."""
        for part, cases in lin.part.pieces(GRADIENT_CHUNK):
            h = None if lin.h is None else lin.h[:, :, cases]
            yield self._objective.states(part, self._w, h), lin.c[:, :, cases]


def _unit_probes(rows: slice, c: Tensor) -> Tensor:
    """Unit vectors over the T_out·k outputs of a sequence, the same for all B."""
    _, T_out, B, k = c.shape
    eye = torch.eye(T_out * k, dtype=c.dtype, device=c.device)[rows]
    return eye.view(-1, T_out, 1, k).expand(-1, -1, B, -1)


def random_signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """±1 with equal odds; a generator draws on its own device."""
    device = like.device if generator is None else generator.device
    bits = torch.randint(2, shape, generator=generator, device=device)
    return bits.to(device=like.device, dtype=like.dtype).mul_(2).sub_(1)


def loss_root(c: Tensor, u: Tensor, rank_one: bool) -> Tensor:
    """S u with S Sᵀ = L'': √c ⊙ u, for softmax √c ⊙ u − c (√cᵀ u)."""
    rooted = c.sqrt() * u
    return rooted - c * rooted.sum(-1, keepdim=True) if rank_one else rooted
