"""hf.RNN: where its parameters stand in θ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from hfcore.bindings.checks import check_choice
from hfcore.losses import Loss
from hfcore.models.rnn import RNN
from hfcore.nets.recurrence import recurrence_of
from hfcore.nets.recurrent_parts import Layer, Weights, concatenated
from hfcore.nets.single_layer import SingleLayerNet

StructuralDistance = Literal["matching", "quarter"]

# D'' of the structural term in units of e'(t). Note 1: the paper derives D'' = 1 − h² for tanh; the
# original release multiplies by 0.25, so that the same μ is four times weaker there.
STRUCTURAL_FACTOR: dict[str, float] = {"matching": 1.0, "quarter": 0.25}


class RnnNet(SingleLayerNet):
    """Nets shaped like one :class:`hfcore.RNN`.

    Args:
        model, loss: see :class:`FusedNet`.
        structural: whether structural damping is wanted; μ reaches the products as part of λμ, at
            the hidden state.
        structural_distance: ``"matching"``, D'' = e'(t) (M&S 2011, section 3), or ``"quarter"``,
            the original release's 0.25·e'(t).
    """

    def __init__(
        self,
        model: RNN,
        loss: Loss,
        *,
        structural: float | Mapping[str, Any] = 0.0,
        structural_distance: StructuralDistance = "matching",
    ) -> None:
        check_choice("structural_distance", structural_distance, tuple(STRUCTURAL_FACTOR))
        if isinstance(structural, Mapping):
            raise ValueError(
                "structural: got a mapping; the hidden state of an hf.RNN is damped by a number μ"
            )
        self.shape = n, H, k = model.shape
        form = recurrence_of(model)
        self.factor, self.rearranged = STRUCTURAL_FACTOR[structural_distance], form.is_spread
        super().__init__(
            model,
            loss,
            sizes=(n, k),
            nonlinearity=model.nonlinearity,
            shapes=[(H, n), (H, model.fan_in), (k, H), (H,), (H,), (k,)],
            hidden_sizes=[H],
            forms=[form],
            damped={0: self.factor},
        )
        self.walks_cases = form.has_ops
        self.supports_groups = not model.sparse
        self.passes_are_kernels = model.sparse

    def split(self, theta: Tensor) -> Weights:
        W_hx, W_hh, W_yh, b_h, b_init, b_y = self.views(theta)
        return Weights(W_yh, b_y, [Layer(W_hx, self.forms[0].weight(W_hh), b_h, b_init)])

    def joined(self, g: Weights) -> Tensor:
        (layer,) = g.layers
        return concatenated([layer.W_hx, layer.W_hh, g.W_yh, layer.b_h, layer.b_init, g.b_y])
