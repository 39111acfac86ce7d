"""Plain torch forms of the gated ops: any device, any floating dtype, differentiable.

A leading group axis G is on every array; an axis of length 1 is shared by the group. Time runs
t = 0 .. T-1 from h_{-1} = 0, c_{-1} = 0. With σ the logistic function, blocks begin as::

    LSTM  a_t = W_ih x_t + W_hh h_{t-1} + b            i, f, g, o
    GRU   the same for r and z;  n hears the inputs alone, m = W_hh h_{t-1} + b the states alone

and the cells those of torch's modules (Hochreiter & Schmidhuber 1997 with forget gates; Cho et al.
2014 with r behind the product)::

    LSTM  c_t = σ(f) c_{t-1} + σ(i) tanh(g)      h_t = σ(o) tanh(c_t)
    GRU   h_t = (1 − σ(z)) tanh(n + σ(r) m) + σ(z) h_{t-1}
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hfcore.kernels.gated.layout import GatedStates, GatedWeights, rows_of


def _times(y: Tensor, W: Tensor) -> Tensor:
    """``y [G,…,B,i] @ W [G,i,j]``."""
    return torch.matmul(y, W if y.ndim == 3 else W.unsqueeze(1))


def _blocks(y: Tensor, W: Tensor, rows: tuple[int | None, ...]) -> list[Tensor | None]:
    """What each block hears through W ``[G,R·H,i]`` of ``y [G,…,B,i]``."""
    H = W.shape[1] // len([r for r in rows if r is not None])
    return [None if r is None else _times(y, W[:, r * H : (r + 1) * H].mT) for r in rows]


def _sum(*terms: Tensor | None) -> Tensor:
    """Those that there are; at least one."""
    there = [term for term in terms if term is not None]
    total = there[0]
    for term in there[1:]:
        total = total + term
    return total


def _direct(x: Tensor, w: GatedWeights, cell: str) -> list[Tensor]:
    """W_ih x_t + b of every block ``[G,T,B,H]``."""
    heard = _blocks(x, w.W_ih, rows_of(cell).input)
    like = x.new_zeros(1, *x.shape[1:3], w.b.shape[-1])
    return [_sum(u, w.b[:, k, None, None] + like) for k, u in enumerate(heard)]


def _previous(h: Tensor) -> Tensor:
    """The step before ``[G,T,B,H]``, zeros at the first."""
    return torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], dim=1)


def gated_forward(x: Tensor, w: GatedWeights, cell: str) -> GatedStates:
    """``h [G,T,B,H]`` and the states, from ``x [G,T,B,n]``."""
    rows, direct = rows_of(cell), _direct(x, w, cell)
    h = c = x.new_zeros(1, x.shape[2], w.W_hh.shape[-1])
    hs: list[Tensor] = []
    gates: list[tuple[Tensor, ...]] = []
    cs: list[tuple[Tensor, ...]] = []
    for t in range(x.shape[1]):
        back = _blocks(h, w.W_hh, rows.hidden)
        a, b, d, e = (_sum(u[:, t], r) for u, r in zip(direct, back, strict=True))
        if cell == "lstm":
            i, f, g, o = torch.sigmoid(a), torch.sigmoid(b), torch.tanh(d), torch.sigmoid(e)
            c = f * c + i * g
            h = o * torch.tanh(c)
            gates.append((i, f, g, o))
            cs.append((c, torch.tanh(c)))
        else:
            r, z = torch.sigmoid(b), torch.sigmoid(d)
            n = torch.tanh(e + r * a)
            h = n + z * (h - n)
            gates.append((a.expand_as(r), r, z, n))
        hs.append(h)
    cells = _over_time(cs) if cs else None
    return GatedStates(torch.stack(hs, dim=1), _over_time(gates), cells)


def _over_time(steps: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """``[G,blocks,T,B,H]`` from the blocks ``[G,B,H]`` of every step."""
    G = max(block.shape[0] for step in steps for block in step)
    whole = [torch.stack([b.expand(G, *b.shape[1:]) for b in step], dim=1) for step in steps]
    return torch.stack(whole, dim=2)


def gated_tangent(
    x: Tensor, at: GatedStates, Rx: Tensor | None, w: GatedWeights, v: GatedWeights, cell: str
) -> Tensor:
    """Rh ``[G,T,B,H]`` of the tangent ``v`` and of Rx ``[G,T,B,n]``, that of ``x [G,T,B,n]``."""
    rows, h = rows_of(cell), _previous(at.h)
    direct = _direct(x, v, cell)
    known = [_blocks(h, v.W_hh, rows.hidden)]
    known += [] if Rx is None else [_blocks(Rx, w.W_ih, rows.input)]
    direct = [_sum(u, *(k[i] for k in known)) for i, u in enumerate(direct)]
    Rh = Rc = x.new_zeros(1, *at.h.shape[2:])
    out = []
    for t in range(x.shape[1]):
        back = _blocks(Rh, w.W_hh, rows.hidden)
        Ra, Rb, Rd, Re = (_sum(u[:, t], r) for u, r in zip(direct, back, strict=True))
        a, b, d, e = at.gates[:, :, t].unbind(1)
        if cell == "lstm":
            assert at.cells is not None
            c, y = _previous(at.cells[:, 0])[:, t], at.cells[:, 1, t]
            Rc = b * Rc + b * (1 - b) * Rb * c + a * (1 - a) * Ra * d + a * (1 - d * d) * Rd
            Rh = e * (1 - e) * Re * y + e * (1 - y * y) * Rc
        else:
            Rr, Rz = b * (1 - b) * Rb, d * (1 - d) * Rd
            Rn = (1 - e * e) * (Re + Rr * a + b * Ra)
            Rh = Rz * (h[:, t] - e) + (1 - d) * Rn + d * Rh
        out.append(Rh)
    return torch.stack(out, dim=1)


def gated_backward(gh: Tensor, at: GatedStates, W_hh: Tensor, cell: str) -> Tensor:
    """∂L/∂a of every block ``[G,4,T,B,H]`` from ``gh [G,T,B,H]``, what reaches h past the scan."""
    rows, h = rows_of(cell), _previous(at.h)
    H = h.shape[-1]
    through = carry = gh.new_zeros(1, *gh.shape[2:])
    out: list[tuple[Tensor, ...]] = []
    for t in reversed(range(gh.shape[1])):
        state = gh[:, t] + through
        a, b, d, e = at.gates[:, :, t].unbind(1)
        if cell == "lstm":
            assert at.cells is not None
            c, y = _previous(at.cells[:, 0])[:, t], at.cells[:, 1, t]
            gc = state * e * (1 - y * y) + carry
            gi, gf, gg = gc * d * a * (1 - a), gc * c * b * (1 - b), gc * a * (1 - d * d)
            step = gi, gf, gg, state * y * e * (1 - e)
            carry = b * gc
        else:
            state = state + carry
            gn = state * (1 - d) * (1 - e * e)
            step = gn * b, gn * a * b * (1 - b), state * (h[:, t] - e) * d * (1 - d), gn
            carry = d * state
        heard = zip(rows.hidden, step, strict=True)
        through = _sum(*(None if r is None else _times(g, W_hh[:, r * H : (r + 1) * H])
                         for r, g in heard))  # fmt: skip
        out.append(step)
    return _over_time(out[::-1])


def weight_gradient(ga: Tensor, x: Tensor, h: Tensor, cell: str) -> GatedWeights:
    """Of a layer, from ``ga [G,4,T,B,H]``, ``x [.,T,B,n]`` and the states ``h [.,T,B,H]``."""
    rows = rows_of(cell)

    def rows_heard(heard: tuple[int | None, ...], y: Tensor) -> Tensor:
        left = torch.cat([ga[:, heard.index(r)] for r in range(rows.blocks)], dim=-1)
        return torch.matmul(left.flatten(1, 2).mT, y.flatten(1, 2))

    b = ga.sum((2, 3))
    return GatedWeights(rows_heard(rows.input, x), rows_heard(rows.hidden, _previous(h)), b)
