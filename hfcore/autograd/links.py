"""Outputs that have been through the nonlinearity which the loss applies itself."""

from __future__ import annotations

from torch import Tensor

from hfcore.autograd.losses import PROBABILITIES
from hfcore.losses import LogisticCrossEntropy, Loss, SoftmaxCrossEntropy

# Ops that move numbers and do not change them.
MOVES = (
    "View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze", "Unsqueeze", "Transpose", "T",
    "Permute", "Select", "Slice", "Clone", "Alias", "Expand", "ToCopy",
)  # fmt: skip


def check_link(outputs: Tensor, loss: Loss) -> None:
    """Raise ValueError where ``outputs […,k]`` come from the nonlinearity that the loss applies.

    That is a sigmoid before a logistic cross-entropy, or a softmax before a softmax
    cross-entropy, as the outputs' graph shows it: it would be applied twice.
    """
    name = _last_op(outputs)
    if name == "Sigmoid" and isinstance(loss, LogisticCrossEntropy):
        raise ValueError(
            "outputs: come from a sigmoid, which the logistic cross-entropy applies itself; need "
            "the outputs before it"
        )
    if name == "Softmax" and isinstance(loss, SoftmaxCrossEntropy):
        raise ValueError(PROBABILITIES)


def _last_op(outputs: Tensor) -> str:
    """The op that gave the outputs' numbers; "" where autograd did not see one."""
    node = outputs.grad_fn
    while node is not None:
        name = node.name().rstrip("0123456789").removesuffix("Backward")
        if name not in MOVES:
            return name
        node = node.next_functions[0][0] if node.next_functions else None
    return ""
