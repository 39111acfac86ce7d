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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from hfcore.autograd.losses import LinearMap
from hfcore.autograd.trace import NotTraceable, compile_program, trace
from hfcore.autograd.trace_passes import optimise

STRATEGIES = ("trace", "double_vjp", "linearize", "jvp")
RECOMPUTING = ("double_vjp", "jvp")

NO_DEPENDENCE = (
    "model: the outputs do not depend on the model's parameters; does the closure call another "
    "model?"
)

OVERWRITTEN = (
    "inputs: data that the curvature was built with was written to since; need data that stays (a "
    "copy), or a new curvature"
)

Parts = list[Tensor]
Gradients = Sequence[Tensor | None]


@dataclass(frozen=True)
class Split:
    """A tensor ``[…]`` of the graph and ``second``, the map R ↦ H R there, R of its shape."""

    tensor: Tensor
    second: LinearMap


@dataclass(frozen=True)
class Like:
    """What is known of a graph when it is gone: its leaves, the rounding of its casts, its kind."""

    parameters: Parts
    precision: float
    hessian: bool


@dataclass
class Graph:
    """One evaluation of the model with its autograd graph retained.

    ``parameters`` are its leaves; ``loss []`` is differentiated twice where ``hessian``;
    ``main`` (outputs or losses of cases) and ``held`` (structural) are the splits. The functions
    give the splits' tensors, or the loss, at other parameters; None where torch cannot
    (a closure of bare parameters). ``precision`` is the relative rounding error of casts inside;
    ``outputs […]`` are the model's, where θ moves them.
    """

    parameters: Parts
    loss: Tensor
    main: list[Split]
    held: list[Split]
    hessian: bool
    splits_at: Callable[[Parts, bool], tuple[Tensor, ...]] | None
    loss_at: Callable[[Parts], Tensor] | None
    precision: float = 0.0
    outputs: Tensor | None = None

    @property
    def like(self) -> Like:
        return Like(self.parameters, self.precision, self.hessian)

    def splits(self, structural: bool) -> list[Split]:
        return [*self.main, *(self.held if structural else [])]

    @cached_property
    def gradient(self) -> Gradients:
        """∇ loss, itself differentiable."""
        return torch.autograd.grad(self.loss, self.parameters, create_graph=True, allow_unused=True)

    @cached_property
    def _transposed(self) -> tuple[Parts, Gradients]:
        """(u, Jᵀu) for all splits at once, linear in the dummies u."""
        tensors = [split.tensor for split in self.splits(True)]
        with torch.enable_grad():
            dummies = [torch.zeros_like(t, requires_grad=True) for t in tensors]
            pulled = torch.autograd.grad(
                tensors, self.parameters, dummies, create_graph=True, allow_unused=True
            )
        return dummies, pulled

    def push(self, v: Parts, structural: bool) -> Gradients:
        """J v at every split, by the double vjp."""
        dummies, pulled = self._transposed
        wanted = dummies[: len(self.splits(structural))]
        return _derivative(pulled, wanted, v)

    def pull(self, tangents: Parts, structural: bool) -> Gradients:
        """Σ Jᵀ u over the splits."""
        tensors = [split.tensor for split in self.splits(structural)]
        pulled = torch.autograd.grad(
            tensors, self.parameters, tangents, retain_graph=True, allow_unused=True
        )
        if all(g is None for g in pulled):
            raise ValueError(NO_DEPENDENCE)
        return pulled

    def seconds(self, tangents: Gradients, structural: Tensor | None) -> Parts:
        """H times the tangent ``[…]`` at every split.

        That of structural damping is multiplied by ``structural []``; None leaves it out.
        """
        products = []
        for i, (split, R) in enumerate(
            zip(self.splits(structural is not None), tangents, strict=True)
        ):
            R = torch.zeros_like(split.tensor) if R is None else R
            product = split.second(R)
            if structural is not None and i >= len(self.main):
                product = product * structural
            products.append(product)
        return products


def _derivative(outputs: Gradients, inputs: Parts, v: Parts) -> Gradients:
    """d/dε of ``inputs`` where ``outputs`` were pulled from them: Σ vᵢ ∂outputsᵢ/∂inputs."""
    used = [(g, p) for g, p in zip(outputs, v, strict=True) if g is not None and g.requires_grad]
    if not used or not inputs:
        return [None] * len(inputs)
    return torch.autograd.grad(
        [g for g, _ in used], inputs, [p for _, p in used], retain_graph=True, allow_unused=True
    )


def _sum(parts: Sequence[Gradients]) -> Gradients:
    total: list[Tensor | None] = list(parts[0])
    for more in parts[1:]:
        for i, g in enumerate(more):
            old = total[i]
            total[i] = g if old is None else old if g is None else old + g
    return total


class Jacobian(NamedTuple):
    """J at ``tensors`` as v ↦ J v and w ↦ Jᵀw, each by the way of its own that products take."""

    push: Callable[[Parts], Gradients]
    pull: Callable[[Parts], Gradients]
    tensors: Parts


class Strategy(Protocol):
    """Products with the curvature of one part at fixed parameters."""

    def apply(self, v: Parts, structural: float) -> Gradients:
        """The product for a tangent in the shapes of the parameters."""

    def jacobian(self) -> Jacobian | None:
        """What the products are made of; None where there is none to look at."""


