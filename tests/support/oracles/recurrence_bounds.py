"""How far float32 recurrences may be off in float64: first-order bounds, element by element.

First order in u = 2⁻²⁴: a sum of m products is off by at most (m + 2) u of the sum of their
magnitudes, and the recurrences carry that on; so the same ops on magnitudes give the bound.
``more`` is what a product adds to that count beyond true float32: :data:`ON_TENSOR_CORES`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.kernels.recurrence import RnnWeights, reference, split_flat
from oracles.cases import recurrence as cases

U = 2.0**-24

# Of a chunk of 16 k: two additions of 8 products and a sum each cut 9 terms one bit below float32
# and their sum to it (9 u and 2 u of the largest term), less the n + 2 of a chunk that are in the
# count already; the smaller products 2⁻⁸ times as much, products left out 2 u.
ON_TENSOR_CORES = 20


def doubles(w: RnnWeights) -> RnnWeights:
    return RnnWeights(*(p.double() for p in w))


def magnitudes(w: RnnWeights) -> RnnWeights:
    return RnnWeights(*(p.double().abs() for p in w))


def assert_within(got: Tensor, want: Tensor, bound: Tensor) -> None:
    assert got.shape == want.shape
    assert bool(got.isfinite().all())
    excess = (got.double() - want).abs() - bound.expand_as(want)
    worst = int(excess.argmax())
    assert float(excess.max()) <= 0, (
        f"element {worst}: got {got.flatten()[worst]}, need {want.flatten()[worst]} within "
        f"{bound.expand_as(want).flatten()[worst]:.2e}"
    )


def forward_bound(case: cases.Case, h: Tensor, nonlinearity: str, more: int = 0) -> Tensor:
    """Of the states ``h [G,T,B,H]``."""
    _, _, n, H, _ = case.size
    w, x, h = magnitudes(case.w), case.x.double().abs(), h.double().abs()
    u = torch.matmul(x, w.W_hx.mT.unsqueeze(1)) + w.b_h[:, None, None]
    u = u + torch.matmul(torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1), w.W_hh.mT[:, None])
    first = torch.zeros_like(u)
    first[:, 0] = w.b_init.unsqueeze(1)
    # The nonlinearities have slopes of at most one and are themselves good to a few ulps.
    error = (n + H + 4 + more) * U * (u + first) + 8 * U * (h + 1e-30)
    return reference.linear_scan(error, torch.ones_like(h), w.W_hh.mT, None, False)


def scan_bound(case: cases.Case, a: Tensor | None, reverse: bool) -> Tensor:
    T, _, _, H, _ = case.size
    u, d, W = (p.double().abs() for p in (case.u, case.d, case.W))
    a = None if a is None else a.double().abs()
    return T * (H + 6) * U * reference.linear_scan(u, d, W, a, reverse)


def backward_magnitude(
    case: cases.Case, h: Tensor, gs: Tensor, a: Tensor | None, nonlinearity: str
) -> Tensor:
    """Magnitude of the gradient; the caller multiplies by the number of roundings."""
    x, h, w, gs = case.x.double().abs(), h.double(), magnitudes(case.w), gs.double().abs()
    d = reference.activation_derivative(h, nonlinearity)
    u = reference._scatter(case.steps, reference._times(gs, w.W_yh), h.shape[1])
    gt = reference.linear_scan(u, d, w.W_hh, a, reverse=True)
    return reference._parameter_gradient(gt, gs, h.abs(), x, case.steps, case.shape)


def roundings(case: cases.Case, more: int = 0) -> float:
    """Of one path through R-op, curvature, reverse scan and gradient sums; d costs 4 a step."""
    T, B, n, H, k = case.size
    return T * (3 * H + n + k + 24 + 3 * more) + 2 * (H + k) + T * B + 16


def product_bound(
    case: cases.Case,
    h: Tensor,
    rank_one: bool,
    nonlinearity: str,
    factors: tuple[float, float, float],
    more: int = 0,
) -> Tensor:
    """Of the product with ``case.v``; ``factors`` are scale, structural and damping."""
    scale, structural, damping = (abs(f) for f in factors)
    v = case.v.double().abs()
    tangent = split_flat(v, case.shape)
    w, c = magnitudes(case.w), case.c.double()
    # With h >= 0 the derivative is that of h itself up to its sign, which it does not see.
    x, magnitude = case.x.double().abs(), h.double().abs()
    Rh, Rs = reference.rnn_tangent(x, magnitude, w, tangent, nonlinearity, case.steps)
    gs = c * Rs
    if rank_one:
        gs = gs + c * gs.sum(-1, keepdim=True)
    a = structural * Rh if structural else None
    g = scale * backward_magnitude(case, h, gs, a, nonlinearity)
    return roundings(case, more) * U * g + 4 * U * damping * v
