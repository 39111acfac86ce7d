"""torch's own losses in their own layouts, with the analytic L'' and torch's own mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hfcore.autograd.data import BatchPart
from hfcore.autograd.loss_graph import LinearMap
from hfcore.autograd.losses import (
    CallableLoss,
    MeanLoss,
    PackageLoss,
    SplitLoss,
    check_classes,
    check_distributions,
)
from hfcore.losses import Loss
from hfcore.losses.checks import check_loss
from hfcore.losses.from_torch import converted


def split_loss(loss: Loss | MeanLoss, dim: int) -> SplitLoss:
    """The loss of batches. Raises TypeError for something that is neither kind of loss."""
    if isinstance(loss, Loss):
        return PackageLoss(loss, dim)
    check_loss(loss)
    return recognised(loss, dim) or CallableLoss(loss, dim)


def recognised(loss: Any, dim: int) -> TorchLoss | None:
    """``nn.CrossEntropyLoss`` and the like with their mean; None for everything else.

    A cross-entropy's classes lie along axis 1, so that cases along another than the first are none
    of this.
    """
    if not isinstance(loss, nn.Module) or getattr(loss, "reduction", None) != "mean":
        return None
    served = converted(loss)
    if served is None or (served.takes_classes and dim != 0):
        return None
    return TorchLoss(loss, served, dim)


class TorchLoss(PackageLoss):
    """A loss of :func:`hfcore.losses.from_torch`, cases as torch lays them out.

    Cross-entropy: outputs ``[B,k,…]``, classes and mask ``[B,…]``, a mean by the weights of what
    counts. The others: outputs and targets of one shape, a mean over all numbers; a mask has their
    leading axes. What does not fit (classes as probabilities, targets that are broadcast) goes
    through autograd, with batches averaged by the same counts.
    """

    def __init__(self, module: nn.Module, loss: Loss, dim: int) -> None:
        super().__init__(loss, dim)
        self.plain = CallableLoss(module, dim)
        self.factor = 1.0
        self.counts_cases = False

    def counted(self, part: BatchPart) -> float:
        targets = part.targets
        if not isinstance(targets, Tensor) or self.loss.takes_classes != _are_classes(targets):
            return float(part.count)
        k = 1 if self.loss.takes_classes or targets.ndim < 2 else targets.shape[-1]
        moved = self._moved_targets(targets)
        _check_mask(part.mask, moved.shape if self.loss.takes_classes else moved.shape[:-1])
        return self.loss.counted(moved, part.mask, k, part.count)

    def total(self, counted: Iterable[float]) -> float:
        return 1.0 / self.loss.scale(counted) * self.loss.factor

    def check(self, outputs: Tensor, part: BatchPart) -> None:
        self._check_targets(outputs, part.targets)
        if part.mask is None:
            self.plain.check(outputs, part)
        elif not self._fits(outputs, part):
            raise ValueError(
                f"mask: needs targets as {self.plain.loss} takes them without broadcasting, of "
                f"outputs {list(outputs.shape)}"
            )
        else:
            _check_mask(part.mask, self._moved(outputs).shape[:-1])
        if outputs.ndim > 1:
            check_classes(part, outputs.shape[1])

    def cases(self, outputs: Tensor, part: BatchPart) -> Tensor:
        if not self._fits(outputs, part):
            return self.plain.cases(outputs, part) * self._per_case(part)
        return super().cases(*self._arranged(outputs, part)) * self.loss.factor

    def case(self, outputs: Tensor, part: BatchPart) -> Tensor:
        if not self._fits(outputs, part):
            return self.plain.case(outputs, part) * self._per_case(part)
        return self.cases(outputs, part).sum()

    def mean(self, outputs: Tensor, part: BatchPart) -> Tensor:
        if not self._fits(outputs, part):
            return self.plain.mean(outputs, part) * self._per_case(part)
        return self.cases(outputs, part).mean()

    def value(self, outputs: Tensor, part: BatchPart) -> float:
        if not self._fits(outputs, part):
            return self.plain.value(outputs, part) * self._per_case(part)
        s, y = self._arranged(outputs, part)
        check_distributions(s, self.loss)
        return self.loss.value(*self._as_sequence(s, y), scale=self.loss.factor / part.count)

    def gradient(self, outputs: Tensor, part: BatchPart) -> Tensor:
        if not self._fits(outputs, part):
            return self.plain.gradient(outputs, part) * self._per_case(part)
        s, targets, mask = self._as_sequence(*self._arranged(outputs.detach(), part))
        g = self.loss.gradient(s, targets, mask, scale=self.loss.factor / part.count)
        return self._back(g, outputs.shape)

    def second(self, outputs: Tensor, part: BatchPart) -> LinearMap:
        if not self._fits(outputs, part):
            second, each = self.plain.second(outputs, part), self._per_case(part)
            return lambda R: second(R) * each
        s, targets, mask = self._as_sequence(*self._arranged(outputs, part))
        apply = self.loss.hessian(s, targets, mask).averaged(part.count / self.loss.factor)
        flat, shape = s.shape, outputs.shape  # not s: it is large
        return lambda R: self._back(apply(self._moved(R).reshape(flat)), shape)

    def root(self, outputs: Tensor, part: BatchPart) -> LinearMap:
        if not self._fits(outputs, part):
            root, each = self.plain.root(outputs, part), self._per_case(part) ** 0.5
            return lambda w: root(w) * each
        s, targets, mask = self._as_sequence(*self._arranged(outputs, part))
        hessian, scale = self.loss.hessian(s, targets, mask), self.loss.factor**0.5
        return lambda w: self._back(scale * hessian.root(self._moved(w).reshape(s.shape)), w.shape)

    def _check_targets(self, outputs: Tensor, targets: Any) -> None:
        """Raise ValueError or TypeError for targets that torch refuses, or lays across the cases.

        Of targets with fewer or more axes than the outputs torch's broadcasting lines up the last
        ones: ``[B]`` beside outputs ``[B,1]`` would compare every case with every other.
        """
        if not isinstance(targets, Tensor):
            return
        if not self.loss.takes_classes:
            if targets.ndim != outputs.ndim:
                raise ValueError(
                    f"targets: got shape {list(targets.shape)}, need {list(outputs.shape)} like "
                    "the outputs"
                )
            return
        classes = list(outputs.shape[:1] + outputs.shape[2:])
        need = f"{classes} of int64 classes, or {list(outputs.shape)} of floating shares of each"
        if outputs.ndim < 2:
            return
        self.loss.check_output_count(outputs.shape[1])
        fits = classes if _are_classes(targets) else list(outputs.shape)
        if list(targets.shape) != fits:
            raise ValueError(
                f"targets: got shape {list(targets.shape)} of {targets.dtype}, need {need}"
            )

    def _per_case(self, part: BatchPart) -> float:
        """What one case counts, where a mean over cases is given."""
        return self.counted(part) / part.count

    # ---- layouts

    def _fits(self, outputs: Tensor, part: BatchPart) -> bool:
        """Whether outputs and targets lie as they do in torch's documentation."""
        targets = part.targets
        if not isinstance(targets, Tensor):
            return False
        if self.loss.takes_classes:
            classes = outputs.shape[:1] + outputs.shape[2:]
            return outputs.ndim >= 2 and _are_classes(targets) and targets.shape == classes
        weighted = self.loss.has_weights and outputs.ndim < 2
        return targets.shape == outputs.shape and targets.dtype == outputs.dtype and not weighted

    def _moved(self, s: Tensor) -> Tensor:
        """The numbers of one output along the last axis."""
        if self.loss.takes_classes:
            return s.movedim(1, -1)
        return s.unsqueeze(-1) if s.ndim == 1 else s

    def _back(self, arranged: Tensor, shape: torch.Size) -> Tensor:
        """What :meth:`_moved` has made, in the outputs' own ``shape``."""
        if not self.loss.takes_classes:
            return arranged.reshape(shape)
        return arranged.reshape(shape[:1] + shape[2:] + shape[1:2]).movedim(-1, 1)

    def _arranged(self, outputs: Tensor, part: BatchPart) -> tuple[Tensor, BatchPart]:
        y = self._moved_targets(part.targets)
        return self._moved(outputs), replace(part, targets=y)

    def _moved_targets(self, targets: Tensor) -> Tensor:
        return targets if self.loss.takes_classes else self._moved(targets)


def _check_mask(mask: Tensor | None, need: torch.Size) -> None:
    if mask is not None and mask.shape != need:
        raise ValueError(f"mask: got shape {list(mask.shape)}, need {list(need)}")


def _are_classes(targets: Any) -> bool:
    return isinstance(targets, Tensor) and not targets.is_floating_point()
