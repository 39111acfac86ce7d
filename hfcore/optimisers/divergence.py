"""How far the distributions of a model's outputs have moved."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Normal,
    kl_divergence,
)

from hfcore.arguments import called

MakesDistribution = Callable[[Tensor], Distribution]


def _normal(outputs: Tensor) -> Distribution:
    """Of means and logarithms of standard deviations ``[…,2k]``."""
    if outputs.ndim < 1 or outputs.shape[-1] % 2:
        raise ValueError(
            f"outputs: got shape {list(outputs.shape)}, need means and logarithms of standard "
            "deviations along the last axis, as many of both"
        )
    mean, log_deviation = outputs.chunk(2, dim=-1)
    return Independent(Normal(mean, log_deviation.exp()), 1)


# By name; each takes outputs [...].
DISTRIBUTIONS: dict[str, MakesDistribution] = {
    "categorical": lambda outputs: Categorical(logits=outputs),
    "bernoulli": lambda outputs: Bernoulli(logits=outputs),
    "normal": _normal,
}


class Divergence:
    """Mean KL(before ‖ after) over cases, from the distributions of ``outputs […]``."""

    def __init__(self, distribution: str | MakesDistribution, outputs: Tensor) -> None:
        self._make: MakesDistribution = (
            DISTRIBUTIONS[distribution] if isinstance(distribution, str) else distribution
        )
        outputs = outputs.detach()
        self._shape = outputs.shape
        if not bool(torch.isfinite(outputs).all()):
            raise ValueError("closure: returned outputs with NaN or Inf, need finite values")
        self._before = self._made(outputs)

    def mean(self, outputs: Tensor) -> Tensor:
        """The mean ``[]`` of those of ``outputs […]``, which can be differentiated.

        Raises TypeError where torch knows no divergence of the two, ValueError for outputs of
        another shape.
        """
        self._check(outputs)
        try:
            return kl_divergence(self._before, self._made(outputs)).mean()
        except NotImplementedError as error:
            name = type(self._before).__name__
            raise TypeError(f"distribution: torch knows no kl_divergence of {name}") from error

    def value(self, outputs: Tensor) -> float:
        """The mean as a float; infinite where ``outputs […]`` stand for no distribution."""
        outputs = outputs.detach()
        self._check(outputs)
        if not bool(torch.isfinite(outputs).all()):
            return math.inf
        try:
            return float(self.mean(outputs))
        except ValueError:  # torch's: as of a deviation that has come to 0
            return math.inf

    def _check(self, outputs: Tensor) -> None:
        if outputs.shape != self._shape:
            raise ValueError(
                f"closure: returned outputs of shape {list(outputs.shape)}, need "
                f"{list(self._shape)} as in the call before of this step"
            )

    def _made(self, outputs: Tensor) -> Distribution:
        made = called("distribution", self._make, outputs)
        if not isinstance(made, Distribution):
            raise TypeError(
                f"distribution: gave {type(made).__name__}, need a torch.distributions.Distribution"
            )
        return made
