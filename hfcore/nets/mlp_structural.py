"""Structural damping of an MLP: which layers, by which distance, how strongly.

The term λμ J_zᵀ D'' J_z is taken at a layer's pre-nonlinearity z, mean over cases (M&S 2011,
section 3; M&S 2012, section 20.8.4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfcore.bindings import loss as loss_ops
from hfcore.bindings.dense import activation_derivative
from hfcore.models.mlp import MLP

DISTANCES = ("identity", "tanh", "logistic", "softmax")


@dataclass(frozen=True)
class DampedLayer:
    """One layer's term: D ("matching": D'' = φ', the layer's own) and its factor μ."""

    distance: str
    mu: float


def structural_layers(model: MLP, structural: float | Mapping[str, Any]) -> dict[int, DampedLayer]:
    """The layers that are damped. A number stands for every hidden one with its own nonlinearity.

    The number itself is not used: it reaches the products as part of λμ. Raises ValueError for a
    name that is no layer, an unknown D, or a D that does not match the layer; TypeError for the
    wrong types.
    """
    if not isinstance(structural, Mapping):
        check_mu("structural", structural)
        return {l: DampedLayer("matching", 1.0) for l in range(len(model.activations) - 1)}
    return dict(_damped(model, name, value) for name, value in structural.items())


def _damped(model: MLP, name: str, value: Any) -> tuple[int, DampedLayer]:
    names = [f"layers.{l}" for l in range(len(model.activations))]
    if name not in names:
        raise ValueError(f"structural: got submodule {name!r}, need one of {names[0]}..{names[-1]}")
    l = names.index(name)
    distance, mu = value if isinstance(value, tuple) and len(value) == 2 else (value, 1.0)
    where = f"structural[{name!r}]"
    if distance not in DISTANCES:
        raise ValueError(f"{where}: got {distance!r}, need one of {', '.join(DISTANCES)}")
    check_mu(where, mu)
    own = model.activations[l]
    if own not in ("linear", distance) and distance != "identity":
        raise ValueError(f"{where}: got {distance!r} for {own} units, need {own!r} or 'identity'")
    if distance == own or (distance == "identity" and own == "linear"):
        distance = "matching"
    return l, DampedLayer(distance, float(mu))


def check_mu(name: str, mu: object) -> None:
    if isinstance(mu, bool) or not isinstance(mu, (int, float)):
        raise TypeError(f"{name}: got {mu!r}, need a number")
    if not (math.isfinite(mu) and mu >= 0):
        raise ValueError(f"{name}: got {mu}, need a finite number that is not negative")


def structural_product(
    damped: DampedLayer, y: Tensor, Ry: Tensor, Rz: Tensor | None, out: Tensor
) -> Tensor:
    """D''·Rz ``[G,B,m]`` of one layer with outputs ``y [1,B,m]``, in ``out``.

    Where D matches, D'' Rz = φ'(z) ⊙ Rz is Ry itself.
    """
    if damped.distance == "matching":
        return out.copy_(Ry)
    assert Rz is not None
    if damped.distance == "identity":
        return out.copy_(Rz)
    if damped.distance == "softmax":  # on linear units, whose output is z
        c = loss_ops.loss_curvature("softmax", y.unsqueeze(1), None, None)
        loss_ops.loss_hessian_product(c, Rz.unsqueeze(1), rank_one=True, out=out.unsqueeze(1))
        return out
    squashed = torch.tanh(y) if damped.distance == "tanh" else torch.sigmoid(y)
    return torch.mul(Rz, activation_derivative(damped.distance, squashed), out=out)
