"""What the initialisations share: checks, the matrices of a model, draws in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def check_model(model: nn.Module, generator: torch.Generator) -> None:
    """Raise TypeError unless the model has weights to draw and the generator can draw them."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, need a torch.nn.Module")
    if not names_its_weights(model) and not linear_layers(model):
        raise TypeError(
            f"model: {type(model).__name__} has no torch.nn.Linear, need an hf.RNN, an hf.MLP or "
            "a module of Linear layers"
        )
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: got {type(generator).__name__}, need a torch.Generator")


def check_entries(model: Any, fan_in: int) -> None:
    """Raise ValueError where a sparse model has no room for ``fan_in`` entries a row."""
    if getattr(model, "sparse", False) and min(fan_in, model.hidden_size) > model.fan_in:
        raise ValueError(
            f"fan_in: got {fan_in}, need at most {model.fan_in}, the entries a row of the model"
        )


def names_its_weights(model: Any) -> bool:
    """Whether the model says itself what there is to draw: ``matrices()`` and ``biases()``."""
    return callable(getattr(model, "matrices", None)) and callable(getattr(model, "biases", None))


def is_recurrent(model: Any) -> bool:
    """Whether it also tells apart the weights that the inputs meet: ``input_matrices()``."""
    return names_its_weights(model) and callable(getattr(model, "input_matrices", None))


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Every Linear layer, in the order of ``modules()``."""
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def matrices(model: Any) -> list[Tensor]:
    """Every weight matrix ``[out,in]``, in the order in which they are drawn."""
    if names_its_weights(model):
        return list(model.matrices())
    return [layer.weight for layer in linear_layers(model)]


def normal(w: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) of the shape ``[…]`` of w in float64, on the generator's device."""
    return torch.randn(w.shape, generator=generator, dtype=torch.float64, device=generator.device)


def uniform(w: Tensor, generator: torch.Generator) -> Tensor:
    """U[0, 1) of the shape ``[…]`` of w in float64, on the generator's device."""
    return torch.rand(w.shape, generator=generator, dtype=torch.float64, device=generator.device)


def zero_biases(model: Any) -> None:
    """Zero the biases that the model names, else those of every Linear layer."""
    if names_its_weights(model):
        biases = model.biases()
    else:
        biases = [layer.bias for layer in linear_layers(model) if layer.bias is not None]
    for b in biases:
        b.zero_()
