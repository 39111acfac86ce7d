"""LSTM and GRU nets: torch's recurrent modules with a linear read-out."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from hfcore.arguments import count, naming_options, number, placement
from hfcore.bindings.checks import check_positive, check_tensor
from hfcore.models.recurrent import RecurrentNet


class GatedRecurrentNet(RecurrentNet):
    """What :class:`LSTM` and :class:`GRU` share: ``rnn``, torch's module, ``out`` on its states.

    Args:
        input_size: n, at least 1.
        hidden_size: H of every layer, at least 1.
        output_size: k, at least 1.
        layers: L, at least 1.
        dtype, device: of the parameters; None means torch's defaults.
        generator: draws the initial weights, see :meth:`reset_parameters`.

    Raises TypeError or ValueError naming the argument.
    """

    module: ClassVar[Callable[..., nn.RNNBase]]

    @naming_options
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        layers: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        placement(dtype, device, generator)
        self.input_size = count("input_size", input_size)
        self.hidden_size = count("hidden_size", hidden_size)
        self.output_size, self.layers = count("output_size", output_size), count("layers", layers)
        where = torch.get_default_device() if device is None else device
        # On "meta" torch draws nothing, which would move its global generator.
        sizes = input_size, hidden_size, layers
        self.rnn = self.module(*sizes, dtype=dtype, device="meta").to_empty(device=where)
        out = nn.Linear(hidden_size, output_size, dtype=dtype, device="meta")
        self.out = out.to_empty(device=where)
        self.reset_parameters(generator)

    def _of_layers(self, kind: str) -> list[nn.Parameter]:
        return [self.rnn.get_parameter(f"{kind}_l{l}") for l in range(self.layers)]

    def matrices(self) -> list[nn.Parameter]:
        """``weight_ih [R·H,n]`` and ``weight_hh [R·H,H]`` of every layer, ``out.weight [k,H]``."""
        pairs = zip(self._of_layers("weight_ih"), self._of_layers("weight_hh"), strict=True)
        return [*(W for pair in pairs for W in pair), self.out.get_parameter("weight")]

    def input_matrices(self) -> list[nn.Parameter]:
        """Those of them that the inputs meet: ``weight_ih [R·H,n]`` of the first layer."""
        return self._of_layers("weight_ih")[:1]

    def biases(self) -> list[nn.Parameter]:
        """``bias_ih [R·H]`` and ``bias_hh [R·H]`` of every layer, and ``out.bias [k]``."""
        return [
            *self._of_layers("bias_ih"),
            *self._of_layers("bias_hh"),
            self.out.get_parameter("bias"),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``s [T,B,k]`` for inputs ``x [T,B,n]`` of the parameters' dtype and device.

        Raises TypeError for something that is not a tensor or has another dtype, ValueError for
        another rank, n or device, for an empty batch and for T = 0.
        """
        check_tensor("x", x, ["T", "B", self.input_size], like=self.out.weight)
        check_positive(T=x.shape[0], B=x.shape[1])
        s: Tensor = self.out(self.rnn(x)[0])
        return s

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        sizes = f"{self.input_size}, {self.hidden_size}, {self.output_size}"
        return f"{sizes}, layers={self.layers}"


class LSTM(GatedRecurrentNet):
    """Long short-term memory with forget gates (Hochreiter & Schmidhuber 1997; Gers et al. 1999).

    From h_{-1} = 0 and c_{-1} = 0, at t = 0 .. T-1, in every layer::

        i, f, g, o = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh
        c_t = σ(f) c_{t-1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)

    and s_t = W h_t + b. The outputs s are those before the output nonlinearity, which belongs to
    the loss. Parameters: those of ``rnn`` (an nn.LSTM: ``weight_ih_l0 [4H,n]``,
    ``weight_hh_l0 [4H,H]``, ``bias_ih_l0``, ``bias_hh_l0 [4H]``, …), then ``out.weight [k,H]`` and
    ``out.bias [k]``.

    ``hf.HessianFree``, the curvature operators, ``hf.train`` and ``hf.sweep`` run on fused kernels
    (``hfcore/nets/gated.py``). Arguments are those of :class:`GRU` and one more.

    Args:
        forget_bias: start of the forget gates' biases (Jozefowicz et al. 2015).
    """

    module = nn.LSTM
    forget_bias = 1.0

    @naming_options
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        layers: int = 1,
        forget_bias: float = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            output_size,
            layers=layers,
            dtype=dtype,
            device=device,
            generator=generator,
        )
        self.forget_bias = number("forget_bias", forget_bias)
        self._open_forget_gates()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights from N(0, 1/fan-in), biases 0, those of the forget gates ``forget_bias``.

        None draws from torch's global generator.
        """
        super().reset_parameters(generator)
        self._open_forget_gates()

    @torch.no_grad()
    def _open_forget_gates(self) -> None:
        for b in self._of_layers("bias_ih"):
            b[self.hidden_size : 2 * self.hidden_size] = self.forget_bias

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"{super().extra_repr()}, forget_bias={self.forget_bias}"


class GRU(GatedRecurrentNet):
    """Gated recurrent units (Cho et al. 2014), in the form of torch's nn.GRU.

    From h_{-1} = 0, at t = 0 .. T-1, in every layer, r behind the product::

        r, z = σ(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
        n = tanh(W_ih x_t + b_ih + r (W_hh h_{t-1} + b_hh)),   h_t = (1 − z) n + z h_{t-1}

    and s_t = W h_t + b. The outputs s are those before the output nonlinearity, which belongs to
    the loss. Parameters: those of ``rnn`` (an nn.GRU: ``weight_ih_l0 [3H,n]``,
    ``weight_hh_l0 [3H,H]``, ``bias_ih_l0``, ``bias_hh_l0 [3H]``, …), then ``out.weight [k,H]`` and
    ``out.bias [k]``.

    ``hf.HessianFree``, the curvature operators, ``hf.train`` and ``hf.sweep`` run on fused kernels
    (``hfcore/nets/gated.py``).

    Args:
        input_size: n, at least 1.
        hidden_size: H of every layer, at least 1.
        output_size: k, at least 1.
        layers: L, at least 1.
        dtype, device: of the parameters; None means torch's defaults.
        generator: draws the initial weights, N(0, 1/fan-in), biases 0.

    Raises TypeError or ValueError naming the argument.
    """

    module = nn.GRU
