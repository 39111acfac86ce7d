"""A training run of several processes: what they agree on, and first-order gradients of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hfcore.autograd.calls import Select
from hfcore.batches import Batch
from hfcore.distributed.agreement import check_checksums, check_same, checksum
from hfcore.distributed.group import Group, group_of
from hfcore.distributed.objective import distributed
from hfcore.distributed.ranks import Ranks, unwrapped
from hfcore.flat import FlatParameters
from hfcore.losses import Loss
from hfcore.nets.registry import net_of
from hfcore.objective_factory import objective_for
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.training.run_folder import dotted

NEED = {
    "parameters": "the same net on every rank: nothing but the optimiser may move it",
    "data": "the same data on every rank, drawn from one seed",
}
# Sections of a run's config in which ranks may differ.
MAY_DIFFER = ("run", "environment")


def group_of_run(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    process_group: Any,
    reduction: str | None,
    *,
    local: bool,
) -> Group | None:
    """The processes of a run: those given, or those of the optimiser.

    Raises ValueError where the two differ, or nobody says which.
    """
    own: Group | None = getattr(optimizer, "group", None)
    if process_group is None and own is not None:
        process_group, reduction = own.ranks, reduction or own.reduction
    group = group_of("hf.train", process_group, reduction, local=local, model=model)
    if isinstance(optimizer, HessianFree):
        _check_like(group, own)
    return group


def _check_like(group: Group | None, own: Group | None) -> None:
    """A Hessian-free step makes its sums itself."""
    if group is None:
        return
    if own is None or own.ranks.size != group.ranks.size:
        raise ValueError(
            "process_group: is not that of the HessianFree, need hf.HessianFree(…, process_group=…)"
        )
    if own.reduction != group.reduction:
        raise ValueError(
            f"reduction: got {group.reduction!r}, need {own.reduction!r} like the HessianFree"
        )
    if own.cases != "shared":
        raise ValueError(
            f"optimizer: was made with cases={own.cases!r}, need 'shared': hf.train draws the same "
            "batches on every rank"
        )


def check_configs(ranks: Ranks, config: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first setting of a run that is another one on some rank."""
    if ranks.size > 1:
        check_same(ranks, dotted({k: v for k, v in config.items() if k not in MAY_DIFFER}))


def send_model(ranks: Ranks, model: torch.nn.Module) -> None:
    """Parameters and buffers of the first rank to all."""
    if ranks.size > 1:
        with torch.no_grad():
            for t in (*model.parameters(), *model.buffers()):
                ranks.broadcast(t)


def agreed_reason(ranks: Ranks, reason: str | None, interrupted: Callable[[], bool]) -> str | None:
    """Why the run ends, the same on every rank: the first one's reason, or a signal to any."""
    if ranks.size == 1:
        return reason
    flags = ranks.integers([reason is not None, interrupted()])
    if flags[0][0]:
        return ranks.sent((reason or "").encode()).decode()
    return "interrupted" if any(came for _, came in flags) else None


class DistributedBackpropagation:
    """Loss and gradient of a batch that every process has, each at its share of the cases.

    Cases lie along ``batch_dim``, an axis of the inputs and one of the targets; ``outputs`` says
    which of the things that the model returns the loss takes.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Loss | Callable[..., Tensor],
        group: Group,
        batch_dim: tuple[int, int],
        outputs: Select | None = None,
    ) -> None:
        model = unwrapped(model)
        options: dict[str, Any] = {}
        if net_of(model, loss) is None:
            options = {"batch_dim": batch_dim, "outputs": outputs}
        self.parameters = FlatParameters(model)
        on_cuda = self.parameters.device.type == "cuda"
        self._objective = distributed(objective_for(model, loss, **options), group, on_cuda=on_cuda)
        self._ranks = group.ranks

    def __call__(self, batch: Batch) -> float:
        """The mean loss; the gradient replaces the parameters' ``grad``.

        Raises ValueError where parameters or data are not the same on every rank.
        """
        theta = self.parameters.read()
        if self._ranks.size > 1:
            named = {"parameters": checksum(theta), "data": checksum(batch)}
            check_checksums(self._ranks, named, NEED)
        with torch.no_grad():
            loss, gradient = self._objective.gradient(self._objective.prepare(batch), theta)
        for p, part in zip(self.parameters.tensors, self.parameters.split(gradient), strict=True):
            p.grad = part
        return loss
