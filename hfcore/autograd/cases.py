"""What needs one case at a time: squared gradients and the diagonal of the Gauss-Newton matrix."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from hfcore.autograd.data import BatchPart, axes, by_case
from hfcore.autograd.losses import SplitLoss
from hfcore.probes import random_signs

logger = logging.getLogger("hfcore")

# Numbers held by the per-case gradients of one chunk.
CASE_NUMBERS = 2**24

Outputs = Callable[[BatchPart, list[Tensor]], Tensor]


class CaseSquares:
    """Σ over cases (and probes) of the square of Jᵢᵀ w for flat parameters.

    Cases go through ``vmap`` in chunks; where the model cannot be vmapped, one after the other,
    which is said once. ``outputs(part, parameters)`` evaluates the model; :meth:`at` says where.
    """

    def __init__(self, outputs: Outputs, loss: SplitLoss) -> None:
        self._outputs = outputs
        self._loss = loss
        self._parameters: list[Tensor] = []
        self._batched = True

    def at(self, parameters: list[Tensor]) -> CaseSquares:
        """The same, now at other parameters, each in its own shape ``[…]``."""
        self._parameters = [p.detach() for p in parameters]
        return self

    @property
    def _numbers(self) -> int:
        return sum(p.numel() for p in self._parameters)

    def gradients(self, part: BatchPart) -> Tensor:
        """Σᵢ (∇ loss of case i)², ``[N]``."""
        total = self._zeros()
        for chunk in part.chunks(self._chunk()):
            total += self._per_case(chunk, self._gradient_of_case, []).square().sum(0)
        return total

    def diagonal(
        self, part: BatchPart, probes: int | None, generator: torch.Generator | None
    ) -> Tensor:
        """Σᵢ E[(Jᵢᵀ L''^½ w)²] ``[N]`` over probes w = ±1, or over every unit w (``probes`` None).

        Chapelle & Erhan (2011); Martens & Sutskever (2012), section 20.11.4.
        """
        total = self._zeros()
        for chunk in part.chunks(self._chunk()):
            with torch.no_grad():
                s = self._outputs(chunk, self._parameters)
            root = self._loss.root(s, chunk)
            directions = self._directions(s, probes, generator)
            for w in directions:
                pulled = self._per_case(chunk, self._pull_of_case, [root(w)])
                total += pulled.square().sum(0)
        return total if probes is None else total / probes

    def _directions(
        self, s: Tensor, probes: int | None, generator: torch.Generator | None
    ) -> Iterator[Tensor]:
        """Each ``[…]`` like s: every unit, or so many draws of signs."""
        if probes is None:
            return _units(s, self._loss.dim)
        return (random_signs(s.shape, s, generator) for _ in range(probes))

    def _zeros(self) -> Tensor:
        return self._parameters[0].new_zeros(self._numbers)

    def _chunk(self) -> int:
        return max(1, CASE_NUMBERS // self._numbers)

    def _per_case(
        self, part: BatchPart, of_case: Callable[..., list[Tensor]], extra: list[Tensor]
    ) -> Tensor:
        """``[cases, N]`` of what ``of_case`` gives for each."""
        if self._batched:
            try:
                return self._by_vmap(part, of_case, extra)
            except (RuntimeError, NotImplementedError, ValueError) as error:
                self._batched = False
                logger.info("one case after the other, since vmap fails: %s", error)
        rows = []
        for i, case in enumerate(part.chunks(1)):
            w = [e.narrow(self._loss.dim, i, 1) for e in extra]
            rows.append(self._plain(case, *w))
        return torch.stack(rows)

    def _plain(self, case: BatchPart, w: Tensor | None = None) -> Tensor:
        """The gradient of one case, or its Jᵀw, by ordinary autograd."""
        with torch.enable_grad():
            leaves = [p.detach().requires_grad_() for p in self._parameters]
            s = self._outputs(case, leaves)
            pulled = self._loss.case(s, case) if w is None else s
            grads = torch.autograd.grad(pulled, leaves, w, allow_unused=True)
        return _flat(
            torch.zeros_like(p) if g is None else g for g, p in zip(grads, leaves, strict=True)
        )

    def _by_vmap(
        self, part: BatchPart, of_case: Callable[..., list[Tensor]], extra: list[Tensor]
    ) -> Tensor:
        def one(inputs: Any, targets: Any, mask: Any, *more: Tensor) -> Tensor:
            case = replace(
                part,
                inputs=by_case(inputs, part.shared, lambda t: t.unsqueeze(part.input_dim)),
                targets=part.restore(targets, part.target_dim),
                mask=None if mask is None else mask.unsqueeze(part.target_dim),
                count=1,
            )
            return _flat(of_case(case, *(m.unsqueeze(self._loss.dim) for m in more)))

        dims = (
            axes(part.inputs, part.shared, part.input_dim),
            axes(part.targets, part.shared_targets, part.target_dim),
            None if part.mask is None else part.target_dim,
            *(self._loss.dim for _ in extra),
        )
        rows: Tensor = vmap(one, in_dims=dims)(part.inputs, part.targets, part.mask, *extra)
        return rows

    def _gradient_of_case(self, case: BatchPart) -> list[Tensor]:
        def loss(parameters: list[Tensor]) -> Tensor:
            return self._loss.case(self._outputs(case, parameters), case)

        gradient: list[Tensor] = torch.func.grad(loss)(self._parameters)
        return gradient

    def _pull_of_case(self, case: BatchPart, w: Tensor) -> list[Tensor]:
        maps: Any = vjp(lambda parameters: self._outputs(case, parameters), self._parameters)
        pulled: list[Tensor] = maps[1](w)[0]
        return pulled


def _flat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([p.reshape(-1) for p in parts])


def _units(s: Tensor, dim: int) -> Iterator[Tensor]:
    """One output of every case at a time."""
    rest = s.movedim(dim, 0)[0]
    for i in range(rest.numel()):
        unit = rest.new_zeros(rest.numel())
        unit[i] = 1
        yield unit.view_as(rest).unsqueeze(dim).expand_as(s).contiguous()
