"""Outputs that have been through the nonlinearity which the loss applies itself."""

from __future__ import annotations

from hfcore.losses.base import Loss

# By Loss.nonlinearity, as a sentence has them.
NAMES = {"logistic": "a sigmoid", "tanh": "a tanh", "exp": "an exponential"}

PROBABILITIES = (
    "outputs: every row is a probability distribution, as if a softmax had been applied; the loss "
    "takes the outputs before it (its gradient and L'' belong to those)"
)


def check_applied_once(nonlinearity: str, loss: Loss) -> None:
    """Raise ValueError where outputs that come from a nonlinearity meet a loss that applies it.

    That is a sigmoid before a logistic cross-entropy, a softmax before a softmax cross-entropy, an
    exponential before a loss of counts: it would be applied twice.
    """
    if not nonlinearity or nonlinearity != loss.nonlinearity:
        return
    if nonlinearity == "softmax":
        raise ValueError(PROBABILITIES)
    raise ValueError(
        f"outputs: come from {NAMES[nonlinearity]}, which the {_called(loss)} applies itself; need "
        "the outputs before it"
    )


def _called(loss: Loss) -> str:
    return "logistic cross-entropy" if loss.kind == "logistic" else type(loss).__name__
