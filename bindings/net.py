"""Loss, gradient and update of whole nets on one minibatch: checks, choice of implementation.

They are what the dense and loss ops give layer by layer, up to rounding: a logistic loss has its
exponential in the data's dtype here and is summed in float64. The CPU form does all of it in one
call, without packing whole weight matrices, which is what a minibatch of some hundred cases needs;
the CUDA form is those ops (``forms/net``). Formulas: ``kernels/dense/reference.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from hfcore.bindings.checks import (
    check_apart,
    check_choice,
    check_group,
    check_group_of,
    check_out,
    check_positive,
    check_tensor,
)
from hfcore.bindings.dense import ACTIVATIONS, check_factor
from hfcore.bindings.dispatch import choose
from hfcore.bindings.forms.net import form
from hfcore.bindings.loss import NET_KINDS
from hfcore.bindings.momentum import Step, check_active, check_arrays, check_step


class Net:
    """What nets of one shape compute: layers with their activations, the loss of the outputs.

    Args:
        kind: the loss, as for the loss ops.
        sizes: units of every layer, inputs first.
        activations: one name a layer; the loss is that of the last one's outputs.

    Raises TypeError or ValueError that names the argument.
    """

    def __init__(self, kind: str, sizes: Sequence[int], activations: Sequence[str]) -> None:
        for size in sizes:
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"sizes: got {size!r}, need an int for every layer")
        if len(sizes) < 2:
            raise ValueError(f"sizes: got {list(sizes)}, need at least inputs and one layer")
        if min(sizes) < 1:
            raise ValueError(f"sizes: got {list(sizes)}, need at least 1 unit a layer")
        if len(activations) != len(sizes) - 1:
            raise ValueError(f"activations: got {len(activations)}, need {len(sizes) - 1}")
        for activation in activations:
            check_choice("activations", activation, ACTIVATIONS)
        self.kind = check_choice("kind", kind, NET_KINDS)
        self.sizes, self.activations = tuple(sizes), tuple(activations)
        self.parameters = sum(m * (n + 1) for n, m in pairwise(sizes))
        # As the compiled form takes them.
        self.kind_code = NET_KINDS.index(kind)
        self.activation_codes = [ACTIVATIONS.index(e) for e in activations]


def net_gradient(
    net: Net,
    x: Tensor,
    targets: Tensor,
    theta: Tensor,
    *,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """scale·Σ over cases of the losses, ``[G]`` float64, and their gradient ``[G,N]``.

    Args:
        x: inputs ``[1 or G,B,n]``.
        targets: ``[1 or G,B,k]``, for ``"softmax"`` int64 classes ``[1 or G,B]``.
        theta: parameters ``[1 or G,N]``: W ``[m,n]`` and b ``[m]`` of one layer after the other.
        scale: a finite factor.
        out: a buffer for the gradient.

    Raises TypeError or ValueError that names the argument.
    """
    _check_data(net, x, targets, theta)
    check_factor("scale", scale)
    G = check_group(x=x, targets=targets, theta=theta)
    out = check_out(out, (G, theta.shape[1]), x)
    check_apart({"out": out}, x=x, targets=targets, theta=theta)
    serving = form(choose("dense.net_gradient", x))
    return serving.net_gradient(net, x, targets, theta, scale, out), out


def net_update(
    net: Net,
    x: Tensor,
    targets: Tensor,
    theta: Tensor,
    velocity: Tensor,
    step: Step,
    *,
    scale: float = 1.0,
    active: Tensor | None = None,
    out: Tensor | None = None,
    checked: bool = False,
) -> Tensor:
    """One update with momentum of whole nets, in place; gives their losses ``[G]`` before it.

    Losses and gradient are those at a = θ + lookahead·v; then ``v = μ v − ε (g + l2 a)``,
    ``θ = θ + v`` (Sutskever et al. 2013, eqs. 1-4), to the bit what :func:`net_gradient` and
    ``momentum_update`` do one after the other. The CPU form makes a going forward and takes every
    piece of the gradient where it is computed, so that neither passes through memory.

    Args:
        theta, velocity: ``[G,N]``, contiguous; ``theta`` as for :func:`net_gradient`.
        active: ``[G]`` bool; the others are left alone, their losses are NaN.
        out: a buffer for the gradient, where it is wanted.
        checked: the arrays have been looked at, as those that training keeps; then only the
            compiled form looks at them again.

    A net whose loss is not finite does not move. Raises TypeError or ValueError that names the
    argument.
    """
    if not checked:
        _check_update(net, x, targets, theta, velocity, scale, out)
    G = len(theta)
    rates = check_step(step, G, theta)
    active = check_active(active, G, theta)
    serving = form(choose("dense.net_update", x))
    return serving.net_update(net, x, targets, theta, velocity, step, rates, scale, active, out)


def _check_data(net: Net, x: Tensor, targets: Tensor, theta: Tensor) -> None:
    check_tensor("x", x, ["G", "B", net.sizes[0]])
    if not x.is_floating_point():
        raise TypeError(f"x: got {x.dtype}, need a floating-point dtype")
    B, k = x.shape[1], net.sizes[-1]
    check_tensor("theta", theta, ["G", net.parameters], like=x)
    if len(x) < 1 or len(theta) < 1 or B < 1:
        check_positive(G=min(len(x), len(theta)), B=B)
    if net.kind != "softmax":
        check_tensor("targets", targets, ["G", B, k], like=x)
        return
    check_tensor("targets", targets, ["G", B], dtype=torch.int64)
    if targets.device != x.device:
        raise ValueError(f"targets: is on {targets.device}, need {x.device} like x")


def _check_update(
    net: Net,
    x: Tensor,
    targets: Tensor,
    theta: Tensor,
    velocity: Tensor,
    scale: float,
    out: Tensor | None,
) -> None:
    _check_data(net, x, targets, theta)
    check_factor("scale", scale)
    G = check_arrays(theta, velocity=velocity, out=out)
    check_group_of("theta", G, x=x, targets=targets)
    check_apart({"theta": theta, "velocity": velocity, "out": out}, x=x, targets=targets)
