"""What the initialisations share: checks, the matrices of a model, draws in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfcore.models.rnn import RNN

WEIGHTS = ("W_hx", "W_hh", "W_yh")
BIASES = ("b_h", "b_init", "b_y")


def check_model(model: nn.Module, generator: torch.Generator) -> None:
    """Raise TypeError unless the model has weights to draw and the generator can draw them."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, need a torch.nn.Module")
    if not isinstance(model, RNN) and not linear_layers(model):
        raise TypeError(
            f"model: {type(model).__name__} has no torch.nn.Linear, need an hf.RNN, an hf.MLP or "
            "a module of Linear layers"
        )
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: got {type(generator).__name__}, need a torch.Generator")


def check_scale(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is finite and at least 0."""
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"{name}: got {value!r}, need a finite number of at least 0")


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Every Linear layer, in the order of ``modules()``."""
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def matrices(model: nn.Module) -> list[Tensor]:
    """Every weight matrix, in the order in which they are drawn."""
    if isinstance(model, RNN):
        return [getattr(model, name) for name in WEIGHTS]
    return [layer.weight for layer in linear_layers(model)]


def normal(w: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) of w's shape in float64, on the generator's device."""
    return torch.randn(w.shape, generator=generator, dtype=torch.float64, device=generator.device)


def uniform(w: Tensor, generator: torch.Generator) -> Tensor:
    """U[0, 1) of w's shape in float64, on the generator's device."""
    return torch.rand(w.shape, generator=generator, dtype=torch.float64, device=generator.device)


def zero_biases(model: nn.Module) -> None:
    """Zero the biases of an hf.RNN or of every Linear layer."""
    if isinstance(model, RNN):
        for name in BIASES:
            getattr(model, name).zero_()
        return
    for layer in linear_layers(model):
        if layer.bias is not None:
            layer.bias.zero_()
