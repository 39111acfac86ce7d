"""Initialisations of nets, from an explicit ``torch.Generator``.

They serve :class:`hfcore.RNN`, :class:`hfcore.MLP` and any module with ``torch.nn.Linear`` layers
(whose other parameters stay as they are). Every draw is made in float64, so one seed gives the same
net in every dtype up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from hfcore.models.mlp import MLP
from hfcore.models.rnn import RNN

_WEIGHTS = ("W_hx", "W_hh", "W_yh")
_BIASES = ("b_h", "b_init", "b_y")

# The release of M&S 2011: W_hx is this much smaller.
_INPUT_SCALE = 0.25
# Tanh units compute 2σ(2z) − 1 of logistic ones: halved weights in and out, biases moved.
_TANH_SCALE = 0.5
_TANH_BIAS = 0.5


@torch.no_grad()
def sparse_(
    model: nn.Module,
    generator: torch.Generator,
    *,
    fan_in: int = 15,
    scale: float = 1.0,
    replacement: bool = False,
    input_scale: float | None = None,
    sparse_inputs: bool = False,
    activations: Sequence[str] | None = None,
) -> None:
    """Sparse initialisation for Hessian-free runs, in place.

    Each unit (row) keeps ``fan_in`` incoming weights, all of them where there are no more; the
    others are zero and so are biases.

    Feed-forward nets (Martens 2010, section 5): weights from N(0, 1)·scale. Where units are tanh
    their weights are halved and biases are 0.5; weights that come from tanh units are halved as
    well. hf.MLP knows its units; other modules are told by ``activations``, one name a Linear
    layer, or by an ``nn.Tanh`` that follows a layer.

    hf.RNN (Martens & Sutskever 2011): W_hh and W_yh from N(0, 1)·scale/√fan_in. W_hx is dense
    N(0, 1)·scale·input_scale/√fan_in (None: 0.25), or as sparse as the rest with
    ``sparse_inputs``.

    Notes where this departs from the authors' released code:

    1. b_init stands for W_hh h_0, while the RNN release learns h_0 and draws it from N(0, 1)/√15;
       it starts at zero here, as the release has no counterpart of b_init, b_h or b_y.
    2. The incoming units of a row are distinct. ``replacement`` draws ``fan_in`` indices that may
       repeat, and then a row keeps fewer, as in the 2010 release.

    Raises TypeError or ValueError naming the argument that is wrong.
    """
    _check(model, generator)
    if not isinstance(fan_in, int) or fan_in < 1:
        raise ValueError(f"fan_in: got {fan_in!r}, need an int of at least 1")
    _check_scale("scale", scale)
    if isinstance(model, RNN):
        if activations is not None:
            raise ValueError("activations: got some for an hf.RNN, need None: it knows its units")
        input_scale = _INPUT_SCALE if input_scale is None else input_scale
        _check_scale("input_scale", input_scale)
        _sparse_rnn(model, generator, fan_in, scale, input_scale, sparse_inputs, replacement)
        return
    if input_scale is not None or sparse_inputs:
        raise ValueError("input_scale, sparse_inputs: are for an hf.RNN, need the defaults")
    below = ""
    for layer, unit in _units(model, activations):
        w = layer.weight
        factor = scale * _TANH_SCALE ** ((unit == "tanh") + (below == "tanh"))
        w.copy_(factor * _normal(w, generator) * _incoming(w, fan_in, generator, replacement))
        if layer.bias is not None:
            layer.bias.fill_(_TANH_BIAS if unit == "tanh" else 0.0)
        below = unit


@torch.no_grad()
def gaussian_(model: nn.Module, generator: torch.Generator, *, scale: float = 1.0) -> None:
    """Dense weights from N(0, scale²/fan_in), fan_in the columns of each matrix; biases zero.

    Raises TypeError or ValueError naming the argument that is wrong.
    """
    _check(model, generator)
    _check_scale("scale", scale)
    for w in _matrices(model):
        w.copy_(scale / w.shape[1] ** 0.5 * _normal(w, generator))
    _zero_biases(model)


@torch.no_grad()
def glorot_(model: nn.Module, generator: torch.Generator, *, scale: float = 1.0) -> None:
    """Weights uniform on ±scale·√(6 / (fan_in + fan_out)) (Glorot & Bengio 2010); biases zero.

    Raises TypeError or ValueError naming the argument that is wrong.
    """
    _check(model, generator)
    _check_scale("scale", scale)
    for w in _matrices(model):
        bound = scale * (6 / (w.shape[0] + w.shape[1])) ** 0.5
        w.copy_(bound * (2 * _uniform(w, generator) - 1))
    _zero_biases(model)


def _sparse_rnn(
    model: RNN,
    generator: torch.Generator,
    fan_in: int,
    scale: float,
    input_scale: float,
    sparse_inputs: bool,
    replacement: bool,
) -> None:
    std = scale / fan_in**0.5
    for name in _WEIGHTS:
        w = getattr(model, name)
        values = std * _normal(w, generator)
        if name == "W_hx":
            values *= input_scale
        if name != "W_hx" or sparse_inputs:
            values *= _incoming(w, fan_in, generator, replacement)
        w.copy_(values)
    _zero_biases(model)


def _check(model: nn.Module, generator: torch.Generator) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, need a torch.nn.Module")
    if not isinstance(model, RNN) and not _linear_layers(model):
        raise TypeError(
            f"model: {type(model).__name__} has no torch.nn.Linear, need an hf.RNN, an hf.MLP or "
            "a module of Linear layers"
        )
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: got {type(generator).__name__}, need a torch.Generator")


def _linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def _units(model: nn.Module, activations: Sequence[str] | None) -> list[tuple[nn.Linear, str]]:
    """Every Linear layer with the name of its units, "" where unknown."""
    layers = _linear_layers(model)
    if activations is None and isinstance(model, MLP):
        activations = model.activations
    if activations is None:
        order = [m for m in model.modules() if not any(m.children())]
        follows = {id(a): b for a, b in pairwise(order)}
        activations = [
            "tanh" if isinstance(follows.get(id(layer)), nn.Tanh) else "" for layer in layers
        ]
    if isinstance(activations, str) or len(activations) != len(layers):
        raise ValueError(
            f"activations: got {activations!r}, need {len(layers)} names, one a Linear layer"
        )
    return list(zip(layers, activations, strict=True))


def _matrices(model: nn.Module) -> list[Tensor]:
    if isinstance(model, RNN):
        return [getattr(model, name) for name in _WEIGHTS]
    return [layer.weight for layer in _linear_layers(model)]


def _check_scale(name: str, value: float) -> None:
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"{name}: got {value!r}, need a finite number of at least 0")


def _normal(w: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) of w's shape in float64, on the generator's device."""
    return torch.randn(w.shape, generator=generator, dtype=torch.float64, device=generator.device)


def _uniform(w: Tensor, generator: torch.Generator) -> Tensor:
    """U[0, 1) of w's shape in float64, on the generator's device."""
    return torch.rand(w.shape, generator=generator, dtype=torch.float64, device=generator.device)


def _incoming(w: Tensor, fan_in: int, generator: torch.Generator, replacement: bool) -> Tensor:
    """0/1 of w's shape with min(fan_in, columns) distinct ones in every row.

    With ``replacement`` a row has the distinct ones of ``fan_in`` draws; the release keeps the last
    value of a repeated index, which is as good a normal as any.
    """
    if replacement:
        m, n = w.shape
        drawn = torch.randint(n, (m, fan_in), generator=generator, device=generator.device)
        kept = torch.zeros(m, n, dtype=torch.float64, device=generator.device)
        return kept.scatter_(1, drawn, 1.0)
    order = _uniform(w, generator).argsort(dim=1)
    return (order < fan_in).double()  # each row of order is a permutation of the columns


def _zero_biases(model: nn.Module) -> None:
    if isinstance(model, RNN):
        for name in _BIASES:
            getattr(model, name).zero_()
        return
    for layer in _linear_layers(model):
        if layer.bias is not None:
            layer.bias.zero_()
