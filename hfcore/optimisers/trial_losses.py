"""f at the points that a step tries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfcore.objective import Objective
from hfcore.optimisers.roles import same_data
from hfcore.optimisers.statistics import Ledger
from hfcore.step_interrupt import check_interrupt


class TrialLosses:
    """The objective at θ ``[N]`` and at θ + αp; the ledger counts every evaluation."""

    def __init__(self, objective: Objective, theta: Tensor, ledger: Ledger) -> None:
        self._objective, self._theta, self._ledger = objective, theta, ledger
        self._at = torch.empty_like(theta)
        self._at_start: list[tuple[Any, float]] = []  # (data, f(θ) on them)

    def at_start(self, data: Any) -> float:
        """f(θ) on the data, evaluated once."""
        for known, value in self._at_start:
            if same_data(known, data):
                return value
        value = self._evaluate(data, self._theta)
        self._at_start.append((data, value))
        return value

    def moved(self, data: Any, p: Tensor, alpha: float = 1.0) -> float:
        """f(θ + αp) on the data, for ``p [N]``."""
        return self._evaluate(data, torch.add(self._theta, p, alpha=alpha, out=self._at))

    def _evaluate(self, data: Any, theta: Tensor) -> float:
        check_interrupt()
        self._ledger.objective_evaluations += self._objective.minibatches(data)
        return self._objective.loss(data, theta)
