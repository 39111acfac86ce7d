"""Derivatives of outputs by parameters, both ways, and the operator that is made of them."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from hfcore.autograd.data import no_graph, said_of_graphs
from hfcore.autograd.evaluation import flatten
from hfcore.autograd.graph import Graph, Parts, Split
from hfcore.curvature.linear_operator import LinearOperator, OperatorAtParameters
from hfcore.flat_memory import cut

# Rows times outputs, and rows times parameters, of one batched backward pass: what stays in caches.
ROW_NUMBERS = 1 << 16


class Passes(Protocol):
    """A model at fixed parameters and inputs: ``outputs […]`` as it gives them, and J both ways."""

    outputs: Tensor

    def push(self, V: Tensor) -> Tensor:
        """J v for the rows of ``V [m,N]``, as rows ``[m,M]``."""

    def pull(self, U: Tensor) -> Tensor:
        """Jᵀu for the rows of ``U [m,M]``, as rows ``[m,N]``."""


class OperatorOfPasses(OperatorAtParameters):
    """J ``[M,N]`` at ``theta [N]``; a subclass gives it its :class:`Passes`."""

    symmetric = False

    def __init__(self, theta: Tensor, passes: Passes) -> None:
        self._theta = theta
        self._passes = passes
        self._transposed = _Transposed(self)

    @property
    def outputs(self) -> Tensor:
        """The model's outputs there, in their own shape ``[…]``."""
        return self._passes.outputs

    def check_products(self, what: str) -> None:
        """ValueError where uᵀ(Jv) is not (Jᵀu)ᵀv at a random pair; ``what`` is to blame."""
        generator = torch.Generator().manual_seed(0)
        u, v = (
            torch.randn(size, generator=generator, device="cpu").to(self.device, self.dtype)
            for size in self.shape
        )
        Jv, JTu = self @ v, self._transposed @ u
        left, right = float(u.double() @ Jv.double()), float(JTu.double() @ v.double())
        size = float(u.norm() * Jv.norm() + JTu.norm() * v.norm())
        if not abs(left - right) <= math.sqrt(torch.finfo(self.dtype).eps) * size:
            raise ValueError(
                f"{what}: uᵀ(Jv) is {left:.6g} and (Jᵀu)ᵀv is {right:.6g}, need one number; a part "
                "of the model cannot be differentiated twice"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N) for M outputs and N trainable parameters."""
        return (self.outputs.numel(), self._theta.numel())

    @property
    def mT(self) -> LinearOperator:
        """Jᵀ ``[N,M]``."""
        return self._transposed

    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        return given(self._passes.push(v.unsqueeze(0))[0], out)

    def _products(self, V: Tensor) -> Tensor:
        return self._passes.push(V)

    def _is_transpose_of(self, other: LinearOperator) -> bool:
        return other is self._transposed


class _Transposed(LinearOperator):
    """Jᵀ of a Jacobian."""

    symmetric = False

    def __init__(self, jacobian: OperatorOfPasses) -> None:
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
        return given(self._jacobian._passes.pull(v.unsqueeze(0))[0], out)

    def _products(self, V: Tensor) -> Tensor:
        return self._jacobian._passes.pull(V)

    def _is_transpose_of(self, other: LinearOperator) -> bool:
        return other is self._jacobian

    def __repr__(self) -> str:
        return f"{self._jacobian!r}.mT"


class GraphPasses:
    """A retained graph of outputs ``s […]`` over ``leaves``, which are all of the parameters.

    Raises ValueError where the outputs do not depend on them; ``what`` is to blame.
    """

    def __init__(self, s: Tensor, leaves: Parts, what: str) -> None:
        if s.numel() == 0:
            raise ValueError(f"outputs: got shape {list(s.shape)}, need at least one")
        if not s.requires_grad:
            raise no_graph(f"{what}: the outputs do not depend on its trainable parameters")
        self.outputs = s.detach()
        self._batched = True
        self._graph = Graph(leaves, s.sum(), [Split(s, lambda R: R)], [], False, None, None)

    def push(self, V: Tensor) -> Tensor:
        leaves = self._graph.parameters
        rows = []
        for v in V:
            with said_of_graphs():
                (tangent,) = self._graph.push(cut(v, leaves), False)
            tangent = torch.zeros_like(self.outputs) if tangent is None else tangent.detach()
            rows.append(tangent.reshape(-1))
        return torch.stack(rows)

    def pull(self, U: Tensor) -> Tensor:
        if self._batched and len(U) > 1:
            try:
                return self._pulled_together(U)
            except (RuntimeError, NotImplementedError):  # an op that torch cannot batch
                self._batched = False
        return torch.stack([self._pulled(u) for u in U])

    def _pulled(self, u: Tensor) -> Tensor:
        gradients = self._graph.pull([u.reshape(self.outputs.shape)], False)
        return flatten(gradients, self._graph.parameters)

    def _pulled_together(self, U: Tensor) -> Tensor:
        """Many rows in one backward pass under vmap, as many as its memory is to hold."""
        graph = self._graph
        M, N = self.outputs.numel(), sum(p.numel() for p in graph.parameters)
        parts = []
        for rows in U.split(max(1, ROW_NUMBERS // max(M, N))):
            tangents = rows.reshape(-1, *self.outputs.shape)
            pulled = torch.autograd.grad(
                [graph.main[0].edge], graph.parameters, [tangents],
                retain_graph=True, allow_unused=True, is_grads_batched=True,
            )  # fmt: skip
            filled = [
                p.new_zeros(len(rows), p.numel()) if g is None else g.reshape(len(rows), -1)
                for g, p in zip(pulled, graph.parameters, strict=True)
            ]
            parts.append(torch.cat(filled, 1))
        return torch.cat(parts)


def given(result: Tensor, out: Tensor | None) -> Tensor:
    """``result [M]``, in ``out [M]`` where that is given."""
    return result if out is None else out.copy_(result)
