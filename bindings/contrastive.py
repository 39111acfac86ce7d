"""Contrastive divergence (CD-1) of Boltzmann machines: checks, choice of implementation.

Machines have n visible and m hidden units; ``visible`` and ``hidden`` are their means' activations:
``"logistic"`` of Bernoulli units, ``"linear"`` of Gaussian ones. The CPU form does a minibatch in
one call; the CUDA form is the dense and momentum ops (``forms/contrastive``). Formulas:
``kernels/dense/reference.py``.
"""

from __future__ import annotations

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
from hfcore.bindings.dense import check_factor
from hfcore.bindings.dispatch import choose
from hfcore.bindings.forms.contrastive import form
from hfcore.bindings.momentum import check_arrays
from hfcore.kernels.dense.reference import split_machine

MEANS = "logistic", "linear"

__all__ = ["MEANS", "contrastive_gradient", "contrastive_update", "split_machine"]


def contrastive_gradient(
    v: Tensor,
    noise: Tensor,
    theta: Tensor,
    *,
    visible: str,
    hidden: str,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Squared errors of the reconstructions, ``[G]`` float64, and the CD-1 gradient ``[G,N]``.

    Args:
        v: data ``[1 or G,B,n]``.
        noise: ``[1 or G,B,m]``: what a logistic hidden unit's mean must exceed for it to be on,
            uniform in [0, 1); what is added to a linear one's, normal.
        theta: ``[1 or G,N]``: W ``[m,n]``, the hidden biases ``[m]``, the visible ones ``[n]``.
        out: a buffer for the gradient.

    The gradient is that of descent, (Σ E[h|v₁] v₁ᵀ − E[h|v] vᵀ) / B for W. Raises TypeError or
    ValueError that names the argument.
    """
    _check(v, noise, theta, visible, hidden)
    G = check_group(v=v, noise=noise, theta=theta)
    out = check_out(out, (G, theta.shape[1]), v)
    check_apart({"out": out}, v=v, noise=noise, theta=theta)
    serving = form(choose("dense.contrastive_gradient", v))
    return serving.contrastive_gradient(v, noise, theta, visible, hidden, out), out


def contrastive_update(
    v: Tensor,
    noise: Tensor,
    theta: Tensor,
    velocity: Tensor,
    *,
    visible: str,
    hidden: str,
    learning_rate: float,
    momentum: float,
    weight_cost: float = 0.0,
    checked: bool = False,
) -> Tensor:
    """One update of machines by :func:`contrastive_gradient`, in place; gives the errors before it.

    v = μ v − ε (g + weight cost · W), θ = θ + v, on the biases without a cost; ``theta`` and
    ``velocity`` are ``[G,N]``, contiguous. ``checked``: the arrays have been looked at, as those
    that training keeps; then only the compiled form looks at them again. Raises TypeError or
    ValueError that names the argument.
    """
    if not checked:
        _check_update(v, noise, theta, velocity, visible, hidden)
    rates = {"learning_rate": learning_rate, "momentum": momentum, "weight_cost": weight_cost}
    for name, rate in rates.items():
        check_factor(name, rate)
    serving = form(choose("dense.contrastive_update", v))
    return serving.contrastive_update(v, noise, theta, velocity, visible, hidden, **rates)


def _check_update(
    v: Tensor, noise: Tensor, theta: Tensor, velocity: Tensor, visible: str, hidden: str
) -> None:
    _check(v, noise, theta, visible, hidden)
    G = check_arrays(theta, velocity=velocity)
    check_group_of("theta", G, v=v, noise=noise)
    check_apart({"theta": theta, "velocity": velocity}, v=v, noise=noise)


def _check(v: Tensor, noise: Tensor, theta: Tensor, visible: str, hidden: str) -> None:
    check_choice("visible", visible, MEANS)
    check_choice("hidden", hidden, MEANS)
    check_tensor("v", v, ["G", "B", "n"])
    if not v.is_floating_point():
        raise TypeError(f"v: got {v.dtype}, need a floating-point dtype")
    G, B, n = v.shape
    check_tensor("noise", noise, ["G", B, "m"], like=v)
    m = noise.shape[2]
    check_tensor("theta", theta, ["G", m * (n + 1) + n], like=v)
    check_positive(G=min(G, len(noise), len(theta)), B=B, n=n, m=m)
