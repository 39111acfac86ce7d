"""Objective and Gauss-Newton curvature of any torch module, through a closure and autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from hfcore.bindings.conjugate_gradient import dot
from hfcore.flat import FlatParameters

Closure = Callable[[], tuple[Tensor, Tensor]]

SCALAR_CLOSURE = (
    "closure: returned a scalar loss alone; Hessian-free needs (loss, outputs), because the "
    "Gauss-Newton matrix JᵀL''J is split at the model's outputs"
)


def _is_pair(result: object) -> TypeGuard[tuple[Tensor, Tensor]]:
    return (
        isinstance(result, (tuple, list))
        and len(result) == 2
        and all(isinstance(r, Tensor) for r in result)
    )


def call_closure(closure: Closure) -> tuple[Tensor, Tensor]:
    """Call the closure and check that it gives (scalar loss, outputs)."""
    result: Any = closure()
    if isinstance(result, Tensor):
        raise TypeError(SCALAR_CLOSURE)
    if not _is_pair(result):
        raise TypeError(
            f"closure: returned {type(result).__name__}, need a pair of tensors (loss, outputs)"
        )
    loss, outputs = result
    if loss.numel() != 1:
        raise ValueError(f"closure: loss has shape {list(loss.shape)}, need a scalar")
    return loss, outputs


class ModuleObjective:
    """What a closure computes, + ½ l2 ‖θ‖². The closure is the data."""

    supports_structural = False
    supports_stop = False

    def __init__(self, model: nn.Module, *, l2: float = 0.0) -> None:
        self.parameters = FlatParameters(model)
        self.l2 = l2

    def prepare(self, data: Closure) -> Closure:
        return data

    def minibatches(self, data: Closure) -> int:
        return 1

    def regulariser(self, theta: Tensor) -> float:
        return 0.5 * self.l2 * dot(theta, theta) if self.l2 else 0.0

    def loss(self, data: Closure, theta: Tensor) -> float:
        with self.parameters.holding(theta), torch.no_grad():
            loss, _ = call_closure(data)
        return float(loss) + self.regulariser(theta)

    def gradient(self, data: Closure, theta: Tensor) -> tuple[float, Tensor]:
        with self.parameters.holding(theta), torch.enable_grad():
            loss, _ = call_closure(data)
            grads = torch.autograd.grad(loss, self.parameters.tensors, allow_unused=True)
        flat = _flatten(grads, self.parameters.tensors)
        if self.l2:
            flat.add_(theta, alpha=self.l2)
        return float(loss.detach()) + self.regulariser(theta), flat

    def curvature(self, data: Closure, theta: Tensor) -> ModuleCurvature:
        return ModuleCurvature(self, data, theta)


def _flatten(grads: tuple[Tensor | None, ...], like: list[nn.Parameter]) -> Tensor:
    """Gradients as one vector; None (a parameter that did not take part) counts as zero."""
    return torch.cat(
        [
            torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
            for g, p in zip(grads, like, strict=True)
        ]
    )


class ModuleCurvature:
    """JᵀL''J on one retained graph: Jv by differentiating Jᵀu in u, then L'', then Jᵀ.

    Autograd refuses a graph whose leaves were written to, so products end where the model's
    parameters change; evaluating the objective elsewhere in between is fine.
    """

    def __init__(self, objective: ModuleObjective, data: Closure, theta: Tensor) -> None:
        self._objective = objective
        self._parameters = objective.parameters
        if not torch.equal(self._parameters.read(), theta):
            raise ValueError("theta: the curvature of a module is taken at the model's own values")
        with torch.enable_grad():
            self._loss, self._outputs = call_closure(data)
            (self._loss_gradient,) = torch.autograd.grad(
                self._loss, (self._outputs,), create_graph=True, allow_unused=True
            )
            if self._loss_gradient is None:
                raise ValueError("closure: the loss was not computed from the outputs it returned")
            self._dummy = torch.zeros_like(self._outputs, requires_grad=True)
            self._transposed = torch.autograd.grad(
                self._outputs,
                self._parameters.tensors,
                self._dummy,
                create_graph=True,
                allow_unused=True,
            )
        self.loss = float(self._loss.detach()) + objective.regulariser(theta)

    def product(
        self,
        v: Tensor,
        *,
        damping: float = 0.0,
        structural: float = 0.0,
        out: Tensor | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        """(G + l2·I + damping·I) v for ``v [N]``; autograd cannot be stopped."""
        if structural:
            raise ValueError("structural: needs a model with a structural term, such as hf.RNN")
        flat = self._gauss_newton(v)
        flat.add_(v, alpha=damping + self._objective.l2)
        return flat if out is None else out.copy_(flat)

    def _gauss_newton(self, v: Tensor) -> Tensor:
        Jv = self._jacobian_product(v)
        if not self._loss_gradient.requires_grad:  # a loss linear in the outputs
            return torch.zeros_like(v)
        (HJv,) = torch.autograd.grad(
            self._loss_gradient, (self._outputs,), Jv, retain_graph=True, materialize_grads=True
        )
        grads = torch.autograd.grad(
            self._outputs,
            self._parameters.tensors,
            HJv,
            retain_graph=True,
            allow_unused=True,
        )
        return _flatten(grads, self._parameters.tensors)

    def _jacobian_product(self, v: Tensor) -> Tensor:
        parts = self._parameters.split(v)
        used = [(g, p) for g, p in zip(self._transposed, parts, strict=True) if g is not None]
        if not used:
            raise ValueError("closure: the outputs do not depend on the model's parameters")
        (Jv,) = torch.autograd.grad(
            [g for g, _ in used], (self._dummy,), [p for _, p in used], retain_graph=True
        )
        return Jv
