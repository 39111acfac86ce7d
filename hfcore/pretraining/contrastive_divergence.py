"""Contrastive divergence with one step of Gibbs sampling, CD-1 (Hinton 2002).

As in the code of Hinton & Salakhutdinov (2006): the hidden units are sampled once, given the data;
the reconstruction and the hidden units given it are means. The update of a batch of B cases is

    g = −(1/B) Σ (E[h|v₀] v₀ᵀ − E[h|v₁] v₁ᵀ),  Δ ← μ Δ − ε (g + weight cost · W),  W ← W + Δ,

likewise for the biases, on which there is no cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.arguments import naming_options
from hfcore.bindings.dense import Scratch, dense_backward, dense_forward, dense_gradient
from hfcore.bindings.momentum import momentum_update
from hfcore.bindings.threads import among_kernels
from hfcore.pretraining.rbm import ACTIVATION, RBM, split_rbm


class ContrastiveDivergence:
    """CD-1 on one machine with batches of B cases, in memory that is reused.

    ``velocity [1,N]`` is Δ, in the order of the machine's ``theta``.
    """

    @naming_options
    def __init__(self, rbm: RBM, batch_size: int) -> None:
        n, m = rbm.shape
        like, B = rbm.theta, batch_size
        self.rbm = rbm
        self.velocity = torch.zeros_like(like)
        # Data and reconstruction one below the other, and the hidden units given them: then both
        # phases of the gradient are one product.
        self._v, self._p = like.new_empty(1, 2 * B, n), like.new_empty(1, 2 * B, m)
        self._h, self._missed = like.new_empty(1, B, m), like.new_empty(B, n)
        self._gradient = torch.empty_like(like)
        self._gradients = split_rbm(self._gradient, n, m)
        self._scratch = Scratch()

    def epoch(
        self,
        images: Tensor,
        *,
        learning_rate: float,
        momentum: float,
        weight_cost: float,
        generator: torch.Generator,
    ) -> float:
        """A pass over ``images [N,n]`` in a new order, a rest smaller than a batch left out.

        Gives the squared error of the reconstructions, Σ over units, averaged over cases.
        ``generator`` draws the order and the hidden states, on the images' device.
        """
        B, order = len(self._missed), torch.randperm(
            len(images), generator=generator, device=images.device
        )  # fmt: skip
        error = torch.zeros((), dtype=torch.float64, device=images.device)
        batches = len(images) // B
        with among_kernels(images):
            for chosen in order[: batches * B].split(B):
                torch.index_select(images, 0, chosen, out=self._v[0, :B])
                error += self.gradient(generator)
                self._update(learning_rate, momentum, weight_cost)
        return float(error) / (batches * B)

    def load(self, v: Tensor) -> None:
        """The batch ``v [B,n]`` of the next :meth:`gradient`."""
        self._v[0, : len(self._missed)] = v

    def gradient(self, generator: torch.Generator) -> Tensor:
        """g of the batch, into :attr:`last_gradient`; gives its summed squared error, ``[]``."""
        rbm, B = self.rbm, len(self._missed)
        W, b_h = rbm.W[None], rbm.b_h[None]
        hidden = ACTIVATION[rbm.hidden_units]
        v0, v1 = self._v[:, :B], self._v[:, B:]
        p0, p1 = self._p[:, :B], self._p[:, B:]
        dense_forward(v0, W, b_h, activation=hidden, out=p0)
        self._sample(p0, generator)
        dense_backward(self._h, W, v0, activation="linear", out=v1)
        v1.add_(rbm.b_v)
        if rbm.visible_units == "bernoulli":
            v1.sigmoid_()
        dense_forward(v1, W, b_h, activation=hidden, out=p1).neg_()
        gW, gb_h, gb_v = self._gradients
        dense_gradient(
            self._p, self._v, scale=-1.0 / B, out=(gW[None], gb_h[None]), scratch=self._scratch
        )
        torch.sub(v1[0], v0[0], out=self._missed)
        torch.sum(self._missed, 0, out=gb_v).mul_(1.0 / B)
        missed = self._missed.view(-1)
        return torch.dot(missed, missed)

    @property
    def last_gradient(self) -> tuple[Tensor, Tensor, Tensor]:
        """What :meth:`gradient` found for W ``[m,n]``, b_h ``[m]`` and b_v ``[n]``."""
        return self._gradients

    def _sample(self, p: Tensor, generator: torch.Generator) -> None:
        """h given the data, from its means ``p [1,B,m]``."""
        if self.rbm.hidden_units == "bernoulli":
            torch.lt(self._h.uniform_(generator=generator), p, out=self._h)
        else:
            self._h.normal_(generator=generator).add_(p)

    def _update(self, learning_rate: float, momentum: float, weight_cost: float) -> None:
        weights = self.rbm.W.numel()
        for part, l2 in ((slice(weights), weight_cost), (slice(weights, None), None)):
            momentum_update(
                self.rbm.theta[:, part],
                self.velocity[:, part],
                self._gradient[:, part],
                learning_rate=learning_rate,
                momentum=momentum,
                l2=l2,
            )
