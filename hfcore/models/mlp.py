"""Feed-forward nets of Martens (2010) as ``torch.nn.Module``: any stack, and the autoencoders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from hfcore.arguments import naming_options, placement
from hfcore.bindings.checks import check_choice, check_positive, check_tensor
from hfcore.bindings.dense import ACTIVATIONS

_FUNCTIONS = {
    "linear": lambda z: z,
    "logistic": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}


class MLP(nn.Module):
    """A stack of fully connected layers, y_l = φ_l(W_l y_{l-1} + b_l).

    Most losses of ``hf.losses`` hold the output nonlinearity themselves: the last activation is
    then ``"linear"``. Parameters, in the order of every flat vector: W_1, b_1, W_2, b_2 …, named
    ``layers.0.weight [m,n]``, ``layers.0.bias [m]`` …

    The forward pass is plain torch: autograd and torch.func hold to any order. ``hf.HessianFree``
    and the curvature operators run on fused kernels instead (``hfcore/nets/mlp.py``).

    Args:
        sizes: units of every layer, inputs first; at least two, each at least 1.
        activations: φ of every layer but the inputs, of ``"linear"``, ``"logistic"``, ``"tanh"``,
            ``"relu"``.
        dtype: a real floating type; None means torch's default.
        device: where the parameters are; None means torch's default.
        generator: draws the initial weights, see :meth:`reset_parameters`.

    Raises:
        TypeError: a size that is not an int, a dtype that is not a real floating type.
        ValueError: fewer than two sizes, a size below 1, an unknown activation or too few of them.
    """

    # Cases are counted along this axis of inputs, targets and outputs.
    batch_dim = 0

    @naming_options
    def __init__(
        self,
        sizes: Sequence[int],
        activations: Sequence[str],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.sizes = _checked_sizes("sizes", sizes)
        self.activations = _checked_activations(activations, len(self.sizes) - 1)
        placement(dtype, device, generator)
        # Without the draws of nn.Linear, which would move torch's global generator.
        self.layers = nn.ModuleList(
            nn.utils.skip_init(
                nn.Linear, n, m, dtype=dtype, device=device or torch.get_default_device()
            )
            for n, m in pairwise(self.sizes)
        )
        self.reset_parameters(generator)

    def matrices(self) -> list[nn.Parameter]:
        """The weights W_1, W_2, … that initialisations draw, in this order, each ``[m,n]``.

        n and m are the units of the layer below and of its own.
        """
        return [cast(nn.Parameter, layer.weight) for layer in self.layers]

    def biases(self) -> list[nn.Parameter]:
        """The biases b_1, b_2 and so on, ``[H]`` for a layer of H units."""
        return [cast(nn.Parameter, layer.bias) for layer in self.layers]

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights from N(0, 1/fan-in), so that each unit sees a variance near 1; biases 0.

        A dense start for ordinary training; ``hf.init.sparse_`` is the one of the paper. None
        draws from torch's global generator.
        """
        with torch.no_grad():
            for name, p in self.named_parameters():
                if name.endswith("bias"):
                    p.zero_()
                    continue
                # A generator draws on its own device, which need not be that of the parameters.
                device = p.device if generator is None else generator.device
                draw = p if device == p.device else torch.empty_like(p, device=device)
                p.copy_(draw.normal_(0.0, 1.0 / math.sqrt(p.shape[1]), generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[B,k]`` for inputs ``x [B,n]`` of the parameters' dtype and device.

        Raises TypeError for something that is not a tensor or has another dtype, ValueError for
        another rank, n or device and for an empty batch.
        """
        check_tensor("x", x, ["B", self.sizes[0]], like=next(self.parameters()))
        check_positive(B=x.shape[0])
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x = _FUNCTIONS[activation](layer(x))
        return x

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"{list(self.sizes)}, {list(self.activations)}"


class Autoencoder(MLP):
    """An encoder and its mirror image (Hinton & Salakhutdinov 2006; Martens 2010, section 7).

    ``Autoencoder([784, 400, 200, 100, 50, 25, 6])`` is the CURVES net: hidden units are
    ``activation``, the code layer is ``code``, and the outputs are those before the output
    nonlinearity, which belongs to the loss (logistic cross-entropy; squared error for FACES).

    Args: ``encoder_sizes``, inputs first and code last, at least two; the others as in
    :class:`MLP`, whose errors it raises.
    """

    @naming_options
    def __init__(
        self,
        encoder_sizes: Sequence[int],
        *,
        activation: str = "logistic",
        code: str = "linear",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        encoder = _checked_sizes("encoder_sizes", encoder_sizes)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("code", code, ACTIVATIONS)
        hidden = [activation] * (len(encoder) - 2)
        super().__init__(
            [*encoder, *reversed(encoder[:-1])],
            [*hidden, code, *hidden, "linear"],
            dtype=dtype,
            device=device,
            generator=generator,
        )


def _checked_sizes(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(sizes, Sequence):
        raise TypeError(f"{name}: got {type(sizes).__name__}, need a sequence of ints")
    for i, value in enumerate(sizes):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name}[{i}]: got {value!r}, need an int")
        check_positive(**{f"{name}[{i}]": value})
    if len(sizes) < 2:
        raise ValueError(f"{name}: got {list(sizes)}, need at least inputs and one layer")
    return tuple(sizes)


def _checked_activations(activations: Sequence[str], layers: int) -> tuple[str, ...]:
    if not isinstance(activations, Sequence) or isinstance(activations, str):
        raise TypeError(
            f"activations: got {type(activations).__name__}, need a sequence of names, one a layer"
        )
    if len(activations) != layers:
        raise ValueError(
            f"activations: got {len(activations)}, need {layers}, one for every layer but the "
            "inputs"
        )
    return tuple(
        check_choice(f"activations[{i}]", value, ACTIVATIONS) for i, value in enumerate(activations)
    )
