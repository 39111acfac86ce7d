"""The plain recurrent net of Martens & Sutskever (2011) as a ``torch.nn.Module``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hfcore.bindings import recurrence as ops
from hfcore.bindings.checks import check_choice, check_positive, check_tensor
from hfcore.bindings.dispatch import forced_backend
from hfcore.bindings.recurrence import RnnShape, RnnWeights
from hfcore.models.recurrence_library import rnn_outputs


class RNN(nn.Module):
    """Recurrent net with one hidden layer (Martens & Sutskever 2011, section 2).

    h_t = e(W_hx x_t + W_hh h_{t-1} + b_h) and s_t = W_yh h_t + b_y for t = 0 .. T-1, where
    ``b_init`` stands for W_hh h_{-1} at the first step. The outputs s are those before the
    output nonlinearity, which belongs to the loss.

    Parameters, in the order of ``parameters()`` and so of every flat vector: ``W_hx [H,n]``,
    ``W_hh [H,H]``, ``W_yh [k,H]``, ``b_h [H]``, ``b_init [H]``, ``b_y [k]``.

    Autograd, forward-mode AD and the transforms of torch.func (jvp, vjp, linearize, vmap,
    jacfwd, jacrev, hessian) hold to any order, also nested; so does torch.compile without a
    graph break. Two things raise: torch.func applied to the function that torch.func.linearize
    returns, and torch.compile around a forward-mode transform. Under
    ``hf.use_backend("reference")`` the forward pass is a loop of plain torch ops.

    Args:
        input_size: n, at least 1.
        hidden_size: H, at least 1.
        output_size: k, at least 1.
        nonlinearity: e, one of ``"tanh"``, ``"logistic"``, ``"relu"``.
        dtype: a real floating type; None means torch's default. The compiled kernels serve
            float32 and float64.
        device: where the parameters are; None means torch's default.
        generator: draws the initial weights, see :meth:`reset_parameters`.

    Raises:
        TypeError: a size that is not an int, a dtype that is not a real floating type.
        ValueError: a size below 1, an unknown nonlinearity.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        nonlinearity: str = "tanh",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(input_size=input_size, hidden_size=hidden_size, output_size=output_size)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype: got {dtype}, need a real floating type such as torch.float32")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.output_size = output_size
        self.nonlinearity = check_choice("nonlinearity", nonlinearity, ops.NONLINEARITIES)
        W_hx, W_hh, W_yh, b_h, b_init, b_y = (
            nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
            for shape in self.shape.shapes
        )
        self.W_hx = W_hx
        self.W_hh = W_hh
        self.W_yh = W_yh
        self.b_h = b_h
        self.b_init = b_init
        self.b_y = b_y
        self.reset_parameters(generator)

    @property
    def shape(self) -> RnnShape:
        """The sizes (n, H, k)."""
        return RnnShape(self.input_size, self.hidden_size, self.output_size)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights from N(0, 1/fan-in), so that each unit sees a variance near 1; biases 0.

        A dense start for ordinary training; ``hf.init.sparse_`` is the one of the paper. None
        draws from torch's global generator.
        """
        with torch.no_grad():
            for W in (self.W_hx, self.W_hh, self.W_yh):
                # A generator draws on its own device, which need not be that of the parameters.
                device = W.device if generator is None else generator.device
                draw = W if device == W.device else torch.empty_like(W, device=device)
                W.copy_(draw.normal_(0.0, 1.0 / math.sqrt(W.shape[1]), generator=generator))
            for b in (self.b_h, self.b_init, self.b_y):
                b.zero_()

    def weights(self, *, detach: bool = False) -> RnnWeights:
        """The parameters as views with a group axis of length 1, as the ops take them.

        They are part of the autograd graph unless ``detach``.
        """
        parameters = (getattr(self, name) for name in RnnWeights._fields)
        return RnnWeights(*((p.detach() if detach else p).unsqueeze(0) for p in parameters))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``s [T,B,k]`` for inputs ``x [T,B,n]`` of the parameters' dtype and device.

        Raises TypeError for something that is not a tensor or has another dtype, ValueError for
        another rank, n or device, for an empty batch and for T = 0.
        """
        check_tensor("x", x, ["T", "B", self.input_size], like=self.W_hx)
        check_positive(T=x.shape[0], B=x.shape[1])
        x, w = x.unsqueeze(0), self.weights()
        # A compiled graph asks for the backend when it runs, inside the op.
        if not torch.compiler.is_compiling() and forced_backend() == "reference":
            return ops.rnn_forward(x, w, nonlinearity=self.nonlinearity)[1].squeeze(0)
        return rnn_outputs(x, w, self.nonlinearity).squeeze(0)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"{self.input_size}, {self.hidden_size}, {self.output_size},"
            f" nonlinearity={self.nonlinearity!r}"
        )


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name}: got {value!r}, need an int")
    check_positive(**sizes)
