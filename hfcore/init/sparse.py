"""The sparse initialisation of Hessian-free runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hfcore.arguments import naming_options
from hfcore.draws import check_scale
from hfcore.init.common import (
    check_entries,
    check_model,
    is_recurrent,
    linear_layers,
    names_its_weights,
    normal,
    uniform,
    zero_biases,
)

# The release of M&S 2011: W_hx is this much smaller.
_INPUT_SCALE = 0.25
# Tanh units compute 2σ(2z) − 1 of logistic ones: halved weights in and out, biases moved.
_TANH_SCALE = 0.5
_TANH_BIAS = 0.5


@naming_options
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

    hf.RNN, hf.StackedRNN (Martens & Sutskever 2011): all weights that the inputs do not meet from
    N(0, 1)·scale/√fan_in. Those that they meet are dense N(0, 1)·scale·input_scale/√fan_in
    (None: 0.25), or as sparse as the rest with ``sparse_inputs``.

    Notes where this departs from the authors' released code:

    1. b_init stands for W_hh h_0, while the RNN release learns h_0 and draws it from N(0, 1)/√15;
       it starts at zero here, as the release has no counterpart of b_init, b_h or b_y.
    2. Weights of a tanh net are halved on either side of a tanh layer, as in the 2010 release, so
       those that leave the inputs, and those that reach an output that is not tanh, by ½ and the
       others by ¼. Sutskever et al. (2013) say ¼ of all.
    3. The incoming units of a row are distinct. ``replacement`` draws ``fan_in`` indices that may
       repeat, and then a row keeps fewer, as in the 2010 release.

    Raises TypeError or ValueError naming the argument that is wrong.
    """
    check_model(model, generator)
    if not isinstance(fan_in, int) or fan_in < 1:
        raise ValueError(f"fan_in: got {fan_in!r}, need an int of at least 1")
    check_scale("scale", scale)
    if is_recurrent(model):
        if activations is not None:
            raise ValueError("activations: got some for an hf.RNN, need None: it knows its units")
        input_scale = _INPUT_SCALE if input_scale is None else input_scale
        check_scale("input_scale", input_scale)
        if not replacement:
            check_entries(model, fan_in)
        _sparse_recurrent(model, generator, fan_in, scale, input_scale, sparse_inputs, replacement)
        return
    if input_scale is not None or sparse_inputs:
        raise ValueError("input_scale, sparse_inputs: are for an hf.RNN, need the defaults")
    below = ""
    for layer, unit in _units(model, activations):
        w = layer.weight
        factor = scale * _TANH_SCALE ** ((unit == "tanh") + (below == "tanh"))
        w.copy_(factor * normal(w, generator) * _incoming(w, fan_in, generator, replacement))
        if layer.bias is not None:
            layer.bias.fill_(_TANH_BIAS if unit == "tanh" else 0.0)
        below = unit


def _sparse_recurrent(
    model: Any,
    generator: torch.Generator,
    fan_in: int,
    scale: float,
    input_scale: float,
    sparse_inputs: bool,
    replacement: bool,
) -> None:
    std = scale / fan_in**0.5
    inputs = {id(w) for w in model.input_matrices()}
    for w in model.matrices():
        of_entries = getattr(model, "sparse", False) and w is model.W_hh
        if of_entries:  # drawn as the dense net draws it: the same net
            w = torch.empty(model.hidden_size, model.hidden_size, device="meta")
        values = std * normal(w, generator)
        if id(w) in inputs:
            values *= input_scale
        if id(w) not in inputs or sparse_inputs:
            values *= (mask := _incoming(w, fan_in, generator, replacement))
        if of_entries:
            model.set_recurrence(*_entries(values, mask))
        else:
            w.copy_(values)
    zero_biases(model)


def _entries(W: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Index and values ``[m,K]`` of the entries that are kept, short rows filled up."""
    n = W.shape[1]
    columns = torch.arange(n, device=W.device).expand_as(W)
    K = int(kept.sum(1).max())
    index = torch.where(kept > 0, columns, n).sort(1).values[:, :K]
    present = index < n
    last = index.masked_fill(~present, -1).amax(1, keepdim=True)
    index = torch.where(present, index, last)
    return index, W.gather(1, index) * present


def _units(model: nn.Module, activations: Sequence[str] | None) -> list[tuple[nn.Linear, str]]:
    """Every Linear layer with the name of its units, "" where unknown."""
    layers = linear_layers(model)
    if activations is None and names_its_weights(model):
        activations = getattr(model, "activations", None)
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
    order = uniform(w, generator).argsort(dim=1)
    return (order < fan_in).double()  # each row of order is a permutation of the columns
