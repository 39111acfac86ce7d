"""One iteration of training: a Hessian-free step, or one update of any torch optimiser."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from hfcore.batches import Batch, Batches
from hfcore.bindings.momentum import Step
from hfcore.nets.grouped import BATCHES_ON
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.optimisers.momentum import UpdatingClosure
from hfcore.training.gradients import FusedBackpropagation, backpropagation

if TYPE_CHECKING:
    from hfcore.problems import Problem

COST_UNIT = 1000  # the paper counts work in minibatches of 1000 sequences


@dataclass(frozen=True)
class Iteration:
    """What one iteration did and what it cost, in sequences."""

    stats: dict[str, Any]
    """Statistics of the step, with at least ``loss`` and ``seconds``."""
    sequences: int
    """Sequences gone through by gradients and curvature products."""
    evaluated: int
    """Sequences gone through by objective evaluations."""


class Stepper(Protocol):
    """An optimiser as the training loop sees it."""

    batches: int
    device: torch.device
    """Where the batches are to lie."""

    def step(self, batches: Sequence[Batch]) -> Iteration: ...


class HessianFreeStepper:
    """One HF step an iteration: fresh gradient batches, the other roles are picked from them."""

    def __init__(
        self, optimizer: HessianFree, batches: int, batch_size: int, device: torch.device
    ) -> None:
        self.batches = batches
        self.device = device
        self._optimizer = optimizer
        self._batch_size = batch_size

    def step(self, batches: Sequence[Batch]) -> Iteration:
        stats = self._optimizer.step(Batches(gradient=batches))
        return Iteration(
            asdict(stats),
            sequences=(stats.products + stats.gradients) * self._batch_size,
            evaluated=stats.objective_evaluations * self._batch_size,
        )


class FirstOrderStepper:
    """One update of a torch optimiser an iteration, on one batch.

    The loss is the problem's, a sum over the unmasked outputs of a case averaged over cases,
    without L2 (use the optimiser's weight decay). Gradients of hf.RNN and hf.MLP come from the
    fused ops, those of other modules from autograd; an optimiser that takes its gradient elsewhere
    than at the present parameters (hf.NAG, L-BFGS) calls the closure there. hf.SGD,
    hf.ClassicalMomentum and hf.NAG leave the whole update to the fused ops: the parameters then
    have a ``grad`` only with ``gradients``.
    """

    batches = 1

    def __init__(
        self,
        model: torch.nn.Module,
        problem: Problem,
        optimizer: torch.optim.Optimizer,
        batch_size: int,
        *,
        gradients: bool = True,
    ) -> None:
        self._batch_size = batch_size
        self._optimizer = optimizer
        self._gradients = gradients
        self._backward = backpropagation(model, problem.loss, batch_size)
        fused = isinstance(self._backward, FusedBackpropagation)
        self.device = BATCHES_ON if fused else _device_of(model)

    def step(self, batches: Sequence[Batch]) -> Iteration:
        (batch,) = batches
        losses: list[float] = []
        started = time.perf_counter()
        self._optimizer.step(self._closure(batch, losses))  # type: ignore[arg-type]
        size = self._batch_size
        seconds = {"update": time.perf_counter() - started}
        return Iteration(
            {"loss": losses[0], "gradients": len(losses) * size / COST_UNIT, "seconds": seconds},
            sequences=len(losses) * size,
            evaluated=0,
        )

    def _closure(self, batch: Batch, losses: list[float]) -> Callable[[], Tensor]:
        """The loss on the batch, which joins ``losses``."""
        backward = self._backward
        if isinstance(backward, FusedBackpropagation):
            return _FusedClosure(backward, batch, losses, gradients=self._gradients)
        return lambda: _recorded(backward(batch), losses)


class _FusedClosure(UpdatingClosure):
    """The loss of a batch on the fused ops."""

    def __init__(
        self, backward: FusedBackpropagation, batch: Batch, losses: list[float], *, gradients: bool
    ) -> None:
        self.parameters = backward.parameters
        self._backward, self._batch = backward, batch
        self._losses, self._gradients = losses, gradients

    def __call__(self) -> Tensor:
        return _recorded(self._backward(self._batch), self._losses)

    def update(self, theta: Tensor, velocity: Tensor, step: Step) -> Tensor:
        wanted = self._gradients
        loss = self._backward.update(self._batch, theta, velocity, step, gradients=wanted)
        self._losses.append(loss.item())
        return loss


def _recorded(loss: float, losses: list[float]) -> Tensor:
    losses.append(loss)
    return torch.tensor(loss, dtype=torch.float64)


def _device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def make_stepper(
    model: torch.nn.Module,
    problem: Problem,
    optimizer: torch.optim.Optimizer,
    *,
    gradient_batches: int,
    batch_size: int,
    gradients: bool,
) -> Stepper:
    """The stepper for this optimiser.

    Without ``gradients`` it may leave none in the parameters, where that is faster.
    Raises ValueError if the optimiser holds a parameter that is not the model's.
    """
    own = {id(p) for p in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if any(id(p) not in own for p in held):
        raise ValueError("optimizer: holds parameters that are not the model's")
    if isinstance(optimizer, HessianFree):
        device = _device_of(model)
        return HessianFreeStepper(optimizer, gradient_batches, batch_size, device)
    return FirstOrderStepper(model, problem, optimizer, batch_size, gradients=gradients)
