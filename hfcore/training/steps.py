"""One step of training: a Hessian-free step, or one update of any torch optimiser."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hfcore.autograd.calls import Select
from hfcore.batches import Batch, Batches
from hfcore.bindings.momentum import Step
from hfcore.distributed.group import Group
from hfcore.losses import Loss
from hfcore.minibatches import DrawnBatches
from hfcore.nets.grouped import BATCHES_ON
from hfcore.optimisers.closure_optimizer import ClosureOptimizer
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.optimisers.momentum_base import MomentumOptimizer
from hfcore.optimisers.momentum_closures import SummedClosure, UpdatingClosure
from hfcore.optimisers.nonlinear_cg import NonlinearCG
from hfcore.training.gradients import (
    AutogradBackpropagation,
    FusedBackpropagation,
    backpropagation,
)
from hfcore.training.several import DistributedBackpropagation

if TYPE_CHECKING:
    from hfcore.problems import Problem

COST_UNIT = 1000  # the paper counts work in minibatches of 1000 sequences

# Statistics of a step that are counts.
ADDED_UP = (
    "gradients",
    "products",
    "objective_evaluations",
    "cg_iterations",
    "line_searches",
    "line_searches_failed",
)

Count = Callable[[Batch], int]
Backpropagation = FusedBackpropagation | AutogradBackpropagation | DistributedBackpropagation


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

    device: torch.device
    """Where the batches are to lie."""
    interruptible: bool
    """Whether a step may raise StepInterrupted."""

    def step(self, batches: Batches | Sequence[Batch]) -> Iteration:
        """One step; the loop has the optimiser's own state stored and restored."""

    def at_once(self, row: DrawnBatches) -> Iteration | None:
        """An update on each batch of a row; None, and nothing done, where each is a step."""


def count_along(dim: int) -> Count:
    """The number of cases of a batch, which lie along axis ``dim`` of its inputs."""

    def count(batch: Batch) -> int:
        first = next(t for t in tree_leaves(batch.inputs) if isinstance(t, Tensor))
        return int(first.shape[dim])

    return count


class HessianFreeStepper:
    """One HF step on the batches of its roles.

    Work is counted by cases: products on those of the curvature, gradients on those of the
    gradient, evaluations on those of the backtracking (the curvature's own loss apart).
    """

    interruptible = True

    def __init__(self, optimizer: HessianFree, count: Count, device: torch.device) -> None:
        self.device = device
        self._optimizer = optimizer
        self._count = count

    def step(self, batches: Batches | Sequence[Batch]) -> Iteration:
        roles = batches if isinstance(batches, Batches) else Batches(batches)
        stats = self._optimizer.step(roles)
        gradient = _listed(roles.gradient)
        curvature = gradient[:1] if roles.curvature is None else _listed(roles.curvature)
        search = gradient[1:2] or gradient[-1:]
        if roles.backtracking is not None:
            search = _listed(roles.backtracking)
        product, case, trial = (self._mean(role) for role in (curvature, gradient, search))
        trials = stats.objective_evaluations - len(curvature)
        return Iteration(
            asdict(stats),
            sequences=round(stats.products * product + stats.gradients * case),
            evaluated=round(len(curvature) * product + trials * trial),
        )

    def at_once(self, row: DrawnBatches) -> Iteration | None:
        return None

    def _mean(self, role: Sequence[Batch]) -> float:
        """Cases of a batch, which the optimiser counts as one."""
        return sum(map(self._count, role)) / len(role)


