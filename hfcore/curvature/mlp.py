"""Objective and curvature of :class:`hfcore.MLP`, on the fused dense ops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.bindings import loss as loss_ops
from hfcore.bindings.checks import check_choice, check_out, check_positive, check_tensor
from hfcore.bindings.conjugate_gradient import dot
from hfcore.bindings.dense import Scratch
from hfcore.bindings.threads import among_kernels
from hfcore.curvature.mlp_cases import Cases, check_cases
from hfcore.curvature.mlp_passes import Layers
from hfcore.curvature.mlp_structural import held, holds_of
from hfcore.losses import Loss
from hfcore.models.mlp import MLP
from hfcore.objective import DAMPING_START, CurvatureKind

Memory = Literal["auto", "cached", "recompute"]
KINDS = ("ggn", "hessian", "fisher")

# Data is cut into chunks of as many cases as have these bytes of activations, so that passes find
# them in the cache, but of no fewer than CHUNK_CASES: every chunk adds to a vector of N.
CHUNK_BYTES = 24 << 20
CHUNK_CASES = 1024
# Bytes of activations that memory="auto" caches for products; above, every product recomputes them.
CACHE_BYTES = 2 << 30
# Bytes of tangents that products with several vectors fill at once, on the group axis.
GROUP_BYTES = 64 << 20


class MlpObjective:
    """Mean loss of an MLP over cases, + ½ l2 ‖θ‖².

    Losses, gradients and products walk through the data in chunks and hold the activations of one
    (products those of all, where they are cached).

    Parameters
    ----------
    model : hf.MLP, all parameters trainable and none tied
    loss : a loss of ``hf.losses`` on the model's outputs
    structural : a number (every hidden layer's z, D'' = φ'(z); μ reaches the products as part of
        λμ), or a mapping ``{"layers.0": D or (D, μ)}`` with D ``"identity"`` or the layer's own
        nonlinearity (on linear units ``"tanh"``, ``"logistic"`` and ``"softmax"`` as well)
    memory : ``"cached"`` keeps a curvature's activations, ``"recompute"`` recomputes them in every
        product, ``"auto"`` caches up to ``CACHE_BYTES``; results are the same bits

    One objective serves one thread at a time: its buffers stay for the next call.
    """

    supports_structural = True
    supports_stop = True

    def __init__(
        self,
        model: MLP,
        loss: Loss,
        *,
        l2: float = 0.0,
        structural: float | Mapping[str, Any] = 0.0,
        memory: Memory = "auto",
    ) -> None:
        _check_model(model)
        check_choice("memory", memory, ("auto", "cached", "recompute"))
        self.model = model
        self.loss_function = loss
        self.l2 = l2
        self.holds = holds_of(model, structural)
        self.memory = memory
        self._work = Scratch()

    def prepare(self, data: Batch | Sequence[Batch]) -> list[Cases]:
        """Check batches; one batch, or a list whose mean (weighted by size) is the objective."""
        batches = [data] if isinstance(data, Batch) else list(data)
        if not batches:
            raise ValueError("data: got no batch, need at least one")
        return [check_cases(self.model, self.loss_function, Batch(*b)) for b in batches]

    def minibatches(self, data: list[Cases]) -> int:
        return len(data)

    def damping_start(self, data: list[Cases]) -> float:
        return DAMPING_START

    def loss(self, data: list[Cases], theta: Tensor) -> float:
        layers, scale = self.layers(theta), self.scale(data)
        total = sum(self.loss_at(p, layers.outputs(p.x), scale) for p in self.chunks(data, theta))
        return total + self.regulariser(theta)

    def gradient(self, data: list[Cases], theta: Tensor) -> tuple[float, Tensor]:
        total, gradient = self._backpropagated(data, theta, squared=False)
        if self.l2:
            gradient.add_(theta, alpha=self.l2)
        return total + self.regulariser(theta), gradient

    def squared_gradients(self, data: list[Cases], theta: Tensor) -> Tensor:
        """Mean over cases of the squared gradient of each ``[N]``, as (δ²)ᵀ(y²) per layer.

        The L2 term is left out (the empirical Fisher diagonal of Martens 2010, section 4.7).
        """
        return self._backpropagated(data, theta, squared=True)[1]

    def curvature(
        self, data: list[Cases], theta: Tensor, kind: CurvatureKind = "ggn"
    ) -> MlpCurvature:
        return MlpCurvature(self, data, theta, kind)

    def _backpropagated(
        self, data: list[Cases], theta: Tensor, *, squared: bool
    ) -> tuple[float, Tensor]:
        """Loss and mean (squared) gradient over the cases, both without L2."""
        layers, scale = self.layers(theta), self.scale(data)
        total, out = 0.0, torch.empty_like(theta)
        for i, part in enumerate(self.chunks(data, theta)):
            ys = layers.states(part.x, "state")
            total += self.loss_at(part, ys[-1], scale)
            delta = layers.through_output(self.loss_gradient(part, ys[-1]), ys)
            into = out if i == 0 else self._work.take("chunk", out, out.numel())
            layers.backward(ys, delta, into.unsqueeze(0), scale=scale, squared=squared)
            if i:
                out += into
        return total, out

    def layers(self, theta: Tensor) -> Layers:
        return Layers(theta, self.model.sizes, self.model.activations, self._work)

    def scale(self, data: list[Cases]) -> float:
        """What a sum over all cases is multiplied by."""
        return 1.0 / sum(part.count for part in data)

    def regulariser(self, theta: Tensor) -> float:
        return 0.5 * self.l2 * dot(theta, theta) if self.l2 else 0.0

    def bytes_per_case(self, theta: Tensor) -> int:
        """Bytes of one case's activations."""
        return sum(self.model.sizes[1:]) * theta.element_size()

    def chunks(self, data: list[Cases], theta: Tensor) -> Iterator[Cases]:
        """All cases, in pieces whose length depends on the sizes alone."""
        size = max(CHUNK_CASES, CHUNK_BYTES // self.bytes_per_case(theta))
        for whole in data:
            yield from whole.chunks(size)

    def loss_at(self, part: Cases, s: Tensor, scale: float) -> float:
        kind = self.loss_function.kind
        return float(loss_ops.loss_value(kind, s.unsqueeze(1), part.of_steps, None, scale=scale))

    def loss_gradient(self, part: Cases, s: Tensor, *, fresh: bool = False) -> Tensor:
        """∂L/∂s ``[1,B,k]``, unscaled."""
        out = None if fresh else self._work.take("gs", s, *s.shape).unsqueeze(1)
        kind = self.loss_function.kind
        return loss_ops.loss_gradient(kind, s.unsqueeze(1), part.of_steps, None, out=out)[:, 0]


def _check_model(model: MLP) -> None:
    parameters = list(model.parameters())
    wanted = sum(m * (n + 1) for n, m in pairwise(model.sizes))
    if sum(p.numel() for p in parameters) != wanted:
        raise ValueError("model: parameters are tied or missing; the fused path trains each layer")
    if not all(p.requires_grad for p in parameters):
        raise ValueError(
            "model: some parameters of the MLP are frozen; the fused path trains all of them"
        )


@dataclass
class _Linearisation:
    """What a product needs of one chunk.

    ``ys`` as in ``mlp_passes``; ``c [1,1,B,k]`` the diagonal of L'' (None: all ones); for "hessian"
    and "fisher" ``gs [1,B,k]`` = ∂L/∂s, for "hessian" the ``deltas`` and, where φ bends,
    (δ W) ⊙ φ''/φ' of every layer.
    """

    ys: list[Tensor]
    c: Tensor | None
    gs: Tensor | None = None
    deltas: list[Tensor] = field(default_factory=list)
    bends: dict[int, Tensor] = field(default_factory=dict)


class MlpCurvature:
    """A curvature matrix of an MLP at fixed parameters and data.

    ``kind``: ``"ggn"`` is JᵀL''J, ``"hessian"`` the exact Hessian by the R-op (Pearlmutter 1994),
    ``"fisher"`` the empirical Fisher matrix, mean of g_i g_iᵀ over cases.
    """

    def __init__(
        self, objective: MlpObjective, data: list[Cases], theta: Tensor, kind: CurvatureKind
    ) -> None:
        check_choice("kind", kind, KINDS)
        self._objective = objective
        self._kind = kind
        self._work = Scratch()
        theta = theta.clone()  # the caller may write on before the products end
        self._layers = Layers(theta, objective.model.sizes, objective.model.activations, self._work)
        self._scale = objective.scale(data)
        self._chunks = list(objective.chunks(data, theta))
        self._cached: list[_Linearisation] | None = None
        self._N = theta.numel()
        cases = sum(part.count for part in data)
        memory = objective.memory
        if memory == "auto":
            fits = self._copies() * cases * objective.bytes_per_case(theta) <= CACHE_BYTES
            memory = "cached" if fits else "recompute"
        self.memory = memory
        total = 0.0
        kept = []
        for part in self._chunks:
            if memory == "cached":
                linearisation, value = self._linearise(part, fresh=True)
                kept.append(linearisation)
            else:
                value = objective.loss_at(part, self._layers.outputs(part.x), self._scale)
            total += value
        self._cached = kept if memory == "cached" else None
        self.loss = total + objective.regulariser(theta)

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
        return self.products(v.unsqueeze(0), damping, structural, grouped, stop)[0]

    def products(
        self,
        v: Tensor,
        damping: float = 0.0,
        structural: float = 0.0,
        out: Tensor | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        """The same for the rows of ``v [m,N]``, on the group axis."""
        check_tensor("v", v, ["m", self._N], like=self._chunks[0].x)
        out = check_out(out, v.shape, v)
        if v.shape[0] and out.data_ptr() == v.data_ptr():
            raise ValueError("out: is v itself, need a buffer of its own")
        v = v.detach().contiguous()
        with among_kernels(v):
            for rows in _blocks(v.shape[0], self._rows_at_once()):
                for i, part in enumerate(self._chunks):
                    into = out[rows]
                    if i:
                        into = self._work.take("chunk", out, *into.shape)
                    self._one(self._at(i, part), v[rows], structural, into, stop)
                    if i:
                        out[rows] += into
            return out.add_(v, alpha=damping + self._objective.l2)

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag of the matrix without L2 and damping, ``[N]``; see :class:`hfcore.Objective`.

        Probes are ±1 over the outputs of each case, drawn from ``generator`` (None: torch's
        global one). For "fisher" the diagonal is exact and takes no probes. Raises ValueError for
        "hessian", which has no such square root.
        """
        if self._kind == "hessian":
            raise ValueError("diagonal: the Hessian is not a Gram matrix, need kind 'ggn'")
        if probes is not None:
            check_positive(probes=probes)
        if self._kind == "fisher":
            return self._objective.squared_gradients(self._chunks, self._layers.theta)
        outputs = self._objective.model.sizes[-1]
        count = outputs if probes is None else probes
        scale = self._scale if probes is None else self._scale / probes
        total = self._chunks[0].x.new_zeros(self._N)
        for i, part in enumerate(self._chunks):
            linearisation = self._at(i, part)
            shape = (part.count, outputs)
            for rows in _blocks(count, self._rows_at_once()):
                if probes is None:
                    u = torch.eye(outputs, dtype=total.dtype, device=total.device)[rows]
                    u = u.unsqueeze(1).expand(-1, *shape)
                else:
                    u = _signs((rows.stop - rows.start, *shape), total, generator)
                total += self._squared(linearisation, u, scale)
        return total

    def _squared(self, at: _Linearisation, u: Tensor, scale: float) -> Tensor:
        """scale·Σ over cases and probes of (Jᵀ L''^{1/2} u)², ``u [G,B,k]``."""
        delta = self._layers.through_output(self._root(at, u), at.ys)
        squares = self._work.take("squares", u, u.shape[0], self._N)
        return self._layers.backward(at.ys, delta, squares, scale=scale, squared=True).sum(0)

    def _root(self, at: _Linearisation, u: Tensor) -> Tensor:
        """S u with S Sᵀ = L'': √c ⊙ u, for softmax √p ⊙ u − p (√pᵀ u)."""
        if at.c is None:
            return u.clone(memory_format=torch.contiguous_format)
        c = at.c[:, 0]
        rooted = c.sqrt() * u
        if self._objective.loss_function.rank_one:
            rooted -= c * rooted.sum(-1, keepdim=True)
        return rooted

    # ------------------------------------------------------------------------ one product

    def _one(
        self, at: _Linearisation, v: Tensor, structural: float, out: Tensor, stop: Tensor | None
    ) -> None:
        """One chunk's part of the products with ``v [G,N]``, without damping and L2."""
        layers, holds = self._layers, self._objective.holds if structural else {}
        raw = frozenset(l for l, hold in holds.items() if hold.distance != "matching")
        exact = self._kind == "hessian"
        Rys, Rzs = layers.tangents(at.ys, v, keep=exact or bool(holds), raw=raw, stop=stop)
        add = self._held(at, Rys, Rzs, structural)
        if exact:
            for l, bend in at.bends.items():
                bent = bend * Rys[l]
                add[l] = add[l].add_(bent) if l in add else bent
        Rdelta = layers.through_output(self._curved(at, Rys[-1]), at.ys)
        last = len(layers) - 1
        if last in add:
            Rdelta.add_(add[last])
        if exact:
            layers.rbackward(
                at.ys, at.deltas, Rys, Rdelta, v, out, scale=self._scale, add=add, stop=stop
            )
        else:
            layers.backward(at.ys, Rdelta, out, scale=self._scale, add=add, stop=stop)

    def _curved(self, at: _Linearisation, Rs: Tensor) -> Tensor:
        """L''Rs, or g (gᵀRs) of each case ("fisher"), in Rs's place."""
        if self._kind == "fisher":
            assert at.gs is not None
            along = (at.gs * Rs).sum(-1, keepdim=True)
            return torch.mul(at.gs, along, out=Rs)
        if at.c is not None:
            s = Rs.unsqueeze(1)
            rank_one = self._objective.loss_function.rank_one
            loss_ops.loss_hessian_product(at.c, s, rank_one=rank_one, out=s)
        return Rs

    def _held(
        self, at: _Linearisation, Rys: list[Tensor], Rzs: dict[int, Tensor], structural: float
    ) -> dict[int, Tensor]:
        """λμ D''Rz of every layer under structural damping."""
        add = {}
        for l, hold in (self._objective.holds if structural else {}).items():
            out = self._work.take(f"held{l}", Rys[l], *Rys[l].shape)
            add[l] = held(hold, at.ys[l + 1], Rys[l], Rzs.get(l), out).mul_(structural * hold.mu)
        return add

    # ---------------------------------------------------------------------- linearisation

    def _at(self, i: int, part: Cases) -> _Linearisation:
        if self._cached is not None:
            return self._cached[i]
        return self._linearise(part, fresh=False)[0]

    def _linearise(self, part: Cases, *, fresh: bool) -> tuple[_Linearisation, float]:
        """A chunk's activations and what the kind needs beside them, and the chunk's loss."""
        objective, layers = self._objective, self._layers
        ys = layers.states(part.x, None if fresh else "state")
        s = ys[-1]
        loss = objective.loss_function
        c = None
        if loss.kind != "squared" and self._kind != "fisher":
            c = loss_ops.loss_curvature(loss.kind, s.unsqueeze(1), part.of_steps, None)
        at = _Linearisation(ys, c)
        value = objective.loss_at(part, s, self._scale)
        if self._kind != "ggn":
            gs = at.gs = objective.loss_gradient(part, s, fresh=True)
            if self._kind == "hessian":
                at.deltas, at.bends = layers.deltas(ys, gs)
        return at, value

    def _copies(self) -> int:
        """How many times its activations a linearisation takes."""
        return {"ggn": 1, "fisher": 1, "hessian": 3}[self._kind]

    def _rows_at_once(self) -> int:
        """Tangents that share a pass: their buffers stay within ``GROUP_BYTES``, or it is one."""
        largest = max(part.count for part in self._chunks)
        one = largest * self._objective.bytes_per_case(self._layers.theta)
        return max(1, GROUP_BYTES // one)


def _blocks(rows: int, size: int) -> Iterator[slice]:
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """±1 with equal odds; a generator draws on its own device."""
    device = like.device if generator is None else generator.device
    bits = torch.randint(2, shape, generator=generator, device=device)
    return bits.to(device=like.device, dtype=like.dtype).mul_(2).sub_(1)
