"""Products with a curvature as a list of ops, recorded once and checked."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hfcore.autograd.double_vjp import DoubleVjp, Jacobian
from hfcore.autograd.graph import Gradients, Graph, Parts, sample
from hfcore.autograd.trace import NotTraceable, Program, trace
from hfcore.autograd.trace_compile import Compiled, compile_program
from hfcore.autograd.trace_passes import optimise

OVERWRITTEN = (
    "inputs: data that the curvature was built with was written to since; need data that stays (a "
    "copy), or a new curvature"
)


class Traced:
    """A list of ops recorded from :class:`DoubleVjp`, checked against it on another tangent."""

    def __init__(self, graph: Graph) -> None:
        self._graph: Graph | None = graph
        self._constants: list[Tensor] = []
        self._versions: list[int] = []
        self._programs: dict[bool, Compiled] = {}
        self._recorded: dict[bool, Program] = {}
        self._of_rows: dict[bool, Compiled] = {}
        self._program(False)

    def apply(self, v: Parts, structural: float, into: Parts | None = None) -> Gradients:
        program = self._program(bool(structural))
        weight = [v[0].new_tensor(structural)] if structural else []
        self._check_constants()
        with torch.no_grad():
            return program(*v, *weight, into=into)

    def jacobian(self) -> Jacobian | None:
        return None if self._graph is None else DoubleVjp(self._graph).jacobian()

    def free(self) -> None:
        """Let go what only the recording needed."""
        if self._graph is not None and not self._graph.held:
            self._graph = None

    def apply_rows(self, V: Parts, structural: float) -> Gradients:
        """The products of the rows of V, whose parts have a leading axis, by vmap."""
        self._program(bool(structural))
        program = self._rows_program(bool(structural))
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

    def _program(self, structural: bool) -> Compiled:
        if structural not in self._programs:
            self._programs[structural] = self._record(structural)
        return self._programs[structural]

    def _rows_program(self, structural: bool) -> Compiled:
        """The same for vmap, written where several products at a time are first asked for."""
        if structural not in self._of_rows:
            self._of_rows[structural] = compile_program(self._recorded[structural], reuse=False)
        return self._of_rows[structural]

    def _record(self, structural: bool) -> Compiled:
        assert self._graph is not None
        plain, parameters = DoubleVjp(self._graph), self._graph.parameters
        n = len(parameters)

        def product(values: list[Tensor]) -> Gradients:
            return plain.weighed(values[:n], values[n] if structural else None)

        recorded, checked = (sample(parameters, structural, seed) for seed in (1, 2))
        traced = optimise(trace(product, recorded))
        constants = [t for t in traced.constants() if not t.is_inference()]
        self._constants += constants
        self._versions += [t._version for t in constants]
        program = compile_program(traced)
        self._recorded[structural] = traced
        with torch.no_grad():
            compare(program(*checked), product(checked), self._graph.precision)
        return program


def compare(got: Gradients, want: Gradients, precision: float) -> None:
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
        error = (off / size) ** 0.5 if size else math.inf
        raise NotTraceable(f"the replayed product is off by {error:.1e} of its size")
