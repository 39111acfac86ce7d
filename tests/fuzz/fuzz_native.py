"""Random calls straight at the compiled module, which must answer or raise, never crash.

Run as a script, best under AddressSanitizer and UBSan (``make fuzz``). A call is one of three
kinds: good arguments, which must succeed and fill their output; good arguments with one or two
spoilt, and anything at all, which may also raise TypeError, ValueError or MemoryError.
HFCORE_FUZZ_CALLS sets the number of calls (10,000), HFCORE_FUZZ_SEED where they start (0),
HFCORE_FUZZ_SANITIZED=1 insists that the module in use was built with sanitizers.
"""

from __future__ import annotations

import collections
import faulthandler
import itertools
import math
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfcore.bindings.dispatch import native
from hfcore.bindings.sparse import ell_pattern

CALLS = int(os.environ.get("HFCORE_FUZZ_CALLS", "10000"))
SEED = int(os.environ.get("HFCORE_FUZZ_SEED", "0"))
ALLOWED = (TypeError, ValueError, MemoryError)
NATIVE = native()

Arguments = dict[str, Any]

# ------------------------------------------------------------------------------ good arguments


class Sizes:
    """Lengths, dtype and random numbers of one good call."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        length = st.integers(1, 6) | st.sampled_from([7, 8, 9, 12, 13, 15, 16, 17, 31, 32, 33])
        lengths: list[int] = [draw(length) for _ in range(5)]
        self.T, self.B, self.n, self.H, self.k = lengths
        self.G = draw(st.sampled_from([1, 1, 2, 3]))
        self.dtype = draw(st.sampled_from([torch.float32, torch.float64]))
        self.threads = draw(st.sampled_from([1, 2, 3, 5]))
        self.kind = draw(st.integers(0, 2))
        self.loss = draw(st.integers(0, 4))
        self.flag = draw(st.booleans())
        self.optional = draw(st.booleans())
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
        self.shared = draw(st.integers(0, 2**16 - 1))
        every = torch.arange(self.T)
        self.steps = every[torch.rand(self.T, generator=self.generator) < 0.5]
        if self.steps.numel() == 0 or self.optional:
            self.steps = every
        self.outputs = self.steps.numel()

    @property
    def numel(self) -> int:
        return self.H * (self.n + self.H + self.k + 2) + self.k

    def array(self, *shape: int) -> Tensor:
        """``[G or 1, *shape]``, which of the two from the bits of ``shared``."""
        self.shared, own = divmod(self.shared, 2)
        return torch.randn(self.G if own else 1, *shape, dtype=self.dtype, generator=self.generator)

    def out(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.full((self.G, *shape), math.nan, dtype=dtype or self.dtype)

    def weights(self) -> Arguments:
        return {
            "W_hx": self.array(self.H, self.n),
            "W_hh": self.array(self.H, self.H) / self.H,
            "W_yh": self.array(self.k, self.H),
            "b_h": self.array(self.H),
            "b_init": self.array(self.H),
            "b_y": self.array(self.k),
        }


def rnn_forward(d: Sizes) -> Arguments:
    return {
        "x": d.array(d.T, d.B, d.n),
        **d.weights(),
        "steps": None if d.optional else d.steps,
        "nonlinearity": d.kind,
        "out": d.out(d.T, d.B, d.H) if d.flag else None,
        "s": d.out(d.outputs, d.B, d.k),
        "threads": d.threads,
    }


def linear_scan(d: Sizes) -> Arguments:
    return {
        "u": d.array(d.T, d.B, d.H),
        "d": d.array(d.T, d.B, d.H).tanh(),
        "W": d.array(d.H, d.H) / d.H,
        "a": d.array(d.T, d.B, d.H) if d.optional else None,
        "reverse": d.flag,
        "out": d.out(d.T, d.B, d.H),
        "threads": d.threads,
    }


def rnn_backward(d: Sizes) -> Arguments:
    return {
        "x": d.array(d.T, d.B, d.n),
        "h": d.array(d.T, d.B, d.H).tanh(),
        **d.weights(),
        "gs": d.array(d.outputs, d.B, d.k),
        "steps": None if d.optional else d.steps,
        "nonlinearity": d.kind,
        "out": d.out(d.numel),
        "threads": d.threads,
    }


def rnn_gauss_newton(d: Sizes) -> Arguments:
    return {
        "x": d.array(d.T, d.B, d.n),
        "h": d.array(d.T, d.B, d.H).tanh(),
        **d.weights(),
        "v": d.array(d.numel),
        "c": d.array(d.outputs, d.B, d.k).clamp(min=0) / d.k,
        "rank_one": d.flag,
        "steps": None if d.optional else d.steps,
        "nonlinearity": d.kind,
        "scale": 0.5,
        "structural": 0.1 if d.flag else 0.0,
        "damping": 0.1,
        "out": d.out(d.numel),
        "threads": d.threads,
    }


def loss_data(d: Sizes) -> Arguments:
    s, kind = d.array(d.T, d.B, d.k), d.loss
    if kind == 2:
        targets = torch.randint(0, d.k, (1, d.T, d.B), generator=d.generator)
    else:
        targets = d.array(d.T, d.B, d.k).sigmoid()
    mask = (d.array(d.T, d.B) > 0) if d.optional else None
    if mask is not None and d.flag:
        mask = mask.to(d.dtype) * 1.5
    return {"kind": kind, "s": s, "targets": targets, "mask": mask}


def loss_value(d: Sizes) -> Arguments:
    out = d.out(dtype=torch.float64)
    return {**loss_data(d), "scale": 0.5, "out": out, "threads": d.threads, "delta": 0.5}


def loss_gradient(d: Sizes) -> Arguments:
    out = d.out(d.T, d.B, d.k)
    return {**loss_data(d), "scale": 0.5, "out": out, "threads": d.threads, "delta": 0.5}


def loss_curvature(d: Sizes) -> Arguments:
    out = d.out(d.T, d.B, d.k)
    data = loss_data(d)
    targets = data.pop("targets")
    return {**data, "out": out, "threads": d.threads, "targets": targets, "delta": 0.5}


def loss_hessian_product(d: Sizes) -> Arguments:
    return {
        "c": d.array(d.T, d.B, d.k).sigmoid(),
        "Rs": d.array(d.T, d.B, d.k),
        "rank_one": d.loss % 3,
        "scale": 0.5,
        "out": d.out(d.T, d.B, d.k),
        "threads": d.threads,
    }


def flat_vectors(d: Sizes, *names: str) -> Arguments:
    return {
        name: torch.randn(d.T * d.numel, dtype=d.dtype, generator=d.generator) for name in names
    }


def cg_update(d: Sizes) -> Arguments:
    vectors = flat_vectors(d, "x", "r", "z", "p", "Ap", "b")
    if d.flag and not d.optional:
        vectors["z"] = vectors["r"]  # no preconditioner: one and the same
    diagonal = flat_vectors(d, "preconditioner")["preconditioner"].exp() if d.optional else None
    return {**vectors, "rz": 1.0, "preconditioner": diagonal, "threads": d.threads}


def cg_direction(d: Sizes) -> Arguments:
    return {**flat_vectors(d, "p", "z"), "beta": 0.5, "threads": d.threads}


def dot(d: Sizes) -> Arguments:
    return {**flat_vectors(d, "a", "b"), "threads": d.threads}


def momentum_update(d: Sizes) -> Arguments:
    N = d.T * d.numel

    def each() -> Tensor:
        return torch.randn(d.G, N, dtype=d.dtype, generator=d.generator)

    def rates() -> Tensor:
        return torch.rand(d.G, dtype=torch.float64, generator=d.generator)

    return {
        "theta": each(),
        "velocity": each(),
        "gradient": d.array(N),
        "learning_rate": rates(),
        "momentum": rates(),
        "lookahead": rates(),
        "l2": rates() if d.flag else None,
        "ahead": each() if d.optional else None,
        "active": torch.arange(d.G) % 2 == 0 if d.kind == 0 else None,
        "threads": d.threads,
    }


def lookahead_point(d: Sizes) -> Arguments:
    update = momentum_update(d)
    arrays = {name: update[name] for name in ("theta", "velocity", "momentum")}
    out = torch.full_like(arrays["theta"], math.nan)
    return {**arrays, "out": out, "active": None, "threads": d.threads}


def flat_layer(d: Sizes) -> tuple[Tensor, Tensor]:
    """Weights ``[G,H,n]`` and biases ``[G,H]``, cut from the second element of ``[G,N]`` on."""
    flat, size = d.array(d.H * (d.n + 1) + 3), d.H * d.n
    return flat[:, 1 : 1 + size].view(-1, d.H, d.n), flat[:, 1 + size : 1 + size + d.H]


def dense_forward(d: Sizes) -> Arguments:
    W, b = flat_layer(d)
    out = d.out(d.B, d.H)
    a = d.array(d.B, d.n)
    return {"a": a, "W": W, "b": b, "activation": d.kind, "out": out, "threads": d.threads}


def dense_rforward(d: Sizes) -> Arguments:
    W, _ = flat_layer(d)
    V, v_b = flat_layer(d)
    return {
        "a": d.array(d.B, d.n),
        "Ra": d.array(d.B, d.n) if d.optional else None,
        "W": W,
        "V": V,
        "v_b": v_b,
        "y": d.array(d.B, d.H).tanh(),
        "activation": d.kind + 1,
        "out": d.out(d.B, d.H),
        "threads": d.threads,
    }


def dense_backward(d: Sizes) -> Arguments:
    return {
        "delta": d.array(d.B, d.H),
        "W": flat_layer(d)[0],
        "y": d.array(d.B, d.n).tanh(),
        "activation": d.kind,
        "add": d.array(d.B, d.n) if d.optional else None,
        "out": d.out(d.B, d.n),
        "threads": d.threads,
    }


def dense_gradient(d: Sizes) -> Arguments:
    flat, size = d.out(d.H * (d.n + 1)), d.H * d.n
    return {
        "delta": d.array(d.B, d.H),
        "a": d.array(d.B, d.n),
        "scale": 0.5,
        "squared": d.flag,
        "gW": flat[:, :size].view(-1, d.H, d.n),
        "gb": flat[:, size:],
        "threads": d.threads,
    }


def net_gradient(d: Sizes) -> Arguments:
    sizes = [d.n, d.H, d.k] if d.optional else [d.n, d.H, d.T, d.k]
    parameters = sum(m * (n + 1) for n, m in itertools.pairwise(sizes))
    targets = d.array(d.B, d.k).sigmoid()
    if d.kind == 2:
        targets = torch.randint(0, d.k, (1, d.B), generator=d.generator)
    return {
        "kind": d.kind,
        "x": d.array(d.B, d.n),
        "targets": targets,
        "theta": d.array(parameters) / 4,
        "sizes": sizes,
        "activations": [(d.kind + l) % 4 for l in range(len(sizes) - 1)],
        "scale": 0.5,
        "out": d.out(parameters),
        "losses": d.out(dtype=torch.float64),
        "threads": d.threads,
    }


def net_update(d: Sizes) -> Arguments:
    given = net_gradient(d)
    given["theta"] = given["theta"].repeat(d.G // len(given["theta"]), 1)
    rate = {name: d.out(dtype=torch.float64).fill_(0.1) for name in ("momentum", "lookahead", "l2")}
    return {
        **{name: given[name] for name in ("kind", "x", "targets", "theta")},
        "velocity": torch.zeros_like(given["theta"]),
        **{name: given[name] for name in ("sizes", "activations", "scale")},
        "learning_rate": d.out(dtype=torch.float64).fill_(0.1),
        **rate,
        "active": d.out(dtype=torch.bool).fill_(True) if d.flag else None,
        "out": given["out"] if d.optional else None,
        "losses": given["losses"],
        "threads": d.threads,
    }


def contrastive_step(d: Sizes) -> Arguments:
    n, m = d.n, d.H
    theta = d.array(m * n + m + n) / 4
    moves = d.flag and len(theta) == d.G
    return {
        "v": d.array(d.B, n),
        "noise": d.array(d.B, m),
        "theta": theta,
        "velocity": torch.zeros_like(theta) if moves else None,
        "out": d.out(theta.shape[1]) if d.optional or not moves else None,
        "visible_gaussian": d.kind % 2 == 0,
        "hidden_gaussian": d.optional,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_cost": 0.01,
        "errors": d.out(dtype=torch.float64),
        "threads": d.threads,
    }


def philox(d: Sizes) -> Arguments:
    out = torch.zeros(d.B * d.n, dtype=torch.int64)
    return {"seed": d.k, "number": d.H, "out": out, "threads": d.threads}


def uniform(d: Sizes) -> Arguments:
    return {"seed": d.k, "number": d.H, "out": d.out(d.B, d.n), "threads": d.threads}


def entries(d: Sizes, rows: int, columns: int) -> tuple[Arguments, int]:
    """Entries of a matrix row by row, every other row short where ``optional``; and K."""
    K = min(d.k, columns)
    index = torch.rand(rows, columns, generator=d.generator).topk(K).indices.sort().values
    if d.optional:
        index[::2, 1:] = index[::2, :1]
    pattern = ell_pattern(index, columns)
    rows = pattern.rows
    return {"start": rows.start, "column": rows.column, "place": rows.place}, K


def ell_product(d: Sizes) -> Arguments:
    where, K = entries(d, d.H, d.n)
    out = d.out(d.B, d.H)
    value = d.array(d.H * K)
    return {"x": d.array(d.B, d.n), "value": value, **where, "out": out, "threads": d.threads}


def ell_gradient(d: Sizes) -> Arguments:
    where, K = entries(d, d.H, d.n)
    g, out = d.array(d.B, d.H), d.out(d.H * K)
    return {"g": g, "x": d.array(d.B, d.n), **where, "out": out, "threads": d.threads}


def ell_scan(d: Sizes) -> Arguments:
    where, K = entries(d, d.H, d.H)
    return {
        "u": d.array(d.T, d.B, d.H),
        "d": d.array(d.T, d.B, d.H).tanh(),
        "value": d.array(d.H * K) / d.H,
        **where,
        "a": d.array(d.T, d.B, d.H) if d.optional else None,
        "reverse": d.flag,
        "out": d.out(d.T, d.B, d.H),
        "threads": d.threads,
    }


def ell_hidden(d: Sizes) -> Arguments:
    where, K = entries(d, d.H, d.H)
    return {
        "u": d.array(d.T, d.B, d.H),
        "value": d.array(d.H * K) / d.H,
        **where,
        "nonlinearity": d.kind,
        "out": d.out(d.T, d.B, d.H),
        "threads": d.threads,
    }


def gated_states(d: Sizes, cell: int) -> Arguments:
    """Those of an LSTM (0) or a GRU (1)."""
    size = d.T, d.B, d.H
    cells = d.array(2, *size).tanh() if cell == 0 else None
    return {"h": d.array(*size).tanh(), "gates": d.array(4, *size).tanh(), "cells": cells}


def gated_forward(d: Sizes) -> Arguments:
    cell, kept = d.kind % 2, d.flag
    rows, size = (4 - cell) * d.H, (d.T, d.B, d.H)
    return {
        "x": d.array(d.T, d.B, d.n),
        "W_ih": d.array(rows, d.n),
        "W_hh": d.array(rows, d.H) / d.H,
        "b": d.array(4, d.H),
        "cell": cell,
        "h": d.out(*size),
        "gates": d.out(4, *size) if kept else None,
        "cells": d.out(2, *size) if kept and cell == 0 else None,
        "threads": d.threads,
    }


def gated_tangent(d: Sizes) -> Arguments:
    cell = d.kind % 2
    rows = (4 - cell) * d.H
    return {
        "x": d.array(d.T, d.B, d.n),
        **gated_states(d, cell),
        "Rx": d.array(d.T, d.B, d.n) if d.optional else None,
        "W_ih": d.array(rows, d.n),
        "W_hh": d.array(rows, d.H) / d.H,
        "V_ih": d.array(rows, d.n),
        "V_hh": d.array(rows, d.H) / d.H,
        "V_b": d.array(4, d.H),
        "cell": cell,
        "out": d.out(d.T, d.B, d.H),
        "threads": d.threads,
    }


def gated_backward(d: Sizes) -> Arguments:
    cell = d.kind % 2
    return {
        "gh": d.array(d.T, d.B, d.H),
        **gated_states(d, cell),
        "W_hh": d.array((4 - cell) * d.H, d.H) / d.H,
        "cell": cell,
        "out": d.out(4, d.T, d.B, d.H),
        "threads": d.threads,
    }


def gated_gradient(d: Sizes) -> Arguments:
    cell = d.kind % 2
    rows = (4 - cell) * d.H
    return {
        "gh": d.array(d.T, d.B, d.H),
        "x": d.array(d.T, d.B, d.n),
        **gated_states(d, cell),
        "W_hh": d.array(rows, d.H) / d.H,
        "cell": cell,
        "out_W_ih": d.out(rows, d.n),
        "out_W_hh": d.out(rows, d.H),
        "out_b": d.out(4, d.H),
        "ga": d.out(4, d.T, d.B, d.H) if d.optional else None,
        "threads": d.threads,
    }


RECIPES = (
    rnn_forward,
    linear_scan,
    rnn_backward,
    rnn_gauss_newton,
    gated_forward,
    gated_tangent,
    gated_backward,
    gated_gradient,
    dense_forward,
    dense_rforward,
    dense_backward,
    dense_gradient,
    net_gradient,
    net_update,
    contrastive_step,
    philox,
    uniform,
    ell_product,
    ell_gradient,
    ell_scan,
    ell_hidden,
    loss_value,
    loss_gradient,
    loss_curvature,
    loss_hessian_product,
    cg_update,
    cg_direction,
    dot,
    momentum_update,
    lookahead_point,
)
OPS = [recipe for recipe in RECIPES if hasattr(NATIVE, recipe.__name__)]

# ---------------------------------------------------------------------------- spoilt arguments

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.complex64,
)
INTEGERS = (0, 1, -1, 2, 3, 64, 300, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63), 2**64)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-320, 1e300, -1e300, math.inf, -math.inf, math.nan)
numbers = st.sampled_from(INTEGERS) | st.sampled_from(FLOATS)


@st.composite
def anything(draw: Callable[[st.SearchStrategy[Any]], Any]) -> object:
    """Whatever may come in place of an argument."""
    kind = draw(st.sampled_from(["number", "object", "tensor", "tensor", "tensor", "numpy"]))
    if kind == "number":
        return draw(numbers)
    if kind == "object":
        others = [None, True, False, "x", b"x", (), [1.0], {}, object(), 1j, Ellipsis, torch]
        return draw(st.sampled_from(others))
    shape = draw(st.lists(st.integers(0, 5), max_size=5))
    if draw(st.booleans()) and shape:
        shape[draw(st.integers(0, len(shape) - 1))] = 0
        shape = [length * draw(st.sampled_from([1, 1, 2**12])) for length in shape]
    tensor = torch.full(shape, draw(st.sampled_from(FLOATS)), dtype=torch.float64)
    if kind == "numpy":
        array = tensor.numpy().astype(draw(st.sampled_from(["f4", "f8", "i8", "U3", "O", "?"])))
        array.flags.writeable = draw(st.booleans())
        return array
    tensor = tensor.to(draw(st.sampled_from(DTYPES)))
    if draw(st.booleans()) and tensor.is_floating_point():
        tensor.requires_grad_()
    return tensor


def spoil_tensor(draw: Callable[[st.SearchStrategy[Any]], Any], good: Tensor) -> object:
    """A tensor a little unlike the good one, by shape, dtype, layout, memory or values."""
    how = draw(st.sampled_from(
        ["dtype", "axis", "rank", "strided", "expanded", "values", "numpy", "read_only",
         "offset", "meta", "sparse", "negated", "transposed"]
    ))  # fmt: skip
    axis = draw(st.integers(0, good.ndim - 1)) if good.ndim else 0
    if how == "dtype":
        return good.to(draw(st.sampled_from(DTYPES)))
    if how == "axis" and good.ndim:
        length = draw(st.sampled_from([0, 1, good.shape[axis] - 1, good.shape[axis] + 1]))
        shape = [*good.shape[:axis], length, *good.shape[axis + 1 :]]
        return torch.zeros(shape, dtype=good.dtype)
    if how == "rank":
        return draw(st.sampled_from([good.unsqueeze(0), good.reshape(-1), good.sum()]))
    if how == "strided":
        return torch.stack([good, good], dim=-1)[..., 0]
    if how == "expanded" and good.ndim:
        return good.narrow(axis, 0, 1).expand(good.shape)
    if how == "values":
        return spoil_values(draw, good.contiguous().clone())
    if how == "numpy":
        return good.numpy().copy()
    if how == "read_only":
        array = good.numpy().copy()
        array.flags.writeable = False
        return array
    if how == "offset":  # not aligned to a vector, and nothing behind its end
        pool = torch.zeros(good.numel() + 1, dtype=good.dtype)
        return pool[1:].view(good.shape).copy_(good)
    if how == "meta":
        return good.to("meta")
    if how == "sparse" and good.ndim:
        return good.to_sparse()
    if how == "negated" and good.is_floating_point():
        return torch._neg_view(good)
    return good.permute(tuple(reversed(range(good.ndim))))


def spoil_values(draw: Callable[[st.SearchStrategy[Any]], Any], tensor: Tensor) -> Tensor:
    """NaN, infinities and denormals in floats, huge and negative numbers in integers."""
    if tensor.numel() == 0 or tensor.dtype == torch.bool:
        return tensor
    position = draw(st.integers(0, tensor.numel() - 1))
    if tensor.is_floating_point():
        value = torch.tensor(draw(st.sampled_from(FLOATS)), dtype=torch.float64)
        tensor.view(-1)[position] = value.to(tensor.dtype)
    else:
        reach = torch.iinfo(tensor.dtype)
        fits = [i for i in INTEGERS if reach.min <= i <= reach.max]
        tensor.view(-1)[position] = draw(st.sampled_from(fits))
    return tensor


def is_plain(tensor: Tensor) -> bool:
    """Whether it is as a recipe made it, not spoilt before."""
    known = (torch.float32, torch.float64, torch.int32, torch.int64, torch.bool)
    strided = tensor.layout == torch.strided and tensor.device.type == "cpu"
    odd = tensor.is_neg() or tensor.requires_grad or tensor.numel() == 0
    return strided and not odd and tensor.dtype in known


def spoil(draw: Callable[[st.SearchStrategy[Any]], Any], arguments: Arguments) -> None:
    """Change one argument: a little, into another of the call's, or into anything."""
    name = draw(st.sampled_from(sorted(arguments)))
    value = arguments[name]
    how = draw(st.sampled_from(["a little", "a little", "another", "anything"]))
    if how == "a little" and isinstance(value, Tensor) and is_plain(value):
        arguments[name] = spoil_tensor(draw, value)
    elif how == "a little" and isinstance(value, bool | int | float):
        arguments[name] = draw(numbers)
    elif how == "another":
        arguments[name] = arguments[draw(st.sampled_from(sorted(arguments)))]
    else:
        arguments[name] = draw(anything())


