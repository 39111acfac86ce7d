"""The plain recurrent net of Martens & Sutskever (2011) as a ``torch.nn.Module``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from hfcore.arguments import flag, naming_options, placement
from hfcore.bindings import recurrence as ops
from hfcore.bindings import sparse as sparse_ops
from hfcore.bindings.checks import check_choice, check_positive, check_tensor
from hfcore.bindings.dispatch import forced_backend
from hfcore.bindings.recurrence import RnnShape, RnnWeights
from hfcore.bindings.sparse import EllPattern
from hfcore.fan_in import distinct_columns
from hfcore.models.recurrence_library import rnn_outputs
from hfcore.models.recurrent import RecurrentNet
from hfcore.models.sparse_recurrence import sparse_outputs


class RNN(RecurrentNet):
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

    With ``sparse`` each unit hears ``fan_in`` others (all where there are no more): the parameter
    ``W_hh`` is then ``[H,K]``, the values of the entries, and the buffer ``hidden_index`` int32
    ``[H,K]`` holds their columns; both are in ``state_dict``. :meth:`set_recurrence` replaces
    them, :func:`hfcore.init.sparse_` and :func:`hfcore.init.esn_` draw them. The time loop runs on
    the entries where that is faster (:func:`hfcore.bindings.sparse.ell_is_faster`) and on a dense
    W_hh elsewhere, to results as close as rounding. Forward mode, torch.func and torch.compile
    take the dense one, as do second derivatives.

    Args:
        input_size: n, at least 1.
        hidden_size: H, at least 1.
        output_size: k, at least 1.
        nonlinearity: e, one of ``"tanh"``, ``"logistic"``, ``"relu"``.
        dtype: a real floating type; None means torch's default. The compiled kernels serve
            float32 and float64.
        device: where the parameters are; None means torch's default.
        sparse: whether W_hh is sparse.
        fan_in: entries of a row of W_hh, at least 1; of no meaning without ``sparse``.
        generator: draws the initial weights, see :meth:`reset_parameters`.

    Raises:
        TypeError: a size that is not an int, a dtype that is not a real floating type.
        ValueError: a size below 1, an unknown nonlinearity.
    """

    @naming_options
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        nonlinearity: str = "tanh",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        sparse: bool = False,
        fan_in: int = 15,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(
            input_size=input_size, hidden_size=hidden_size, output_size=output_size, fan_in=fan_in
        )
        placement(dtype, device, generator)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.output_size = output_size
        self.nonlinearity = check_choice("nonlinearity", nonlinearity, ops.NONLINEARITIES)
        self.sparse = flag("sparse", sparse)
        self.fan_in = min(fan_in, hidden_size) if sparse else hidden_size
        shapes = list(self.shape.shapes)
        shapes[1] = (hidden_size, self.fan_in)  # W_hh
        W_hx, W_hh, W_yh, b_h, b_init, b_y = (
            nn.Parameter(torch.empty(shape, dtype=dtype, device=device)) for shape in shapes
        )
        self.W_hx = W_hx
        self.W_hh = W_hh
        self.W_yh = W_yh
        self.b_h = b_h
        self.b_init = b_init
        self.b_y = b_y
        self._pattern: tuple[object, EllPattern] | None = None
        if sparse:
            index = torch.zeros(hidden_size, self.fan_in, dtype=torch.int32, device=device)
            self.hidden_index: Tensor
            self.register_buffer("hidden_index", index)
        self.reset_parameters(generator)

    @property
    def shape(self) -> RnnShape:
        """The sizes (n, H, k)."""
        return RnnShape(self.input_size, self.hidden_size, self.output_size)

    def matrices(self) -> list[nn.Parameter]:
        """W_hx, W_hh, W_yh: the weights that initialisations draw, in this order.

        ``[H,n]``, ``[H,H]`` (the entries ``[H,K]`` of a sparse one) and ``[k,H]``.
        """
        return [self.W_hx, self.W_hh, self.W_yh]

    def input_matrices(self) -> list[nn.Parameter]:
        """Those of them that the inputs meet: ``W_hx [H,n]``."""
        return [self.W_hx]

    def biases(self) -> list[nn.Parameter]:
        """``b_h [H]``, ``b_init [H]``, ``b_y [k]``, which start at zero."""
        return [self.b_h, self.b_init, self.b_y]

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights from N(0, 1/fan-in), so that each unit sees a variance near 1; biases 0.

        A dense start for ordinary training; ``hf.init.sparse_`` is the one of the paper. None
        draws from torch's global generator. A sparse net draws its pattern first.
        """
        if self.sparse:
            H, K = self.hidden_index.shape
            self.hidden_index.copy_(distinct_columns(H, H, K, generator))
        super().reset_parameters(generator)

    @property
    def pattern(self) -> EllPattern:
        """Where the entries of a sparse W_hh are; checked again where the buffer has changed.

        Raises ValueError for a net that is not sparse or whose ``hidden_index`` is no pattern.
        """
        if not self.sparse:
            raise ValueError("model: the RNN is not sparse, need RNN(..., sparse=True)")
        self._pattern = sparse_ops.current_pattern(
            self._pattern, self.hidden_index, self.hidden_size
        )
        return self._pattern[1]

    @torch.no_grad()
    def set_recurrence(self, index: Tensor, value: Tensor) -> None:
        """Replace the entries of a sparse W_hh by ``index``, ``value`` ``[H,F]``, F ≤ ``fan_in``.

        The columns of a row ascend; a row with fewer entries repeats its last column, where
        ``value`` is 0. Raises TypeError or ValueError naming what is wrong.
        """
        pattern = self.pattern
        check_tensor("index", index, [pattern.m, "F"])
        F = index.shape[1]
        if F > pattern.K:
            raise ValueError(f"index: got {F} entries a row, need at most fan_in = {pattern.K}")
        new = sparse_ops.ell_pattern(index, pattern.n)
        check_tensor("value", value, [pattern.m, F])
        present = new.present
        if present is not None and bool((value[~present] != 0).any()):
            raise ValueError("value: is not 0 where a row repeats its last column, need 0 there")
        last = new.index[:, -1:].expand(-1, pattern.K - F)
        self.hidden_index.copy_(torch.cat([new.index, last], 1))
        self.W_hh.zero_()
        self.W_hh[:, :F] = value.to(self.W_hh)

    def weights(self, *, detach: bool = False) -> RnnWeights:
        """The parameters as views with a group axis of length 1, as the ops take them.

        They are part of the autograd graph unless ``detach``. A sparse W_hh is made dense.
        """
        parameters = (getattr(self, name) for name in RnnWeights._fields)
        w = RnnWeights(*((p.detach() if detach else p).unsqueeze(0) for p in parameters))
        if self.sparse:
            w = w._replace(W_hh=sparse_ops.ell_dense(w.W_hh, self.pattern))
        return w

    @property
    def runs_sparse(self) -> bool:
        """Whether the time loop runs on the entries of W_hh: a rule by shape and device."""
        return self.sparse and sparse_ops.ell_is_faster(
            self.hidden_size, self.fan_in, self.W_hh.device.type
        )

    def _takes_entries(self, x: Tensor) -> bool:
        """Whether this call can: nothing but plain reverse mode is known there."""
        if not self.runs_sparse or torch.compiler.is_compiling():
            return False
        if torch._C._are_functorch_transforms_active():
            return False
        arrays = (x, *(getattr(self, name) for name in RnnWeights._fields))
        return all(forward_ad.unpack_dual(a).tangent is None for a in arrays)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``s [T,B,k]`` for inputs ``x [T,B,n]`` of the parameters' dtype and device.

        Raises TypeError for something that is not a tensor or has another dtype, ValueError for
        another rank, n or device, for an empty batch and for T = 0.
        """
        check_tensor("x", x, ["T", "B", self.input_size], like=self.W_hx)
        check_positive(T=x.shape[0], B=x.shape[1])
        if self._takes_entries(x):
            own = RnnWeights(*(getattr(self, name) for name in RnnWeights._fields))
            return sparse_outputs(x, own, self.pattern, self.nonlinearity)
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
            + (f", sparse=True, fan_in={self.fan_in}" if self.sparse else "")
        )


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name}: got {value!r}, need an int")
    check_positive(**sizes)
