"""Batches whose outputs are large, such as logits of many classes, in pieces of a curvature.

L'' at the outputs is kept for all cases. What recording, checks and products make beside it, up to
four arrays of the outputs' size, then is there for one piece at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from hfcore.autograd.data import BatchPart, Closure
from hfcore.autograd.losses import PackageLoss

if TYPE_CHECKING:
    from hfcore.autograd.objective import ModuleObjective

# Bytes of the outputs from which on a batch is cut, and into how many pieces.
LARGE, PIECES = 32 << 20, 3


def in_pieces(
    objective: ModuleObjective, piece: Closure | BatchPart, share: float
) -> Iterator[tuple[Closure | BatchPart, float]]:
    """The piece in smaller ones with the share of each, where its outputs are large and its cases
    can be told apart; else as it is."""
    if callable(piece) or piece.count < 2 or not _is_large(objective, piece):
        yield piece, share
        return
    if not objective.has_separate_cases(piece):
        yield piece, share
        return
    for part in piece.chunks(-(-piece.count // PIECES)):
        yield part, share * part.count / piece.count


def _is_large(objective: ModuleObjective, part: BatchPart) -> bool:
    """Whether the outputs of a batch take ``LARGE`` bytes or more, by its targets' shape.

    How many outputs each class among the targets has is seen at the first evaluation.
    """
    loss, targets = objective.loss_function, part.targets
    if not isinstance(loss, PackageLoss) or not isinstance(targets, Tensor):
        return False
    like = objective.parameters.tensors
    least = LARGE // like[0].element_size()
    if targets.is_floating_point():
        return targets.numel() >= least
    if targets.numel() * max(max(p.shape, default=1) for p in like) < least:
        return False  # no parameter is as wide as the outputs had to be
    evaluator = objective.evaluator
    if evaluator.outputs_per_target is None:
        objective.evaluate(part, loss=False)
    return targets.numel() * (evaluator.outputs_per_target or 1.0) >= least
