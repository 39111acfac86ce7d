"""Gradients that several processes computed on cases of their own, averaged before an update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hfcore.arguments import nonnegative
from hfcore.distributed.agreement import bits_of, check_same, checksum, float_of
from hfcore.distributed.group import Group
from hfcore.distributed.order import Order
from hfcore.distributed.ranks import check_one_process
from hfcore.distributed.sums import Sums
from hfcore.flat_memory import cut


class Averaging:
    """What a first-order optimiser does with the ``group`` it was given; nothing without one.

    A copy works in the same group, whoever reads it from a file alone.
    """

    def __init__(self, what: str, group: Group | None, *, local: bool) -> None:
        self._what, self._group, self._local = what, group, local
        self._sums = None if group is None else Sums(group.ranks, group.reduction)

    def __getstate__(self) -> dict[str, Any]:
        return {"_what": self._what, "_local": self._local}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["_what"], None, local=state["_local"])  # type: ignore[misc]

    def __deepcopy__(self, memo: object) -> Averaging:
        return Averaging(self._what, self._group, local=self._local)

    @property
    def group(self) -> Group | None:
        """The processes it was made for."""
        return self._group

    @property
    def several(self) -> bool:
        """Whether there are other processes. Raises ValueError where these would drift apart."""
        if self._group is None:
            if not self._local:
                check_one_process(self._what)
            return False
        return self._group.several

    def begin(self, param_groups: Sequence[Mapping[str, Any]]) -> None:
        """Options are compared, and the parameters of the first rank sent to all."""
        if self._group is None or not self._group.several:
            return
        ranks = self._group.ranks
        check_same(ranks, _facts(param_groups))
        with torch.no_grad():
            for p in _parameters(param_groups):
                ranks.broadcast(p)

    def average(
        self, param_groups: Sequence[Mapping[str, Any]], loss: Tensor | None, weight: float
    ) -> Tensor | None:
        """The mean of all ranks' gradients by their weights in place of this rank's, and that of
        their losses ``[]``.

        A parameter has none where it has none on any rank. Raises ValueError on every rank where
        the parameters ``[…]`` are others than those of the first, or no rank counts anything.
        """
        assert self._group is not None
        ranks = self._group.ranks
        weight = ranks.together(lambda: nonnegative("weight", weight))
        parameters = _parameters(param_groups)
        value = math.nan if loss is None else float(loss.detach())
        mine = [checksum([p.detach() for p in parameters]), bits_of(weight), bits_of(value)]
        every = ranks.integers([*mine, *(p.grad is not None for p in parameters)])
        for rank, numbers in enumerate(every):
            if numbers[0] != every[0][0]:
                raise ValueError(
                    f"parameters: rank {rank} has other values than rank 0, need the same net on "
                    "every rank: nothing but the optimiser may move it"
                )
        weights = [float_of(numbers[1]) for numbers in every]
        if not sum(weights) > 0:
            raise ValueError("weight: is 0 on every rank, need some that counts")
        share = weight / math.fsum(weights)
        wanted = [any(flags) for flags in zip(*(numbers[3:] for numbers in every), strict=True)]
        self._sum([p for p, want in zip(parameters, wanted, strict=True) if want], share)
        if loss is None:
            return None
        losses = [float_of(numbers[2]) * w for numbers, w in zip(every, weights, strict=True) if w]
        return loss.new_tensor(math.fsum(losses) / math.fsum(weights))

    def _sum(self, parameters: list[Tensor], share: float) -> None:
        assert self._sums is not None
        order = Order(self._sums.ranks.size, self._sums.ranks.size)
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            some = [p for p in parameters if p.dtype == dtype]

            def leaf(rank: int, out: Tensor, some: list[Tensor] = some) -> None:
                grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
                torch.cat([g.reshape(-1) for g in grads], out=out)
                out.mul_(share)

            flat = some[0].new_empty(sum(p.numel() for p in some))
            total = self._sums(order, leaf, flat).detach()
            for p, part in zip(some, cut(total, some), strict=True):
                if p.grad is None:
                    p.grad = part.clone()
                else:
                    p.grad.copy_(part)


def _parameters(param_groups: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    return [p for group in param_groups for p in group["params"]]


def _facts(param_groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for i, group in enumerate(param_groups):
        facts |= {f"params[{i}].{k}": v for k, v in group.items() if k != "params"}
        shapes = [f"{list(p.shape)} {p.dtype}" for p in group["params"]]
        facts[f"params[{i}]"] = ", ".join(shapes)
    return facts
