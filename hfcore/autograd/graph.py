"""One evaluation of a model with its autograd graph, and tangents to try on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hfcore.autograd.loss_graph import LinearMap

NO_DEPENDENCE = (
    "model: the outputs do not depend on the model's parameters; does the closure call another "
    "model?"
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
        return derivative(pulled, wanted, v)

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


def derivative(outputs: Gradients, inputs: Parts, v: Parts) -> Gradients:
    """d/dε of ``inputs`` where ``outputs`` were pulled from them: Σ vᵢ ∂outputsᵢ/∂inputs."""
    used = [(g, p) for g, p in zip(outputs, v, strict=True) if g is not None and g.requires_grad]
    if not used or not inputs:
        return [None] * len(inputs)
    return torch.autograd.grad(
        [g for g, _ in used], inputs, [p for _, p in used], retain_graph=True, allow_unused=True
    )


def sample(parameters: Parts, structural: bool, seed: int) -> list[Tensor]:
    """Tangents ``[…]`` in the parameters' shapes that no data depends on.

    The weight of structural damping ``[]`` comes last.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in parameters
    ]
    return [*draws, draws[0].new_tensor(0.5 * seed)] if structural else draws
