"""Four ways to multiply by the curvature of a module at fixed parameters, one result.

A curvature is a sum of terms Jᵀ H J over *splits*, tensors of the model that θ moves (J) and at
which a second derivative H stands: the outputs with L'' (Gauss-Newton), the losses of the cases
with I/B (empirical Fisher), the outputs of submodules with μD'' (structural damping). The Hessian
takes the derivative of the gradient in place of the first of them.

- ``"trace"``: :mod:`hfcore.autograd.trace`, the product as a list of ops without a forward
  pass, recorded through the double vjp;
- ``"double_vjp"``: on one retained graph; Jv by differentiating Jᵀu in u;
- ``"linearize"``: ``torch.func.linearize`` for J, whose tracing of a long Python loop takes
  seconds, and the retained graph for Jᵀ;
- ``"jvp"``: forward mode for J, which repeats the forward pass in every product, and the retained
  graph for Jᵀ. Where memory cannot hold the graphs of all cases only this and the double vjp
  remain, on graphs built again in every product.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from hfcore.autograd.double_vjp import DoubleVjp, Jacobian, Strategy, summed
from hfcore.autograd.graph import Gradients, Graph, Parts, sample
from hfcore.autograd.trace import NotTraceable
from hfcore.autograd.traced import Traced, compare
from hfcore.flat_memory import copied_if_odd

STRATEGIES = ("trace", "double_vjp", "linearize", "jvp")
RECOMPUTING = ("double_vjp", "jvp")


class Forward:
    """J by torch's forward mode (``linearize`` or a jvp in every product), Jᵀ on the graph."""

    def __init__(self, graph: Graph, *, cached: bool) -> None:
        if graph.splits_at is None or graph.loss_at is None:
            raise NotTraceable("a closure of bare parameters cannot be evaluated functionally")
        self._graph = graph
        self._cached = cached
        self._maps: dict[Any, Callable[[Parts], Any]] = {}
        if cached:
            self._map(False)

    def apply(self, v: Parts, structural: float, into: Parts | None = None) -> Gradients:
        graph = self._graph
        weight = v[0].new_tensor(structural) if structural else None
        held = weight is not None
        gradients, tangents = self._pushed(v, held)
        terms: list[Gradients] = [gradients] if graph.hessian else []
        if graph.splits(held):
            # What is cached may lie in them.
            own = [None if R is None else R.clone() for R in tangents]
            terms.append(graph.pull(graph.seconds(own, weight), held))
        return summed(terms)

    def jacobian(self) -> Jacobian | None:
        graph = self._graph
        if graph.hessian or not graph.main:
            return None
        return Jacobian(
            lambda v: self._pushed(v, False)[1],
            lambda w: graph.pull(w, False),
            [split.like for split in graph.main],
        )

    def _pushed(self, v: Parts, structural: bool) -> Any:
        """(derivative of the gradient along v, J v at the splits)."""
        return self._map(structural)([copied_if_odd(part) for part in v])

    def _map(self, structural: bool) -> Callable[[Parts], Any]:
        """v ↦ the same."""
        graph = self._graph
        splits_at, loss_at = graph.splits_at, graph.loss_at
        assert splits_at is not None
        assert loss_at is not None

        def function(parameters: Parts) -> Any:
            gradient = torch.func.grad(loss_at)(parameters) if graph.hessian else []
            splits = splits_at(parameters, structural) if graph.splits(structural) else ()
            return gradient, splits

        at = [p.detach() for p in graph.parameters]
        if not self._cached:
            return lambda v: _forward(torch.func.jvp, function, (at,), (list(v),))[1]
        if structural not in self._maps:
            self._maps[structural] = _forward(torch.func.linearize, function, at)[1]
        return self._maps[structural]


# The level of forward mode is one number for all threads of a process.
_FORWARD_MODE = threading.RLock()


def _forward(transform: Callable[..., Any], *args: Any) -> Any:
    with _FORWARD_MODE:
        return transform(*args)


class Rebuilt:
    """A strategy on a graph that is built anew for every product, and freed after it."""

    def __init__(self, build: Callable[[], Graph], name: str) -> None:
        self._build = build
        self._name = name

    def apply(self, v: Parts, structural: float, into: Parts | None = None) -> Gradients:
        return make_strategy(self._name, self._build()).apply(v, structural, into)

    def jacobian(self) -> Jacobian | None:
        return make_strategy(self._name, self._build()).jacobian()


def make_strategy(name: str, graph: Graph) -> Strategy:
    """A strategy of :data:`STRATEGIES`. Raises what torch or the tracer raise."""
    if name == "trace":
        return Traced(graph)
    if name == "double_vjp":
        return DoubleVjp(graph)
    if name == "linearize" and graph.hessian:
        # Note 1: in torch 2.13 it ends the process on the gradient of some losses (MSELoss).
        raise ValueError(
            "strategy: torch.func.linearize cannot be trusted with a gradient; need one of "
            "'trace', 'double_vjp', 'jvp' for the Hessian"
        )
    forward = Forward(graph, cached=name == "linearize")
    if name == "linearize":
        _check_linearize(graph, forward)
    return forward


def _check_linearize(graph: Graph, forward: Forward) -> None:
    """Raise :class:`NotTraceable` where a replay is not the derivative.

    Note 2: what torch.func.linearize records may write into its own constants (an LSTM's cells do),
    and then the first product is right and the second is not.
    """
    plain = DoubleVjp(graph)
    for seed in (1, 2):
        v = sample(graph.parameters, False, seed)
        compare(forward.apply(v, 0.0), plain.apply(v, 0.0), graph.precision)
