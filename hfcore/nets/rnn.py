"""hf.RNN: where its parameters stand in θ, and the ops that serve a whole net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from hfcore.bindings import recurrence as ops
from hfcore.bindings.checks import check_choice
from hfcore.bindings.recurrence import RnnWeights
from hfcore.losses import Loss, OutputHessian
from hfcore.losses.hessian import DiagonalHessian, IdentityHessian
from hfcore.models.rnn import RNN
from hfcore.nets.data import Data
from hfcore.nets.net import Into, Pass, Uncached
from hfcore.nets.recurrence import recurrence_of
from hfcore.nets.recurrent import Layer, RecurrentNet, Weights, concatenated

StructuralDistance = Literal["matching", "quarter"]

# D'' of the structural term in units of e'(t). Note 1: the paper derives D'' = 1 − h² for tanh; the
# original release multiplies by 0.25, so that the same μ is four times weaker there.
STRUCTURAL_FACTOR: dict[str, float] = {"matching": 1.0, "quarter": 0.25}


class RnnNet(RecurrentNet):
    """Nets shaped like one :class:`hfcore.RNN`.

    Args:
        model, loss: see :class:`FusedNet`.
        structural: whether structural damping is wanted; μ reaches the products as part of λμ, at
            the hidden state.
        structural_distance: ``"matching"``, D'' = e'(t) (M&S 2011, section 3), or ``"quarter"``,
            the original release's 0.25·e'(t).
    """

    memory = "cached"

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
        shapes = [(H, n), (H, model.fan_in), (k, H), (H,), (H,), (k,)]
        self.factor, form = STRUCTURAL_FACTOR[structural_distance], recurrence_of(model)
        damped = {0: self.factor}
        super().__init__(model, loss, shapes=shapes, hidden_sizes=[H], forms=[form], damped=damped)
        self.walks_cases = form.has_ops
        self.supports_groups = not model.sparse
        self.passes_are_kernels = model.sparse

    def split(self, theta: Tensor) -> Weights:
        W_hx, W_hh, W_yh, b_h, b_init, b_y = self.views(theta)
        return Weights(W_yh, b_y, [Layer(W_hx, self.forms[0].weight(W_hh), b_h, b_init)])

    def joined(self, g: Weights) -> Tensor:
        (layer,) = g.layers
        return concatenated([layer.W_hx, layer.W_hh, g.W_yh, layer.b_h, layer.b_init, g.b_y])

    def second(self, part: Data, s: Tensor, *, exact: bool = False) -> OutputHessian:
        second = super().second(part, s, exact=exact)
        if isinstance(second, IdentityHessian):
            return DiagonalHessian(torch.ones_like(s))  # the op takes a tensor
        return second

    # ---- shortcuts

    def gradient(self, at: Pass, into: Into) -> Tensor:
        gs, form = self.slope(at.part, at.s, scale=into.scale), self.forms[0]
        if not form.has_ops:
            return self.backward(at, gs, into._replace(scale=1.0))
        g = ops.rnn_backward(
            at.part.x,
            at.states.ys[1],
            _for_ops(at.states.w),
            gs,
            nonlinearity=self.nonlinearity,
            steps=at.part.steps,
            out=None if form.is_spread else into.out,
        )
        return g if g is into.out else into.out.copy_(self._restricted(g))

    def gauss_newton(
        self, at: Pass | Uncached, v: Tensor, second: OutputHessian, into: Into
    ) -> None:
        """One op for ``v [G,N]``.

        Its buffers stay for CG alone: many tangents would hold as many times more.
        """
        assert second.kernel_form is not None  # see FusedCurvature
        c, rank_one = second.kernel_form
        out, scale, _, stop, structural, damping, accumulate = into
        spread = self.forms[0].is_spread
        if isinstance(at, Pass):
            h, w = at.states.ys[1], at.states.w
        else:
            h, w = None, self.split(at.theta)
        g = ops.rnn_gauss_newton(
            at.part.x,
            h,
            _for_ops(w),
            concatenated([p.flatten(1) for p in _for_ops(self.split(v))]) if spread else v,
            c,
            rank_one=rank_one,
            nonlinearity=self.nonlinearity,
            steps=at.part.steps,
            scale=scale,
            structural=structural * self.factor,
            damping=0.0 if spread else damping,
            out=None if spread else out,
            accumulate=accumulate and not spread,
            stop=stop,
            scratch=self.work if len(v) == 1 else None,
        )
        if spread:
            g = self._restricted(g).add_(v, alpha=damping)
            g = g.add_(out) if accumulate else g
            out.copy_(g if stop is None else torch.where(stop != 0, out, g))

    def _restricted(self, g: Tensor) -> Tensor:
        """The entries ``[G,N]`` of the ops' ``g [G,N_dense]``."""
        w = ops.split_flat(g, self.shape)
        w = w._replace(W_hh=self.forms[0].gathered(w.W_hh))
        return concatenated([p.flatten(1) for p in w])


def _for_ops(w: Weights) -> RnnWeights:
    (layer,) = w.layers
    return RnnWeights(layer.W_hx, layer.W_hh, w.W_yh, layer.b_h, layer.b_init, w.b_y)
