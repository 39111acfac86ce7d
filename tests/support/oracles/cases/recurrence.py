"""Random arguments of the recurrence ops, and how far a rounded result may be off."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hfcore.bindings import recurrence as ops
from hfcore.kernels.recurrence import ForwardPass, RnnShape, RnnWeights, reference


class Size(NamedTuple):
    """Lengths of one case: steps, batch, inputs, hidden units, outputs."""

    T: int
    B: int
    n: int
    H: int
    k: int

    def __str__(self) -> str:
        return f"T{self.T}-B{self.B}-n{self.n}-H{self.H}-k{self.k}"


# Ones, primes, and one less, exactly, one more than: the lanes of a vector (16, 8, 4, 2), a tile
# of two (32), the register blocks (12 and 6 rows), the gradient's chunk of 4 steps; n, k > H too.
SIZES = (
    Size(1, 1, 1, 1, 1),
    Size(1, 17, 3, 5, 2),
    Size(2, 16, 2, 8, 1),
    Size(3, 15, 1, 7, 3),
    Size(3, 2, 1, 1, 5),
    Size(4, 31, 2, 13, 1),
    Size(5, 32, 3, 12, 2),
    Size(5, 65, 17, 16, 33),
    Size(8, 33, 2, 17, 5),
    Size(8, 9, 31, 6, 6),
    Size(9, 7, 5, 3, 11),
    Size(9, 8, 1, 24, 1),
    Size(11, 1, 2, 37, 4),
    Size(13, 2, 23, 1, 19),
    Size(4, 47, 30, 31, 16),
    Size(3, 130, 7, 25, 15),
)

SMALL = (Size(1, 2, 1, 3, 2), Size(4, 3, 2, 3, 1), Size(5, 2, 4, 2, 3))

STEPS = ("all", "last", "first", "scattered", "listed")


def pick_steps(kind: str, T: int) -> Tensor | None:
    if kind == "all":
        return None
    if kind == "listed":
        return torch.arange(T)
    if kind == "last":
        return torch.tensor([T - 1])
    if kind == "first":
        return torch.tensor([0])
    return torch.arange(0, T, 3) if T > 3 else torch.arange(T // 2, T)


# Which arrays carry the group axis, and how the others are shared. Beside these there is "rows":
# "distinct" with weights and tangents in the rows of larger arrays of NaN.
GROUPS = ("alone", "tangents", "expanded", "all_expanded", "inputs", "weights", "distinct")


def in_rows_with_gaps(w: RnnWeights, v: Tensor) -> tuple[RnnWeights, Tensor]:
    """The same as parts of the rows of two arrays of one shape, with NaN before, between, after."""
    gap, N = 3, v.shape[1]
    of_weights, of_tangents = (v.new_full((len(v), N + 7 * gap), math.nan) for _ in range(2))
    parts, at = [], gap
    for p in w:
        part = of_weights[:, at : at + p[0].numel()]
        parts.append(part.copy_(p.flatten(1)).view(p.shape))
        at += p[0].numel() + gap
    return RnnWeights(*parts), of_tangents[:, gap : gap + N].copy_(v)


class Case:
    """Random arguments of the four ops for one size, dtype and group form, from a seed."""

    def __init__(
        self,
        size: Size,
        dtype: torch.dtype = torch.float64,
        nonlinearity: str = "tanh",
        group: str = "alone",
        steps: str = "all",
        seed: int = 0,
    ) -> None:
        self.size, self.nonlinearity, self.group, self.dtype = size, nonlinearity, group, dtype
        self.generator = torch.Generator().manual_seed(seed)
        T, B, n, H, k = size
        self.shape = RnnShape(n, H, k)
        self.steps = pick_steps(steps, T)
        outputs = T if self.steps is None else self.steps.numel()
        self.G = 1 if group == "alone" else 3
        self.w = RnnWeights(
            *(
                self.array("w", *s, scale=1 / math.sqrt(s[-1]) if len(s) > 1 else 0.5)
                for s in self.shape.shapes
            )
        )
        self.x = self.array("x", T, B, n)
        self.v = self.array("v", self.shape.numel)
        if group == "rows":
            self.w, self.v = in_rows_with_gaps(self.w, self.v)
        self.gs = self.array("v", outputs, B, k)
        # Like masked softmax probabilities: positive, sums below one, some exactly zero.
        c = self.array("x", outputs, B, k).abs().clamp(0.1, 2.0) / (3 * k)
        self.c = self.shared(c * (self.array("x", outputs, B, 1) > -1.0))
        self.h = self.shared(self.states(nonlinearity))
        self.u = self.array("x", T, B, H)
        self.d = self.array("x", T, B, H).tanh()
        self.a = self.array("v", T, B, H)
        self.W = self.array("w", H, H, scale=1 / math.sqrt(H))

    def array(self, kind: str, *shape: int, scale: float = 1.0) -> Tensor:
        """Random ``[G or 1, ...]``: ``kind`` says whether it is a weight, an input or a tangent."""
        grouped = {"tangents": "v", "expanded": "v", "inputs": "xv", "weights": "wv"}
        has_axis = self.group in ("distinct", "rows") or kind in grouped.get(self.group, "")
        G = self.G if has_axis else 1
        a = torch.randn(G, *shape, dtype=self.dtype, generator=self.generator) * scale
        return self.shared(a)

    def shared(self, a: Tensor) -> Tensor:
        """An array without its own group axis, expanded with stride 0 where the case says so."""
        if self.group in ("expanded", "all_expanded") and a.shape[0] == 1:
            return a.expand(self.G, *a.shape[1:])
        return a

    def states(self, nonlinearity: str) -> Tensor:
        """h ``[G,T,B,H]`` of the weights and inputs, rounded once."""
        w = RnnWeights(*(p.double() for p in self.w))
        return reference.rnn_forward(self.x.double(), w, nonlinearity, None)[0].to(self.dtype)

    def double(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        return tuple(a.double() for a in arrays)

    def weights_double(self) -> RnnWeights:
        return RnnWeights(*self.double(*self.w))

    def forward_pass(
        self,
        dtype: torch.dtype | None = None,
        h: Tensor | None = None,
        nonlinearity: str | None = None,
    ) -> ForwardPass:
        """Of these arrays in ``dtype``, at the states ``h`` or the case's own."""
        x, h, *w = (a.to(dtype or a.dtype) for a in (self.x, self.h if h is None else h, *self.w))
        return ForwardPass(x, h, RnnWeights(*w), nonlinearity or self.nonlinearity, self.steps)

    def net(self, g: int) -> tuple[RnnWeights, dict[str, Tensor]]:
        """Net g of the group by itself, each array with a group axis of 1."""

        def one(a: Tensor) -> Tensor:
            return a[g : g + 1] if a.shape[0] > 1 else a

        names = ("x", "h", "v", "gs", "c", "u", "d", "a", "W")
        return RnnWeights(*map(one, self.w)), {name: one(getattr(self, name)) for name in names}

    def product(self, v: Tensor | None = None, **options: float | bool | Tensor | None) -> Tensor:
        return ops.rnn_gauss_newton(
            self.x,
            self.h,
            self.w,
            self.v if v is None else v,
            self.c,
            nonlinearity=self.nonlinearity,
            steps=self.steps,
            **options,  # type: ignore[arg-type]
        )


def tolerance(dtype: torch.dtype, size: Size) -> float:
    """4·eps·√K against the largest element of a net's result.

    K counts the roundings that add up to one element: T steps, each a sum over [h, h', x] or
    [gt, gs] (2H + n + k terms) and a nonlinearity that rounds to a few ulp, then a gradient sum
    over T·B. Roundings are independent, so they grow like √K; a gain of the recurrence near one
    neither damps nor amplifies them. The factor 4: in float64 the reference
    rounds as well, and terms cancel in sums over few sequences.
    """
    T, B, n, H, k = size
    return 4 * torch.finfo(dtype).eps * math.sqrt(T * (2 * H + n + k + 8) + T * B)


def assert_close(got: Tensor, want: Tensor, tol: float) -> None:
    """max |got − want| <= tol · max |want| for every net of the group."""
    assert got.shape[1:] == want.shape[1:]
    want = want.expand_as(got)
    for g in range(got.shape[0]):
        assert bool(torch.isfinite(got[g]).all()), f"net {g}: not every element was written"
        scale = float(want[g].abs().max())
        worst = float((got[g].double() - want[g].double()).abs().max())
        assert worst <= tol * scale, f"net {g}: off by {worst:.3g}, allowed {tol * scale:.3g}"
