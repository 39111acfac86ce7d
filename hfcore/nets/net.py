"""What a net with kernels of its own brings; objective, curvature and training are written on it.

Every array carries a group axis G, of length 1 where it is shared: parameters ``theta [G,N]`` of
several nets, or tangents ``v [G,N]`` of one. Outputs are ``s [G,T_out,B,k]``; a net without time
has T_out = 1. J is the Jacobian of s, L'' the second derivative of the loss by s.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from hfcore.batches import Batch
from hfcore.bindings.dense import Scratch
from hfcore.bindings.momentum import Step
from hfcore.losses import Loss, OutputHessian
from hfcore.nets.data import Data
from hfcore.objective import DAMPING_START

Memory = Literal["auto", "cached", "recompute"]


@dataclass(frozen=True)
class Pass:
    """A forward pass: its data, outputs ``s [G,T_out,B,k]``, and the net's own activations."""

    part: Any
    s: Tensor
    states: Any


@dataclass(frozen=True)
class Tangent:
    """The R-op of a pass in the direction v: ``s`` is Rs ``[G,T_out,B,k]``, ``states`` the rest."""

    s: Tensor
    states: Any


@dataclass(frozen=True)
class Uncached:
    """A pass that is not made: parameters ``theta [1,N]`` and data."""

    theta: Tensor
    part: Any


class Into(NamedTuple):
    """Where a pass back writes scale·its result.

    ``out [G,N]``; ``add`` (of :meth:`FusedNet.structural_term`) joins what flows back at hidden
    units; where ``stop`` (int32 ``[1]``) is not zero nobody reads the result. Of a curvature by one
    op (:meth:`FusedNet.gauss_newton`) also λμ, a factor of v, and whether ``out`` is added to.
    """

    out: Tensor
    scale: float
    add: Any = None
    stop: Tensor | None = None
    structural: float | Tensor = 0.0
    damping: float = 0.0
    accumulate: bool = False


class Update(NamedTuple):
    """An update with momentum of G nets, in place (Sutskever et al. 2013, eqs. 1-4).

    ``theta, velocity [G,N]``; ``active [G]`` bool or None for all; ``out [G,N]`` takes the gradient
    where it is wanted.
    """

    theta: Tensor
    velocity: Tensor
    data: Any
    step: Step
    active: Tensor | None
    out: Tensor | None


