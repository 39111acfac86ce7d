"""What the curvature of a module needs of its loss: a mean over cases, and L'' at the outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian as autograd_hessian
from torch.func import hessian, vmap
from torch.nn.functional import binary_cross_entropy_with_logits

from hfcore.autograd.data import BatchPart
from hfcore.losses import Loss

MeanLoss = Callable[[Tensor, Any], Tensor]
LinearMap = Callable[[Tensor], Tensor]

PROBABILITIES = (
    "outputs: every row is a probability distribution, as if a softmax had been applied; the "
    "losses of hf.losses take the outputs before it (their gradient and L'' belong to those)"
)


class SplitLoss(Protocol):
    """A loss as a function of the outputs alone; ``dim`` is the outputs' axis of cases."""

    dim: int

    def check(self, outputs: Tensor, part: BatchPart) -> None:
        """Raise ValueError or TypeError if outputs and targets do not belong together."""

    def mean(self, outputs: Tensor, part: BatchPart) -> Tensor:
        """The mean over cases, a scalar that can be differentiated."""

    def cases(self, outputs: Tensor, part: BatchPart) -> Tensor:
        """The loss of each case, ``[B]``, differentiable."""

    def value(self, outputs: Tensor, part: BatchPart) -> float:
        """The mean as a float."""

    def second(self, outputs: Tensor, part: BatchPart) -> LinearMap:
        """R ↦ L''R of the mean, in plain torch ops; ``outputs`` are detached."""

    def root(self, outputs: Tensor, part: BatchPart) -> LinearMap:
        """w ↦ S w with S Sᵀ = L'' of the loss of each case (not of the mean)."""


