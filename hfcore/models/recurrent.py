"""What the nets that are trained through time share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# λ₀ = 0.1·T when none is given: a comment in the original RNN release, and the supplement of
# M&S 2011 as it is remembered.
DAMPING_PER_STEP = 0.1


class RecurrentNet(nn.Module):
    """A net on sequences ``[T,B,·]`` that says which parameters are weights and which biases."""

    # Cases are counted along this axis of inputs, targets and outputs.
    batch_dim = 1

    def matrices(self) -> list[nn.Parameter]:
        """The weights, each ``[m,n]``, that initialisations draw, in this order."""
        raise NotImplementedError

    def biases(self) -> list[nn.Parameter]:
        """The parameters, each ``[m]``, that start at zero."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights from N(0, 1/fan-in), so that each unit sees a variance near 1; biases 0.

        A dense start for ordinary training; ``hf.init.sparse_`` is the one of Hessian-free runs.
        None draws from torch's global generator.
        """
        for W in self.matrices():
            # A generator draws on its own device, which need not be that of the parameters.
            device = W.device if generator is None else generator.device
            draw = W if device == W.device else torch.empty_like(W, device=device)
            W.copy_(draw.normal_(0.0, 1.0 / math.sqrt(W.shape[1]), generator=generator))
        for b in self.biases():
            b.zero_()

    def damping_start(self, inputs: Tensor) -> float:
        """λ₀ of Hessian-free for ``inputs [T,B,n]``: 0.1·T."""
        return DAMPING_PER_STEP * inputs.shape[0]