class FusedNet(ABC):
    """Nets of one shape with their loss: passes on fused ops, at parameters that are handed in.

    A subclass brings :meth:`check`, :meth:`bytes_per_case`, :meth:`outputs`, :meth:`forward`,
    :meth:`backward` and :meth:`tangent`: loss, gradient, Gauss-Newton and Fisher products.
    :meth:`adjoint` and :meth:`rbackward` add the Hessian, :meth:`squares` diagonals,
    :meth:`structural_term` structural damping; the methods below those are shortcuts.

    Buffers in ``work`` stay for the next call: a net serves one thread at a time.

    Args:
        model: the module whose shape it is; what it holds is not read.
        loss: a loss of ``hf.losses`` on the outputs.
        numel: N, the parameters of one net.
        output_size: k.

    Raises ValueError for parameters that are tied, missing or frozen.
    """

    # How a curvature keeps activations where nobody says.
    memory: ClassVar[Memory] = "auto"
    # Whether a case is a sequence, with a time axis in inputs and outputs.
    timed: ClassVar[bool] = False
    supports_structural: ClassVar[bool] = False
    # Whether batches have the axes of a module of torch's own, which ``batch_dim`` says.
    has_torch_axes: ClassVar[bool] = False
    # Whether passes look at ``stop`` themselves and leave ``out`` as it is where it is raised.
    looks_at_stop: ClassVar[bool] = False
    # Whether its passes are kernels, beside which torch had better leave the cores alone.
    passes_are_kernels: bool = False
    # Whether several nets of this shape are trained side by side.
    supports_groups: bool = True
    # Whether fisher() makes products without passes.
    has_fisher: ClassVar[bool] = False
    # Whether a product reads the inputs and states of its pass, v and constants alone: what was
    # recorded of it then serves every pass that is copied to the same places.
    replays_passes: bool = False
    # Whether outputs() and gauss_newton() walk through any number of cases in small memory.
    walks_cases: bool = False

    def __init__(self, model: nn.Module, loss: Loss, *, numel: int, output_size: int) -> None:
        name = type(model).__name__
        parameters = list(model.parameters())
        if sum(p.numel() for p in parameters) != numel:
            raise ValueError(
                f"model: parameters are tied or missing; the fused path of {name} trains each"
            )
        if not all(p.requires_grad for p in parameters):
            raise ValueError(
                f"model: some parameters of the {name} are frozen; the fused path trains all of "
                "them"
            )
        self.model = model
        self.loss = loss
        self.numel = numel
        self.output_size = output_size
        self.work = Scratch()

    def apart(self) -> Self:
        """The same net with buffers of its own."""
        other = copy.copy(self)
        other.work = Scratch()
        return other

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    # ---- data

    @abstractmethod
    def check(self, batch: Batch, dtype: torch.dtype | None = None) -> Any:
        """Check a batch once and bring it to the form (:class:`Data`) that the passes take.

        ``dtype``: what its values must have; None: that of the model, on whose device it then must
        lie. Raises TypeError or ValueError naming the argument.
        """

    def check_tested(self, batch: Batch, dtype: torch.dtype) -> Any:
        """The same where every output is asked for, also those that the mask drops."""
        return self.check(batch, dtype)

    @abstractmethod
    def bytes_per_case(self, part: Any) -> int:
        """Bytes of one case's activations."""

    def chunk_size(self, part: Any) -> int | None:
        """Cases that a pass takes at once; None: by their bytes."""
        return None

    def damping_start(self, part: Any) -> float:
        """λ₀ of Hessian-free: the model's own ``damping_start(inputs)``, where it has one."""
        start = getattr(self.model, "damping_start", None)
        return DAMPING_START if start is None else float(start(part.x[0]))

    # ---- passes

    @abstractmethod
    def outputs(self, theta: Tensor, part: Any) -> Tensor:
        """``s [G,T_out,B,k]`` of ``theta [G,N]``, without activations.

        The next call may overwrite it.
        """

    @abstractmethod
    def forward(self, theta: Tensor, part: Any, *, fresh: bool) -> Pass:
        """A pass at ``theta [G,N]`` with its activations.

        They are in memory of their own (``fresh``), or hold until the next pass.
        """

    @abstractmethod
    def tangent(self, at: Pass, v: Tensor, *, keep: bool, stop: Tensor | None = None) -> Tangent:
        """J v for ``v [G,N]``; with ``keep`` the tangents of hidden units too, till the next."""

    @abstractmethod
    def backward(self, at: Pass, gs: Tensor, into: Into) -> Tensor:
        """Jᵀ gs ``[G,N]``; may write to ``gs [G,T_out,B,k]``."""

    def complete(self, at: Pass) -> None:
        """Make what :meth:`tangent` and those after it make of a pass once and keep with it."""
        return

    def squares(self, at: Pass, gs: Tensor, into: Into) -> Tensor:
        """Σ over cases of (Jᵀ gs of one case)² ``[G,N]``."""
        raise ValueError(f"diagonal: {type(self).__name__} has no squares of single cases")

    def structural_term(self, at: Pass, R: Tangent, structural: float | Tensor) -> Any:
        """structural·D''Rz of the hidden units that are damped, as :meth:`backward` adds it.

        Where ``replays_passes``, ``structural`` may be a tensor ``[]``.
        Raises ValueError where the net has no hidden units to damp.
        """
        raise ValueError(f"structural: {type(self).__name__} has no hidden units to damp, need 0")

    def adjoint(self, at: Pass, gs: Tensor, *, bends: bool) -> Any:
        """The gradient's pass back from ``gs [G,T_out,B,k]`` = ∂L/∂s.

        ``bends``: as :meth:`rbackward` takes it; where the net ``has_fisher`` also without, as
        :meth:`fisher` does. Raises ValueError where the net has no R-op of its gradient.
        """
        raise ValueError(f"kind: {type(self).__name__} has no R-op of its gradient for 'hessian'")

    def rbackward(
        self, at: Pass, adjoint: Any, R: Tangent, Rgs: Tensor, v: Tensor, into: Into
    ) -> Tensor:
        """R of :meth:`backward` in the direction v (Pearlmutter 1994), ``[G,N]``."""
        raise NotImplementedError

    # ---- shortcuts, where one op does more than a pass

    def gradient(self, at: Pass, into: Into) -> Tensor:
        """The gradient of the losses' sum ``[G,N]``."""
        return self.backward(at, self.slope(at.part, at.s), into)

    def gauss_newton(
        self, at: Pass | Uncached, v: Tensor, second: OutputHessian, into: Into
    ) -> None:
        """JᵀL''J v + structural term + damping·v for ``v [G,N]``, or all of it added to ``out``.

        Called where ``walks_cases``; of an :class:`Uncached` pass activations are recomputed piece
        by piece.
        """
        raise NotImplementedError

    def fisher(self, at: Pass, adjoint: Any, v: Tensor, into: Into) -> Tensor:
        """Σ g_i g_iᵀ v ``[G,N]`` over the gradients g_i of the cases; where ``has_fisher``."""
        raise NotImplementedError

    def whole_gradient(self, theta: Tensor, part: Any, into: Into) -> Tensor | None:
        """Losses ``[G]`` of whole nets, gradients into ``out``; None where passes are faster."""
        return None

    def whole_update(self, update: Update) -> Tensor | None:
        """Losses ``[G]`` before an update of whole nets; None where passes are faster."""
        return None

    # ---- the loss at the outputs

    def value(self, part: Data, s: Tensor, scale: float) -> Tensor:
        """scale·Σ of the losses, ``[G]`` float64."""
        return self.loss.values(s, part.targets, part.mask, scale=scale)

    def slope(self, part: Data, s: Tensor, *, scale: float = 1.0, fresh: bool = False) -> Tensor:
        """scale·∂L/∂s ``[G,T_out,B,k]``.

        It is in memory of its own (``fresh``), or holds until the next call.
        """
        out = None if fresh else self.work.take("gs", s, *s.shape)
        return self.loss.gradient(s, part.targets, part.mask, scale=scale, out=out)

    def second(self, part: Data, s: Tensor, *, exact: bool = False) -> OutputHessian:
        """L'' of the sum of the losses at ``s [G,T_out,B,k]``, or its stand-in.

        ``exact``: L'' whatever its signs. Raises ValueError for negative curvature otherwise, where
        the loss has no stand-in.
        """
        return self.loss.hessian(s, part.targets, part.mask, exact=exact)

    def counted(self, part: Data) -> float:
        """What a batch counts in the loss's mean over several."""
        return self.loss.counted(part.targets, part.mask, self.output_size, part.count)

    def check_values(self, part: Data) -> None:
        """Check what the loss ops find in the values and cannot look at while being recorded."""
        self.loss.check_ops(self.output_size, part.targets, part.mask)


def blocks(rows: int, size: int) -> Iterator[slice]:
    """Rows in pieces of at most ``size``."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
