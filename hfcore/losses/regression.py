"""Losses of real-valued predictions and of counts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hfcore.arguments import naming_options, number
from hfcore.bindings.checks import check_choice
from hfcore.losses.base import Loss, Mean, StandIn
from hfcore.losses.kernel_loss import KernelLoss


class SquaredError(KernelLoss):
    """½‖s − y‖²; linear outputs."""

    kind = "squared"
    separable = True

    def per_output(self, s: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (s - targets).square().sum(-1)

    @property
    def likelihood(self) -> bool:
        return True


class HuberLoss(KernelLoss):
    """Σ ½d² for |d| ≤ delta, delta·(|d| − ½ delta) beyond, with d = s − y (Huber 1964).

    L'' is 1 inside and 0 outside: it depends on the targets, and outputs that are far off have no
    curvature.
    """

    kind = "huber"
    separable = True

    @naming_options
    def __init__(self, delta: float = 1.0, *, mean: Mean = "cases") -> None:
        super().__init__(mean=mean)
        if not 0.0 < number("delta", delta) < math.inf:
            raise ValueError(f"delta: got {delta}, need a finite number above 0")
        self.delta = float(delta)

    def per_output(self, s: Tensor, targets: Tensor) -> Tensor:
        d = s - targets
        far = self.delta * (d.abs() - 0.5 * self.delta)
        return torch.where(d.abs() <= self.delta, 0.5 * d.square(), far).sum(-1)

    def _options(self) -> dict[str, object]:
        delta: dict[str, object] = {} if self.delta == 1.0 else {"delta": self.delta}
        return {**delta, **super()._options()}


class PoissonNLL(KernelLoss):
    """Σ e^s − y s: counts y ≥ 0 whose rate is e^s; without the constant log y!."""

    kind = "poisson"
    nonlinearity = "exp"
    separable = True
    target_range = (0.0, math.inf)
    target_need = "values of at least 0"
    prediction_range = (0.0, math.inf)
    prediction_need = "rates of at least 0"

    def per_output(self, s: Tensor, targets: Tensor) -> Tensor:
        return (s.exp() - targets * s).sum(-1)

    def link(self, s: Tensor) -> Tensor:
        return s.exp()

    def best_constant(self, mean: Tensor, least: float = 1e-9) -> Tensor:
        return mean.clamp_min(least).log()

    @property
    def likelihood(self) -> bool:
        return True


# ŷ = φ(s), and φ'(s) from φ(s).
LINKS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "logistic": (torch.sigmoid, lambda y: y * (1 - y)),
    "tanh": (torch.tanh, lambda y: 1 - y.square()),
}
RANGES = {"logistic": (0.0, 1.0), "tanh": (-1.0, 1.0)}


class LinkedSquaredError(Loss):
    """½‖φ(s) − y‖² behind a link φ that does not match, ``"logistic"`` or ``"tanh"``.

    It is not convex in s. ``stand_in="gauss_newton"`` takes diag(φ'(s)²) for L'', which counts the
    link to the net (Martens & Sutskever 2012, section 6.3): L'' without the term of φ''. The
    others are those of :class:`Loss`.
    """

    separable = True

    @naming_options
    def __init__(self, link: str, *, mean: Mean = "cases", stand_in: StandIn | None = None) -> None:
        super().__init__(mean=mean, stand_in=stand_in)
        self.nonlinearity = check_choice("link", link, tuple(LINKS))
        self.prediction_range = RANGES[link]
        low, high = RANGES[link]
        self.prediction_need = f"values in [{low:g}, {high:g}]"

    def per_output(self, s: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (self.link(s) - targets).square().sum(-1)

    def link(self, s: Tensor) -> Tensor:
        return LINKS[self.nonlinearity][0](s)

    def best_constant(self, mean: Tensor, least: float = 1e-9) -> Tensor:
        low, high = RANGES[self.nonlinearity]
        share = (mean - low) / (high - low)
        logit = torch.logit(share, eps=least)
        return logit if self.nonlinearity == "logistic" else logit / 2

    def gauss_newton_diagonal(self, s: Tensor, targets: Tensor) -> Tensor:
        return LINKS[self.nonlinearity][1](self.link(s)).square()

    def _options(self) -> dict[str, object]:
        return {"link": self.nonlinearity, **super()._options()}
