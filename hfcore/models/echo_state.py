"""The classic echo-state network: a fixed random reservoir and a learned linear read-out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hfcore.arguments import naming_options, placement
from hfcore.batches import Batch
from hfcore.bindings import recurrence as ops
from hfcore.bindings import sparse as sparse_ops
from hfcore.bindings.checks import check_choice, check_positive, check_tensor
from hfcore.bindings.recurrence import RnnWeights
from hfcore.bindings.sparse import EllPattern
from hfcore.draws import check_scale
from hfcore.spectral import esn_recurrence

# Bytes of hidden states that a fit holds at once, in the reservoir's dtype.
FIT_BYTES = 64 << 20


class _States(torch.autograd.Function):
    """The reservoir's states as a constant: what torch.func's transforms wrap stays outside."""

    @staticmethod
    def forward(
        x: Tensor,
        W_hx: Tensor,
        value: Tensor,
        index: Tensor,
        pattern: EllPattern | None,
        nonlinearity: str,
    ) -> Tensor:
        if pattern is None:
            pattern = sparse_ops.ell_pattern(index.contiguous(), len(index))
        return _reservoir(x, W_hx, value.contiguous()[None], pattern, nonlinearity)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return (None,) * 6

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        return None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, *arguments: Any
    ) -> tuple[Tensor, int]:
        """Sequences of one reservoir are one batch; reservoirs go one after the other."""
        *weights, pattern, nonlinearity = arguments
        apply: Callable[..., Tensor] = _States.apply
        if in_dims[0] is not None and all(dim is None for dim in in_dims[1:]):
            many = x.movedim(in_dims[0], 1)  # [T,V,B,n]
            h = apply(many.flatten(1, 2), *arguments)
            return h.unflatten(1, many.shape[1:3]), 1
        tensors = zip(in_dims, (x, *weights), strict=False)
        columns = [[t] * info.batch_size if d is None else t.unbind(d) for d, t in tensors]
        rows = [apply(*row, pattern, nonlinearity) for row in zip(*columns, strict=True)]
        return torch.stack(rows), 0


def _reservoir(
    x: Tensor, W_hx: Tensor, value: Tensor, pattern: EllPattern, nonlinearity: str
) -> Tensor:
    """Hidden states ``h [T,B,H]``; ``value [1,H,K]``."""
    if sparse_ops.ell_is_faster(pattern.m, pattern.K, x.device.type):
        u = nn.functional.linear(x, W_hx)[None]
        return sparse_ops.ell_hidden(u, value, pattern, nonlinearity=nonlinearity)[0]
    H = pattern.m
    zero, last = x.new_zeros(1, H), torch.tensor([len(x) - 1], device=x.device)
    w = RnnWeights(
        W_hx[None],
        sparse_ops.ell_dense(value, pattern),
        x.new_zeros(1, 1, H),  # the read-out is not this op's: one output, at the last step
        zero,
        zero,
        x.new_zeros(1, 1),
    )
    h, _ = ops.rnn_forward(x[None], w, nonlinearity=nonlinearity, steps=last)
    assert h is not None
    return h[0]


class EchoState(nn.Module):
    """Echo-state network (Jaeger & Haas 2004).

    h_t = e(W_hx x_t + W_hh h_{t-1}) with h_{-1} = 0, and s_t = W_yh h_t + b_y.

    The reservoir is drawn once and stays: W_hh has ``fan_in`` entries a row, N(0, 1) scaled to the
    ``spectral_radius`` (:func:`hfcore.init.esn_recurrence`), and W_hx is dense
    N(0, input_scale²). Its arrays are buffers (``W_hx [H,n]``, ``hidden_index`` and
    ``hidden_value`` ``[H,K]``), so that optimisers see the read-out alone: the parameters
    ``W_yh [k,H]`` and ``b_y [k]``, which start at zero.

    :meth:`fit` finds them by ridge regression; any optimiser trains them as it trains a linear
    layer, for any loss, as no derivative goes through time. The time loop runs on the entries of
    W_hh where that is faster (:func:`hfcore.bindings.sparse.ell_is_faster`).

    Args:
        input_size, hidden_size, output_size: n, H and k, at least 1.
        fan_in: entries of a row of W_hh, at least 1; all where there are no more.
        spectral_radius: of W_hh, finite and not negative; below 1 as a rule, so that the state
            forgets how it started.
        input_scale: standard deviation of W_hx.
        nonlinearity: e, one of ``"tanh"``, ``"logistic"``, ``"relu"``.
        dtype, device: of all arrays; None means torch's defaults.
        generator: draws the reservoir; None is torch's global one.

    Raises TypeError or ValueError naming the argument that is wrong.
    """

    W_hx: Tensor
    hidden_index: Tensor
    hidden_value: Tensor

    batch_dim = 1

    @naming_options
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        fan_in: int = 15,
        spectral_radius: float = 0.9,
        input_scale: float = 0.5,
        nonlinearity: str = "tanh",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_positive(hidden_size=hidden_size, input_size=input_size, output_size=output_size)
        placement(dtype, device, generator)
        check_scale("input_scale", input_scale)
        self.input_size, self.output_size = input_size, output_size
        self.nonlinearity = check_choice("nonlinearity", nonlinearity, ops.NONLINEARITIES)
        draw = torch.default_generator if generator is None else generator
        index, value = esn_recurrence(hidden_size, fan_in, spectral_radius, draw)
        W_hx = input_scale * torch.randn(
            hidden_size, input_size, generator=draw, dtype=torch.float64, device=draw.device
        )
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.register_buffer("W_hx", W_hx.to(dtype=dtype, device=device))
        self.register_buffer("hidden_value", value.to(dtype=dtype, device=device))
        self.register_buffer("hidden_index", index.to(device=device))
        self.W_yh = nn.Parameter(torch.zeros(output_size, hidden_size, dtype=dtype, device=device))
        self.b_y = nn.Parameter(torch.zeros(output_size, dtype=dtype, device=device))
        self._pattern: tuple[object, EllPattern] | None = None

    @property
    def hidden_size(self) -> int:
        """H, the units of the reservoir."""
        return self.hidden_index.shape[0]

    @property
    def pattern(self) -> EllPattern:
        """Where the entries of W_hh are; checked again where the buffer has changed."""
        self._pattern = sparse_ops.current_pattern(
            self._pattern, self.hidden_index, self.hidden_size
        )
        return self._pattern[1]

    @torch.no_grad()
    def states(self, x: Tensor) -> Tensor:
        """Hidden states ``h [T,B,H]`` for ``x [T,B,n]``; no derivative passes."""
        check_tensor("x", x, ["T", "B", self.input_size], like=self.W_hx)
        check_positive(T=x.shape[0], B=x.shape[1])
        index = self.hidden_index
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(index)
        pattern = None if wrapped else self.pattern
        apply: Callable[..., Tensor] = _States.apply
        return apply(x, self.W_hx, self.hidden_value, index, pattern, self.nonlinearity)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``s [T,B,k]`` for ``x [T,B,n]``, differentiable by the read-out alone."""
        return nn.functional.linear(self.states(x), self.W_yh, self.b_y)

    @torch.no_grad()
    def fit(self, data: Batch | Iterable[Batch], *, ridge: float = 1e-6, washout: int = 0) -> None:
        """Set the read-out to argmin Σ ‖s − y‖² + ridge·‖W_yh‖², summed over what counts.

        That are the outputs of every batch from step ``washout`` on that its mask does not drop;
        the bias is not penalised. The normal equations are summed and solved in float64, over any
        number of batches of any lengths: memory grows with H² and not with the data.

        Raises ValueError or TypeError for a ridge that is negative or not finite, a washout below
        0, shapes that do not fit, data that is NaN or Inf, no output that counts, and equations
        that are singular (ridge 0 with too little data).
        """
        if not (math.isfinite(ridge) and ridge >= 0):
            raise ValueError(f"ridge: got {ridge}, need a finite number of at least 0")
        if not isinstance(washout, int) or washout < 0:
            raise ValueError(f"washout: got {washout!r}, need an int of at least 0")
        H, k = self.hidden_size, self.output_size
        gram = torch.zeros(H + 1, H + 1 + k, dtype=torch.float64, device=self.W_hx.device)
        counted = 0
        for batch in [data] if isinstance(data, Batch) else data:
            for z, y in self._observations(Batch(*batch), washout):
                gram += z.mT @ torch.cat([z, y], 1)
                counted += len(z)
        if counted == 0:
            raise ValueError("data: no output counts, need some behind the washout")
        A, right = gram[:, : H + 1], gram[:, H + 1 :]
        A.diagonal()[:H] += ridge
        factor, failed = torch.linalg.cholesky_ex(A)
        if bool(failed):
            raise ValueError(
                f"ridge: with {ridge} the equations of {counted} outputs and {H + 1} unknowns are "
                "singular, need a larger one"
            )
        solution = torch.cholesky_solve(right, factor)
        self.W_yh.copy_(solution[:H].mT)
        self.b_y.copy_(solution[H])

    def _observations(self, batch: Batch, washout: int) -> Iterable[tuple[Tensor, Tensor]]:
        """([h, 1], y) in float64 of the outputs that count, ``[P,H+1]`` and ``[P,k]``, in parts."""
        x = check_tensor("inputs", batch.inputs, ["T", "B", self.input_size], like=self.W_hx)
        T, B = x.shape[:2]
        targets = check_tensor("targets", batch.targets, [T, B, self.output_size], like=x)
        keep = torch.ones(T, B, dtype=torch.bool, device=x.device)
        if batch.mask is not None:
            keep = check_tensor("mask", batch.mask, [T, B]).to(keep)
        keep[:washout] = False
        if not bool(torch.isfinite(x).all()) or not bool(torch.isfinite(targets[keep]).all()):
            raise ValueError("data: inputs or targets hold NaN or Inf, need finite values")
        size = max(1, FIT_BYTES // (max(T, 1) * self.hidden_size * x.element_size()))
        for start in range(0, B, size):
            part = slice(start, start + size)
            h = self.states(x[:, part])[keep[:, part]].double()
            y = targets[:, part][keep[:, part]].double()
            yield torch.cat([h, torch.ones_like(h[:, :1])], 1), y

    def extra_repr(self) -> str:
        """Sizes, fan-in and nonlinearity."""
        return (
            f"{self.input_size}, {self.hidden_size}, {self.output_size},"
            f" fan_in={self.hidden_index.shape[1]}, nonlinearity={self.nonlinearity!r}"
        )
