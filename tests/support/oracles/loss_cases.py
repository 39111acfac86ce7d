"""Every loss with every option, torch's formula of it, and data."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfcore.losses import (
    HuberLoss,
    LogisticCrossEntropy,
    Loss,
    PoissonNLL,
    SoftmaxCrossEntropy,
    SquaredError,
)

T, B, K = 3, 5, 4
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)
POS = torch.tensor([3.0, 0.5, 1.0, 0.0], dtype=torch.float64)
EPS = torch.finfo(torch.float64).eps

# The loss of each output [...] from s [...,k] and its targets, by torch.
Oracle = Callable[[Tensor, Tensor], Tensor]


class Quartic(Loss):
    """Σ (s − y)⁴: a formula of a user's own, convex, a sum over outputs."""

    separable = True

    def per_output(self, s: Tensor, targets: Tensor) -> Tensor:
        return (s - targets).pow(4).sum(-1)


class Norm(Loss):
    """√(1 + ‖s − y‖²): convex, not a sum over outputs."""

    def per_output(self, s: Tensor, targets: Tensor) -> Tensor:
        return (1 + (s - targets).square().sum(-1)).sqrt()


class StudentT(Loss):
    """log(1 + ‖s − y‖²): not convex, not a sum over outputs."""

    def per_output(self, s: Tensor, targets: Tensor) -> Tensor:
        return (s - targets).square().sum(-1).log1p()


class Case(NamedTuple):
    loss: Loss
    oracle: Oracle
    targets: str  # real, counts, shares, classes


def of_classes(**options: object) -> Oracle:
    def oracle(s: Tensor, y: Tensor) -> Tensor:
        per = F.cross_entropy(s.flatten(0, -2), y.flatten(), reduction="none", **options)  # type: ignore[arg-type]
        return per.view(y.shape)

    return oracle


def summed(function: Callable[..., Tensor], **options: object) -> Oracle:
    return lambda s, y: function(s, y, reduction="none", **options).sum(-1)


bce = F.binary_cross_entropy_with_logits
SOFT = SoftmaxCrossEntropy
CASES = {
    "squared": Case(SquaredError(), lambda s, y: 0.5 * (s - y).square().sum(-1), "real"),
    "huber": Case(HuberLoss(0.7), summed(F.huber_loss, delta=0.7), "real"),
    "poisson": Case(PoissonNLL(), summed(F.poisson_nll_loss), "counts"),
    "logistic": Case(LogisticCrossEntropy(), summed(bce), "shares"),
    "logistic-weight": Case(
        LogisticCrossEntropy(weight=WEIGHT), summed(bce, weight=WEIGHT), "shares"
    ),
    "logistic-pos": Case(
        LogisticCrossEntropy(pos_weight=POS), summed(bce, pos_weight=POS), "shares"
    ),
    "logistic-both": Case(
        LogisticCrossEntropy(weight=WEIGHT, pos_weight=POS),
        summed(bce, weight=WEIGHT, pos_weight=POS),
        "shares",
    ),
    "softmax": Case(SOFT(), of_classes(), "classes"),
    "softmax-weight": Case(SOFT(weight=WEIGHT), of_classes(weight=WEIGHT), "classes"),
    "softmax-ignore": Case(SOFT(ignore_index=2), of_classes(ignore_index=2), "classes"),
    "softmax-smooth": Case(SOFT(label_smoothing=0.2), of_classes(label_smoothing=0.2), "classes"),
    "softmax-all": Case(
        SOFT(weight=WEIGHT, ignore_index=1, label_smoothing=0.3),
        of_classes(weight=WEIGHT, ignore_index=1, label_smoothing=0.3),
        "classes",
    ),
    "own-separable": Case(Quartic(), lambda s, y: (s - y).pow(4).sum(-1), "real"),
    "own": Case(Norm(), lambda s, y: (1 + (s - y).square().sum(-1)).sqrt(), "real"),
}
MASKS = ("none", "bool", "weights")


def draw(kind: str, lead: tuple[int, ...], seed: int = 0, k: int = K) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    s = 1.5 * torch.randn(*lead, k, generator=generator, dtype=torch.float64)
    if kind == "classes":
        return s, torch.randint(k, lead, generator=generator)
    y = torch.rand(*lead, k, generator=generator, dtype=torch.float64)
    if kind == "real":
        y = 3 * y - 1
    return s, (3 * y).round() if kind == "counts" else y


def mask_of(kind: str, lead: tuple[int, ...]) -> Tensor | None:
    if kind == "none":
        return None
    generator = torch.Generator().manual_seed(9)
    keep = torch.rand(lead, generator=generator) < 0.6
    weights = keep * 3 * torch.rand(lead, generator=generator, dtype=torch.float64)
    return keep if kind == "bool" else weights


def total(case: Case, s: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    per = case.oracle(s, y)
    return per.sum() if mask is None else torch.where(mask != 0, per * mask, 0.0).sum()


MODULES: dict[str, tuple[nn.Module, str]] = {
    "ce": (nn.CrossEntropyLoss(), "classes"),
    "ce-weight": (nn.CrossEntropyLoss(weight=WEIGHT), "classes"),
    "ce-ignore": (nn.CrossEntropyLoss(ignore_index=2), "classes"),
    "ce-all": (nn.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.3), "classes"),
    "ce-sum": (nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"), "classes"),
    "bce": (nn.BCEWithLogitsLoss(), "shares"),
    "bce-weight": (nn.BCEWithLogitsLoss(weight=WEIGHT, pos_weight=POS), "shares"),
    "mse": (nn.MSELoss(), "real"),
    "mse-sum": (nn.MSELoss(reduction="sum"), "real"),
    "huber": (nn.HuberLoss(delta=0.4), "real"),
    "smooth-l1": (nn.SmoothL1Loss(beta=0.4), "real"),
    "poisson": (nn.PoissonNLLLoss(), "counts"),
}
