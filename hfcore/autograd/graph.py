"""One evaluation of a model with its autograd graph, and tangents to try on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from hfcore.autograd.data import NO_DEPENDENCE, no_graph
from hfcore.autograd.loss_graph import LinearMap
from hfcore.flat_memory import copied_if_odd

Parts = list[Tensor]
Gradients = Sequence[Tensor | None]


class Split:
    """A tensor ``[…]`` of the graph and ``second``, the map R ↦ H R there, R of its shape.

    ``edge`` is where it stands in the graph, ``like`` zeros of its shape that hold no memory: its
    numbers are let go unless the graph needs them. ``second`` may write to R.
    """

    def __init__(self, tensor: Tensor, second: LinearMap) -> None:
        self.edge = get_gradient_edge(tensor)
        self.like = tensor.detach().new_zeros(()).expand(tensor.shape)
        self.second = second
        self._strides = torch.empty_like(tensor, device="meta").stride()

    def zeros(self) -> Tensor:
        """Zeros ``[…]`` that lie as the tensor did; on the CPU they are mapped and not filled."""
        t = self.like
        if t.device.type != "cpu":
            return t.new_zeros(t.numel()).as_strided(t.shape, self._strides)
        mapped = torch.from_numpy(np.zeros(t.numel() * t.element_size(), np.uint8))
        return mapped.view(t.dtype).as_strided(t.shape, self._strides)


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
        splits = self.splits(True)
        edges = [split.edge for split in splits]
        with torch.enable_grad():
            dummies = [split.zeros().requires_grad_() for split in splits]
            pulled = torch.autograd.grad(
                edges, self.parameters, dummies, create_graph=True, allow_unused=True
            )
        return dummies, pulled

    def push(self, v: Parts, structural: bool) -> Gradients:
        """J v at every split, by the double vjp."""
        dummies, pulled = self._transposed
        wanted = dummies[: len(self.splits(structural))]
        return derivative(pulled, wanted, v)

    def pull(self, tangents: Parts, structural: bool) -> Gradients:
        """Σ Jᵀ u over the splits."""
        edges = [split.edge for split in self.splits(structural)]
        pulled = torch.autograd.grad(
            edges, self.parameters, tangents, retain_graph=True, allow_unused=True
        )
        if all(g is None for g in pulled):
            raise no_graph(NO_DEPENDENCE)
        return pulled

    def seconds(self, tangents: Gradients, structural: Tensor | None) -> Parts:
        """H times the tangent ``[…]`` at every split, which may be overwritten.

        That of structural damping is multiplied by ``structural []``; None leaves it out.
        """
        products = []
        for i, (split, R) in enumerate(
            zip(self.splits(structural is not None), tangents, strict=True)
        ):
            product = split.second(split.zeros() if R is None else R)
            if structural is not None and i >= len(self.main):
                product = product * structural
            products.append(product)
        return products


def derivative(outputs: Gradients, inputs: Parts, v: Parts) -> Gradients:
    """d/dε of ``inputs`` where ``outputs`` were pulled from them: Σ vᵢ ∂outputsᵢ/∂inputs."""
    used = [(g, p) for g, p in zip(outputs, v, strict=True) if g is not None and g.requires_grad]
    if not used or not inputs:
        return [None] * len(inputs)
    tangents = [copied_if_odd(p) for _, p in used]
    return torch.autograd.grad(
        [g for g, _ in used], inputs, tangents, retain_graph=True, allow_unused=True
    )


def owned(R: Tensor | None, v: Parts) -> Tensor | None:
    """A tangent ``R […]`` to write to: not v itself, nor one number in several places."""
    if R is None or (_shows_once(R) and all(not _shares_memory(R, p) for p in v)):
        return R
    return R.clone(memory_format=torch.contiguous_format)


def _shows_once(t: Tensor) -> bool:
    """Whether no two of its numbers are one in memory, as they are where it is expanded."""
    return all(stride > 0 for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1)


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def sample(parameters: Parts, structural: bool, seed: int) -> list[Tensor]:
    """Tangents ``[…]`` in the parameters' shapes that no data depends on.

    The weight of structural damping ``[]`` comes last.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype, device="cpu").to(p.device)
        for p in parameters
    ]
    return [*draws, draws[0].new_tensor(0.5 * seed)] if structural else draws
