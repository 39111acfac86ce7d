"""Loss and gradient of a model on one batch, left in the parameters' ``grad``."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from hfcore.batches import Batch
from hfcore.curvature.grouped import GroupedGradient, grouped_gradient
from hfcore.flat import FlatParameters
from hfcore.losses import Loss
from hfcore.optimisers.flat_state import SideBySide


class Backpropagation(Protocol):
    """Mean loss over the cases of a batch; its gradient replaces the parameters' ``grad``."""

    def __call__(self, batch: Batch) -> float: ...


class FusedBackpropagation:
    """On the fused ops of hf.RNN and hf.MLP, without autograd.

    It is the computation of a sweep with one net in its group, so both have the same bits.
    Gradients are views into one flat buffer, overwritten by the next call.
    """

    def __init__(self, model: nn.Module, passes: GroupedGradient) -> None:
        self._parameters = FlatParameters(model)
        self._passes = passes
        self._theta = SideBySide()
        self._gradient = torch.empty(0)
        self._parts: list[Tensor] = []

    def __call__(self, batch: Batch) -> float:
        parameters = self._parameters.tensors
        theta = self._theta.view(parameters)
        kept = self._gradient
        if kept.shape != theta.shape or kept.device != theta.device or kept.dtype != theta.dtype:
            self._gradient = torch.empty_like(theta)
            self._parts = self._parameters.split(self._gradient[0])
        losses = self._passes.gradient(theta, self._passes.prepare(batch), self._gradient)
        for p, gradient in zip(parameters, self._parts, strict=True):
            p.grad = gradient
        return float(losses)


class AutogradBackpropagation:
    """By autograd through any module."""

    def __init__(self, model: nn.Module, loss: Loss, batch_size: int) -> None:
        self._model = model
        self._loss = loss
        self._batch_size = batch_size

    def __call__(self, batch: Batch) -> float:
        self._model.zero_grad()
        s = self._model(batch.inputs)
        outputs, scale = s.detach(), 1.0 / self._batch_size
        value = self._loss.value(outputs, batch.targets, batch.mask, scale=scale)
        s.backward(gradient=self._loss.gradient(outputs, batch.targets, batch.mask, scale=scale))
        return value


def backpropagation(model: nn.Module, loss: Loss, batch_size: int) -> Backpropagation:
    """The fused one where the model has one, else autograd."""
    passes = grouped_gradient(model, loss)
    if passes is None:
        return AutogradBackpropagation(model, loss, batch_size)
    return FusedBackpropagation(model, passes)
