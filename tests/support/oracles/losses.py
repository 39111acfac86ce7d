"""The losses as formulas of torch that any transform differentiates, in any dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

import hfcore as hf

LOSSES = (
    hf.losses.SquaredError(),
    hf.losses.LogisticCrossEntropy(),
    hf.losses.SoftmaxCrossEntropy(),
)


def per_output(kind: str, s: Tensor, y: Tensor, delta: float = 1.0) -> Tensor:
    """Loss ``[...]`` of each output vector ``s [...,k]``; ``y`` is alike, or classes ``[...]``."""
    if kind == "huber":
        return F.huber_loss(s, y, reduction="none", delta=delta).sum(-1)
    if kind == "poisson":
        return F.poisson_nll_loss(s, y, reduction="none").sum(-1)
    if kind == "squared":
        return 0.5 * (s - y).square().sum(-1)
    if kind == "logistic":
        return F.binary_cross_entropy_with_logits(s, y, reduction="none").sum(-1)
    return -torch.log_softmax(s, -1).gather(-1, y.unsqueeze(-1)).squeeze(-1)


def per_case(kind: str, s: Tensor, y: Tensor, dim: int = 0) -> Tensor:
    """``[B]``: sums over all outputs of each case, which the axis ``dim`` counts."""
    losses = per_output(kind, s, y).movedim(dim, 0)
    return losses.flatten(1).sum(1) if losses.ndim > 1 else losses


def targets(kind: str, lead: tuple[int, ...], k: int, draw: torch.Generator) -> Tensor:
    """Random float64 ``[*lead,k]`` between 0 and 1, or classes ``lead``."""
    if kind == "softmax":
        return torch.randint(k, lead, generator=draw)
    return torch.rand(*lead, k, generator=draw, dtype=torch.float64)
