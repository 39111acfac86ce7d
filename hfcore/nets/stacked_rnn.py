"""hf.StackedRNN on the recurrence ops, a layer at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hfcore.losses import Loss
from hfcore.models.stacked_rnn import StackedRNN
from hfcore.nets.mlp_structural import check_mu
from hfcore.nets.recurrence import Recurrence
from hfcore.nets.recurrent import RecurrentNet
from hfcore.nets.recurrent_parts import Layer, Weights, concatenated


class StackedRnnNet(RecurrentNet):
    """Nets shaped like one :class:`hfcore.StackedRNN`.

    Args:
        model, loss: see :class:`FusedNet`.
        structural: a number (the hidden state of every layer, D'' = e'(t); μ reaches the products
            as part of λμ), or a mapping ``{"layers.0": D or (D, μ)}``, D their own nonlinearity.
    """

    def __init__(
        self, model: StackedRNN, loss: Loss, *, structural: float | Mapping[str, Any] = 0.0
    ) -> None:
        k, below = model.output_size, model.input_size
        shapes: list[tuple[int, ...]] = [(k, model.hidden_sizes[-1]), (k,)]
        for H in model.hidden_sizes:
            shapes += [(H, below), (H, H), (H,), (H,)]
            below = H
        super().__init__(
            model,
            loss,
            sizes=(model.input_size, k),
            nonlinearity=model.nonlinearity,
            shapes=shapes,
            hidden_sizes=model.hidden_sizes,
            forms=[Recurrence(model.nonlinearity) for _ in model.hidden_sizes],
            damped=damped_layers(model, structural),
        )

    def split(self, theta: Tensor) -> Weights:
        views = self.views(theta)
        layers = [Layer(*views[at : at + 4]) for at in range(2, len(views), 4)]
        return Weights(views[0], views[1], layers)

    def joined(self, g: Weights) -> Tensor:
        return concatenated([g.W_yh, g.b_y, *(piece for layer in g.layers for piece in layer)])


def damped_layers(model: StackedRNN, structural: float | Mapping[str, Any]) -> dict[int, float]:
    """Layer → μ. Raises ValueError or TypeError for no layer, another D or a bad μ."""
    names, own = [f"layers.{l}" for l in range(len(model.layers))], model.nonlinearity
    if not isinstance(structural, Mapping):
        check_mu("structural", structural)
        return dict.fromkeys(range(len(names)), 1.0)
    damped = {}
    for name, value in structural.items():
        if name not in names:
            raise ValueError(
                f"structural: got submodule {name!r}, need one of {names[0]}..{names[-1]}"
            )
        distance, mu = value if isinstance(value, tuple) and len(value) == 2 else (value, 1.0)
        if distance != own:
            raise ValueError(f"structural[{name!r}]: got {distance!r}, need {own!r}, its units")
        check_mu(f"structural[{name!r}]", mu)
        damped[names.index(name)] = float(mu)
    return damped
