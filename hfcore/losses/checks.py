"""What may be given as a loss."""

from __future__ import annotations

from typing import Any

from hfcore.losses.base import Loss


def check_loss(loss: Any) -> None:
    """Raises TypeError for what is neither a loss of ``hf.losses`` nor a callable.

    A class is called with outputs and targets as anything callable is, and fails somewhere inside.
    """
    if isinstance(loss, type):
        name = loss.__name__
        raise TypeError(f"loss: got the class {name}, need an object of it, as {name}() makes one")
    if not (callable(loss) or isinstance(loss, Loss)):
        raise TypeError(
            f"loss: got {type(loss).__name__}, need a loss of hf.losses or a callable "
            "(outputs, targets) → mean loss"
        )
