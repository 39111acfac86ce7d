"""``hf.Jacobian``: derivatives of a model's outputs by its parameters, as an operator."""

from __future__ import annotations

from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hfcore.arguments import naming_options
from hfcore.autograd.calls import Select, called, check_select, selected
from hfcore.autograd.evaluation import Evaluator
from hfcore.batches import Batch
from hfcore.bindings.threads import among_kernels
from hfcore.curvature.passes import GraphPasses, OperatorOfPasses, Passes
from hfcore.distributed.ranks import check_local
from hfcore.flat import FlatParameters
from hfcore.losses import SquaredError
from hfcore.nets.net import FusedNet, Into, blocks
from hfcore.nets.registry import net_of

# Tangents that share a fused pass.
ROWS = 16


class Jacobian(OperatorOfPasses):
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
        ``forward`` as keywords, where it has arguments of these names, a tuple or list as its
        arguments, where it takes as many and not one alone
    outputs : which of the things that the model returns are differentiated, one tensor: a key or
        attribute (``"logits"``), an index, or a function; None: it returns a tensor
    local : True: the outputs of this process alone, while torch.distributed runs in several. They
        are no sum over cases, so there is no process_group

    Raises TypeError or ValueError for a model or inputs that are not like that, parameters or
    inputs with NaN or Inf, and a model whose two products disagree, since parts of it cannot be
    differentiated twice.
    """

    @naming_options
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
        self.parameter_slices = parameters.slices()
        super().__init__(theta, _passes(model, inputs, outputs, parameters, theta))
        self.check_products("model")


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


def _graph_passes(
    model: nn.Module,
    inputs: Any,
    select: Select | None,
    parameters: FlatParameters,
    theta: Tensor,
) -> GraphPasses:
    """Those of any module."""
    module = getattr(model, "_orig_mod", model)  # compiled graphs are differentiated once only
    evaluator = Evaluator(module, parameters, None, [], 0)

    def outputs() -> tuple[Tensor, Tensor]:
        s = selected(_called(module, inputs), select)
        return s.sum(), s

    leaves = [p.clone().requires_grad_() for p in parameters.split(theta)]
    with torch.enable_grad():
        s = evaluator.evaluate(outputs, leaves).outputs
    assert s is not None
    return GraphPasses(s, leaves, "model")


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
    return _graph_passes(model, inputs, select, parameters, theta)


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
