"""A model and its loss evaluated on a piece of the data, at its own or at other parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hfcore.autograd.autocast import fresh_casts
from hfcore.autograd.buffers import SteadyBuffers, unwritten
from hfcore.autograd.calls import Select, called, naming_inputs, selected, shown
from hfcore.autograd.checks import check_repeatable, differentiable_kernels
from hfcore.autograd.data import BatchPart, Closure, call_closure
from hfcore.autograd.graph import Gradients, Parts
from hfcore.autograd.links import check_link
from hfcore.autograd.losses import CallableLoss, PackageLoss, SplitLoss
from hfcore.autograd.structural import Held, Term
from hfcore.flat import FlatParameters


class Evaluation(NamedTuple):
    """The model at some parameters.

    ``loss []`` is the mean (zero where it was not asked for), ``outputs […]`` are the model's
    (None: a closure gave the loss alone), ``held`` the outputs ``[…]`` of held submodules and
    ``terms`` the structural term of each.
    """

    loss: Tensor
    outputs: Tensor | None
    held: list[Tensor]
    terms: list[Term]


class Evaluator:
    """Calls the module or the closure, under kernels that can be differentiated.

    Gradients are enabled whatever the caller has set: a model or a loss may itself ask for
    derivatives (forces, residuals of differential equations).
    """

    def __init__(
        self,
        module: nn.Module | None,
        parameters: FlatParameters,
        loss: SplitLoss | None,
        terms: list[Term],
        case_dim: int,
        select: Select | None = None,
    ) -> None:
        self.module = module
        self._select = select
        self.parameters = parameters
        self.loss = loss
        self.terms = terms
        self.case_dim = case_dim
        # Numbers of the outputs for each of the targets, as they were at the last evaluation.
        self.outputs_per_target: float | None = None
        self._buffers = SteadyBuffers()

    def evaluate(
        self, piece: Closure | BatchPart, parameters: Parts | None = None, *, loss: bool = True
    ) -> Evaluation:
        """The model on a piece of the data, at ``parameters`` or at its own.

        ``loss``: whether the loss is to be differentiated; a loss whose derivatives are known is
        not computed otherwise.
        """
        with (
            self.parameters.lock,
            self._settings(),
            self._holding_outputs() as held,
            torch.enable_grad(),
        ):
            if callable(piece):
                mean, outputs = self._call(lambda: call_closure(piece), parameters)
            else:
                outputs = self.outputs(piece, parameters)
                assert self.loss is not None
                needless = not loss and isinstance(self.loss, PackageLoss)
                mean = outputs.new_zeros(()) if needless else self.loss.mean(outputs, piece)
        return Evaluation(mean, outputs, held.tensors(), held.terms())

    def outputs(self, part: BatchPart, parameters: Parts | None = None) -> Tensor:
        """The model's outputs ``[…]`` on a batch, checked against the targets.

        Raises TypeError or ValueError where the model gives no tensor, or one that does not fit the
        targets.
        """
        module, loss = self.module, self.loss
        assert module is not None
        assert loss is not None
        with naming_inputs(part.inputs):
            result = self._call(lambda: called(module, part.inputs), parameters)
        outputs = selected(result, self._select)
        if outputs.ndim <= self.case_dim or outputs.shape[self.case_dim] != part.count:
            raise ValueError(
                f"outputs: got shape {list(outputs.shape)}, need {part.count} cases along axis "
                f"{self.case_dim}; batch_dim says where they are"
            )
        if outputs.numel() == 0:
            raise ValueError(
                f"outputs: got shape {list(outputs.shape)} for inputs {shown(part.inputs)}, need "
                "at least one number"
            )
        if torch.is_autocast_enabled(outputs.device.type):  # losses are computed as torch's are
            outputs = outputs.to(self.parameters.dtype)
        loss.check(outputs, part)
        if isinstance(part.targets, Tensor) and part.targets.numel():
            self.outputs_per_target = outputs.numel() / part.targets.numel()
        if isinstance(loss, PackageLoss):
            check_link(outputs, loss.loss)
        return outputs

    def _call(self, function: Callable[[], Any], parameters: Parts | None) -> Any:
        if parameters is None:
            with unwritten(self.parameters.names, self.parameters.tensors):
                return function()
        assert self.module is not None
        named = dict(zip(self.parameters.names, parameters, strict=True))
        caller = _Caller(self.module, function)
        with self.parameters.lock, unwritten(self.parameters.names, parameters):
            return functional_call(caller, {f"module.{name}": p for name, p in named.items()}, ())

    @contextmanager
    def _settings(self) -> Iterator[None]:
        self.parameters.refresh()
        parts = None if self.module is None else self.parameters.modules
        if self.module is not None:
            check_repeatable(self.module, differentiable=True, parts=parts)
        kernels = differentiable_kernels(self.module, parts=parts)
        with kernels, fresh_casts(), self._buffers.watched(parts or ()):
            yield

    @contextmanager
    def _holding_outputs(self) -> Iterator[Held]:
        held = Held(self.terms)
        with held if self.terms else nullcontext():
            yield held

    def mean_loss(self, piece: Closure | BatchPart) -> float:
        """The mean loss of a piece at the module's own parameters, without its graph."""
        loss = self.loss
        if callable(piece) or loss is None or isinstance(loss, CallableLoss):
            return self.value(piece, self.evaluate(piece))
        with self.parameters.lock, self._settings(), torch.enable_grad():
            outputs = self.outputs(piece).detach()
        with torch.no_grad():
            return loss.value(outputs, piece)

    def value(self, piece: Closure | BatchPart, evaluation: Evaluation) -> float:
        """The mean loss of a piece as a float."""
        if callable(piece) or isinstance(self.loss, CallableLoss) or self.loss is None:
            return float(evaluation.loss.detach())
        assert evaluation.outputs is not None
        with torch.no_grad():
            return self.loss.value(evaluation.outputs.detach(), piece)


class _Caller(nn.Module):
    """Calls a function while functional_call holds other parameters in ``module``.

    Not through ``forward``: hooks for all modules belong to the user's modules alone.
    """

    def __init__(self, module: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.module = module
        self._function = function

    def __call__(self) -> Any:
        return self._function()


def flatten(grads: Gradients, like: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """Gradients as one vector ``[N]``, into ``out`` if it is given; None (a parameter that did not
    take part) counts as zero."""
    return torch.cat(
        [
            torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
            for g, p in zip(grads, like, strict=True)
        ],
        out=out,
    )


def placed(grads: Gradients, into: Sequence[Tensor], flat: Tensor) -> Tensor:
    """:func:`flatten` into ``flat [N]``, of which ``into`` are the parts and some are there."""
    there = [
        g is not None and g.data_ptr() == part.data_ptr()
        for g, part in zip(grads, into, strict=True)
    ]
    if not any(there):
        return flatten(grads, into, flat)
    for g, part, is_there in zip(grads, into, there, strict=True):
        if g is None:
            part.zero_()
        elif not is_there:
            part.copy_(g)
    return flat
