"""Structural damping of any module: the outputs of named submodules, held by a matching distance.

A submodule's output z that a nonlinearity e follows is held by D'' = e'(z) (Martens & Sutskever
2011, section 3.2; 2012, section 20.8.4), which adds μ J_zᵀ D'' J_z to the curvature, averaged over
cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hfcore.autograd.loss_graph import LinearMap
from hfcore.bindings.checks import check_choice

DISTANCES = ("identity", "tanh", "logistic", "softmax")


@dataclass(frozen=True)
class Term:
    """One held submodule: its name, D and μ."""

    name: str
    module: nn.Module
    distance: str
    weight: float

    def second(self, z: Tensor, cases: int) -> LinearMap:
        """The map R ↦ μ D''(z) R / cases for ``R […,H]`` like ``z […,H]``."""
        scale = self.weight / cases
        if self.distance == "identity":
            return lambda R: scale * R
        if self.distance == "tanh":
            d = scale * (1 - torch.tanh(z).square())
            return lambda R: d * R
        if self.distance == "logistic":
            p = torch.sigmoid(z)
            d = scale * p * (1 - p)
            return lambda R: d * R
        p = torch.softmax(z, -1)
        return lambda R: scale * (p * R - p * (p * R).sum(-1, keepdim=True))


def structural_terms(module: nn.Module | None, structural: Mapping[str, Any] | None) -> list[Term]:
    """The terms of ``{"submodule": D or (D, μ)}``.

    Raises ValueError or TypeError for a name that is not a submodule, another D, or a bad μ.
    """
    if not structural:
        return []
    if not isinstance(structural, Mapping):
        raise TypeError(
            f"structural: got {type(structural).__name__}, need a mapping from submodule names, "
            'such as {"encoder.0": "tanh"}'
        )
    if module is None:
        raise ValueError("structural: bare parameters have no submodules; give the module")
    known = dict(module.named_modules())
    return [_term(known, name, value) for name, value in structural.items()]


def _term(known: dict[str, nn.Module], name: str, value: Any) -> Term:
    if name not in known:
        names = ", ".join(repr(n) for n in list(known)[:12] if n) or "none"
        raise ValueError(f"structural: the model has no submodule {name!r}; it has {names}")
    distance, weight = value if isinstance(value, (tuple, list)) else (value, 1.0)
    check_choice(f"structural[{name!r}]", distance, DISTANCES)
    if not (isinstance(weight, (int, float)) and math.isfinite(weight) and weight >= 0):
        raise ValueError(
            f"structural[{name!r}]: got μ = {weight}, need a finite number that is not negative"
        )
    return Term(name, known[name], distance, float(weight))


class Held:
    """Collects, while open, what the held submodules return; once for every call."""

    def __init__(self, terms: list[Term]) -> None:
        self._terms = terms
        self._outputs: list[tuple[Term, Tensor, int]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Held:
        for term in self._terms:
            self._hooks.append(term.module.register_forward_hook(self._keep(term)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, term: Term) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
            if not tensors:
                raise TypeError(f"structural: submodule {term.name!r} returned no tensor")
            self._outputs.append((term, tensors[0], tensors[0]._version))

        return hook

    def terms(self) -> list[Term]:
        """The term of every collected output."""
        return [term for term, _, _ in self._outputs]

    def tensors(self) -> list[Tensor]:
        """The outputs ``[…]`` in the order of the calls, for each term one or more.

        Raises ValueError for a submodule that was not called, or an output that was overwritten.
        """
        called = {term.name for term, _, _ in self._outputs}
        for term in self._terms:
            if term.name not in called:
                raise ValueError(f"structural: submodule {term.name!r} was not called")
        for term, z, version in self._outputs:
            if z._version != version:
                raise ValueError(
                    f"structural: the output of {term.name!r} is overwritten by an in-place op "
                    "that follows, such as ReLU(inplace=True); need inplace=False"
                )
        return [z for _, z, _ in self._outputs]
