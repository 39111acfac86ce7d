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
from hfcore.bindings.contrastive import contrastive_gradient, contrastive_update
from hfcore.bindings.draws import uniform
from hfcore.bindings.threads import among_kernels
from hfcore.pretraining.rbm import ACTIVATION, RBM, split_rbm


class ContrastiveDivergence:
    """CD-1 on one machine with batches of B cases, in memory that is reused.

    ``velocity [1,N]`` is Δ, in the order of the machine's ``theta``.
    """

    @naming_options
    def __init__(self, rbm: RBM, batch_size: int) -> None:
        n, m = rbm.shape
        like = rbm.theta
        self.rbm = rbm
        self.velocity = torch.zeros_like(like)
        self._v, self._noise = like.new_empty(1, batch_size, n), like.new_empty(1, batch_size, m)
        self._gradient = torch.empty_like(like)
        self._units = {
            "visible": ACTIVATION[rbm.visible_units], "hidden": ACTIVATION[rbm.hidden_units]
        }  # fmt: skip

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
        ``generator``, on the images' device, draws the order and the hidden states, or the seed of
        the counter-based stream (``bindings/draws.py``) that Bernoulli ones are drawn from.
        """
        B, order = self._v.shape[1], torch.randperm(
            len(images), generator=generator, device=images.device
        )  # fmt: skip
        error = torch.zeros(1, dtype=torch.float64, device=images.device)
        batches, seed = len(images) // B, _seed(generator)
        with among_kernels(images):
            for number, chosen in enumerate(order[: batches * B].split(B)):
                torch.index_select(images, 0, chosen, out=self._v[0])
                self._draw(generator, seed, number)
                error += contrastive_update(
                    self._v,
                    self._noise,
                    self.rbm.theta,
                    self.velocity,
                    **self._units,
                    learning_rate=learning_rate,
                    momentum=momentum,
                    weight_cost=weight_cost,
                    checked=number > 0,
                )
        return float(error) / (batches * B)

    def load(self, v: Tensor) -> None:
        """The batch ``v [B,n]`` of the next :meth:`gradient`."""
        self._v[0] = v

    def gradient(self, generator: torch.Generator) -> Tensor:
        """g of the batch, into :attr:`last_gradient`; gives its summed squared error, ``[]``."""
        self._draw(generator, _seed(generator), 0)
        errors, _ = contrastive_gradient(
            self._v, self._noise, self.rbm.theta, **self._units, out=self._gradient
        )
        return errors[0]

    @property
    def last_gradient(self) -> tuple[Tensor, Tensor, Tensor]:
        """What :meth:`gradient` found for W ``[m,n]``, b_h ``[m]`` and b_v ``[n]``."""
        return split_rbm(self._gradient, *self.rbm.shape)

    def _draw(self, generator: torch.Generator, seed: int, number: int) -> None:
        """What decides the hidden states given the data: uniform, or normal for Gaussian units."""
        if self.rbm.hidden_units == "gaussian":
            self._noise.normal_(generator=generator)
        elif self._noise.dtype in (torch.float32, torch.float64):
            uniform(seed, number, self._noise)
        else:  # half precision, in which none may be rounded to 1
            below_1 = 1 - torch.finfo(self._noise.dtype).eps / 2
            self._noise.copy_(uniform(seed, number, self._noise.float()).clamp_(max=below_1))


def _seed(generator: torch.Generator) -> int:
    """Of the counted numbers, which cost a tenth of torch's."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
