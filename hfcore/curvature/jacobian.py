"""``hf.Jacobian``: derivatives of a model's outputs by its parameters, as an operator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hfcore.autograd.evaluation import Evaluator, flatten
from hfcore.autograd.strategies import Graph, Split
from hfcore.curvature.linear_operator import LinearOperator
from hfcore.flat import FlatParameters


class Jacobian(LinearOperator):
    """J ``[M,N]``: derivatives of a model's M outputs by its N parameters, at their present values.

    ``J @ v`` is the R-operator (Pearlmutter 1994), ``J.mT @ u`` backpropagation; ``J.mT @ J`` is a
    symmetric operator with all that belongs to one. Outputs are ``model(inputs)``, for hf.RNN and
    hf.MLP those before the output nonlinearity, as one vector in their order in memory;
    ``outputs`` has their values and shape. The graph of one forward pass is kept, so that an
    operator outlives later changes of the parameters and stays at the old ones.

    Parameters
    ----------
    model : any torch module whose outputs are one tensor; frozen parameters are no columns
    inputs : what the model takes: a tensor, or a tuple, list or dict of tensors

    Raises TypeError or ValueError for a model or inputs that are not like that, parameters or
    inputs with NaN or Inf, and a model whose two products disagree, since parts of it cannot be
    differentiated twice.
    """

    symmetric = False

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, need a torch.nn.Module")
        self._parameters = FlatParameters(model)
        theta = self._parameters.read()
        bad = self._parameters.first_bad(theta)
        if bad is not None:
            raise ValueError(f"model: parameter {bad} holds NaN or Inf, need finite values")
        _check_inputs(inputs, theta)
        self._theta = theta
        self.parameter_slices = self._parameters.slices()
        self._graph = self._evaluated(model, inputs)
        self._transposed = _Transposed(self)
        self._check_products()

    def _evaluated(self, model: nn.Module, inputs: Any) -> Graph:
        """The graph of the outputs at θ, with leaves of its own."""
        module = getattr(model, "_orig_mod", model)  # compiled graphs are differentiated once only
        evaluator = Evaluator(module, self._parameters, None, [], 0)

        def outputs() -> tuple[Tensor, Tensor]:
            s = module(inputs)
            if not isinstance(s, Tensor):
                raise TypeError(f"outputs: the model returned {type(s).__name__}, need one tensor")
            return s.sum(), s

        leaves = [p.clone().requires_grad_() for p in self._parameters.split(self._theta)]
        with torch.enable_grad():
            loss, s, _, _ = evaluator.evaluate(outputs, leaves)
        assert s is not None
        if s.numel() == 0:
            raise ValueError(f"outputs: got shape {list(s.shape)}, need at least one")
        if not s.requires_grad:
            raise ValueError("model: the outputs do not depend on its trainable parameters")
        self.outputs = s.detach()
        return Graph(leaves, loss, [Split(s, lambda R: R)], [], False, None, None)

    def _check_products(self) -> None:
        """uᵀ(Jv) = (Jᵀu)ᵀv at a random pair."""
        generator = torch.Generator().manual_seed(0)
        u, v = (
            torch.randn(size, generator=generator).to(self.device, self.dtype)
            for size in self.shape
        )
        Jv, JTu = self._product(v, None), self._transposed._product(u, None)
        left, right = float(u.double() @ Jv.double()), float(JTu.double() @ v.double())
        size = float(u.norm() * Jv.norm() + JTu.norm() * v.norm())
        if not abs(left - right) <= math.sqrt(torch.finfo(self.dtype).eps) * size:
            raise ValueError(
                f"model: uᵀ(Jv) is {left:.6g} and (Jᵀu)ᵀv is {right:.6g}, need one number; a part "
                "of the model cannot be differentiated twice"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N) for M outputs and N trainable parameters."""
        return (self.outputs.numel(), self._theta.numel())

    @property
    def dtype(self) -> torch.dtype:
        return self._theta.dtype

    @property
    def device(self) -> torch.device:
        return self._theta.device

    @property
    def mT(self) -> LinearOperator:
        """Jᵀ ``[N,M]``."""
        return self._transposed

    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        (tangent,) = self._graph.push(self._parameters.split(v), False)
        flat = torch.zeros_like(self.outputs) if tangent is None else tangent.detach()
        return _given(flat.reshape(-1), out)

    def _is_transpose_of(self, other: LinearOperator) -> bool:
        return other is self._transposed


class _Transposed(LinearOperator):
    """Jᵀ of a Jacobian."""

    symmetric = False

    def __init__(self, jacobian: Jacobian) -> None:
        self._jacobian = jacobian

    @property
    def shape(self) -> tuple[int, int]:
        M, N = self._jacobian.shape
        return (N, M)

    @property
    def dtype(self) -> torch.dtype:
        return self._jacobian.dtype

    @property
    def device(self) -> torch.device:
        return self._jacobian.device

    @property
    def mT(self) -> LinearOperator:
        return self._jacobian

    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        J = self._jacobian
        gradients = J._graph.pull([v.view(J.outputs.shape)], False)
        return _given(flatten(gradients, J._graph.parameters), out)

    def _is_transpose_of(self, other: LinearOperator) -> bool:
        return other is self._jacobian

    def __repr__(self) -> str:
        return f"{self._jacobian!r}.mT"


def _given(result: Tensor, out: Tensor | None) -> Tensor:
    return result if out is None else out.copy_(result)


def _check_inputs(inputs: Any, like: Tensor) -> None:
    leaves = [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]
    if not leaves:
        raise TypeError(f"inputs: got {type(inputs).__name__}, need a tensor or a tuple of tensors")
    for t in leaves:
        if t.device != like.device:
            raise ValueError(f"inputs: is on {t.device}, need {like.device} like the model")
        if t.is_floating_point() and not bool(torch.isfinite(t).all()):
            raise ValueError("inputs: holds NaN or Inf, need finite values")
