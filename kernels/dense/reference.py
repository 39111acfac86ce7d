"""Plain torch forms of the dense ops: a layer y = φ(a Wᵀ + b) and its derivatives.

Shapes: cases in rows, ``a [G,B,n]``, ``W, V [G,m,n]``, ``b, v_b [G,m]``, ``y, delta [G,B,m]``; a
group axis of length 1 is shared. φ' is always recomputed from the activation's output y.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from hfcore.kernels.loss import reference as loss

ACTIVATIONS = LINEAR, LOGISTIC, TANH, RELU = "linear", "logistic", "tanh", "relu"


def activate(activation: str, z: Tensor) -> Tensor:
    """φ(z) ``[...]`` of any shape."""
    if activation == LOGISTIC:
        return torch.sigmoid(z)
    if activation == TANH:
        return torch.tanh(z)
    if activation == RELU:
        return torch.relu(z)
    return z


def activation_derivative(activation: str, y: Tensor) -> Tensor:
    """φ'(z) from y = φ(z) ``[...]`` of any shape; 0 at the kink of relu."""
    if activation == LOGISTIC:
        return y * (1 - y)
    if activation == TANH:
        return 1 - y * y
    if activation == RELU:
        return (y > 0).to(y.dtype)
    return torch.ones_like(y)


def dense_forward(a: Tensor, W: Tensor, b: Tensor, activation: str) -> Tensor:
    """y = φ(a Wᵀ + b), ``[G,B,m]``."""
    return activate(activation, a @ W.mT + b.unsqueeze(1))


def dense_rforward(
    a: Tensor, Ra: Tensor | None, W: Tensor, V: Tensor, v_b: Tensor, y: Tensor, activation: str
) -> Tensor:
    """Ry = φ'(z) ⊙ (Ra Wᵀ + a Vᵀ + v_b), ``[G,B,m]``; Ra None: the inputs do not move."""
    Rz = a @ V.mT + v_b.unsqueeze(1)
    if Ra is not None:
        Rz = Rz + Ra @ W.mT
    return activation_derivative(activation, y) * Rz


def dense_backward(
    delta: Tensor, W: Tensor, y: Tensor, activation: str, add: Tensor | None
) -> Tensor:
    """(δ W) ⊙ φ'(z) + add, ``[G,B,n]``; y = φ(z) ``[G,B,n]`` is the layer below."""
    below = (delta @ W) * activation_derivative(activation, y)
    return below if add is None else below + add


def dense_gradient(delta: Tensor, a: Tensor, scale: float, squared: bool) -> tuple[Tensor, Tensor]:
    """scale·δᵀa ``[G,m,n]`` and scale·Σδ ``[G,m]``; squared: of the elementwise δ² and a²."""
    if squared:
        # (δ_i a_j)² = δ_i² a_j²: per-case gradients are squared without being formed.
        delta, a = delta * delta, a * a
    gW, gb = scale * (delta.mT @ a), scale * delta.sum(1)
    G = gW.shape[0]
    return gW, gb.expand(G, -1)


# ---------------------------------------------------------------------------- a whole net


def split_layers(flat: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Views (W ``[G,m,n]``, b ``[G,m]``) of every layer in ``flat [G,N]``."""
    layers, at = [], 0
    for n, m in pairwise(sizes):
        W, b = flat[:, at : at + m * n], flat[:, at + m * n : at + m * (n + 1)]
        layers.append((W.unflatten(1, (m, n)), b))
        at += m * (n + 1)
    return layers


def net_gradient(
    kind: str,
    x: Tensor,
    targets: Tensor,
    theta: Tensor,
    sizes: Sequence[int],
    activations: Sequence[str],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """scale·Σ over cases of the losses ``[G]`` float64, and their gradient ``[G,N]``."""
    layers, ys = split_layers(theta, sizes), [x]
    for (W, b), activation in zip(layers, activations, strict=True):
        ys.append(dense_forward(ys[-1], W, b, activation))
    s, y = ys[-1].unsqueeze(1), targets.unsqueeze(1)
    losses = loss.loss_value(kind, s, y, None, scale)
    delta = loss.loss_gradient(kind, s, y, None, 1.0)[:, 0]
    delta = delta * activation_derivative(activations[-1], ys[-1])
    parts = []
    for l in reversed(range(len(layers))):
        gW, gb = dense_gradient(delta, ys[l], scale, squared=False)
        parts += [gb, gW.flatten(1)]
        if l:
            delta = dense_backward(delta, layers[l][0], ys[l], activations[l - 1], None)
    return losses, torch.cat(parts[::-1], 1)


# ---------------------------------------------------------------------------- Boltzmann machines


def split_machine(flat: Tensor, n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views (W ``[G,m,n]``, b_h ``[G,m]``, b_v ``[G,n]``) of ``flat [G,N]``."""
    W, b_h, b_v = flat.split([m * n, m, n], dim=1)
    return W.unflatten(1, (m, n)), b_h, b_v


def contrastive_gradient(
    v: Tensor, noise: Tensor, theta: Tensor, visible: str, hidden: str
) -> tuple[Tensor, Tensor]:
    """Squared errors of the reconstructions ``[G]`` float64 and the CD-1 gradient ``[G,N]``.

    With p = φ_h(v Wᵀ + b_h), h = [noise < p] of logistic hidden units or p + noise of linear ones,
    v₁ = φ_v(h W + b_v) and p₁ = φ_h(v₁ Wᵀ + b_h), the gradient is (Σ p₁ v₁ᵀ − p vᵀ) / B for W and
    likewise for b_h and b_v; ``v [G,B,n]``, ``noise [G,B,m]``.
    """
    B, n, m = v.shape[1], v.shape[2], noise.shape[2]
    W, b_h, b_v = split_machine(theta, n, m)
    p = dense_forward(v, W, b_h, hidden)
    h = (noise < p).to(p.dtype) if hidden == LOGISTIC else p + noise
    v1 = activate(visible, h @ W + b_v.unsqueeze(1))
    p1 = dense_forward(v1, W, b_h, hidden)
    missed = v1 - v
    parts = ((p1.mT @ v1 - p.mT @ v).flatten(1), (p1 - p).sum(1), missed.sum(1))
    return missed.double().square().sum((1, 2)), torch.cat(parts, 1) / B
