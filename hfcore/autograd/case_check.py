"""Whether cases are what the objective takes them for: each with outputs and a loss of its own.

Chunks, the empirical Fisher and diagonals cut a batch into cases. That is right where the model
computes each by itself, along the axis that ``batch_dim`` names, and where the loss is a mean over
them; a sum, a root of a mean, and a loss of pairs are none. Evaluating some cases together and in
two halves shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hfcore.autograd.data import BatchPart
from hfcore.autograd.evaluation import Evaluation

# Cases that are looked at.
MOST_CASES = 64


def check_cases(
    what: str,
    part: BatchPart,
    evaluate: Callable[[BatchPart], Evaluation],
    *,
    chunk_size: int | None,
    case_dim: int,
) -> None:
    """Raise ValueError, for the sake of ``what``, where cases are not independent."""
    count = min(part.count, max(2, min(MOST_CASES, chunk_size or MOST_CASES)))
    if count < 2:
        return
    some = next(part.chunks(count))
    halves = [*some.chunks((count + 1) // 2)]
    s, whole = _values(evaluate(some) if count == part.count else _of_some(what, some, evaluate))
    apart, mean, size = [], 0.0, abs(whole)
    for piece in halves:
        outputs, value = _values(_of_some(what, piece, evaluate))
        apart.append(outputs)
        mean, size = mean + piece.count / count * value, max(size, abs(value))
    if _differ(torch.cat(apart, case_dim), s):
        raise ValueError(
            f"batch_dim: the outputs of half of the cases, along axis {case_dim}, are others than "
            f"in the whole (cases along another axis, or a model that mixes them?); {what} needs "
            "cases that the model computes each by itself"
        )
    if math.isfinite(mean) and abs(whole - mean) > _tolerance(s) * size:
        raise ValueError(
            f"loss: is no mean over cases: {whole:.6g} for {count} cases together, {mean:.6g} as "
            f"the mean over their halves (a sum, a root or pairs of cases?); {what} needs one"
        )


def _of_some(
    what: str, piece: BatchPart, evaluate: Callable[[BatchPart], Evaluation]
) -> Evaluation:
    """The model on some of the cases. ValueError where it takes no other number of them."""
    try:
        return evaluate(piece)
    except Exception as error:
        raise ValueError(
            f"model: took all cases together, and of {piece.count} of them alone it raised "
            f"{type(error).__name__}: {error}; {what} needs cases that the model computes each by "
            "itself"
        ) from error


def _values(at: Evaluation) -> tuple[Tensor, float]:
    """Outputs and loss without their graph."""
    assert at.outputs is not None
    return at.outputs.detach(), float(at.loss.detach())


def _differ(a: Tensor, b: Tensor) -> bool:
    off, size = float((a - b).double().norm()), float(b.double().norm())
    return off > _tolerance(b) * size


def _tolerance(s: Tensor) -> float:
    """Batches of other sizes are rounded otherwise."""
    eps = torch.finfo(s.dtype).eps
    if torch.is_autocast_enabled(s.device.type):
        eps = torch.finfo(torch.get_autocast_dtype(s.device.type)).eps
    return float(eps**0.4)