class DoubleVjp:
    """On the retained graph, nothing else."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def apply(self, v: Parts, structural: float) -> Gradients:
        weight = v[0].new_tensor(structural) if structural else None
        return self._apply(v, weight)

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
            [split.tensor.detach() for split in graph.main],
        )

    def push(self, v: Parts) -> Tensor:
        """J v ``[…]`` at the outputs, in their shape: the R-op (Pearlmutter 1994)."""
        (Jv,) = self._graph.push(v, False)
        return torch.zeros_like(self._graph.main[0].tensor) if Jv is None else Jv

    def _apply(self, v: Parts, weight: Tensor | None) -> Gradients:
        graph, structural = self._graph, weight is not None
        terms: list[Gradients] = []
        if graph.hessian:
            terms.append(_derivative(graph.gradient, graph.parameters, v))
        if graph.splits(structural):
            tangents = graph.push(v, structural)
            terms.append(graph.pull(graph.seconds(tangents, weight), structural))
        return _sum(terms)


class Traced:
    """A list of ops recorded from :class:`DoubleVjp`, checked against it on another tangent."""

    def __init__(self, graph: Graph) -> None:
        self._graph: Graph | None = graph
        self._constants: list[Tensor] = []
        self._versions: list[int] = []
        self._programs: dict[bool, Callable[..., tuple[Tensor | None, ...]]] = {}
        self._program(False)

    def apply(self, v: Parts, structural: float) -> Gradients:
        program = self._program(bool(structural))
        weight = [v[0].new_tensor(structural)] if structural else []
        self._check_constants()
        with torch.no_grad():
            return program(*v, *weight)

    def jacobian(self) -> Jacobian | None:
        return None if self._graph is None else DoubleVjp(self._graph).jacobian()

    def free(self) -> None:
        """Let go what only the recording needed."""
        if self._graph is not None and not self._graph.held:
            self._graph = None

    def apply_rows(self, V: Parts, structural: float) -> Gradients:
        """The products of the rows of V, whose parts have a leading axis, by vmap."""
        program = self._program(bool(structural))
        weight = [V[0].new_tensor(structural)] if structural else []
        self._check_constants()
        dims = (0,) * len(V) + (None,) * len(weight)
        none = [i for i, g in enumerate(program(*(p[0] for p in V), *weight)) if g is None]

        def filled(*args: Tensor) -> tuple[Tensor, ...]:
            results = program(*args)
            return tuple(g for g in results if g is not None)

        with torch.no_grad():
            rows: list[Tensor | None] = list(torch.vmap(filled, in_dims=dims)(*V, *weight))
        for i in none:
            rows.insert(i, None)
        return rows

    def _check_constants(self) -> None:
        """Raise ValueError where data that the program reads was written to."""
        if [t._version for t in self._constants] != self._versions:
            raise ValueError(OVERWRITTEN)

    def _program(self, structural: bool) -> Callable[..., tuple[Tensor | None, ...]]:
        if structural not in self._programs:
            self._programs[structural] = self._record(structural)
        return self._programs[structural]

    def _record(self, structural: bool) -> Callable[..., tuple[Tensor | None, ...]]:
        assert self._graph is not None
        plain, parameters = DoubleVjp(self._graph), self._graph.parameters
        n = len(parameters)

        def product(values: list[Tensor]) -> Gradients:
            return plain._apply(values[:n], values[n] if structural else None)

        recorded, checked = (sample(parameters, structural, seed) for seed in (1, 2))
        traced = optimise(trace(product, recorded))
        constants = [t for t in traced.constants() if not t.is_inference()]
        self._constants += constants
        self._versions += [t._version for t in constants]
        program = compile_program(traced)
        with torch.no_grad():
            _compare(program(*checked), product(checked), self._graph.precision)
        return program


def sample(parameters: Parts, structural: bool, seed: int) -> list[Tensor]:
    """Tangents ``[…]`` in the parameters' shapes that no data depends on.

    The weight of structural damping ``[]`` comes last.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in parameters
    ]
    return [*draws, draws[0].new_tensor(0.5 * seed)] if structural else draws


def _compare(got: Gradients, want: Gradients, precision: float) -> None:
    """Raise :class:`NotTraceable` if a program differs from what it was recorded from."""
    for g, w in zip(got, want, strict=True):
        if (g is None) != (w is None):
            raise NotTraceable("the replayed product lost a gradient")
    pairs = [(g, w) for g, w in zip(got, want, strict=True) if g is not None and w is not None]
    off = sum(float((g - w).double().square().sum()) for g, w in pairs)
    size = sum(float(w.double().square().sum()) for _, w in pairs)
    eps = max((torch.finfo(w.dtype).eps for _, w in pairs), default=0.0)
    limit = max(eps, precision) ** 0.6
    if not off <= (limit**2) * size:
        raise NotTraceable(f"the replayed product is off by {(off / size) ** 0.5:.1e}")


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

    def apply(self, v: Parts, structural: float) -> Gradients:
        graph = self._graph
        weight = v[0].new_tensor(structural) if structural else None
        held = weight is not None
        gradients, tangents = self._map(held)(v)
        terms: list[Gradients] = [gradients] if graph.hessian else []
        if graph.splits(held):
            terms.append(graph.pull(graph.seconds(tangents, weight), held))
        return _sum(terms)

    def jacobian(self) -> Jacobian | None:
        graph = self._graph
        if graph.hessian or not graph.main:
            return None
        return Jacobian(
            lambda v: self._map(False)(v)[1],
            lambda w: graph.pull(w, False),
            [split.tensor.detach() for split in graph.main],
        )

    def _map(self, structural: bool) -> Callable[[Parts], Any]:
        """v ↦ (derivative of the gradient, J v at the splits)."""
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

    def apply(self, v: Parts, structural: float) -> Gradients:
        return make_strategy(self._name, self._build()).apply(v, structural)

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
        _compare(forward.apply(v, 0.0), plain.apply(v, 0.0), graph.precision)
