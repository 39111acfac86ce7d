"""``hf.Jacobian``: derivatives of a model's outputs by its parameters, as an operator."""

from __future__ import annotations

import math
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hfcore.autograd.calls import Select, called, check_select, selected
from hfcore.autograd.evaluation import Evaluator, flatten
from hfcore.autograd.strategies import Graph, Split
from hfcore.batches import Batch
from hfcore.bindings.threads import among_kernels
from hfcore.curvature.linear_operator import LinearOperator, OperatorAtParameters
from hfcore.distributed.ranks import check_local
from hfcore.flat import FlatParameters
from hfcore.losses import SquaredError
from hfcore.nets.net import FusedNet, Into, blocks
from hfcore.nets.registry import net_of

# Tangents that share a fused pass.
ROWS = 16


class Passes(Protocol):
    """A model at fixed parameters and inputs: ``outputs […]`` as it gives them, and J both ways."""

    outputs: Tensor

    def push(self, V: Tensor) -> Tensor:
        """J v for the rows of ``V [m,N]``, as rows ``[m,M]``."""

    def pull(self, U: Tensor) -> Tensor:
        """Jᵀu for the rows of ``U [m,M]``, as rows ``[m,N]``."""


class Jacobian(OperatorAtParameters):
    """J ``[M,N]``: derivatives of a model's M outputs by its N parameters, at their present values.

    ``J @ v`` is the R-operator (Pearlmutter 1994), ``J.mT @ u`` backpropagation; ``J.mT @ J`` is a
    symmetric operator with all that belongs to one. Outputs are ``model(inputs)``, for fused nets
    those before the output nonlinearity, as one vector in their order in memory; the attribute
    ``outputs`` has their values and shape. The activations of one forward pass are kept, so that an
    operator outlives later changes of the parameters and stays at the old ones.

    Parameters
    ----------
    model : any torch module, on its kernels where it is an hf.RNN or hf.MLP; frozen parameters are
        no columns
    inputs : what the model takes: a tensor, or a tuple, list or dict of tensors; a dict goes to
        ``forward`` as keywords, where it has arguments of these names
    outputs : which of the things that the model returns are differentiated, one tensor: a key or
        attribute (``"logits"``), an index, or a function; None: it returns a tensor
    local : True: the outputs of this process alone, while torch.distributed runs in several. They
        are no sum over cases, so there is no process_group

    Raises TypeError or ValueError for a model or inputs that are not like that, parameters or
    inputs with NaN or Inf, and a model whose two products disagree, since parts of it cannot be
    differentiated twice.
    """

    symmetric = False

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        *,
        outputs: Select | None = None,
        local: bool = False,
    ) -> None:
        check_local("hf.Jacobian", local)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, need a torch.nn.Module")
        check_select(outputs)
        parameters = FlatParameters(model)
        theta = parameters.read()
        bad = parameters.first_bad(theta)
        if bad is not None:
            raise ValueError(f"model: parameter {bad} holds NaN or Inf, need finite values")
        self._theta = theta
        self.parameter_slices = parameters.slices()
        self._passes = _passes(model, inputs, outputs, parameters, theta)
        self._transposed = _Transposed(self)
        self._check_products()

    @property
    def outputs(self) -> Tensor:
        """The model's outputs there, in their own shape ``[…]``."""
        return self._passes.outputs

    def _check_products(self) -> None:
        """uᵀ(Jv) = (Jᵀu)ᵀv at a random pair."""
        generator = torch.Generator().manual_seed(0)
        u, v = (
            torch.randn(size, generator=generator).to(self.device, self.dtype)
            for size in self.shape
        )
        Jv, JTu = self @ v, self._transposed @ u
        left, right = float(u.double() @ Jv.double()), float(JTu.double() @ v.double())
        size = float(u.norm() * Jv.norm() + JTu.norm() * v.norm())
        if not abs(left - right) <= math.sqrt(torch.finfo(self.dtype).eps) * size:
            raise ValueError(
                f"model: uᵀ(Jv) is {left:.6g} and (Jᵀu)ᵀv is {right:.6g}, need one number; a part "
                "of the model cannot be differentiated twice"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N) for M outputs and N trainable parameters."""
        return (self.outputs.numel(), self._theta.numel())

    @property
    def mT(self) -> LinearOperator:
        """Jᵀ ``[N,M]``."""
        return self._transposed

    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        return _given(self._passes.push(v.unsqueeze(0))[0], out)

    def _products(self, V: Tensor) -> Tensor:
        return self._passes.push(V)

    def _is_transpose_of(self, other: LinearOperator) -> bool:
        return other is self._transposed


class _Transposed(LinearOperator):
    """Jᵀ of a Jacobian."""

    symmetric = False

    def __init__(self, jacobian: Jacobian) -> None:
        self._jacobian = jacobian

    @property
    def shape(self) -> tuple[int, int]:
        M, N = self._jacobian.shape
        return (N, M)

    @property
    def dtype(self) -> torch.dtype:
        return self._jacobian.dtype

    @property
    def device(self) -> torch.device:
        return self._jacobian.device

    @property
    def mT(self) -> LinearOperator:
        return self._jacobian

    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        return _given(self._jacobian._passes.pull(v.unsqueeze(0))[0], out)

    def _products(self, V: Tensor) -> Tensor:
        return self._jacobian._passes.pull(V)

    def _is_transpose_of(self, other: LinearOperator) -> bool:
        return other is self._jacobian

    def __repr__(self) -> str:
        return f"{self._jacobian!r}.mT"


class _FusedPasses:
    """The passes of a fused net, some rows at a time on its group axis."""

    def __init__(self, net: FusedNet, inputs: Any, theta: Tensor) -> None:
        targets = inputs
        if isinstance(inputs, Tensor):  # else the check says what they must be
            targets = inputs.new_zeros(*inputs.shape[:-1], net.output_size)
        self._net = net.apart()
        part = self._net.check(Batch(inputs, targets))
        self._at = self._net.forward(theta.unsqueeze(0), part, fresh=True)
        self.outputs = self._at.s.view(targets.shape)
        self._size = len(theta)
        self._lock = Lock()  # the net's buffers serve one thread

    def push(self, V: Tensor) -> Tensor:
        result = V.new_empty(len(V), self.outputs.numel())
        with self._lock, among_kernels(V):
            for rows in blocks(len(V), ROWS):
                Rs = self._net.tangent(self._at, V[rows].contiguous(), keep=False).s
                result[rows] = Rs.reshape(-1, self.outputs.numel())
        return result

    def pull(self, U: Tensor) -> Tensor:
        result = U.new_empty(len(U), self._size)
        with self._lock, among_kernels(U):
            for rows in blocks(len(U), ROWS):
                gs = U[rows].reshape(-1, *self._at.s.shape[1:]).clone()  # it may be written to
                self._net.backward(self._at, gs, Into(result[rows], 1.0))
        return result


class _GraphPasses:
    """A retained graph of any module."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        select: Select | None,
        parameters: FlatParameters,
        theta: Tensor,
    ) -> None:
        module = getattr(model, "_orig_mod", model)  # compiled graphs are differentiated once only
        evaluator = Evaluator(module, parameters, None, [], 0)

        def outputs() -> tuple[Tensor, Tensor]:
            s = selected(_called(module, inputs), select)
            return s.sum(), s

        leaves = [p.clone().requires_grad_() for p in parameters.split(theta)]
        with torch.enable_grad():
            loss, s, _, _ = evaluator.evaluate(outputs, leaves)
        assert s is not None
        if s.numel() == 0:
            raise ValueError(f"outputs: got shape {list(s.shape)}, need at least one")
        if not s.requires_grad:
            raise ValueError("model: the outputs do not depend on its trainable parameters")
        self.outputs = s.detach()
        self._parameters = parameters
        self._graph = Graph(leaves, loss, [Split(s, lambda R: R)], [], False, None, None)

    def push(self, V: Tensor) -> Tensor:
        rows = []
        for v in V:
            (tangent,) = self._graph.push(self._parameters.split(v), False)
            tangent = torch.zeros_like(self.outputs) if tangent is None else tangent.detach()
            rows.append(tangent.reshape(-1))
        return torch.stack(rows)

    def pull(self, U: Tensor) -> Tensor:
        rows = []
        for u in U:
            gradients = self._graph.pull([u.reshape(self.outputs.shape)], False)
            rows.append(flatten(gradients, self._graph.parameters))
        return torch.stack(rows)


