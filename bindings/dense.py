"""Dense ops: checks, allocation, choice of implementation (``forms/dense``).

Every array carries a leading group axis; length 1 (or a stride of 0) shares it among the group.
Shapes and formulas: ``kernels/dense/reference.py``. Weights, tangents and gradients may be views
into flat vectors: behind the group axis they are contiguous, the group's stride is free.

``out`` may share no memory with an argument (ValueError). ``stop``, int32 ``[1]`` on the device, is
for solvers that run there: where it is not zero the CUDA kernels do nothing and ``out`` stays as it
is. The other backends do not look at it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

import torch
from torch import Tensor

from hfcore.bindings.checks import (
    check_choice,
    check_group,
    check_positive,
    check_tensor,
    overlap,
)
from hfcore.bindings.dispatch import choose
from hfcore.bindings.forms.dense import form
from hfcore.bindings.scratch import Scratch
from hfcore.kernels.dense.reference import ACTIVATIONS, activation_derivative, split_layers

__all__ = [
    "ACTIVATIONS",
    "Scratch",
    "activation_derivative",
    "dense_backward",
    "dense_forward",
    "dense_gradient",
    "dense_rforward",
    "split_layers",
]


def dense_forward(
    a: Tensor, W: Tensor, b: Tensor, *, activation: str, out: Tensor | None = None
) -> Tensor:
    """y = φ(a Wᵀ + b) ``[G,B,m]`` from ``a [G,B,n]``, ``W [G,m,n]``, ``b [G,m]``."""
    check_choice("activation", activation, ACTIVATIONS)
    _, B, n = _check_cases("a", a, "n")
    m = _check_weights("W", W, a, n=n)
    check_tensor("b", b, ["G", m], like=a)
    G = check_group(a=a, W=W, b=b)
    out = _check_out(out, (G, B, m), a, a=a, W=W, b=b)
    return form(choose("dense.dense_forward", a)).dense_forward(a, W, b, activation, out)


def dense_rforward(
    a: Tensor,
    Ra: Tensor | None,
    W: Tensor,
    V: Tensor,
    v_b: Tensor,
    y: Tensor,
    *,
    activation: str,
    out: Tensor | None = None,
    stop: Tensor | None = None,
) -> Tensor:
    """Ry = φ'(z) ⊙ (Ra Wᵀ + a Vᵀ + v_b) ``[G,B,m]``, φ' from ``y [G,B,m]``.

    ``a, Ra [G,B,n]``, ``W, V [G,m,n]``, ``v_b [G,m]``; ``Ra`` None: the inputs have no tangent.
    """
    check_choice("activation", activation, ACTIVATIONS)
    _, B, n = _check_cases("a", a, "n")
    if Ra is not None:
        check_tensor("Ra", Ra, ["G", B, n], like=a)
    m = _check_weights("W", W, a, n=n)
    check_tensor("V", V, ["G", m, n], like=a)
    check_tensor("v_b", v_b, ["G", m], like=a)
    check_tensor("y", y, ["G", B, m], like=a)
    _check_stop(stop)
    arrays = {"a": a, "Ra": Ra, "W": W, "V": V, "v_b": v_b, "y": y}
    out = _check_out(out, (check_group(**arrays), B, m), a, **arrays)
    serving = form(choose("dense.dense_rforward", a))
    return serving.dense_rforward(a, Ra, W, V, v_b, y, activation, out, stop)


def dense_backward(
    delta: Tensor,
    W: Tensor,
    y: Tensor,
    *,
    activation: str,
    add: Tensor | None = None,
    out: Tensor | None = None,
    stop: Tensor | None = None,
) -> Tensor:
    """(δ W) ⊙ φ'(z) + add ``[G,B,n]`` from ``delta [G,B,m]``, ``W [G,m,n]``.

    ``y [G,B,n]`` and ``activation`` are those of the layer below, ``add [G,B,n]``.
    """
    check_choice("activation", activation, ACTIVATIONS)
    _, B, m = _check_cases("delta", delta, "m")
    check_tensor("W", W, ["G", m, "n"], like=delta)
    n = W.shape[2]
    check_positive(n=n)
    check_tensor("y", y, ["G", B, n], like=delta)
    if add is not None:
        check_tensor("add", add, ["G", B, n], like=delta)
    _check_stop(stop)
    arrays = {"delta": delta, "W": W, "y": y, "add": add}
    out = _check_out(out, (check_group(**arrays), B, n), delta, **arrays)
    serving = form(choose("dense.dense_backward", delta))
    return serving.dense_backward(delta, W, y, activation, add, out, stop)


def dense_gradient(
    delta: Tensor,
    a: Tensor,
    *,
    scale: float = 1.0,
    squared: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
    stop: Tensor | None = None,
    scratch: Scratch | None = None,
) -> tuple[Tensor, Tensor]:
    """(scale·δᵀa ``[G,m,n]``, scale·Σδ ``[G,m]``) from ``delta [G,B,m]``, ``a [G,B,n]``.

    ``squared`` sums squares, scale·(δ²)ᵀ(a²) and scale·Σδ². ``out`` are two buffers whose group
    stride is free, such as two parts of the rows of one ``[G,N]``. ``scratch`` keeps the buffer
    that the CUDA form sums a narrow layer's cases in; without it each such call allocates.
    """
    _, B, m = _check_cases("delta", delta, "m")
    check_tensor("a", a, ["G", B, "n"], like=delta)
    n = a.shape[2]
    check_positive(n=n)
    check_factor("scale", scale)
    _check_stop(stop)
    G = check_group(delta=delta, a=a)
    both = _check_gradients(out, G, m, n, delta, a)
    serving = form(choose("dense.dense_gradient", delta))
    return serving.dense_gradient(delta, a, scale, squared, both, stop, scratch)


# ---------------------------------------------------------------------------- checks


def _check_cases(name: str, x: Tensor, width: str) -> tuple[int, int, int]:
    """Check an array ``[G,B,width]`` by itself; gives its shape."""
    check_tensor(name, x, ["G", "B", width])
    if not x.is_floating_point():
        raise TypeError(f"{name}: got {x.dtype}, need a floating-point dtype")
    G, B, columns = x.shape
    check_positive(G=G, B=B, **{width: columns})
    return G, B, columns


def _check_weights(name: str, W: Tensor, like: Tensor, *, n: int) -> int:
    """Check ``W [G,m,n]``; gives m."""
    check_tensor(name, W, ["G", "m", n], like=like)
    check_positive(m=W.shape[1])
    return W.shape[1]


def check_factor(name: str, value: object) -> None:
    """Check a finite number; TypeError or ValueError otherwise."""
    if not isinstance(value, Real):
        raise TypeError(f"{name}: got {type(value).__name__}, need a float")
    if not math.isfinite(value):
        raise ValueError(f"{name}: got {value}, need a finite number")


def _check_stop(stop: Tensor | None) -> None:
    if stop is not None:
        check_tensor("stop", stop, [1], dtype=torch.int32)


def _check_out(
    out: Tensor | None, shape: tuple[int, ...], like: Tensor, **inputs: Tensor | None
) -> Tensor:
    """A new output, or the caller's if it is fit to be written and shares no memory."""
    if out is None:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    _check_buffer("out", out, shape, like, inputs)
    return out


