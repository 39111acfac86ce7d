"""What problems with classes share: outputs that miss their class, and how far they are off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.draws import check_outputs
from hfcore.losses import Loss, SoftmaxCrossEntropy
from hfcore.problems.base import Criterion1997, Described
from hfcore.problems.lengths import at_ends


def missed(s: Tensor, classes: Tensor) -> Tensor:
    """Bool ``[…]``: the asked class has not the largest output of ``s […,k]``; ties and NaN miss.

    ``classes […]`` or with fewer leading axes.
    """
    asked = _asked(s, classes)
    others = s.scatter(-1, asked, -torch.inf).amax(-1)
    return ~(s.gather(-1, asked).squeeze(-1) > others)


def class_deviation(s: Tensor, classes: Tensor) -> Tensor:
    """Largest error of the predicted probabilities ``softmax(s […,k])``, float64 ``[…]``.

    It is 1 − p of the asked class: no other is off by more. ``classes`` as in :func:`missed`.
    """
    p = torch.softmax(s.double(), -1)
    return 1.0 - p.gather(-1, _asked(s, classes)).squeeze(-1)


def _asked(s: Tensor, classes: Tensor) -> Tensor:
    """Classes as an index of s ``[…,1]``."""
    return classes.unsqueeze(-1).expand(*s.shape[:-1], 1)


class LastClass(Described):
    """One class of ``output_size`` is asked for at the last step; softmax cross-entropy.

    Subclasses set ``name``, ``output_size`` and ``criterion_1997``.
    """

    name: str
    output_size: int
    criterion_1997: Criterion1997
    loss: Loss
    length: int
    centre: bool

    def __init__(self) -> None:
        self.loss = SoftmaxCrossEntropy()

    def wrong(self, s: Tensor, batch: Batch) -> Tensor:
        """Bool ``[B]``: the asked class has not the largest of the last outputs of ``s [T,B,k]``.

        Ties and NaN are wrong. A leading group axis ``[G,T,B,k]`` gives ``[G,B]``.
        """
        return missed(*self._last(s, batch))

    def errors(self, s: Tensor, batch: Batch) -> Tensor:
        """Float64 ``[B]``: 1 for a wrong sequence, else 0. Shapes as in :meth:`wrong`."""
        return self.wrong(s, batch).double()

    def deviation(self, s: Tensor, batch: Batch) -> Tensor:
        """Float64 ``[B]``: the largest error of the last predictions, which are probabilities.

        Shapes as in :meth:`wrong`.
        """
        return class_deviation(*self._last(s, batch))

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        return {"name": self.name, "length": self.length, "centre": self.centre}

    def _last(self, s: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Outputs ``[…,B,k]`` and classes ``[B]`` of the last step of each sequence."""
        shape = [*batch.targets.shape, self.output_size]
        check_outputs(s, shape, "of outputs for the targets", batch.targets)
        classes = at_ends(batch.targets[..., None], batch.mask)
        return at_ends(s, batch.mask), classes[..., 0]
