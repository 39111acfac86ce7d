"""Recurrent nets of one layer: gradient and Gauss-Newton product by one op each."""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings import recurrence as ops
from hfcore.bindings.recurrence import RnnShape, RnnWeights
from hfcore.losses import OutputHessian
from hfcore.losses.hessian import DiagonalHessian, IdentityHessian
from hfcore.nets.data import Data
from hfcore.nets.net import Into, Pass, Uncached
from hfcore.nets.recurrent import RecurrentNet
from hfcore.nets.recurrent_parts import Layer, Weights, concatenated


class SingleLayerNet(RecurrentNet):
    """The shortcuts; a subclass sets ``shape`` (n, H, k), ``factor`` and ``rearranged``.

    ``factor``: that of the structural term. ``rearranged``: whether θ is another vector than the
    ops' (:class:`RnnWeights`, one after the other), from which :meth:`joined` makes it.
    """

    memory = "cached"
    shape: RnnShape
    factor: float
    rearranged: bool

    def second(self, part: Data, s: Tensor, *, exact: bool = False) -> OutputHessian:
        second = super().second(part, s, exact=exact)
        if isinstance(second, IdentityHessian):
            return DiagonalHessian(torch.ones_like(s))  # the op takes a tensor
        return second

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
            out=None if self.rearranged else into.out,
        )
        return g if g is into.out else into.out.copy_(self._from_ops(g))

    def gauss_newton(
        self, at: Pass | Uncached, v: Tensor, second: OutputHessian, into: Into
    ) -> None:
        """One op for ``v [G,N]``.

        Its buffers stay for CG alone: many tangents would hold as many times more.
        """
        assert second.kernel_form is not None  # see FusedCurvature
        c, rank_one = second.kernel_form
        out, scale, _, stop, structural, damping, accumulate = into
        own = not self.rearranged
        if isinstance(at, Pass):
            h, w = at.states.ys[1], at.states.w
        else:
            h, w = None, self.split(at.theta)
        g = ops.rnn_gauss_newton(
            at.part.x,
            h,
            _for_ops(w),
            v if own else self._to_ops(v),
            c,
            rank_one=rank_one,
            nonlinearity=self.nonlinearity,
            steps=at.part.steps,
            scale=scale,
            structural=structural * self.factor,
            damping=damping if own else 0.0,
            out=out if own else None,
            accumulate=accumulate and own,
            stop=stop,
            scratch=self.work if len(v) == 1 else None,
        )
        if not own:
            g = self._from_ops(g).add_(v, alpha=damping)
            g = g.add_(out) if accumulate else g
            out.copy_(g if stop is None else torch.where(stop != 0, out, g))

    def _to_ops(self, v: Tensor) -> Tensor:
        """Tangents ``v [G,N]`` in the ops' order."""
        return concatenated([p.flatten(1) for p in _for_ops(self.split(v))])

    def _from_ops(self, g: Tensor) -> Tensor:
        """What θ holds ``[G,N]`` of a gradient in the ops' order."""
        w = ops.split_flat(g, self.shape)
        W_hx, b_h, b_init, b_y = (p.flatten(1) for p in (w.W_hx, w.b_h, w.b_init, w.b_y))
        W_hh = self.forms[0].gathered(w.W_hh).flatten(1)
        return self.joined(Weights(w.W_yh.flatten(1), b_y, [Layer(W_hx, W_hh, b_h, b_init)]))


def _for_ops(w: Weights) -> RnnWeights:
    (layer,) = w.layers
    return RnnWeights(layer.W_hx, layer.W_hh, w.W_yh, layer.b_h, layer.b_init, w.b_y)
