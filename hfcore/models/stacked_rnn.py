"""Several recurrent layers, each hearing the states of the one below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from hfcore.arguments import naming_options, placement
from hfcore.bindings import recurrence as ops
from hfcore.bindings.checks import check_choice, check_positive, check_tensor
from hfcore.models import recurrence_library  # noqa: F401  # defines torch.ops.hfcore.rnn_hidden
from hfcore.models.recurrence_autograd import rnn_hidden, times
from hfcore.models.recurrent import RecurrentNet


class RecurrentLayer(nn.Module):
    """One layer: h_t = e(W_hx x_t + W_hh h_{t-1} + b_h), with b_init for W_hh h_{-1}.

    Parameters: ``W_hx [H,n]``, ``W_hh [H,H]``, ``b_h [H]``, ``b_init [H]``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        nonlinearity: str,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.nonlinearity = nonlinearity
        n, H = input_size, hidden_size
        W_hx, W_hh, b_h, b_init = (
            nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
            for shape in ((H, n), (H, H), (H,), (H,))
        )
        self.W_hx, self.W_hh, self.b_h, self.b_init = W_hx, W_hh, b_h, b_init

    def forward(self, x: Tensor) -> Tensor:
        """States ``h [1,T,B,H]`` for ``x [1,T,B,n]``."""
        op: Callable[..., Tensor] = torch.ops.hfcore.rnn_hidden
        if torch._C._are_functorch_transforms_active():
            op = rnn_hidden
        weights = (self.W_hx, self.W_hh, self.b_h, self.b_init)
        return op(x, *(w.unsqueeze(0) for w in weights), self.nonlinearity)


class StackedRNN(RecurrentNet):
    """Recurrent net with several hidden layers, :class:`hfcore.RNN` for one of them.

    h^l_t = e(W_hx^l h^{l-1}_t + W_hh^l h^l_{t-1} + b_h^l) for l = 0 .. L-1, h^{-1} the inputs, and
    s_t = W_yh h^{L-1}_t + b_y for t = 0 .. T-1, where ``b_init`` stands for W_hh h_{-1} at the
    first step. The outputs s are those before the output nonlinearity, which belongs to the loss.

    Parameters, in the order of every flat vector: ``W_yh [k,H]``, ``b_y [k]``, and of one layer
    after the other ``layers.l.W_hx``, ``.W_hh``, ``.b_h``, ``.b_init``.

    Autograd, forward mode and the transforms of torch.func hold to any order. ``hf.HessianFree``
    and the curvature operators run on the recurrence ops (``hfcore/nets/stacked_rnn.py``).

    Args:
        input_size: n, at least 1.
        hidden_sizes: units of every layer, inputs' side first; at least one, each at least 1.
        output_size: k, at least 1.
        nonlinearity: e, one of ``"tanh"``, ``"logistic"``, ``"relu"``.
        dtype, device: of the parameters; None means torch's defaults.
        generator: draws the initial weights, see :meth:`reset_parameters`.

    Raises TypeError or ValueError naming the argument.
    """

    @naming_options
    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int],
        output_size: int,
        *,
        nonlinearity: str = "tanh",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(hidden_sizes, Sequence):
            raise TypeError(
                f"hidden_sizes: got {type(hidden_sizes).__name__}, need a sequence of ints"
            )
        sizes = {f"hidden_sizes[{l}]": H for l, H in enumerate(hidden_sizes)}
        for name, size in {"input_size": input_size, **sizes, "output_size": output_size}.items():
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"{name}: got {size!r}, need an int")
            check_positive(**{name: size})
        if not hidden_sizes:
            raise ValueError("hidden_sizes: got no layer, need at least one")
        placement(dtype, device, generator)
        check_choice("nonlinearity", nonlinearity, ops.NONLINEARITIES)
        self.input_size, self.output_size = input_size, output_size
        self.hidden_sizes, self.nonlinearity = tuple(hidden_sizes), nonlinearity
        below = (input_size, *self.hidden_sizes)
        self.layers = nn.ModuleList(
            RecurrentLayer(n, H, nonlinearity, dtype, device)
            for n, H in zip(below, self.hidden_sizes, strict=False)
        )
        top = self.hidden_sizes[-1]
        self.W_yh = nn.Parameter(torch.empty(output_size, top, dtype=dtype, device=device))
        self.b_y = nn.Parameter(torch.empty(output_size, dtype=dtype, device=device))
        self.reset_parameters(generator)

    def _layers(self) -> list[RecurrentLayer]:
        return [cast(RecurrentLayer, layer) for layer in self.layers]

    def matrices(self) -> list[nn.Parameter]:
        """W_hx and W_hh of every layer, and W_yh: what initialisations draw, in this order.

        ``[H,n]`` for a layer of H units on n, ``[H,H]``, and ``[k,H]``.
        """
        return [*(W for layer in self._layers() for W in (layer.W_hx, layer.W_hh)), self.W_yh]

    def input_matrices(self) -> list[nn.Parameter]:
        """Those of them that the inputs meet: ``W_hx [H,n]`` of the first layer."""
        return [self._layers()[0].W_hx]

    def biases(self) -> list[nn.Parameter]:
        """``b_h [H]`` and ``b_init [H]`` of every layer, and ``b_y [k]``, which start at zero."""
        return [*(b for layer in self._layers() for b in (layer.b_h, layer.b_init)), self.b_y]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``s [T,B,k]`` for inputs ``x [T,B,n]`` of the parameters' dtype and device.

        Raises TypeError for something that is not a tensor or has another dtype, ValueError for
        another rank, n or device, for an empty batch and for T = 0.
        """
        check_tensor("x", x, ["T", "B", self.input_size], like=self.W_yh)
        check_positive(T=x.shape[0], B=x.shape[1])
        h = x.unsqueeze(0)
        for layer in self.layers:
            h = layer(h)
        return (times(h, self.W_yh.mT.unsqueeze(0)) + self.b_y).squeeze(0)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"{self.input_size}, {list(self.hidden_sizes)}, {self.output_size},"
            f" nonlinearity={self.nonlinearity!r}"
        )
