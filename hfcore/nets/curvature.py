"""The curvature of every net with kernels of its own: Gauss-Newton, Hessian, empirical Fisher."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfcore.bindings.checks import check_choice, check_out, check_positive, check_tensor
from hfcore.bindings.replayed_products import ReplayedProducts
from hfcore.bindings.threads import among_kernels
from hfcore.losses import OutputHessian
from hfcore.nets.data import Data
from hfcore.nets.net import FusedNet, Into, Pass, Tangent, Uncached, blocks
from hfcore.objective import CurvatureKind
from hfcore.probes import random_signs

if TYPE_CHECKING:
    from hfcore.nets.objective import FusedObjective

KINDS = ("ggn", "hessian", "fisher")

# Bytes of activations that memory="auto" caches for products; above, every product recomputes them.
CACHE_BYTES = 2 << 30
# Bytes of tangents that products with several vectors fill at once, on the group axis.
GROUP_BYTES = 64 << 20
# How many times its activations a linearisation takes.
COPIES = {"ggn": 1, "fisher": 1, "hessian": 3}


@dataclass(frozen=True)
class Linearisation:
    """What a product needs of one chunk of data.

    ``at`` uncached: the net's op recomputes the pass. ``second`` is L'' (None for "fisher"); for
    "hessian" and "fisher" ``gs`` = ∂L/∂s ``[1,T_out,B,k]`` and ``adjoint``, what the net takes
    of the gradient's own pass back.
    """

    at: Pass | Uncached
    second: OutputHessian | None
    gs: Tensor | None = None
    adjoint: Any = None


@dataclass(frozen=True)
class Fixed:
    """All that products read beside v, damping, λμ and constants of the net; ``theta [N]``."""

    kind: CurvatureKind
    by_op: bool
    scale: float
    case_scale: float
    theta: Tensor
    cached: list[Linearisation]


class FusedCurvature:
    """A curvature matrix of a net at fixed parameters ``theta [N]`` and data.

    ``kind``: ``"ggn"`` is JᵀL''J, ``"hessian"`` the exact Hessian by the R-op (Pearlmutter 1994),
    ``"fisher"`` the empirical Fisher matrix, mean of g_i g_iᵀ over cases. ``loss`` is the
    objective there.
    """

    def __init__(
        self, objective: FusedObjective, data: list[Data], theta: Tensor, kind: CurvatureKind
    ) -> None:
        check_choice("kind", kind, KINDS)
        self._objective = objective
        self._net = net = objective.net.apart()
        self._kind = kind
        self._data = data
        self._theta = theta.clone()  # the caller may write on before the products end
        self._scale = objective.scale(data)
        self._case_scale = objective.case_scale(data)
        fused = all(net.loss.is_fused(part.mask) for part in data)
        self._by_op = kind == "ggn" and net.walks_cases and fused
        self._replayed = ReplayedProducts()
        self._chunks = list(objective.chunks(data, whole=self._by_op))
        self._cached: list[Linearisation] = []
        self.memory = objective.memory
        if self.memory == "auto":
            size = sum(part.count * net.bytes_per_case(part) for part in data)
            self.memory = "cached" if size * COPIES[kind] <= CACHE_BYTES else "recompute"
        total = sum(self._begin(part) for part in self._chunks)
        self.loss = total + objective.regulariser(theta)

    def _begin(self, part: Data) -> float:
        """A chunk's loss; what is cached of it is."""
        net = self._net
        if self.memory == "cached":
            linearisation, s = self._linearise(part, fresh=True)
            self._cached.append(linearisation)
        else:
            s = net.outputs(self._theta[None], part)
            if self._by_op:
                at = Uncached(self._theta[None], part)
                self._cached.append(Linearisation(at, net.second(part, s)))
        return float(net.value(part, s, self._scale))

    def product(
        self,
        v: Tensor,
        *,
        damping: float = 0.0,
        structural: float = 0.0,
        out: Tensor | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        """(B + l2·I + damping·I + structural·G_S) v for ``v [N]``; ``out`` must not be ``v``."""
        grouped = None if out is None else out.unsqueeze(0)
        product = self.products(v.unsqueeze(0), damping, structural, grouped, stop)[0]
        return product if out is None else out

    def products(
        self,
        v: Tensor,
        damping: float = 0.0,
        structural: float = 0.0,
        out: Tensor | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        """The same for the rows of ``v [m,N]``, on the group axis."""
        check_tensor("v", v, ["m", self._theta.numel()], like=self._theta)
        out = check_out(out, v.shape, v)
        if v.shape[0] == 0:
            return out
        if out.data_ptr() == v.data_ptr():
            raise ValueError("out: is v itself, need a buffer of its own")
        v, damping = v.detach().contiguous(), damping + self._objective.l2
        if stop is None and self._net.loss.is_recordable and self._replayed.serve(v):
            key = damping, structural

            def product(v: Tensor, out: Tensor) -> object:
                return self._multiplied(v, damping, structural, out, None)

            return self._replayed(key, product, v, out)
        return self._multiplied(v, damping, structural, out, stop)

    # ---- recorded products

    @property
    def net(self) -> FusedNet:
        """The net whose curvature it is, as its objective has it."""
        return self._objective.net

    def fixed(self) -> Fixed | None:
        """What a copy that is recorded needs (:meth:`at`); None where it is not held at once."""
        if self.memory != "cached" or not self._net.replays_passes:
            return None
        cached = []
        for lin in self._cached:
            assert isinstance(lin.at, Pass)
            if not self._by_op:
                self._net.complete(lin.at)
            part = lin.at.part.inputs_alone() if type(lin.at.part) is Data else lin.at.part
            cached.append(replace(lin, at=replace(lin.at, part=part)))
        return Fixed(self._kind, self._by_op, self._scale, self._case_scale, self._theta, cached)

    def at(self, fixed: Fixed) -> FusedCurvature:
        """The same at another place ``fixed``, with buffers of its own."""
        other = copy.copy(self)
        other._net, other._replayed = self.net.apart(), ReplayedProducts()
        other._data = other._chunks = [lin.at.part for lin in fixed.cached]
        other._theta, other._cached = fixed.theta, fixed.cached
        return other

    def weighted_product(
        self,
        v: Tensor,
        weight: Tensor,
        structural: float | Tensor,
        out: Tensor,
        stop: Tensor | None,
    ) -> None:
        """(B + diag(weight) + structural·G_S) v in ``out [N]``, B without L2, for ``v [N]``.

        ``weight [N]`` or ``[1]``, and ``structural []`` or 0, are on the device; ``v`` and ``out``
        are as :meth:`product` makes them.
        """
        self._multiplied(v[None], weight, structural, out[None], stop)

    # ---- products

    def _multiplied(
        self,
        v: Tensor,
        damping: float | Tensor,
        structural: float | Tensor,
        out: Tensor,
        stop: Tensor | None,
    ) -> Tensor:
        """The products with ``v [m,N]`` in ``out``; ``damping`` with the L2 term, ``[·]`` or one
        number."""
        net = self._net
        if not self._by_op:
            with among_kernels(v) if net.passes_are_kernels else nullcontext():
                return self._by_passes(v, damping, structural, out, stop)
        own = 0.0 if isinstance(damping, Tensor) else damping
        into = Into(out, self._scale, None, stop, structural, own)
        for lin in self._cached:
            assert lin.second is not None
            net.gauss_newton(lin.at, v, lin.second, into)
            into = into._replace(damping=0.0, accumulate=True)
        return out.addcmul_(damping, v) if isinstance(damping, Tensor) else out

    def _by_passes(
        self,
        v: Tensor,
        damping: float | Tensor,
        structural: float | Tensor,
        out: Tensor,
        stop: Tensor | None,
    ) -> Tensor:
        """The products as passes forward and back, a chunk and some tangents at a time."""
        work, into = self._net.work, out
        if stop is not None and not self._net.looks_at_stop:
            into = work.take("unstopped", out, *out.shape)
        for rows in blocks(v.shape[0], self._rows_at_once()):
            for i, part in enumerate(self._chunks):
                term = work.take("chunk", out, *out[rows].shape) if i else into[rows]
                self._term(self._at(i, part), v[rows], structural, term, stop)
                if i:
                    into[rows] += term
        if isinstance(damping, Tensor):
            into.addcmul_(damping, v)
        else:
            into.add_(v, alpha=damping)
        if stop is not None and into is not out:
            out.copy_(torch.where(stop != 0, out, into))
        return out

    def _term(
        self,
        lin: Linearisation,
        v: Tensor,
        structural: float | Tensor,
        out: Tensor,
        stop: Tensor | None,
    ) -> None:
        """One chunk's part of the products with ``v [G,N]``, without damping and L2."""
        net, at, kind = self._net, lin.at, self._kind
        assert isinstance(at, Pass)
        into = Into(out, self._scale, stop=stop)
        is_damped = isinstance(structural, Tensor) or structural != 0
        if kind == "fisher" and net.has_fisher and not is_damped:
            net.fisher(at, lin.adjoint, v, into._replace(scale=self._scale * self._case_scale))
            return
        R = net.tangent(at, v, keep=kind == "hessian" or is_damped, stop=stop)
        if is_damped:
            into = into._replace(add=net.structural_term(at, R, structural))
        if kind == "hessian":
            assert lin.second is not None
            net.rbackward(at, lin.adjoint, R, lin.second.product(R.s), v, into)
        else:
            net.backward(at, self._curved(lin, R), into)

    def _curved(self, lin: Linearisation, R: Tangent) -> Tensor:
        """L''Rs, or g_i (g_iᵀ v) of each case ("fisher"), in Rs's place."""
        if lin.second is not None:
            return lin.second.product(R.s, out=R.s)
        assert lin.gs is not None
        along = (lin.gs * R.s).sum((1, 3), keepdim=True).mul_(self._case_scale)
        return torch.mul(lin.gs, along, out=R.s)

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag of the matrix without L2 and damping, ``[N]``; see :class:`hfcore.Objective`.

        A case's backpropagated probe is summed over time before it is squared. Probes are ±1 over
        the outputs of each case, drawn from ``generator`` (None: torch's global one); ``probes``
        None takes one for each of a case's outputs. For "fisher" the diagonal is exact and takes no
        probes. Raises ValueError for "hessian", which has no such square root.
        """
        if self._kind == "hessian":
            raise ValueError("diagonal: the Hessian is not a Gram matrix, need kind 'ggn'")
        if probes is not None:
            check_positive(probes=probes)
        if self._kind == "fisher":
            return self._objective.squared_gradients(self._data, self._theta)
        total = torch.zeros_like(self._theta)
        for i, part in enumerate(self._chunks):
            size = self._objective.chunk_size(part)
            whole = self.memory == "cached" and part.count <= size
            for piece in [part] if whole else part.chunks(size):
                lin = self._cached[i] if whole else self._linearise(piece, fresh=False)[0]
                total += self._squares(lin, probes, generator)
        return total

    def _squares(
        self, lin: Linearisation, probes: int | None, generator: torch.Generator | None
    ) -> Tensor:
        """One chunk's part of the diagonal: (Jᵀ S u)² of its cases, summed over the probes u."""
        net, at, like = self._net, lin.at, self._theta
        assert isinstance(at, Pass)
        assert lin.second is not None
        _, T_out, B, k = at.s.shape
        count = T_out * k if probes is None else probes
        scale = self._scale if probes is None else self._scale / probes
        total = torch.zeros_like(like)
        for rows in blocks(count, self._rows_at_once()):
            if probes is None:  # unit vectors over the outputs of a case, the same for all B
                eye = torch.eye(count, dtype=like.dtype, device=like.device)[rows]
                u = eye.view(-1, T_out, 1, k).expand(-1, -1, B, -1)
            else:
                u = random_signs((rows.stop - rows.start, T_out, B, k), like, generator)
            squares = net.work.take("squares", like, len(u), len(like))
            total += net.squares(at, lin.second.root(u), Into(squares, scale)).sum(0)
        return total

    # ---- linearisation

    def _at(self, i: int, part: Data) -> Linearisation:
        if self.memory == "cached":
            return self._cached[i]
        return self._linearise(part, fresh=False)[0]

    def _linearise(self, part: Data, *, fresh: bool) -> tuple[Linearisation, Tensor]:
        """A chunk's pass and what the kind needs beside it, and its outputs."""
        net = self._net
        at = net.forward(self._theta[None], part, fresh=fresh)
        exact = self._kind == "hessian"
        second = None if self._kind == "fisher" else net.second(part, at.s, exact=exact)
        if self._by_op:  # which reads states; from here on s is asked for its shape alone
            assert second is not None
            assert second.kernel_form is not None
            return Linearisation(replace(at, s=second.kernel_form[0]), second), at.s
        if self._kind == "ggn":
            return Linearisation(at, second), at.s
        gs = net.slope(part, at.s, fresh=True)
        adjoint = net.adjoint(at, gs, bends=exact) if exact or net.has_fisher else None
        return Linearisation(at, second, gs, adjoint), at.s

    def _rows_at_once(self) -> int:
        """Tangents that share a pass: their buffers stay within ``GROUP_BYTES``, or it is one."""
        largest = max(part.count * self._net.bytes_per_case(part) for part in self._chunks)
        return max(1, GROUP_BYTES // largest)
