"""``hf.GaussNewton``: the damped Gauss-Newton matrix of a model as an ``@``-able operator."""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.curvature import estimators
from hfcore.curvature.operator import CurvatureOperator


class GaussNewton(CurvatureOperator):
    """A = G_f + damping·(I + structural·G_S) at the model's present parameters, or at ``theta``.

    G_f = JᵀL''J of the mean loss over the cases of ``inputs`` (Schraudolph 2002; for recurrent nets
    Martens & Sutskever 2011, Algorithm 1) and G_S the Gauss-Newton matrix of a structural distance
    between hidden units. ``damping`` is λ. Products, SciPy, trace, diagonal and eigenvalues are
    those of :class:`hfcore.curvature.operator.CurvatureOperator`.

    Parameters
    ----------
    model : hf.RNN or hf.MLP (fused), or any torch module; with an objective only the holder of
        the parameters, None where ``theta`` is given
    loss : a loss of ``hf.losses`` that matches the output nonlinearity; any module also takes a
        callable (outputs, targets) → scalar mean loss
    inputs, targets, mask : as in :class:`hfcore.Batch`; or, with ``targets`` left out, ``inputs``
        is a list of batches, or for a module (loss None) a closure () → (loss, outputs)
    objective : an :class:`hfcore.Objective` of one's own in the loss's place. Its ``prepare`` takes
        the hfcore.Batch of inputs, targets and mask; or ``inputs`` as it is, without targets
    theta : flat parameters ``[N]`` at which the curvature is taken; None: what the model holds
    structural : μ (hf.RNN: its hidden state, D'' = e'(t), for tanh 1 − h², not masked; hf.MLP: its
        hidden layers), or ``{"submodule": D or (D, μ)}`` for hf.MLP and modules
    normalize : hf.RNN: ``"sequences"`` divides sums by B (the paper), ``"outputs"`` by the number
        of unmasked outputs (the original release)
    structural_distance : hf.RNN: ``"matching"`` or ``"quarter"`` (the release's 0.25·(1 − h²))
    process_group, cases, reduction, local : as in :class:`hfcore.HessianFree`; every process of the
        group makes the same products, with the same vectors
    options : further keywords of the model's objective: ``l2``, for a module ``batch_dim``,
        ``strategy``, ``chunk_size``

    Raises TypeError or ValueError naming what is wrong with the data, the parameters (NaN or Inf)
    or an option.
    """

    kind = "ggn"

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag A ``[N]``: exact for ``probes`` None, else an unbiased estimate.

        Without structural damping from that many backward passes a case (Martens & Sutskever 2012,
        section 20.11.4), one per output where exact; with it, or from a closure, from products.
        """
        estimators.check_probes(probes, generator)
        served = getattr(self._curvature, "has_diagonal", not callable(self._data))
        if self.damping * self._mu or not served:
            return super().diagonal(probes, generator)
        own = self._curvature.diagonal(probes, generator)
        return own + (self.damping + self._objective.l2)
