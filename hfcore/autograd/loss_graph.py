"""L'' of a loss that a caller's own function computed, where its graph is one of torch's losses.

Its autograd graph holds what the formula needs, so that a product with L'' is the same few ops as
with a loss of ``hf.losses``. Everything else is differentiated twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

LinearMap = Callable[[Tensor], Tensor]

# The numbers of torch's reductions to a scalar.
MEAN, SUM = 1, 2
# Ops that keep all numbers, and their order.
RESHAPES = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0")


def second_of_graph(loss: Tensor, outputs: Tensor) -> LinearMap | None:
    """The map R ↦ L''R for ``R […]`` like ``outputs […]``; None where ``loss []`` is no known one.

    Known are cross-entropy of classes (weights, ignored classes), with logits, mean squared error
    and Huber's, each reduced by its own mean or sum, of the outputs or of a view of them.
    """
    node, hooked = loss.grad_fn, loss._backward_hooks or outputs._backward_hooks
    while node is not None and node.name() in RESHAPES:
        node = node.next_functions[0][0]
    second = None if node is None else SECONDS.get(node.name())
    if second is None or hooked:
        return None
    return second(node, outputs)


def _is_of(node: Any, outputs: Tensor, shape: torch.Size) -> bool:
    """Whether the first input of a node, in ``shape``, is the outputs or a reshaped view of them.

    Then no other input of it has a graph.
    """
    edge = get_gradient_edge(outputs)
    (following, number), *others = node.next_functions
    if any(other is not None for other, _ in others) or shape.numel() != outputs.numel():
        return False
    while following is not None and following.name() in RESHAPES and following != edge.node:
        following, number = following.next_functions[0]
    return bool(following == edge.node and number == edge.output_nr)


def _diagonal(node: Any, outputs: Tensor, entries: Callable[[Tensor], Tensor]) -> LinearMap | None:
    """Of a loss that sums or averages over its elements; ``entries`` are L'' of their sum."""
    s = node._saved_self
    if node._saved_reduction not in (MEAN, SUM) or not _is_of(node, outputs, s.shape):
        return None
    with torch.no_grad():
        c = entries(s.detach())
        c = c / s.numel() if node._saved_reduction == MEAN else c
        c = c.expand(s.shape).reshape(outputs.shape)
    return lambda R: c * R


def _squared(node: Any, outputs: Tensor) -> LinearMap | None:
    """(s − y)²."""
    s, reduction = node._saved_self, node._saved_reduction
    if reduction not in (MEAN, SUM) or not _is_of(node, outputs, s.shape):
        return None
    factor = 2.0 / s.numel() if reduction == MEAN else 2.0
    return lambda R: R * factor


def _huber(node: Any, outputs: Tensor) -> LinearMap | None:
    """½(s − y)² where |s − y| < δ; its second derivative is zero beyond."""
    y, delta = node._saved_target, node._saved_delta
    return _diagonal(node, outputs, lambda s: ((s - y).abs() < delta).to(s.dtype))


def _smooth_l1(node: Any, outputs: Tensor) -> LinearMap | None:
    """Huber's over its δ, here β, which torch takes for the absolute value where it is 0."""
    y, beta = node._saved_target, node._saved_beta
    return _diagonal(node, outputs, lambda s: ((s - y).abs() < beta) / beta)


def _logistic(node: Any, outputs: Tensor) -> LinearMap | None:
    """w (−P y log σ(s) − (1 − y) log(1 − σ(s))): w (1 + (P − 1) y) σ' each."""
    y, weight, positive = node._saved_target, node._saved_weight, node._saved_pos_weight

    def entries(s: Tensor) -> Tensor:
        p = s.sigmoid()
        c = p * (1 - p)
        c = c if positive is None else c * (1 + (positive - 1) * y)
        return c if weight is None else c * weight

    return _diagonal(node, outputs, entries)


def _softmax(node: Any, outputs: Tensor) -> LinearMap | None:
    """w_y (−log p_y), the classes along the last axis: w_y (diag(p) − ppᵀ) each."""
    above = node.next_functions[0][0]
    if above is None or above.name() != "LogSoftmaxBackward0":
        return None
    log_p, y = above._saved_result, node._saved_target
    last = above._saved_dim in (log_p.ndim - 1, 2**64 - 1)
    reduced = node._saved_reduction in (MEAN, SUM)
    if log_p.ndim != 2 or not last or not reduced or not _is_of(above, outputs, log_p.shape):
        return None
    with torch.no_grad():
        counts = y != node._saved_ignore_index
        weight = node._saved_weight
        w = counts.to(log_p.dtype)
        if weight is not None:
            w = torch.where(counts, weight[y.where(counts, 0)], 0)
        w = w / node._saved_total_weight if node._saved_reduction == MEAN else w
        p = log_p.exp()
        c = (p * w.unsqueeze(-1)).detach()

    def apply(R: Tensor) -> Tensor:
        product: Tensor = c * R.reshape(c.shape)
        product = product - p * product.sum(-1, keepdim=True)
        return product.reshape(R.shape)

    return apply


SECONDS: dict[str, Callable[[Any, Tensor], LinearMap | None]] = {
    "MseLossBackward0": _squared,
    "HuberLossBackward0": _huber,
    "SmoothL1LossBackward0": _smooth_l1,
    "BinaryCrossEntropyWithLogitsBackward0": _logistic,
    "NllLossBackward0": _softmax,
}