class FirstOrderStepper:
    """One update of a torch optimiser, on one batch or the cases of several together.

    The loss is a sum over the unmasked outputs of a case averaged over cases (that of a callable
    is its own), without L2 (use the optimiser's weight decay). Gradients of hf.RNN and hf.MLP come
    from the fused ops, those of other modules from autograd; an optimiser that takes its gradient
    elsewhere than at the present parameters (hf.NAG, L-BFGS) calls the closure there. hf.SGD,
    hf.ClassicalMomentum and hf.NAG leave the whole update to the fused ops: the parameters then
    have a ``grad`` only with ``gradients``.

    ``problem`` is one of hf.problems, for its loss, or a loss; ``count`` the cases of a batch;
    ``outputs`` which of the things that the model returns the loss takes. Of a ``group`` every
    process takes its share of the cases, which lie along ``batch_dim``.
    """

    interruptible = False

    def __init__(
        self,
        model: torch.nn.Module,
        problem: Problem | Loss | Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        count: int | Count,
        *,
        gradients: bool = True,
        outputs: Select | None = None,
        group: Group | None = None,
        batch_dim: tuple[int, int] = (0, 0),
    ) -> None:
        self._count = _constant(count) if isinstance(count, int) else count
        self._optimizer = optimizer
        self._gradients = gradients
        loss: Any = getattr(problem, "loss", problem)
        self._backward: Backpropagation
        if group is None:
            self._backward = backpropagation(model, loss, self._count, outputs, batch_dim)
        else:
            self._backward = DistributedBackpropagation(model, loss, group, batch_dim, outputs)
        fused = isinstance(self._backward, FusedBackpropagation)
        self.device = BATCHES_ON if fused else device_of(model)

    def step(self, batches: Batches | Sequence[Batch]) -> Iteration:
        chosen = _listed(batches.gradient) if isinstance(batches, Batches) else list(batches)
        losses: list[float] = []
        started = time.perf_counter()
        self._optimizer.step(self._closure(chosen, losses))  # type: ignore[arg-type]
        work = len(losses) * sum(map(self._count, chosen))
        seconds = {"update": time.perf_counter() - started}
        return Iteration(
            {"loss": losses[0], "gradients": work / COST_UNIT, "seconds": seconds},
            sequences=work,
            evaluated=0,
        )

    def at_once(self, row: DrawnBatches) -> Iteration | None:
        """One step of hf.SGD, hf.ClassicalMomentum or hf.NAG that makes all updates."""
        backward, optimizer = self._backward, self._optimizer
        if not isinstance(backward, FusedBackpropagation) or self._gradients:
            return None
        if not isinstance(optimizer, MomentumOptimizer):
            return None
        losses: list[float] = []
        closure = _RowClosure(backward, row, losses)
        if not (backward.takes_rows(row) and optimizer.is_served_by(closure)):
            return None
        started = time.perf_counter()
        optimizer.step(closure)  # type: ignore[arg-type]
        work = row.chosen.numel()
        return Iteration(
            {
                "loss": sum(losses) / len(losses),
                "gradients": work / COST_UNIT,
                "seconds": {"update": time.perf_counter() - started},
                "updates": len(losses),
            },
            sequences=work,
            evaluated=0,
        )

    def _closure(self, batches: list[Batch], losses: list[float]) -> Callable[[], Tensor]:
        """The loss on the batches, which joins ``losses``."""
        backward = self._backward
        if isinstance(backward, FusedBackpropagation) and len(batches) == 1:
            return _FusedClosure(backward, batches[0], losses, gradients=self._gradients)
        return _BatchClosure(lambda: _recorded(self._together(batches), losses))

    def _together(self, batches: list[Batch]) -> float:
        """Mean loss and gradient over the cases of all batches."""
        if len(batches) == 1:
            return self._backward(batches[0])
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        sums = [torch.zeros_like(p) for p in parameters]
        cases = [self._count(batch) for batch in batches]
        loss = 0.0
        for batch, count in zip(batches, cases, strict=True):
            share = count / sum(cases)
            loss += share * self._backward(batch)
            for total, p in zip(sums, parameters, strict=True):
                if p.grad is not None:
                    total.add_(p.grad, alpha=share)
        for total, p in zip(sums, parameters, strict=True):
            p.grad = total
        return loss


class NonlinearCGStepper(FirstOrderStepper):
    """The line searches of a step on the cases of its batches; their statistics join the line."""

    _optimizer: NonlinearCG

    def step(self, batches: Batches | Sequence[Batch]) -> Iteration:
        done = super().step(batches)
        assert self._optimizer.last_stats is not None
        stats = asdict(self._optimizer.last_stats)
        seconds = {**done.stats["seconds"], "gradient": stats.pop("seconds")["gradient"]}
        del stats["evaluations"]  # each is a gradient, which are counted
        return replace(done, stats={**done.stats, **stats, "seconds": seconds})


