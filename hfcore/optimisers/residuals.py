"""What a closure gives to least squares: residuals by name, as one vector with its Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hfcore.arguments import called
from hfcore.autograd.data import said_of_graphs
from hfcore.autograd.evaluation import Evaluator
from hfcore.autograd.graph import Parts
from hfcore.curvature.passes import GraphPasses, OperatorOfPasses
from hfcore.flat import FlatParameters

ResidualClosure = Callable[[], Tensor | Mapping[str, Tensor]]

# The name of residuals that come without one.
UNNAMED = "residuals"


class ResidualJacobian(OperatorOfPasses):
    """J ``[M,N]`` of the residuals of a closure by the parameters ``theta [N]``."""

    def __init__(self, r: Tensor, parameters: FlatParameters) -> None:
        leaves: Parts = list(parameters.tensors)
        super().__init__(parameters.read(), GraphPasses(r, leaves, "closure"))
        self.parameter_slices = parameters.slices()


class Residuals:
    """The residuals of a closure at what the parameters hold; counts its calls."""

    def __init__(
        self, closure: ResidualClosure, parameters: FlatParameters, module: nn.Module | None
    ) -> None:
        if not callable(closure):
            raise TypeError(f"closure: got {type(closure).__name__}, need a function")
        self._closure, self._parameters = closure, parameters
        self._evaluator = Evaluator(module, parameters, None, [], 0)
        self.slices: dict[str, slice] = {}
        self.evaluations = 0

    def value(self, theta: Tensor) -> Tensor:
        """r ``[M]`` at ``theta [N]``, without a graph."""
        with self._parameters.holding(theta):
            return self._evaluated().detach()

    def linearised(self) -> tuple[Tensor, ResidualJacobian]:
        """r ``[M]`` and J at what the parameters hold.

        Raises ValueError where they are not finite, or do not depend on the parameters.
        """
        graph = self._evaluated()
        r = graph.detach()
        if not bool(torch.isfinite(r).all()):
            raise ValueError("closure: returned residuals with NaN or Inf, need finite values")
        return r, ResidualJacobian(graph, self._parameters)

    def losses(self, r: Tensor) -> dict[str, float]:
        """½‖·‖² of the residuals of each name in ``r [M]``."""
        return {name: half_square(r[part]) for name, part in self.slices.items()}

    def _evaluated(self) -> Tensor:
        def closure() -> tuple[Tensor, Tensor]:
            r = self._joined(called("closure", self._closure))
            return r.sum(), r

        self.evaluations += 1
        with torch.enable_grad(), said_of_graphs():
            r = self._evaluator.evaluate(closure).outputs
        assert r is not None
        return r

    def _joined(self, result: Any) -> Tensor:
        """What the closure returned as one vector ``[M]``; the names' places in it."""
        named = result if isinstance(result, Mapping) else {UNNAMED: result}
        if isinstance(result, Tensor) and result.ndim == 0:
            raise ValueError(
                "closure: returned one number, need the residuals themselves, [M] or of any shape, "
                "or a dict of such; the loss is half the sum of their squares"
            )
        if not named:
            raise ValueError("closure: returned no residuals, need at least one")
        like = self._parameters
        flat, slices, at = [], {}, 0
        for name, r in named.items():
            what = f"closure: {name!r}" if isinstance(result, Mapping) else "closure"
            if not isinstance(r, Tensor):
                need = "need a tensor of residuals, or a dict of such"
                raise TypeError(f"{what}: returned {type(r).__name__}, {need}")
            if r.dtype != like.dtype:
                raise TypeError(f"{what}: returned {r.dtype}, need {like.dtype} like params")
            if r.device != like.device:
                raise ValueError(f"{what}: returned a tensor on {r.device}, need {like.device}")
            flat.append(r.reshape(-1))
            slices[str(name)] = slice(at, at + r.numel())
            at += r.numel()
        if self.slices and slices != self.slices:
            raise ValueError(
                f"closure: returned {_sizes(slices)}, need {_sizes(self.slices)} as in "
                "the call before of this step"
            )
        self.slices = slices
        return torch.cat(flat)


def half_square(r: Tensor) -> float:
    """½‖r‖² of ``r […]``, summed in float64."""
    return 0.5 * float(r.double().square().sum())


def _sizes(slices: Mapping[str, slice]) -> str:
    return ", ".join(f"{part.stop - part.start} {name}" for name, part in slices.items())
