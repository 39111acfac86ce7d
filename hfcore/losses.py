"""Matching losses, computed from the pre-nonlinearity outputs s of a model.

Each is a sum over a sequence's unmasked outputs; how sequences are averaged is the objective's
choice. The matching pair (identity, squared), (logistic, cross-entropy), (softmax, cross-entropy)
makes L'' positive semi-definite and simple (Martens & Sutskever 2011, section 3).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hfcore.bindings import loss as ops


class Loss:
    """A matching loss on outputs ``s [T,B,k]``, also ``[B,k]``, or with a leading group axis.

    ``mask [T,B]`` (bool, or 0/1 in s's dtype) says which outputs count; None means all.
    """

    kind: ClassVar[str]
    rank_one: ClassVar[bool] = False

    def value(
        self, s: Tensor, targets: Tensor, mask: Tensor | None = None, *, scale: float = 1.0
    ) -> float:
        """scale·Σ loss over unmasked outputs, accumulated in float64."""
        return float(ops.loss_value(self.kind, *_grouped(s, targets, mask), scale=scale).sum())

    def gradient(
        self, s: Tensor, targets: Tensor, mask: Tensor | None = None, *, scale: float = 1.0
    ) -> Tensor:
        """∂L/∂s, of s's shape and dtype."""
        return ops.loss_gradient(self.kind, *_grouped(s, targets, mask), scale=scale).view_as(s)

    def curvature(self, s: Tensor, mask: Tensor | None = None) -> Tensor:
        """Diagonal c of the unscaled L''; with ``rank_one`` L'' is diag(c) − c cᵀ per output."""
        grouped, _, m = _grouped(s, None, mask)
        return ops.loss_curvature(self.kind, grouped, None, m).view_as(s)

    def check_targets(self, s_shape: torch.Size, targets: Tensor, dtype: torch.dtype) -> None:
        """Raise if ``targets`` cannot belong to outputs of shape ``[T,B,k]``."""
        if targets.shape != s_shape:
            raise ValueError(
                f"targets: got shape {list(targets.shape)}, need {list(s_shape)} like the outputs"
            )
        if targets.dtype != dtype:
            raise TypeError(f"targets: got {targets.dtype}, need {dtype} like the model")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class SquaredError(Loss):
    """½‖s − y‖²; linear outputs."""

    kind = "squared"


class LogisticCrossEntropy(Loss):
    """−Σ y log σ(s) + (1−y) log(1−σ(s)) with targets in [0,1] of s's shape."""

    kind = "logistic"


class SoftmaxCrossEntropy(Loss):
    """−log softmax(s)[y] with int64 classes ``targets [T,B]``."""

    kind = "softmax"
    rank_one = True

    def check_targets(self, s_shape: torch.Size, targets: Tensor, dtype: torch.dtype) -> None:
        if targets.shape != s_shape[:-1]:
            raise ValueError(
                f"targets: got shape {list(targets.shape)}, need classes of shape "
                f"{list(s_shape[:-1])}"
            )
        if targets.dtype != torch.int64:
            raise TypeError(f"targets: got {targets.dtype}, need torch.int64 class indices")


def _grouped(
    s: Tensor, targets: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Add the axes of group and time that the ops want, where s has none."""
    missing = (None,) * (4 - s.ndim)
    grouped_targets = None if targets is None else targets[missing]
    grouped_mask = None if mask is None else mask[missing]
    return s[missing], grouped_targets, grouped_mask  # type: ignore[return-value]
