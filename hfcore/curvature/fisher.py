"""``hf.EmpiricalFisher``: the second moment of the gradients of the cases, as an operator."""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.curvature import estimators
from hfcore.curvature.operator import CurvatureOperator


class EmpiricalFisher(CurvatureOperator):
    """A ``[N,N]`` = mean over cases of g gᵀ + damping·(I + structural·G_S).

    g is the gradient of a case's loss, not centred, and with the given targets (Martens &
    Sutskever 2012, section 20.11.3, take its diagonal). The arguments are those of
    :class:`hfcore.GaussNewton`; a closure has no cases.
    """

    kind = "fisher"

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag A ``[N]``: exact for ``probes`` None, else an unbiased estimate.

        Exact without structural damping from the squared gradients of the cases; else, and where
        the objective is one of your own, from products.
        """
        estimators.check_probes(probes, generator)
        # An objective of one's own need not have the squares of its cases' gradients.
        if probes is not None or self.damping * self._mu or self._is_own:
            return super().diagonal(probes, generator)
        squares = self._objective.squared_gradients(self._data, self._theta)
        return squares + (self.damping + self._objective.l2)