# --------------------------------------------------------------------------------------- calls


def arity(function: Callable[..., object]) -> int:
    """Number of arguments, from the signature that the module documents."""
    return len(re.findall(r"\w+: ", (function.__doc__ or "").split("->")[0]))


@st.composite
def calls(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tuple[str, str, list[object]]:
    """(kind, function name, arguments) of one call."""
    kind = draw(st.sampled_from(["good", "spoilt", "spoilt", "spoilt", "wild"]))
    if kind == "wild":
        public = sorted(f for f in dir(NATIVE) if not f.startswith("__"))
        names = [f for f in public if callable(getattr(NATIVE, f))]
        name = draw(st.sampled_from(names))
        count = arity(getattr(NATIVE, name)) + draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
        return kind, name, [draw(anything()) for _ in range(max(count, 0))]
    recipe = draw(st.sampled_from(OPS))
    arguments = recipe(Sizes(draw))
    if kind == "spoilt":
        for _ in range(draw(st.integers(1, 2))):
            spoil(draw, arguments)
    return kind, recipe.__name__, list(arguments.values())


outcomes: collections.Counter[str] = collections.Counter()


def check_filled(arguments: list[object]) -> None:
    """No element of an output kept the NaN that it was filled with."""
    for argument in arguments:
        if isinstance(argument, Tensor) and argument.is_floating_point():
            assert not bool(argument.isnan().any()), "an output was not filled"


@hypothesis.seed(SEED)
@settings(
    max_examples=CALLS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(calls())
def run(call: tuple[str, str, list[object]]) -> None:
    kind, name, arguments = call
    try:
        getattr(NATIVE, name)(*arguments)
    except ALLOWED as error:
        if kind == "good":
            raise AssertionError(f"{name} refused good arguments") from error
        outcomes[f"{kind:7s} {type(error).__name__}"] += 1
    else:
        if kind == "good":
            check_filled(arguments)
        outcomes[f"{kind:7s} answered"] += 1


def main() -> None:
    faulthandler.enable()
    if os.environ.get("HFCORE_FUZZ_SANITIZED") == "1":
        path = str(NATIVE.__file__)
        if b"__asan_report" not in Path(path).read_bytes():
            sys.exit(f"{path} was not built with -DHFCORE_SANITIZE=ON")
    warnings.simplefilter("ignore")  # torch's, on exporting what should not be exported
    print(f"{len(OPS)} ops, {CALLS} calls, instruction set {NATIVE.isa()}", flush=True)
    run()
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:8d}  {outcome}")
    done = sum(outcomes.values())
    print(f"{done:8d}  calls, no crash")
    if done < CALLS:
        sys.exit(f"only {done} of {CALLS} calls were made")


if __name__ == "__main__":
    main()
