"""Initialisations of :class:`hfcore.RNN`, from an explicit ``torch.Generator``.

Every draw is made in float64, so one seed gives the same net in every dtype up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WEIGHTS = ("W_hx", "W_hh", "W_yh")
_BIASES = ("b_h", "b_init", "b_y")


@torch.no_grad()
def sparse_(
    model: nn.Module,
    generator: torch.Generator,
    *,
    fan_in: int = 15,
    input_scale: float = 0.25,
    scale: float = 1.0,
    sparse_inputs: bool = False,
) -> None:
    """Sparse initialisation for Hessian-free runs (Martens & Sutskever 2011), in place.

    Each unit (row) of W_hh and W_yh keeps ``fan_in`` incoming weights, all of them where there
    are no more, drawn from N(0, 1)·scale/√fan_in; the others are zero. W_hx is dense
    N(0, 1)·scale·input_scale/√fan_in, or as sparse as the rest with ``sparse_inputs``.
    Biases are zero.

    Notes where this departs from the authors' released code:

    1. b_init stands for W_hh h_0, while the release learns h_0 and draws it from N(0, 1)/√15;
       it starts at zero here, as the release has no counterpart of b_init, b_h or b_y.
    2. The incoming units of a row are distinct.

    Raises TypeError or ValueError naming the argument that is wrong.
    """
    parameters = _parameters(model, generator)
    if not isinstance(fan_in, int) or fan_in < 1:
        raise ValueError(f"fan_in: got {fan_in!r}, need an int of at least 1")
    _check_scale("input_scale", input_scale)
    _check_scale("scale", scale)
    std = scale / fan_in**0.5
    for name in _WEIGHTS:
        w = parameters[name]
        values = std * _normal(w, generator)
        if name == "W_hx":
            values *= input_scale
        if name != "W_hx" or sparse_inputs:
            values *= _incoming(w, fan_in, generator)
        w.copy_(values)
    _zero_biases(parameters)


@torch.no_grad()
def gaussian_(model: nn.Module, generator: torch.Generator, *, scale: float = 1.0) -> None:
    """Dense weights from N(0, scale²/fan_in), fan_in the columns of each matrix; biases zero.

    Raises TypeError or ValueError naming the argument that is wrong.
    """
    parameters = _parameters(model, generator)
    _check_scale("scale", scale)
    for name in _WEIGHTS:
        w = parameters[name]
        w.copy_(scale / w.shape[1] ** 0.5 * _normal(w, generator))
    _zero_biases(parameters)


def _parameters(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """The model's parameters by name, once both arguments are known to be what they should."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    missing = [name for name in (*_WEIGHTS, *_BIASES) if name not in parameters]
    if missing:
        raise TypeError(f"model: {type(model).__name__} has no {missing[0]}, need an hfcore.RNN")
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: got {type(generator).__name__}, need a torch.Generator")
    return parameters


def _check_scale(name: str, value: float) -> None:
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"{name}: got {value!r}, need a finite number of at least 0")


def _normal(w: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) of w's shape in float64, on the generator's device."""
    return torch.randn(w.shape, generator=generator, dtype=torch.float64, device=generator.device)


def _incoming(w: Tensor, fan_in: int, generator: torch.Generator) -> Tensor:
    """0/1 of w's shape with min(fan_in, columns) distinct ones in every row."""
    order = torch.rand(
        w.shape, generator=generator, dtype=torch.float64, device=generator.device
    ).argsort(dim=1)
    return (order < fan_in).double()  # each row of order is a permutation of the columns


def _zero_biases(parameters: dict[str, Tensor]) -> None:
    for name in _BIASES:
        parameters[name].zero_()
