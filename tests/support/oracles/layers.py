"""Dense derivatives of recurrent nets of several layers, by torch.func in float64.

A problem says what its net computes, :meth:`Layered.by_hand`; the rest follows from that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, vmap

from hfcore.losses import Loss
from oracles import losses
from oracles.rnn import ACTIVATIONS


class Layered(ABC):
    """Inputs ``x [T,B,n]``, targets ``y``, steps of the loss ``mask``, time first; θ ``[N]``.

    ``nonlinearity``: that of the layers, where they are plain.
    """

    loss: Loss
    theta: Tensor
    x: Tensor
    y: Tensor
    mask: Tensor
    nonlinearity: str

    @abstractmethod
    def by_hand(self, theta: Tensor) -> tuple[list[Tensor], Tensor]:
        """Pre-activations ``[T,B,H]`` of every plain layer, and s ``[T or 1,B,k]``."""

    def sum_loss(self, s: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return (losses.per_output(self.loss.kind, s, y) * mask).sum()

    def mean_loss(self, theta: Tensor) -> Tensor:
        return self.sum_loss(self.by_hand(theta)[1], self.y, self.mask) / self.x.shape[1]

    def case_gradients(self) -> Tensor:
        """``[B,N]``, of each sequence's summed loss."""

        def one(theta: Tensor, b: int) -> Tensor:
            s = self.by_hand(theta)[1]
            return self.sum_loss(s[:, b], self.y[:, b], self.mask[:, b])

        return torch.stack(
            [grad(lambda t, b=b: one(t, b))(self.theta) for b in range(self.x.shape[1])]
        )

    def dense(self, kind: str) -> Tensor:
        """The curvature ``[N,N]``."""
        B = self.x.shape[1]
        if kind == "hessian":
            return hessian(self.mean_loss)(self.theta)
        if kind == "fisher":
            g = self.case_gradients()
            return g.T @ g / B
        s = self.by_hand(self.theta)[1]
        J = jacrev(lambda t: self.by_hand(t)[1])(self.theta).flatten(0, 1)
        L = vmap(hessian(self.sum_loss))(
            s.flatten(0, 1), self.y.flatten(0, 1), self.mask.double().flatten()
        )
        return torch.einsum("oin,oij,ojm->nm", J, L, J) / B

    def structural(self, l: int) -> Tensor:
        """mean J_tᵀ e'(t) J_t of one plain layer."""
        t = self.by_hand(self.theta)[0][l]
        J = jacrev(lambda theta: self.by_hand(theta)[0][l])(self.theta).flatten(0, 2)
        D = vmap(grad(ACTIVATIONS[self.nonlinearity]))(t.flatten())
        return J.T @ (D.unsqueeze(1) * J) / self.x.shape[1]
