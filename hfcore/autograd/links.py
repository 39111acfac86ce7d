"""Which nonlinearity the outputs of a module come from, as their graph shows it."""

from __future__ import annotations

from torch import Tensor

from hfcore.losses import Loss
from hfcore.losses.applied import check_applied_once

# Ops that move numbers and do not change them.
MOVES = (
    "View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze", "Unsqueeze", "Transpose", "T",
    "Permute", "Select", "Slice", "Clone", "Alias", "Expand", "ToCopy",
)  # fmt: skip

# What autograd calls the nonlinearities that losses apply.
OPS = {"Sigmoid": "logistic", "Softmax": "softmax", "Tanh": "tanh", "Exp": "exp"}


def check_link(outputs: Tensor, loss: Loss) -> None:
    """Raise ValueError where ``outputs […,k]`` come from the nonlinearity that the loss applies."""
    if loss.nonlinearity:
        check_applied_once(OPS.get(_last_op(outputs), ""), loss)


def _last_op(outputs: Tensor) -> str:
    """The op that gave the outputs' numbers; "" where autograd did not see one."""
    node = outputs.grad_fn
    while node is not None:
        name = node.name().rstrip("0123456789").removesuffix("Backward")
        if name not in MOVES:
            return name
        node = node.next_functions[0][0] if node.next_functions else None
    return ""
