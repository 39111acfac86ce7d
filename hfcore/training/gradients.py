"""Loss and gradient of a model on one batch.

Called with a batch, each gives the mean loss over its cases; the gradient replaces the parameters'
``grad``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hfcore.arguments import called
from hfcore.autograd.calls import Select, chosen, selected
from hfcore.autograd.data import BatchPart, cut_off
from hfcore.autograd.links import check_link
from hfcore.autograd.losses import NO_MASK
from hfcore.autograd.torch_losses import recognised
from hfcore.batches import Batch
from hfcore.bindings.momentum import Step, stacked
from hfcore.cases import ArrayCases
from hfcore.flat import FlatParameters
from hfcore.flat_memory import joined, side_by_side
from hfcore.losses import Loss
from hfcore.losses.from_torch import converted
from hfcore.minibatches import DrawnBatches
from hfcore.nets.data import Data
from hfcore.nets.grouped import Account, GroupedGradient, Row, grouped_gradient
from hfcore.nets.registry import why_altered, why_left_to_autograd
from hfcore.optimisers.flat_state import SideBySide

logger = logging.getLogger("hfcore")


class FusedBackpropagation:
    """On the fused ops of a net of hf.nets, without autograd.

    It is the computation of a sweep with one net in its group, so both have the same bits.
    Gradients lie in one flat buffer, overwritten by the next call; each has storage of its own.
    """

    def __init__(self, model: nn.Module, passes: GroupedGradient) -> None:
        self._model = model
        self.parameters = FlatParameters(model).tensors
        self._passes = passes
        self._theta = SideBySide()
        self._gradient = torch.empty(0, device="cpu")
        self._parts: list[Tensor] = []
        # What rows of batches are drawn from, and its checked form.
        self._cases: ArrayCases | None = None
        self._resident: Data | None = None
        self._account: Account | None = None

    def __call__(self, batch: Batch) -> float:
        self._check_unaltered()
        theta = self._theta.view(self.parameters)
        out = self._buffer(theta)
        losses = self._passes.gradient(theta, self._passes.prepare(batch), out)
        self._give()
        return float(losses)

    def update(
        self, batch: Batch, theta: Tensor, velocity: Tensor, step: Step, *, gradients: bool
    ) -> Tensor:
        """One update of ``[1,N]`` in place; ``grad`` is left only with ``gradients``.

        Gives the loss as a tensor without axes.
        """
        self._check_unaltered()
        out = self._buffer(theta) if gradients else None
        data = self._passes.prepare(batch)
        losses = self._passes.update(theta, velocity, data, step, out=out)
        if gradients:
            self._give()
        else:
            self._clear()
        return losses[0]

    def takes_rows(self, row: DrawnBatches) -> bool:
        """Whether :meth:`updates` may be asked for such a row: one net, cases without weights.

        Raises TypeError or ValueError naming what is wrong with the cases.
        """
        if self._cases is not row.cases:
            batch = row.cases.batch
            prepared = self._passes.prepare(batch)
            plain = type(prepared) is Data and prepared.w is None
            self._resident = self._passes.resident(batch) if plain else None
            self._cases = row.cases
        return self._resident is not None

    def updates(self, row: DrawnBatches, theta: Tensor, velocity: Tensor, step: Step) -> Tensor:
        """An update of ``[1,N]`` in place on each batch of a row; gives the losses ``[K]``.

        After a loss that is not finite nothing moves. Leaves no ``grad``.
        """
        self._check_unaltered()
        self._clear()
        assert self._resident is not None
        account = self._account
        if account is None or account.active.device != theta.device:
            account = self._account = Account.of(1, theta.device)
        account.active.fill_(True)
        steps = stacked(step, theta).expand(len(row), -1, -1)
        made = Row(theta, velocity, self._resident, row.chosen, steps, account)
        return self._passes.row(made)[:, 0]

    def _check_unaltered(self) -> None:
        reason = why_altered(self._model)
        if reason is not None:
            raise ValueError(
                f"model: was altered during the run, {reason}; a new run goes through autograd"
            )

    def _buffer(self, theta: Tensor) -> Tensor:
        """For the gradient of ``theta [1,N]``."""
        kept = self._gradient
        if kept.shape != theta.shape or kept.device != theta.device or kept.dtype != theta.dtype:
            self._parts = side_by_side(self.parameters)
            gradient = joined(self._parts)
            assert gradient is not None
            self._gradient = gradient
        return self._gradient

    def _give(self) -> None:
        for p, gradient in zip(self.parameters, self._parts, strict=True):
            p.grad = gradient

    def _clear(self) -> None:
        for p in self.parameters:
            if p.grad is not None:
                p.grad = None


class AutogradBackpropagation:
    """By autograd through any module; a callable loss is (outputs, targets) → mean over cases.

    ``outputs`` says which of the things that the module returns the loss takes; None: all of it;
    ``target_dim`` is the axis of cases in targets.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | Callable[..., Tensor],
        count: int | Callable[[Batch], int],
        outputs: Select | None = None,
        target_dim: int = 0,
    ) -> None:
        self._model = model
        self._loss = loss
        self._count = count
        self._outputs = outputs
        self._torchs = None if isinstance(loss, Loss) else recognised(loss, target_dim)
        # What is looked at before the first update alone.
        self._linked: Loss | None = loss if isinstance(loss, Loss) else converted(loss)

    def __call__(self, batch: Batch) -> float:
        self._model.zero_grad()
        s = chosen(self._model, batch.inputs, self._outputs)
        if self._linked is not None:
            s = selected(s, None)
            check_link(s, self._linked)
            self._linked = None
        if not isinstance(self._loss, Loss):
            return self._through(s, batch)
        loss, outputs = self._loss, s.detach()
        cases = self._cases(batch)
        scale = loss.scale([loss.counted(batch.targets, batch.mask, s.shape[-1], cases)])
        value = loss.value(outputs, batch.targets, batch.mask, scale=scale)
        s.backward(gradient=self._loss.gradient(outputs, batch.targets, batch.mask, scale=scale))
        return value

    def _cases(self, batch: Batch) -> int:
        return self._count if isinstance(self._count, int) else self._count(batch)

    def _through(self, s: Tensor, batch: Batch) -> float:
        if batch.mask is None:
            value = called("loss", self._loss, s, batch.targets)  # type: ignore[arg-type]
        else:
            value = self._masked(s, batch, batch.mask)
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"loss: returned {what}, need a scalar tensor, the mean over cases")
        value.backward()
        return value.item()

    def _masked(self, s: Tensor, batch: Batch, mask: Tensor) -> Tensor:
        """The mean of one of torch's own losses over what counts."""
        torchs = self._torchs
        if torchs is None:
            raise ValueError(f"{NO_MASK}; give the mask to your own loss")
        dim, y = torchs.dim, cut_off(batch.targets, mask)
        part = BatchPart(batch.inputs, y, mask, self._cases(batch), dim, dim)
        torchs.check(s, part)
        return torchs.mean(s, part) * (part.count / torchs.total([torchs.counted(part)]))


def backpropagation(
    model: nn.Module,
    loss: Loss | Callable[..., Tensor],
    count: int | Callable[[Batch], int],
    outputs: Select | None = None,
    batch_dim: tuple[int, int] | None = None,
) -> FusedBackpropagation | AutogradBackpropagation:
    """The fused one where the model has one, else autograd.

    ``count``: the cases of a batch; ``outputs``: as in :class:`AutogradBackpropagation`;
    ``batch_dim``: the axes of cases in inputs and targets.
    """
    passes = grouped_gradient(model, loss, batch_dim) if outputs is None else None
    if passes is None:
        reason = why_left_to_autograd(model, loss, outputs, batch_dim)
        if reason is not None:
            logger.warning("%s goes through autograd: %s", type(model).__name__, reason)
        dim = 0 if batch_dim is None else batch_dim[1]
        return AutogradBackpropagation(model, loss, count, outputs, dim)
    return FusedBackpropagation(model, passes)
