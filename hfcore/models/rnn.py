"""The plain recurrent net of Martens & Sutskever (2011) as a ``torch.nn.Module``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hfcore.bindings import recurrence as ops
from hfcore.bindings.checks import check_choice, check_positive, check_tensor
from hfcore.bindings.dispatch import forced_backend
from hfcore.kernels.recurrence import RnnShape, RnnWeights
from hfcore.models.recurrence_autograd import derivatives_wanted, rnn_hidden


class RNN(nn.Module):
    """h_t = e(W_hx x_t + W_hh h_{t-1} + b_h), s_t = W_yh h_t + b_y; at t = 0 b_init stands for
    W_hh h_{-1}."""

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
        check_positive(input_size=input_size, hidden_size=hidden_size, output_size=output_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.output_size = output_size
        self.nonlinearity = check_choice("nonlinearity", nonlinearity, ops.NONLINEARITIES)
        for name, shape in zip(RnnWeights._fields, self.shape.shapes, strict=True):
            empty = torch.empty(shape, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(empty))
        self.reset_parameters(generator)

    @property
    def shape(self) -> RnnShape:
        return RnnShape(self.input_size, self.hidden_size, self.output_size)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        for p in self.parameters():
            if p.ndim == 2:
                p.normal_(0.0, 1.0 / math.sqrt(p.shape[1]), generator=generator)
            else:
                p.zero_()

    def weights(self, *, detach: bool = False) -> RnnWeights:
        ps = (getattr(self, name) for name in RnnWeights._fields)
        return RnnWeights(*((p.detach() if detach else p).unsqueeze(0) for p in ps))

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, ["T", "B", self.input_size], like=self.W_hx)
        check_positive(T=x.shape[0], B=x.shape[1])
        x, w = x.unsqueeze(0), self.weights()
        if forced_backend() == "reference":
            return ops.rnn_forward(x, w, nonlinearity=self.nonlinearity)[1].squeeze(0)
        if not derivatives_wanted(x, *w):
            s: Tensor = torch.ops.hfcore.rnn_outputs(x, *w, self.nonlinearity)
            return s.squeeze(0)
        h = rnn_hidden(x, w.W_hx, w.W_hh, w.b_h, w.b_init, self.nonlinearity)
        return nn.functional.linear(h.squeeze(0), self.W_yh, self.b_y)
