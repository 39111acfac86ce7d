"""The block-gated LSTM that Martens & Sutskever (2011) compare their nets with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hfcore.arguments import count, naming_options, number, placement
from hfcore.bindings.checks import check_positive, check_tensor
from hfcore.models.recurrent import RecurrentNet


class BlockLSTM(RecurrentNet):
    """LSTM whose memory cells share the gates of their block (Gers et al. 1999).

    With K blocks of m cells, C = K m cells in all, at t = 0 .. T-1, from h_{-1} = 0, c_{-1} = 0::

        z_t, i_t, f_t, o_t = W_x x_t + W_h h_{t-1} + b     C cell inputs, K gates of each kind
        c_t = σ(f_t) c_{t-1} + σ(i_t) tanh(z_t)            a gate for all m cells of its block
        h_t = σ(o_t) tanh(c_t)
        s_t = W_y h_t + b_y

    Martens & Sutskever (2011, section 4) have 30 blocks of 10 cells with forget gates. The outputs
    s are those before the output nonlinearity, which belongs to the loss. Gradients come from
    autograd through all steps.

    1. Gers et al. squash a cell's input to (−2, 2) and its state to (−1, 1) by scaled logistic
       functions; here both are tanh, as has become usual.
    2. There are no peepholes from cells to gates, as in 1999, and no connections of gates to gates.
    3. How the weights are drawn is not published: N(0, 1/fan-in), biases 0, forget gates'
       ``forget_bias``.

    Parameters, in the order of every flat vector: ``W_x [C+3K,n]`` and ``W_h [C+3K,C]``, whose rows
    are those of z, i, f, o; ``W_y [k,C]``; ``b [C+3K]``; ``b_y [k]``.

    Args:
        input_size: n, at least 1.
        output_size: k, at least 1.
        blocks: K, at least 1.
        cells: m of a block, at least 1.
        forget_bias: start of the forget gates' biases.
        dtype, device: of the parameters; None means torch's defaults.
        generator: draws the initial weights, see :meth:`reset_parameters`.

    Raises TypeError or ValueError naming the argument.
    """

    @naming_options
    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        blocks: int = 30,
        cells: int = 10,
        forget_bias: float = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        placement(dtype, device, generator)
        self.input_size = count("input_size", input_size)
        self.output_size = count("output_size", output_size)
        self.blocks, self.cells = count("blocks", blocks), count("cells", cells)
        self.forget_bias = number("forget_bias", forget_bias)
        C, rows = self.hidden_size, self.hidden_size + 3 * self.blocks
        W_x, W_h, W_y, b, b_y = (
            nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
            for shape in ((rows, input_size), (rows, C), (output_size, C), (rows,), (output_size,))
        )
        self.W_x, self.W_h, self.W_y, self.b, self.b_y = W_x, W_h, W_y, b, b_y
        self.reset_parameters(generator)

    @property
    def hidden_size(self) -> int:
        """C, the cells of all blocks."""
        return self.blocks * self.cells

    def matrices(self) -> list[nn.Parameter]:
        """``W_x [C+3K,n]``, ``W_h [C+3K,C]``, ``W_y [k,C]``: what initialisations draw."""
        return [self.W_x, self.W_h, self.W_y]

    def input_matrices(self) -> list[nn.Parameter]:
        """Those of them that the inputs meet: ``W_x [C+3K,n]``."""
        return [self.W_x]

    def biases(self) -> list[nn.Parameter]:
        """``b [C+3K]``, ``b_y [k]``."""
        return [self.b, self.b_y]

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights from N(0, 1/fan-in), biases 0, those of the forget gates ``forget_bias``.

        None draws from torch's global generator.
        """
        super().reset_parameters(generator)
        first = self.hidden_size + self.blocks
        self.b[first : first + self.blocks] = self.forget_bias

    def cell(self, a: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The next ``h [B,C]`` and ``c [B,K,m]``.

        ``a [B,C+3K]`` is W_x x_t + b; ``h [B,C]``, ``c [B,K,m]`` are those of the step before.
        """
        a = torch.addmm(a, h, self.W_h.mT)
        z, gates = a.split([self.hidden_size, 3 * self.blocks], dim=1)
        i, f, o = gates.sigmoid().unflatten(1, (3, self.blocks, 1)).unbind(1)
        c = f * c + i * z.unflatten(1, (self.blocks, self.cells)).tanh()
        return (o * c.tanh()).flatten(1), c

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``s [T,B,k]`` for inputs ``x [T,B,n]`` of the parameters' dtype and device.

        Raises TypeError for something that is not a tensor or has another dtype, ValueError for
        another rank, n or device, for an empty batch and for T = 0.
        """
        check_tensor("x", x, ["T", "B", self.input_size], like=self.W_x)
        check_positive(T=x.shape[0], B=x.shape[1])
        h = x.new_zeros(x.shape[1], self.hidden_size)
        c = x.new_zeros(x.shape[1], self.blocks, self.cells)
        states = []
        for a in linear(x, self.W_x, self.b).unbind(0):
            h, c = self.cell(a, h, c)
            states.append(h)
        return linear(torch.stack(states), self.W_y, self.b_y)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"{self.input_size}, {self.output_size}, blocks={self.blocks}, cells={self.cells},"
            f" forget_bias={self.forget_bias}"
        )