class _BatchClosure(SummedClosure):
    """The loss of some batches, on all processes where there are several."""

    def __init__(self, call: Callable[[], Tensor]) -> None:
        self._call = call

    def __call__(self) -> Tensor:
        return self._call()


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


class _RowClosure(UpdatingClosure):
    """The losses of a row of batches on the fused ops."""

    def __init__(
        self, backward: FusedBackpropagation, row: DrawnBatches, losses: list[float]
    ) -> None:
        self.parameters = backward.parameters
        self._backward, self._row, self._losses = backward, row, losses

    def __call__(self) -> Tensor:
        raise NotImplementedError("a row of batches is not one gradient")

    def update(self, theta: Tensor, velocity: Tensor, step: Step) -> Tensor:
        losses = self._backward.updates(self._row, theta, velocity, step)
        self._losses.extend(losses.tolist())
        return losses[-1]


def _recorded(loss: float, losses: list[float]) -> Tensor:
    losses.append(loss)
    return torch.tensor(loss, dtype=torch.float64, device="cpu")


def _constant(size: int) -> Count:
    return lambda batch: size


def _listed(role: Sequence[Batch] | Batch) -> list[Batch]:
    return [role] if isinstance(role, Batch) else list(role)


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the parameters are."""
    return next(model.parameters()).device


def make_stepper(
    model: torch.nn.Module,
    loss: Loss | Callable[..., Tensor] | None,
    optimizer: torch.optim.Optimizer,
    count: Count,
    *,
    gradients: bool,
    outputs: Select | None = None,
    group: Group | None = None,
    batch_dim: tuple[int, int] = (0, 0),
) -> Stepper:
    """The stepper for this optimiser, of all processes of a ``group``.

    Without ``gradients`` it may leave none in the parameters, where that is faster.
    Raises ValueError if the optimiser holds a parameter that is not the model's, or a first-order
    one has no loss, TypeError for one that wants more than a loss.
    """
    own = {id(p) for p in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if any(id(p) not in own for p in held):
        raise ValueError("optimizer: holds parameters that are not the model's")
    if isinstance(optimizer, ClosureOptimizer) and optimizer.returned is not None:
        raise TypeError(
            f"optimizer: {type(optimizer).__name__} takes closures that return "
            f"{optimizer.returned}, which hf.train has none of; call its step"
        )
    if isinstance(optimizer, HessianFree):
        return HessianFreeStepper(optimizer, count, device_of(model))
    if loss is None:
        raise ValueError(
            f"loss: got None, need one for these data and {type(optimizer).__name__}: a loss of "
            "hf.losses, or a function (outputs, targets) → mean loss"
        )
    made = NonlinearCGStepper if isinstance(optimizer, NonlinearCG) else FirstOrderStepper
    return made(
        model,
        loss,
        optimizer,
        count,
        gradients=gradients,
        outputs=outputs,
        group=group,
        batch_dim=batch_dim,
    )


def combined(steps: Sequence[Iteration]) -> Iteration:
    """Several steps as one iteration: losses averaged, work added up, the rest as at the last.

    It has converged if each of them has.
    """
    if len(steps) == 1:
        return steps[0]
    stats = dict(steps[-1].stats)
    stats["loss"] = sum(step.stats["loss"] for step in steps) / len(steps)
    for key in ADDED_UP:
        if key in stats:
            stats[key] = sum(step.stats[key] for step in steps)
    stats["seconds"] = {
        phase: sum(step.stats["seconds"][phase] for step in steps) for phase in stats["seconds"]
    }
    if "converged" in stats:
        stats["converged"] = all(step.stats["converged"] for step in steps)
    stats["updates"] = len(steps)
    return Iteration(
        stats,
        sequences=sum(step.sequences for step in steps),
        evaluated=sum(step.evaluated for step in steps),
    )
