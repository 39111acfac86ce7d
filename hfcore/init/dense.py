"""Dense initialisations."""

from __future__ import annotations

import torch
from torch import nn

from hfcore.arguments import naming_options
from hfcore.draws import check_scale
from hfcore.init.common import check_model, matrices, normal, uniform, zero_biases


@naming_options
@torch.no_grad()
def gaussian_(model: nn.Module, generator: torch.Generator, *, scale: float = 1.0) -> None:
    """Dense weights from N(0, scale²/fan_in), fan_in the columns of each matrix; biases zero.

    A sparse hf.RNN keeps its pattern; its fan-in is the number of entries of a row.
    Raises TypeError or ValueError naming the argument that is wrong.
    """
    check_model(model, generator)
    check_scale("scale", scale)
    for w in matrices(model):
        w.copy_(scale / w.shape[1] ** 0.5 * normal(w, generator))
    zero_biases(model)


@naming_options
@torch.no_grad()
def glorot_(model: nn.Module, generator: torch.Generator, *, scale: float = 1.0) -> None:
    """Weights uniform on ±scale·√(6 / (fan_in + fan_out)) (Glorot & Bengio 2010); biases zero.

    Raises TypeError or ValueError naming the argument that is wrong, a sparse hf.RNN among them.
    """
    check_model(model, generator)
    if getattr(model, "sparse", False):
        raise ValueError("model: the hf.RNN is sparse, need gaussian_, sparse_ or esn_")
    check_scale("scale", scale)
    for w in matrices(model):
        bound = scale * (6 / (w.shape[0] + w.shape[1])) ** 0.5
        w.copy_(bound * (2 * uniform(w, generator) - 1))
    zero_biases(model)