def _check_gradients(
    out: tuple[Tensor, Tensor] | None, G: int, m: int, n: int, delta: Tensor, a: Tensor
) -> tuple[Tensor, Tensor]:
    """The two outputs of dense_gradient, new or the caller's."""
    if out is None:
        return delta.new_empty(G, m, n), delta.new_empty(G, m)
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"out: got {type(out).__name__}, need a tuple of gW and gb")
    gW, gb = out
    inputs = {"delta": delta, "a": a}
    _check_buffer("out[0]", gW, (G, m, n), delta, inputs)
    _check_buffer("out[1]", gb, (G, m), delta, inputs)
    if _interleaved_overlap(gW, gb):
        raise ValueError("out[1]: shares memory with out[0], need its own")
    return gW, gb


def _check_buffer(
    name: str,
    out: Tensor,
    shape: tuple[int, ...],
    like: Tensor,
    inputs: Mapping[str, Tensor | None],
) -> None:
    """Check an output: shape, dtype, contiguous nets apart from each other and from the inputs."""
    check_tensor(name, out, shape, like=like)
    if not out[0].is_contiguous() or out.is_neg():
        raise ValueError(f"{name}: is not contiguous behind the group axis, need it to be")
    if out.shape[0] > 1 and out.stride(0) < out[0].numel():
        raise ValueError(f"{name}: its nets overlap, need one piece of memory for each")
    if out.requires_grad:
        raise ValueError(f"{name}: requires grad, need a plain buffer")
    for other, value in inputs.items():
        if value is not None and overlap(out, value):
            raise ValueError(f"{name}: shares memory with {other}, need its own")


def _interleaved_overlap(a: Tensor, b: Tensor) -> bool:
    """The same for two outputs that may be parts of the rows of one ``[G,N]``."""
    if not overlap(a, b):
        return False
    stride = a.stride(0)
    if a.shape[0] == 1 or stride != b.stride(0):
        return True
    gap = (b.data_ptr() - a.data_ptr()) // a.element_size() % stride
    return gap < a[0].numel() or gap + b[0].numel() > stride