def _passes(
    model: nn.Module,
    inputs: Any,
    select: Select | None,
    parameters: FlatParameters,
    theta: Tensor,
) -> Passes:
    """Fused, where a net with kernels trains all parameters; else by autograd."""
    _check_inputs(inputs, theta)
    if all(p.requires_grad for p in model.parameters()):
        net = net_of(model, SquaredError(), outputs=select)
        if net is not None:
            return _FusedPasses(net, inputs, theta)
    return _GraphPasses(model, inputs, select, parameters, theta)


def _given(result: Tensor, out: Tensor | None) -> Tensor:
    return result if out is None else out.copy_(result)


def _called(module: nn.Module, inputs: Any) -> Any:
    """``module`` of its inputs; ValueError with what it raised for those that it does not take."""
    try:
        return called(module, inputs)
    except Exception as error:
        raise ValueError(f"inputs: the model raised {type(error).__name__}: {error}") from error


def _check_inputs(inputs: Any, like: Tensor) -> None:
    leaves = [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]
    if not leaves:
        raise TypeError(f"inputs: got {type(inputs).__name__}, need a tensor or a tuple of tensors")
    for t in leaves:
        if t.layout != torch.strided:
            raise TypeError(f"inputs: got layout {t.layout}, need a dense (strided) tensor")
        if t.device != like.device:
            raise ValueError(f"inputs: is on {t.device}, need {like.device} like the model")
        if t.is_floating_point() and not bool(torch.isfinite(t).all()):
            raise ValueError("inputs: holds NaN or Inf, need finite values")
