"""Nesterov's accelerated gradient with its adaptive step size (Sutskever et al. 2013, A.1).

Numbered notes say where this departs from the paper or settles what it leaves open.

1. z, whose gradient gives the first step size, lies a little down the gradient from y_0: the first
   ε is then at least 1/L of a convex quadratic, and nothing is drawn at random.
2. Near the minimum the decrease drowns in the rounding of f and no halving would do: after
   ``MAX_HALVINGS`` the parameters stay where they are and ε keeps its value.
3. A loss of a trial point that is not finite counts as no decrease.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hfcore.arguments import called, naming_options, number, positive
from hfcore.bindings.conjugate_gradient import dot
from hfcore.distributed.ranks import check_local
from hfcore.flat import FlatParameters, dense_gradients, listed
from hfcore.momentum_schedules import next_a

MAX_HALVINGS = 60
# Distance of z from y_0, as a share of max(‖y_0‖, 1); note 1.
PROBE = 1e-3


class AdaptiveNAG(torch.optim.Optimizer):
    """The method of Nesterov (1983) as appendix A.1 has it, for functions without noise.

    With y_0 the first parameters, a_0 = 1, θ_{−1} = y_0 and
    ε_{−1} = ‖y_0 − z‖ / ‖∇f(y_0) − ∇f(z)‖, step t takes the smallest i ≥ 0 with

        f(y_t) − f(y_t − 2⁻ⁱ ε_{t−1} ∇f(y_t)) ≥ 2⁻ⁱ ε_{t−1} ‖∇f(y_t)‖² / 2

    and sets ε_t = 2⁻ⁱ ε_{t−1},  θ_t = y_t − ε_t ∇f(y_t),  a_{t+1} = (1 + √(4a_t² + 1))/2,
    y_{t+1} = θ_t + (a_t − 1)(θ_t − θ_{t−1})/a_{t+1}. For a convex f whose gradient is L-Lipschitz
    f(θ_t) − f(θ*) ≤ 4L‖θ_{−1} − θ*‖²/(t + 2)². Between steps the parameters are θ_t.

    Args:
        params: a module or its parameters, all of one real floating type on one device.
        lr: ε_{−1}; None: from ∇f at two points, as above. A value of at most 1/L is never halved.
        local: True: a net of this process alone, while torch.distributed runs in several. It has
            no process_group; in ``hf.train`` it minimises the function that all of them compute.

    ``state_dict`` holds θ_{t−1}, a_t, ε_{t−1} and t. Raises TypeError or ValueError naming what is
    wrong.
    """

    @naming_options
    def __init__(
        self,
        params: nn.Module | Iterable[nn.Parameter],
        lr: float | None = None,
        *,
        local: bool = False,
    ) -> None:
        check_local("hf.AdaptiveNAG", local)
        if lr is not None:
            lr = positive("lr", lr)
        flat = FlatParameters(params if isinstance(params, nn.Module) else listed("params", params))
        super().__init__(flat.tensors, {"lr": lr})

    @property
    def _parameters(self) -> FlatParameters:
        return FlatParameters(self.param_groups[0]["params"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused with TypeError: the step size belongs to all parameters together."""
        if self.param_groups:
            raise TypeError("add_param_group: got a second group, need all parameters at once")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Tensor], loss: Callable[[], Tensor | float] | None = None
    ) -> float:
        """One step; gives f(y_t).

        ``closure`` gives f and leaves its gradients, as with torch.optim.LBFGS; ``loss`` gives f
        alone, for the trial points (None: the closure serves there too). Both are called with other
        parameters in the module. Raises ValueError where f or its gradient is not finite at y_t;
        nothing has changed then.
        """
        for name, function in (("closure", closure), ("loss", loss)):
            if not callable(function) and not (name == "loss" and function is None):
                raise TypeError(f"{name}: got {type(function).__name__}, need a function")
        state = self.state[self._parameters.tensors[0]]
        theta = self._parameters.read()
        a, t = state.get("a", 1.0), state.get("t", 0)
        y = theta
        if t > 0:
            y = theta + (state["a_before"] - 1.0) / a * (theta - state["before"])
        f, gradient = self._gradient(closure, y)
        size = dot(gradient, gradient)
        if not (math.isfinite(f) and math.isfinite(size)):
            raise ValueError(f"closure: loss {f}, squared gradient norm {size}, need finite values")
        lr = state.get("lr", self.param_groups[0]["lr"])
        if lr is None:
            lr = self._first_lr(closure, y, gradient, size)
        new, lr = self._descend(loss or closure, y, f, gradient, size, lr)
        self._parameters.write(theta if new is None else new)
        torch.autograd.graph.increment_version(self._parameters.tensors)
        state.update(before=theta, a_before=a, a=next_a(a), lr=lr, t=t + 1)
        return f

    def _descend(
        self,
        loss: Callable[[], Tensor | float],
        y: Tensor,
        f: float,
        gradient: Tensor,
        size: float,
        lr: float,
    ) -> tuple[Tensor | None, float]:
        """(θ_t, ε_t); (None, ε_{t−1}) where no halving decreases f enough, note 2."""
        trial = lr
        for _ in range(MAX_HALVINGS):
            new = y - trial * gradient
            if f - self._value(loss, new) >= 0.5 * trial * size:  # NaN is no decrease
                return new, trial
            trial *= 0.5
        return None, lr

    def _first_lr(
        self, closure: Callable[[], Tensor], y: Tensor, gradient: Tensor, size: float
    ) -> float:
        """ε_{−1}; 1 where the gradient does not change, or is zero."""
        if size == 0.0:
            return 1.0
        distance = PROBE * max(math.sqrt(dot(y, y)), 1.0)
        z = y - distance / math.sqrt(size) * gradient
        _, other = self._gradient(closure, z)
        change = gradient - other
        moved = math.sqrt(dot(change, change))
        return distance / moved if math.isfinite(moved) and moved > 0 else 1.0

    def _gradient(self, closure: Callable[[], Tensor], at: Tensor) -> tuple[float, Tensor]:
        """f and its gradient ``[N]``, of the closure with ``at [N]`` in the module."""
        with self._parameters.holding(at), torch.enable_grad():
            value = _number(called("closure", closure))
        gradients = dense_gradients(self._parameters.tensors)
        return value, torch.cat([g.reshape(-1) for g in gradients])

    def _value(self, loss: Callable[[], Tensor | float], at: Tensor) -> float:
        with self._parameters.holding(at), torch.enable_grad():
            return _number(loss())


def _number(value: Tensor | float) -> float:
    return number("closure", value)
