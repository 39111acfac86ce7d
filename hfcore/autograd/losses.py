"""What the curvature of a module needs of its loss: a mean over cases, and L'' at the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian as autograd_hessian
from torch.func import hessian, vmap

from hfcore.arguments import called
from hfcore.autograd.data import NO_DEPENDENCE, BatchPart, no_graph
from hfcore.autograd.loss_graph import LinearMap, second_of_graph
from hfcore.losses import Loss
from hfcore.losses.applied import PROBABILITIES
from hfcore.losses.hessian import symmetric_root

NOT_OF_OUTPUTS = "closure: the loss was not computed from the outputs it returned"

MeanLoss = Callable[[Tensor, Any], Tensor]

NO_MASK = "mask: needs a loss of hf.losses, or one of torch's that hf.losses.from_torch takes"


class SplitLoss(Protocol):
    """A loss as a function of the outputs alone; ``dim`` is the outputs' axis of cases.

    f = factor·Σ Lᵢ / :meth:`total` of what the batches are :meth:`counted`; with ``counts_cases``
    that is the mean over cases. The mean of a piece of the data is factor·Σ Lᵢ / its cases.
    """

    dim: int
    factor: float
    counts_cases: bool
    has_stand_in: bool

    def counted(self, part: BatchPart) -> float:
        """What a batch counts in the mean of several."""

    def total(self, counted: Iterable[float]) -> float:
        """What all batches count. Raises ValueError where nothing does."""

    def check(self, outputs: Tensor, part: BatchPart) -> None:
        """Raise ValueError or TypeError if outputs and targets do not belong together.

        A loss of ``hf.losses`` takes ``outputs […,k]``, a callable whatever it takes itself.
        """

    def mean(self, outputs: Tensor, part: BatchPart) -> Tensor:
        """The mean over the cases of a piece, a scalar ``[]`` that can be differentiated."""

    def cases(self, outputs: Tensor, part: BatchPart) -> Tensor:
        """The loss of each case, Lᵢ ``[B]``, differentiable."""

    def case(self, outputs: Tensor, part: BatchPart) -> Tensor:
        """Lᵢ of the one case that ``part`` holds, a scalar ``[]`` that can be differentiated."""

    def value(self, outputs: Tensor, part: BatchPart) -> float:
        """The mean over the cases of ``outputs […,k]`` as a float."""

    def gradient(self, outputs: Tensor, part: BatchPart) -> Tensor:
        """The derivative of the mean by ``outputs […]``, of their shape."""

    def second(self, outputs: Tensor, part: BatchPart) -> LinearMap:
        """The map R ↦ L''R of the mean for ``R […,k]`` like the outputs, in plain torch ops.

        The outputs are detached. It may write to R.
        """

    def root(self, outputs: Tensor, part: BatchPart) -> LinearMap:
        """The map w ↦ S w ``[…,k]`` with S Sᵀ = L'' of the loss of each case (not of the mean).

        Raises ValueError where L'' has a negative eigenvalue.
        """


class PackageLoss:
    """A loss of ``hf.losses`` on outputs ``[…,k]``: summed over a case's outputs."""

    def __init__(self, loss: Loss, dim: int) -> None:
        self.loss = loss
        self.dim = dim
        self.factor = loss.factor
        self.counts_cases = loss.means_cases
        self.has_stand_in = loss.stand_in is not None

    def counted(self, part: BatchPart) -> float:
        k = 1 if self.loss.takes_classes else part.targets.shape[-1]
        return self.loss.counted(part.targets, part.mask, k, part.count)

    def total(self, counted: Iterable[float]) -> float:
        return self.factor / self.loss.scale(counted)

    def check(self, outputs: Tensor, part: BatchPart) -> None:
        if outputs.ndim < 2:
            raise ValueError(f"outputs: got shape {list(outputs.shape)}, need at least [B,k]")
        self.loss.check_targets(outputs.shape, part.targets, outputs.dtype)
        self.loss.check_output_count(outputs.shape[-1])
        check_classes(part, outputs.shape[-1])
        if part.mask is not None and part.mask.shape != outputs.shape[:-1]:
            raise ValueError(
                f"mask: got shape {list(part.mask.shape)}, need {list(outputs.shape[:-1])} like "
                "the outputs"
            )

    def cases(self, outputs: Tensor, part: BatchPart) -> Tensor:
        per = self.loss.weighted_per_output(outputs, part.targets, part.mask)
        return per.movedim(self.dim, 0).flatten(1).sum(1) if per.ndim > 1 else per

    def case(self, outputs: Tensor, part: BatchPart) -> Tensor:
        return self.cases(outputs, part).sum()

    def mean(self, outputs: Tensor, part: BatchPart) -> Tensor:
        mean = self.cases(outputs, part).mean()
        return mean if self.factor == 1 else mean * self.factor

    def value(self, outputs: Tensor, part: BatchPart) -> float:
        check_distributions(outputs, self.loss)
        scale = self.factor / part.count
        return self.loss.value(*self._as_sequence(outputs, part), scale=scale)

    def gradient(self, outputs: Tensor, part: BatchPart) -> Tensor:
        s, targets, mask = self._as_sequence(outputs.detach(), part)
        g = self.loss.gradient(s, targets, mask, scale=self.factor / part.count)
        return g.view(outputs.shape)

    def second(self, outputs: Tensor, part: BatchPart) -> LinearMap:
        s, targets, mask = self._as_sequence(outputs, part)
        hessian = self.loss.hessian(s, targets, mask)
        apply, shape = hessian.averaged(part.count / self.factor), s.shape  # not s: it is large
        return lambda R: apply(R.reshape(shape)).view(R.shape)

    def root(self, outputs: Tensor, part: BatchPart) -> LinearMap:
        s, targets, mask = self._as_sequence(outputs, part)
        hessian = self.loss.hessian(s, targets, mask)
        return lambda w: hessian.root(w.reshape(s.shape)).view(w.shape)

    def _as_sequence(
        self, outputs: Tensor, part: BatchPart
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Outputs, targets and mask with the leading dimensions flattened to ``[1,B]``."""
        lead = outputs.shape[:-1].numel()
        targets = part.targets.reshape(1, lead, *part.targets.shape[outputs.ndim - 1 :])
        mask = None if part.mask is None else part.mask.reshape(1, lead)
        return outputs.reshape(1, lead, -1).contiguous(), targets, mask


def check_classes(part: BatchPart, outputs: int) -> None:
    """Raise ValueError where a target is a class beyond the number of outputs."""
    if part.largest_class >= outputs:
        raise ValueError(
            f"targets: got class {part.largest_class}, need classes below {outputs}, the number of "
            "outputs"
        )


def check_distributions(outputs: Tensor, loss: Loss) -> None:
    """Raise ValueError where the rows of ``outputs […,k]`` are what a softmax gives already."""
    if loss.takes_classes and _are_distributions(outputs):
        raise ValueError(PROBABILITIES)


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
        if isinstance(loss, nn.Module) and reduction not in ("mean", "batchmean"):
            raise ValueError(
                f"loss: {type(loss).__name__} has reduction={reduction!r}, need 'mean': batches "
                "are averaged by their number of cases"
            )
        self.loss = loss
        self.dim = dim
        self.factor = 1.0
        self.counts_cases = True
        self.has_stand_in = False

    def counted(self, part: BatchPart) -> float:
        return float(part.count)

    def total(self, counted: Iterable[float]) -> float:
        return sum(counted)

    def check(self, outputs: Tensor, part: BatchPart) -> None:
        if part.mask is not None:
            raise ValueError(f"{NO_MASK}; give the mask to your own loss")

    def mean(self, outputs: Tensor, part: BatchPart) -> Tensor:
        value = called("loss", self.loss, outputs, part.targets)
        return _scalar(value)

    def value(self, outputs: Tensor, part: BatchPart) -> float:
        return float(self.mean(outputs.detach(), part))

    def cases(self, outputs: Tensor, part: BatchPart) -> Tensor:
        def one(s: Tensor, y: Any) -> Tensor:
            case = part.restore(y, self.dim)
            return _scalar(called("loss", self.loss, s.unsqueeze(self.dim), case))

        columns, dims = part.columns(self.dim)
        try:
            each: Tensor = vmap(one, in_dims=(self.dim, dims))(outputs, columns)
            return each
        except (RuntimeError, ValueError):  # data-dependent Python in the loss
            chunks = part.chunks(1)
            slices = outputs.split(1, self.dim)
            return torch.stack([self.mean(s, case) for s, case in zip(slices, chunks, strict=True)])

    def case(self, outputs: Tensor, part: BatchPart) -> Tensor:
        return self.mean(outputs, part)

    def gradient(self, outputs: Tensor, part: BatchPart) -> Tensor:
        with torch.enable_grad():
            s = outputs.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.mean(s, part), s, materialize_grads=True)
        return g

    def second(self, outputs: Tensor, part: BatchPart) -> LinearMap:
        with torch.enable_grad():
            s = outputs.detach().requires_grad_()
            return second_of(self.mean(s, part), s)

    def root(self, outputs: Tensor, part: BatchPart) -> LinearMap:
        """The symmetric root of each case's L'', made dense: ``[B,k,k]`` for k numbers a case."""
        S = symmetric_root(self._dense_seconds(outputs, part))

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
            return _scalar(called("loss", self.loss, _as(s, shape, self.dim), targets))

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


def _scalar(value: Any) -> Tensor:
    """What a loss of the user's gave, as a scalar ``[]``."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"loss: returned {what}, need a scalar tensor, the mean over cases")
    return value.reshape(())


def _as(s: Tensor, shape: torch.Size, dim: int) -> Tensor:
    return s.view(shape).unsqueeze(dim)


def second_of(loss: Tensor, outputs: Tensor) -> LinearMap:
    """The map R ↦ L''R from the graph of ``loss []`` above ``outputs``, R of the outputs' shape.

    By a formula where the graph is one of torch's own losses (:mod:`hfcore.autograd.loss_graph`),
    else by differentiating twice. Raises ValueError if the loss was not computed from these
    outputs.
    """
    if not outputs.requires_grad:
        raise no_graph(NO_DEPENDENCE)
    if not loss.requires_grad:
        raise ValueError(NOT_OF_OUTPUTS)
    known = second_of_graph(loss, outputs)
    if known is not None:
        return known
    (gradient,) = torch.autograd.grad(loss, (outputs,), create_graph=True, allow_unused=True)
    if gradient is None:
        raise ValueError(NOT_OF_OUTPUTS)
    if not gradient.requires_grad:  # a loss linear in the outputs
        return torch.zeros_like

    def apply(R: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(
            gradient, (outputs,), R, retain_graph=True, materialize_grads=True
        )
        return product

    return apply
