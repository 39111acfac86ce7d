"""Gated layers in float64 by torch.func on formulas written out here, and the ops beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfcore.bindings.gated import (
    GatedStates,
    GatedWeights,
    gated_forward,
    gated_gradient,
    gated_tangent,
    rows_of,
)

CELLS = ("lstm", "gru")
# T, B, n, H: one of everything, primes, a vector's worth and one more, several tiles.
SHAPES = [
    (1, 1, 1, 1), (2, 1, 3, 2), (1, 7, 2, 5), (3, 13, 5, 17), (4, 8, 8, 16), (2, 101, 1, 9),
    (5, 2, 17, 33), (2, 197, 3, 3),
]  # fmt: skip
# Beside these there is "rows": "nets" whose W_hh are in the rows of a larger array.
GROUPS = ("one", "nets", "tangents", "shared_weights")


def h_of(x: Tensor, W_ih: Tensor, W_hh: Tensor, b: Tensor, cell: str) -> Tensor:
    """h ``[T,B,H]`` of one net: ``x [T,B,n]``, ``b [4,H]`` of the blocks."""
    H = b.shape[-1]
    h = c = x.new_zeros(x.shape[1], H)
    found = []
    for x_t in x:
        u, v = x_t @ W_ih.T, h @ W_hh.T
        if cell == "lstm":
            i, f, g, o = (u + v + b.flatten()).split(H, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            (u_r, u_z, u_n), (v_r, v_z, v_n) = u.split(H, 1), v.split(H, 1)
            r, z = (u_r + v_r + b[1]).sigmoid(), (u_z + v_z + b[2]).sigmoid()
            h = (1 - z) * (u_n + b[3] + r * (v_n + b[0])).tanh() + z * h
        found.append(h)
    return torch.stack(found)


def in_rows_with_gaps(W: Tensor) -> Tensor:
    """The same as parts of the rows of a larger array of NaN."""
    rows = W.new_full((len(W), W[0].numel() + 5), torch.nan)
    return rows[:, 2:-3].copy_(W.flatten(1)).view(W.shape)


class Gradient(NamedTuple):
    """At the weights of a layer, and ∂L/∂a."""

    weights: GatedWeights
    ga: Tensor


class Case:
    """Random arrays, rounded to ``dtype`` before the float64 oracle reads them."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, cell: str, group: str = "one"
    ) -> None:
        T, B, n, H = shape
        self.cell, self.dtype = cell, dtype
        many = 1 if group == "one" else 3
        R = rows_of(cell).blocks
        g = torch.Generator().manual_seed(T * 1000 + B * 10 + H)

        def draw(G: int, *size: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(G, *size, generator=g, dtype=torch.float64)).to(dtype)

        nets = 1 if group in ("tangents", "shared_weights") else many
        inputs = many if group == "shared_weights" else 1
        tangents = 1 if group == "shared_weights" else many
        self.G = many

        def weights(G: int) -> GatedWeights:
            s = H**-0.5
            return GatedWeights(
                draw(G, R * H, n), draw(G, R * H, H, scale=s), draw(G, 4, H, scale=0.3)
            )

        self.w, self.v = weights(nets), weights(tangents)
        if group == "rows":
            self.w, self.v = (w._replace(W_hh=in_rows_with_gaps(w.W_hh)) for w in (self.w, self.v))
        self.x, self.Rx = draw(inputs, T, B, n), draw(many, T, B, n)
        self.gh = draw(many, T, B, H)

    def to(self, device: str) -> Case:
        """The same with its arrays there."""
        for name in ("x", "Rx", "gh"):
            setattr(self, name, getattr(self, name).to(device))
        self.w, self.v = (GatedWeights(*(t.to(device) for t in w)) for w in (self.w, self.v))
        return self

    def of(self, g: int, *arrays: Tensor) -> list[Tensor]:
        """What net g has of each, in float64 on the CPU."""
        return [a[min(g, len(a) - 1)].double().cpu() for a in arrays]

    def wanted(self, with_Rx: bool) -> dict[str, Tensor]:
        """h, Rh, and the gradients at W_ih, W_hh, b and x of ⟨gh, h⟩, of every net."""
        found: dict[str, list[Tensor]] = {k: [] for k in ("h", "Rh", "W_ih", "W_hh", "b", "x")}
        for g in range(self.G):
            x, Rx, gh, *both = self.of(g, self.x, self.Rx, self.gh, *self.w, *self.v)
            w, v = tuple(both[:3]), tuple(both[3:])
            at = (x, *w)

            def h(*arguments: Tensor) -> Tensor:
                return h_of(*arguments, self.cell)

            along = (Rx if with_Rx else torch.zeros_like(x), *v)
            states, Rh = torch.func.jvp(h, at, along)
            _, back = torch.func.vjp(h, *at)
            for name, value in zip(("x", "W_ih", "W_hh", "b"), back(gh), strict=True):
                found[name].append(value)
            found["h"].append(states)
            found["Rh"].append(Rh)
        return {name: torch.stack(values) for name, values in found.items()}

    def states(self, fill: float = float("nan")) -> GatedStates:
        """Those of the op, in buffers that held ``fill``."""
        G = max(len(self.x), len(self.w.b))
        T, B, H = *self.x.shape[1:3], self.w.b.shape[-1]
        shapes = (G, T, B, H), (G, 4, T, B, H), (G, 2, T, B, H)
        h, gates, cells = (self.x.new_full(shape, fill) for shape in shapes)
        out = GatedStates(h, gates, cells if self.cell == "lstm" else None)
        return gated_forward(self.x, self.w, cell=self.cell, out=out)

    def results(self, with_Rx: bool) -> dict[str, Tensor]:
        """What :meth:`wanted` gives, by the ops."""
        at, cell = self.states(), self.cell
        T, B, H = at.h.shape[1:]
        out = at.h.new_full((self.G, T, B, H), float("nan"))
        Rx = self.Rx if with_Rx else None
        Rh = gated_tangent(self.x, at, self.w, self.v, cell=cell, Rx=Rx, out=out)
        made = self.gradient(at)
        W_r = self.w.W_ih.double().unflatten(1, (-1, H))
        hears = [made.ga[:, rows_of(cell).input.index(r)].double() for r in range(W_r.shape[1])]
        return {
            "h": at.h.expand(self.G, -1, -1, -1),
            "Rh": Rh,
            **made.weights._asdict(),
            "x": torch.stack([a @ W_r[:, None, r] for r, a in enumerate(hears)]).sum(0),
        }

    def gradient(self, at: GatedStates) -> Gradient:
        """That of the op, in buffers that held NaN."""
        T, B, H = at.h.shape[1:]
        shapes = [(self.G, *w.shape[1:]) for w in self.w] + [(self.G, 4, T, B, H)]
        *outs, ga = (at.h.new_full(shape, float("nan")) for shape in shapes)
        options: dict[str, Any] = {"cell": self.cell, "ga": ga, "out": GatedWeights(*outs)}
        return Gradient(gated_gradient(self.gh, self.x, at, self.w.W_hh, **options), ga)

    def check(self, with_Rx: bool) -> None:
        wanted, found = self.wanted(with_Rx), self.results(with_Rx)
        T, _, n, H = *self.x.shape[1:], self.w.b.shape[-1]
        # Chains of T·(n + 2H) roundings, near their mean; each step may double what came before.
        unit = torch.finfo(self.dtype).eps * 8 * (1 + T * (n + 2 * H)) ** 0.5 * 2**T
        for name, want in wanted.items():
            atol = unit * float(want.abs().max().clamp(min=1))
            torch.testing.assert_close(found[name].double().cpu(), want, rtol=0, atol=atol)


Make = Callable[[], Case]