class MatchingLoss:
    """A loss of ``hf.losses`` on outputs ``[…,k]``: summed over a case's outputs."""

    def __init__(self, loss: Loss, dim: int) -> None:
        self.loss = loss
        self.dim = dim

    def check(self, outputs: Tensor, part: BatchPart) -> None:
        if outputs.ndim < 2:
            raise ValueError(f"outputs: got shape {list(outputs.shape)}, need at least [B,k]")
        self.loss.check_targets(outputs.shape, part.targets, outputs.dtype)
        if part.mask is not None and part.mask.shape != outputs.shape[:-1]:
            raise ValueError(
                f"mask: got shape {list(part.mask.shape)}, need {list(outputs.shape[:-1])} like "
                "the outputs"
            )

    def cases(self, outputs: Tensor, part: BatchPart) -> Tensor:
        per = PER_OUTPUT[self.loss.kind](outputs, part.targets)
        if part.mask is not None:
            per = torch.where(part.mask, per, torch.zeros_like(per))
        return per.movedim(self.dim, 0).flatten(1).sum(1) if per.ndim > 1 else per

    def mean(self, outputs: Tensor, part: BatchPart) -> Tensor:
        return self.cases(outputs, part).mean()

    def value(self, outputs: Tensor, part: BatchPart) -> float:
        if self.loss.kind == "softmax" and _are_distributions(outputs):
            raise ValueError(PROBABILITIES)
        s, targets, mask = self._as_sequence(outputs, part)
        assert targets is not None
        return self.loss.value(s, targets, mask, scale=1.0 / part.count)

    def second(self, outputs: Tensor, part: BatchPart) -> LinearMap:
        s, _, mask = self._as_sequence(outputs, part)
        c = self.loss.curvature(s, mask).view_as(outputs) / part.count
        if not self.loss.rank_one:
            return lambda R: c * R
        p = c * part.count  # where masked c = p = 0

        def rank_one(R: Tensor) -> Tensor:
            weighted = c * R
            return weighted - p * weighted.sum(-1, keepdim=True)

        return rank_one

    def root(self, outputs: Tensor, part: BatchPart) -> LinearMap:
        """For softmax diag(p) − p pᵀ = S Sᵀ with S = diag(√p) − p √pᵀ, because √pᵀ√p = 1."""
        s, _, mask = self._as_sequence(outputs, part)
        c = self.loss.curvature(s, mask).view_as(outputs)
        q = c.sqrt()
        if not self.loss.rank_one:
            return lambda w: q * w
        return lambda w: q * w - c * (q * w).sum(-1, keepdim=True)

    def _as_sequence(
        self, outputs: Tensor, part: BatchPart
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Outputs, targets and mask with the leading dimensions flattened to ``[1,B]``."""
        lead = outputs.shape[:-1].numel()
        targets = part.targets.reshape(1, lead, *part.targets.shape[outputs.ndim - 1 :])
        mask = None if part.mask is None else part.mask.reshape(1, lead)
        return outputs.reshape(1, lead, -1).contiguous(), targets, mask


def _squared(s: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (s - y).square().sum(-1)


def _logistic(s: Tensor, y: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(s, y, reduction="none").sum(-1)


def _softmax(s: Tensor, y: Tensor) -> Tensor:
    return torch.logsumexp(s, -1) - s.gather(-1, y.unsqueeze(-1)).squeeze(-1)


# The formulas of hf.losses as differentiable functions, one value per output.
PER_OUTPUT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": _squared,
    "logistic": _logistic,
    "softmax": _softmax,
}


def _are_distributions(outputs: Tensor) -> bool:
    """Rows in [0,1] that sum to 1: by chance impossible for two rows of two outputs."""
    rows = outputs.shape[:-1].numel()
    if rows < 2 or outputs.shape[-1] < 2 or bool((outputs < 0).any()):
        return False
    off = (outputs.sum(-1) - 1).abs().max()
    return float(off) <= 16 * torch.finfo(outputs.dtype).eps * outputs.shape[-1]


class CallableLoss:
    """Any ``loss(outputs, targets)`` → scalar mean over cases, through autograd."""

    def __init__(self, loss: MeanLoss, dim: int) -> None:
        reduction = getattr(loss, "reduction", "mean")
        if isinstance(loss, nn.Module) and reduction != "mean":
            raise ValueError(
                f"loss: {type(loss).__name__} has reduction={reduction!r}, need 'mean': batches "
                "are averaged by their number of cases"
            )
        self.loss = loss
        self.dim = dim

    def check(self, outputs: Tensor, part: BatchPart) -> None:
        if part.mask is not None:
            raise ValueError("mask: needs a loss of hf.losses; give the mask to your own loss")

    def mean(self, outputs: Tensor, part: BatchPart) -> Tensor:
        value = self.loss(outputs, part.targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"loss: returned {what}, need a scalar tensor, the mean over cases")
        return value.reshape(())

    def value(self, outputs: Tensor, part: BatchPart) -> float:
        return float(self.mean(outputs.detach(), part))

    def cases(self, outputs: Tensor, part: BatchPart) -> Tensor:
        def one(s: Tensor, y: Any) -> Tensor:
            return self.loss(s.unsqueeze(self.dim), part.restore(y, self.dim)).reshape(())

        columns, dims = part.columns(self.dim)
        try:
            each: Tensor = vmap(one, in_dims=(self.dim, dims))(outputs, columns)
            return each
        except (RuntimeError, ValueError):  # data-dependent Python in the loss
            chunks = part.chunks(1)
            slices = outputs.split(1, self.dim)
            return torch.stack([self.mean(s, case) for s, case in zip(slices, chunks, strict=True)])

    def second(self, outputs: Tensor, part: BatchPart) -> LinearMap:
        with torch.enable_grad():
            s = outputs.detach().requires_grad_()
            return second_of(self.mean(s, part), s)

    def root(self, outputs: Tensor, part: BatchPart) -> LinearMap:
        """The symmetric root of each case's L'', made dense: k² numbers for k outputs a case."""
        dense = self._dense_seconds(outputs, part)
        values, vectors = torch.linalg.eigh(dense)
        smallest = float(values.min())
        if smallest < -1e-4 * float(values.abs().max()):
            raise ValueError(
                f"loss: L'' has the negative eigenvalue {smallest:.2g}, so that it has no square "
                "root; a loss that is convex in the outputs has one"
            )
        S = vectors * values.clamp_min(0).sqrt().unsqueeze(1)

        def apply(w: Tensor) -> Tensor:
            moved = w.movedim(self.dim, 0)
            return (
                torch.einsum("bij,bj->bi", S, moved.reshape(len(S), -1))
                .view(moved.shape)
                .movedim(0, self.dim)
            )

        return apply

    def _dense_seconds(self, outputs: Tensor, part: BatchPart) -> Tensor:
        """L'' of each case, ``[B,k,k]``."""
        cases = outputs.movedim(self.dim, 0)
        flat, shape = cases.reshape(len(cases), -1), cases.shape[1:]

        def one(s: Tensor, y: Any) -> Tensor:
            targets = part.restore(y, self.dim)
            return self.loss(_as(s, shape, self.dim), targets).reshape(())

        columns, dims = part.columns(self.dim)
        try:
            together: Tensor = vmap(hessian(one), in_dims=(0, dims))(flat, columns)
            return together
        except (RuntimeError, ValueError):
            rows = [
                autograd_hessian(lambda s, c=case: self.mean(_as(s, shape, self.dim), c), row)
                for row, case in zip(flat, part.chunks(1), strict=True)
            ]
            return torch.stack(rows)


def _as(s: Tensor, shape: torch.Size, dim: int) -> Tensor:
    return s.view(shape).unsqueeze(dim)


def second_of(loss: Tensor, outputs: Tensor) -> LinearMap:
    """R ↦ L''R from the graph of ``loss`` above ``outputs``.

    Raises ValueError if the loss was not computed from these outputs.
    """
    (gradient,) = torch.autograd.grad(loss, (outputs,), create_graph=True, allow_unused=True)
    if gradient is None:
        raise ValueError("closure: the loss was not computed from the outputs it returned")
    if not gradient.requires_grad:  # a loss linear in the outputs
        return torch.zeros_like

    def apply(R: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(
            gradient, (outputs,), R, retain_graph=True, materialize_grads=True
        )
        return product

    return apply


def split_loss(loss: Loss | MeanLoss, dim: int) -> SplitLoss:
    """The loss of batches. Raises TypeError for something that is neither kind of loss."""
    if isinstance(loss, Loss):
        return MatchingLoss(loss, dim)
    if not callable(loss):
        raise TypeError(
            f"loss: got {type(loss).__name__}, need a loss of hf.losses or a callable "
            "(outputs, targets) → mean loss"
        )
    return CallableLoss(loss, dim)
