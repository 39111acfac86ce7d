"""Random outputs, targets and weights of the loss ops, and torch's own losses in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from oracles import losses

# Not representable in float32, so that what is rounded where shows.
DELTA = 0.7


class Case(NamedTuple):
    s: Tensor
    targets: Tensor
    mask: Tensor | None
    Rs: Tensor


def make_case(
    kind: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    mask: str = "none",
    groups: tuple[int, int, int] = (1, 1, 1),
    seed: int = 0,
) -> Case:
    """Random outputs, targets and mask whose group axes have the lengths ``groups``."""
    generator = torch.Generator().manual_seed(seed)
    T, B, k = shape
    Gs, Gt, Gm = groups

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    s = 2 * normal(Gs, T, B, k)
    if kind == "softmax":
        targets = torch.randint(k, (Gt, T, B), generator=generator)
    elif kind == "logistic":
        targets = torch.rand(Gt, T, B, k, generator=generator, dtype=torch.float64).to(dtype)
    elif kind == "poisson":
        targets = torch.randint(4, (Gt, T, B, k), generator=generator).to(dtype)
    else:
        targets = normal(Gt, T, B, k)
    keep: Tensor | None = None
    if mask != "none":
        keep = torch.rand(Gm, T, B, generator=generator) < 0.6
        if mask == "sequence":
            keep[:, :, 0] = False
        keep = keep.to(dtype) if mask in ("float", "weights") else keep
        if mask == "weights":
            keep *= 3 * torch.rand(Gm, T, B, generator=generator).to(dtype)
    return Case(s, targets, keep, normal(Gs, T, B, k))


def oracle_value(kind: str, case: Case) -> Tensor:
    """Loss of each net by torch's own functions, ``[G]``, differentiable in ``case.s``."""
    G = max(t.shape[0] for t in case if t is not None)
    s, y = case.s.expand(G, -1, -1, -1), case.targets.expand(G, *case.targets.shape[1:])
    y = y if kind == "softmax" else y.to(s.dtype)
    per = losses.per_output(kind, s, y, DELTA)
    if case.mask is not None:
        per = torch.where(case.mask.bool(), per * case.mask, 0.0)
    return per.sum((1, 2))


def in_double(kind: str, case: Case) -> Case:
    targets = case.targets if kind == "softmax" else case.targets.double()
    mask = case.mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.double()
    return Case(case.s.double(), targets, mask, case.Rs.double())


def oracle_gradient(kind: str, case: Case) -> Tensor:
    G = max(t.shape[0] for t in case if t is not None)
    wide = in_double(kind, case)
    s = wide.s.expand(G, -1, -1, -1).clone().requires_grad_()
    return torch.autograd.grad(oracle_value(kind, wide._replace(s=s)).sum(), s)[0]
