"""Products with a curvature by the double vjp, on a retained graph and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hfcore.autograd.graph import Gradients, Graph, Parts, Split, derivative, owned


class Jacobian(NamedTuple):
    """J at ``tensors`` as v ↦ J v and w ↦ Jᵀw, each by the way of its own that products take."""

    push: Callable[[Parts], Gradients]
    pull: Callable[[Parts], Gradients]
    tensors: Parts


class Strategy(Protocol):
    """Products with the curvature of one part at fixed parameters."""

    def apply(self, v: Parts, structural: float, into: Parts | None = None) -> Gradients:
        """The product for a tangent in the shapes of the parameters.

        Gradients may, and need not, lie in ``into``: memory of these shapes, apart from v's.
        """

    def jacobian(self) -> Jacobian | None:
        """What the products are made of; None where there is none to look at."""


class DoubleVjp:
    """On the retained graph, nothing else."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def apply(self, v: Parts, structural: float, into: Parts | None = None) -> Gradients:
        weight = v[0].new_tensor(structural) if structural else None
        return self.weighed(v, weight)

    def jacobian(self) -> Jacobian | None:
        graph = self._graph
        if graph.hessian and graph.outputs is not None:  # which the gradient goes through
            main = [Split(graph.outputs, lambda R: R)]
            graph = Graph(graph.parameters, graph.loss, main, [], False, None, None)
        if not graph.main:
            return None
        return Jacobian(
            lambda v: graph.push(v, False),
            lambda w: graph.pull(w, False),
            [split.like for split in graph.main],
        )

    def push(self, v: Parts) -> Tensor:
        """J v ``[…]`` at the outputs, in their shape: the R-op (Pearlmutter 1994)."""
        (Jv,) = self._graph.push(v, False)
        return torch.zeros_like(self._graph.main[0].like) if Jv is None else Jv

    def weighed(self, v: Parts, weight: Tensor | None) -> Gradients:
        """The product with the structural terms times ``weight []``; None leaves them out."""
        graph, structural = self._graph, weight is not None
        terms: list[Gradients] = []
        if graph.hessian:
            terms.append(derivative(graph.gradient, graph.parameters, v))
        if graph.splits(structural):
            tangents = [owned(R, v) for R in graph.push(v, structural)]
            terms.append(graph.pull(graph.seconds(tangents, weight), structural))
        return summed(terms)


def summed(parts: Sequence[Gradients]) -> Gradients:
    """The sum of gradients; None where all are."""
    total: list[Tensor | None] = list(parts[0])
    for more in parts[1:]:
        for i, g in enumerate(more):
            old = total[i]
            total[i] = g if old is None else old if g is None else old + g
    return total
