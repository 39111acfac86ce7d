"""What is measured of a model on the validation and test parts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from hfcore.arguments import called
from hfcore.autograd.calls import Select, chosen, selected
from hfcore.autograd.data import BatchPart
from hfcore.autograd.losses import NO_MASK
from hfcore.autograd.torch_losses import recognised
from hfcore.batches import Batch
from hfcore.distributed.ranks import Ranks
from hfcore.losses import Loss
from hfcore.problems.base import Problem, ZeroOne, lacks
from hfcore.training.steps import Count

Metric = Callable[..., Any]
"""(outputs, targets) → a value of each case, a tensor, or the mean over cases, a number.

Where it has a parameter called ``mask`` it is given that too, or None; masked data need it."""

Judged = Callable[[Tensor, Batch], Any]
"""What a problem has of each case."""

Judge = Callable[[Tensor, Batch], tuple[float, float]]
"""Sum over the cases of a batch and what they count, from the model's outputs."""


def of_problem(problem: Problem) -> Judge:
    """Zero-one errors where the problem calls its cases wrong, else its ``errors``."""
    judged_by = "wrong" if isinstance(problem, ZeroOne) else "errors"
    if lacks(problem, judged_by):
        raise TypeError(
            f"data: got {type(problem).__name__}, a problem without wrong and errors; need one of "
            "them, or metric="
        )
    judge: Judged = getattr(problem, judged_by)

    def judged(outputs: Tensor, batch: Batch) -> tuple[float, int]:
        values = judge(outputs, batch)
        if not isinstance(values, Tensor) or values.ndim != 1:
            gave = type(values).__name__
            if isinstance(values, Tensor):
                gave = f"shape {list(values.shape)}"
            raise TypeError(
                f"problem.{judged_by}: gave {gave}, need a tensor [B] with a value of each case"
            )
        return float(values.sum(dtype=torch.float64)), values.numel()

    return judged


def of_metric(metric: Metric, count: Count) -> Judge:
    """A function of the user's own."""
    takes_mask = _takes_mask(metric)

    def judged(outputs: Tensor, batch: Batch) -> tuple[float, int]:
        if batch.mask is not None and not takes_mask:
            raise TypeError(
                "metric: has no parameter called mask, need (outputs, targets, mask) for data "
                "with a mask"
            )
        masks = {"mask": batch.mask} if takes_mask else {}
        value = called("metric", metric, outputs, batch.targets, **masks)
        cases = count(batch)
        if isinstance(value, Tensor) and value.ndim > 0:
            if value.shape != (cases,):
                raise ValueError(
                    f"metric: gave shape {list(value.shape)}, need [{cases}], a value for each "
                    "case, or a number"
                )
            return float(value.sum(dtype=torch.float64)), cases
        try:
            return float(value) * cases, cases
        except (TypeError, ValueError):
            raise TypeError(
                f"metric: gave {type(value).__name__}, need a tensor with a value for each case, "
                "or a number"
            ) from None

    return judged


def of_loss(loss: Loss | Callable[..., Tensor], count: Count, dim: int) -> Judge:
    """The loss's own mean, by default that over cases; ``dim`` is the axis of cases in outputs.

    Losses of torch that weigh their targets are averaged by what counts, as in training.
    """
    torchs = None if isinstance(loss, Loss) else recognised(loss, dim)

    def judged(outputs: Tensor, batch: Batch) -> tuple[float, float]:
        cases = count(batch)
        if isinstance(loss, Loss):
            s = selected(outputs, None)
            counted = loss.counted(batch.targets, batch.mask, s.shape[-1], cases)
            return loss.value(s, batch.targets, batch.mask, scale=loss.factor), counted
        if torchs is None:
            if batch.mask is not None:
                raise ValueError(f"{NO_MASK}, or metric=")
            return float(called("loss", loss, outputs, batch.targets)) * cases, cases
        part = BatchPart(batch.inputs, batch.targets, batch.mask, cases, dim, dim)
        s = selected(outputs, None)
        torchs.check(s, part)
        return torchs.value(s, part) * cases, torchs.counted(part)

    return judged


def measured(
    model: torch.nn.Module,
    judge: Judge,
    batches: Iterable[Batch],
    outputs: Select | None = None,
    ranks: Ranks | None = None,
) -> float:
    """Mean over all cases, the model in eval mode meanwhile.

    ``outputs`` says which of the things that the model returns are judged; None: all of it. Of
    several ``ranks`` each takes some of the batches; the mean is the same on all.
    """
    ranks = Ranks() if ranks is None else ranks
    mine = ranks.together(lambda: _judged(model, judge, batches, outputs, ranks))
    # Of every batch the sum and the count that one rank has, and zeros of the others.
    sums = [sum(column) for column in zip(*ranks.numbers(mine), strict=True)]
    total, cases = 0.0, 0.0
    for found, count in zip(sums[::2], sums[1::2], strict=True):
        total, cases = total + found, cases + count
    if cases == 0:
        raise ValueError("test: gave no case, need at least one")
    return total / cases


@torch.no_grad()
def _judged(
    model: torch.nn.Module,
    judge: Judge,
    batches: Iterable[Batch],
    outputs: Select | None,
    ranks: Ranks,
) -> list[float]:
    """Sum and count of every batch in turn, 0 of those of other ranks."""
    was_training, judged = model.training, list[float]()
    model.eval()
    try:
        for i, batch in enumerate(batches):
            own = i % ranks.size == ranks.rank
            judged += judge(chosen(model, batch.inputs, outputs), batch) if own else (0.0, 0.0)
    finally:
        model.train(was_training)
    return judged


def _takes_mask(metric: Metric) -> bool:
    try:
        asked = metric.forward if isinstance(metric, torch.nn.Module) else metric
        parameters = inspect.signature(asked).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    return "mask" in parameters
