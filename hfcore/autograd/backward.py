"""The objective of a closure that takes its own gradient, as torch.optim.LBFGS has it.

Nothing is differentiated here: the model may be compiled, wrapped by DistributedDataParallel, run
under autocast or on kernels without second derivatives. Curvature is by finite differences of the
gradients (:class:`hfcore.curvature.hessian_fd.FiniteDifferenceHessian`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hfcore.arguments import called
from hfcore.autograd.autocast import fresh_casts
from hfcore.autograd.buffers import unwritten
from hfcore.autograd.checks import check_repeatable
from hfcore.autograd.data import NO_GRADIENT, no_graph
from hfcore.autograd.evaluation import flatten
from hfcore.bindings.conjugate_gradient import dot
from hfcore.cut_parameters import whole
from hfcore.flat import FlatParameters
from hfcore.objective import DAMPING_START, Curvature

ONLY_DIFFERENCES = (
    "curvature: backward() gives first derivatives only, whose finite differences are 'hessian_fd'"
)

LossClosure = Callable[[], Any]


class BackwardObjective:
    """f(θ) + ½ l2 ‖θ‖² where f is what a closure returns: a scalar loss, or (loss, outputs).

    The closure may call ``backward()`` itself; where it does not, it is called for it. θ is written
    into the parameters while the closure runs, and their values and ``grad`` are what they were
    afterwards.
    """

    supports_structural = False
    supports_stop = False

    def __init__(self, model: nn.Module | Iterable[nn.Parameter], *, l2: float = 0.0) -> None:
        self._module = model if isinstance(model, nn.Module) else None
        self.parameters = FlatParameters(model)
        self.l2 = l2

    def prepare(self, data: Any) -> LossClosure:
        """A closure passes through; TypeError for anything else."""
        if not callable(data):
            raise TypeError(f"data: got {type(data).__name__}, need a closure")
        closure: LossClosure = data
        return closure

    def minibatches(self, data: LossClosure) -> int:
        return 1

    def damping_start(self, data: LossClosure) -> float:
        return DAMPING_START

    def loss(self, data: LossClosure, theta: Tensor) -> float:
        with self._at(theta):
            value, _ = _split(called("closure", data))
        return float(value) + self._regulariser(theta)

    def gradient(self, data: LossClosure, theta: Tensor) -> tuple[float, Tensor]:
        """f(θ) and ∇f(θ) ``[N]`` from the parameters' ``grad``."""
        tensors = self.parameters.tensors
        with self._at(theta):
            value, loss = _split(called("closure", data))
            if all(p.grad is None for p in tensors):
                if loss is None or not loss.requires_grad:
                    raise no_graph(NO_GRADIENT)
                loss.backward()
            flat = flatten([_dense(p.grad) for p in tensors], self.parameters.split(theta))
        if self.l2:
            flat.add_(theta, alpha=self.l2)
        return value + self._regulariser(theta), flat

    def squared_gradients(self, data: LossClosure, theta: Tensor) -> Tensor:
        raise ValueError("squared_gradients: needs batches; a closure has no cases")

    def curvature(self, data: LossClosure, theta: Tensor, kind: str = "ggn") -> Curvature:
        raise ValueError(ONLY_DIFFERENCES)

    def _regulariser(self, theta: Tensor) -> float:
        return 0.5 * self.l2 * dot(theta, theta) if self.l2 else 0.0

    @contextmanager
    def _at(self, theta: Tensor) -> Iterator[None]:
        """The parameters are θ and have no gradient; as they were before, afterwards.

        Values are written, not exchanged: buckets, flat weights and compiled graphs point to where
        they lie.
        """
        parameters = self.parameters
        parameters.refresh()
        if self._module is not None:
            check_repeatable(self._module, parts=parameters.modules)
        with parameters.lock:
            own, grads = parameters.read(), [p.grad for p in parameters.tensors]
            try:
                parameters.write(theta)
                for p in parameters.tensors:
                    p.grad = None
                with torch.enable_grad(), fresh_casts(), self._unwritten():
                    yield
            finally:
                parameters.write(own)
                for p, grad in zip(parameters.tensors, grads, strict=True):
                    p.grad = grad

    def _unwritten(self) -> AbstractContextManager[None]:
        """Parameters that are cut are gathered into their memory as a closure runs."""
        parameters = self.parameters
        if parameters.are_cut:
            return nullcontext()
        return unwritten(parameters.names, parameters.tensors)


def _split(result: Any) -> tuple[float, Tensor | None]:
    """(the loss as a float, the loss as a tensor) of what a closure returned."""
    loss = result[0] if isinstance(result, (tuple, list)) and result else result
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return float(loss.detach()), loss.reshape(())
    if isinstance(loss, (int, float)):
        return float(loss), None
    what = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise TypeError(f"closure: returned {what}, need a scalar loss or (loss, outputs)")


def _dense(gradient: Tensor | None) -> Tensor | None:
    """Embeddings may leave sparse gradients, and ``fully_shard`` parts of them."""
    if gradient is None:
        return None
    return whole(gradient if gradient.layout == torch.strided else gradient.to_dense())
