"""Dense ops: shape checks, allocation, choice of implementation.

Every array carries a leading group axis; length 1 (or a stride of 0) shares it among the group.
Shapes and formulas: ``kernels/dense/reference.py``. Weights, tangents and gradients may be views
into flat vectors: behind the group axis they are contiguous, the group's stride is free.

``out`` may share no memory with an argument (ValueError). ``stop``, int32 ``[1]`` on the device, is
for solvers that run there: where it is not zero the CUDA kernels do nothing and ``out`` stays as it
is. The other backends do not look at it.

On CUDA, float32 under ``set_matmul_precision("ieee")``, the default, is CUDA C++ (``gpu.cu``) where
its binary loads, in groups that its grid holds (65,535 nets); all else is Triton: float64, TF32,
an install without nvcc.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from numbers import Real
from types import ModuleType

import torch
from torch import Tensor

from hfcore.bindings import cuda
from hfcore.bindings.checks import (
    check_choice,
    check_group,
    check_positive,
    check_tensor,
    overlap,
)
from hfcore.bindings.dispatch import choose, native
from hfcore.bindings.recurrence import Scratch
from hfcore.bindings.threads import kernel_threads
from hfcore.bindings.triton_backend import matmul_precision, serving
from hfcore.kernels.dense import gpu, reference

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

ACTIVATIONS = (reference.LINEAR, reference.LOGISTIC, reference.TANH, reference.RELU)

activation_derivative = reference.activation_derivative
split_layers = reference.split_layers


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
    backend = choose("dense.dense_forward", a)
    if backend == "cuda":
        with _cuda("dense_forward", out) as run:
            run(_nets(a), _nets(W), _nets(b), activation, out)
        return out
    if backend == "cpu":
        native().dense_forward(
            _nets(a),
            _nets(W),
            _nets(b),
            ACTIVATIONS.index(activation),
            out,
            kernel_threads(),
        )
        return out
    return out.copy_(reference.dense_forward(a.detach(), W.detach(), b.detach(), activation))


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
    backend = choose("dense.dense_rforward", a)
    if backend == "cuda":
        with _cuda("dense_rforward", out) as run:
            run(
                _nets(a),
                None if Ra is None else _nets(Ra),
                _nets(W),
                _nets(V),
                _nets(v_b),
                _nets(y),
                activation,
                out,
                stop,
            )
        return out
    if backend == "cpu":
        native().dense_rforward(
            _nets(a),
            None if Ra is None else _nets(Ra),
            _nets(W),
            _nets(V),
            _nets(v_b),
            _nets(y),
            ACTIVATIONS.index(activation),
            out,
            kernel_threads(),
        )
        return out
    Ry = reference.dense_rforward(
        a.detach(),
        None if Ra is None else Ra.detach(),
        W.detach(),
        V.detach(),
        v_b.detach(),
        y.detach(),
        activation,
    )
    return out.copy_(Ry)


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
    backend = choose("dense.dense_backward", delta)
    if backend == "cuda":
        with _cuda("dense_backward", out) as run:
            run(
                _nets(delta),
                _nets(W),
                _nets(y),
                activation,
                None if add is None else _nets(add),
                out,
                stop,
            )
        return out
    if backend == "cpu":
        native().dense_backward(
            _nets(delta),
            _nets(W),
            _nets(y),
            ACTIVATIONS.index(activation),
            None if add is None else _nets(add),
            out,
            kernel_threads(),
        )
        return out
    below = reference.dense_backward(
        delta.detach(), W.detach(), y.detach(), activation, None if add is None else add.detach()
    )
    return out.copy_(below)


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
    gW, gb = _check_gradients(out, G, m, n, delta, a)
    backend = choose("dense.dense_gradient", delta)
    if backend == "cuda":
        with _cuda("dense_gradient", gW) as run:
            run(
                _nets(delta),
                _nets(a),
                scale,
                squared,
                gW,
                gb,
                stop,
                take=None if scratch is None else partial(scratch.take, "dense_gradient", delta),
            )
        return gW, gb
    if backend == "cpu":
        native().dense_gradient(_nets(delta), _nets(a), scale, squared, gW, gb, kernel_threads())
        return gW, gb
    sums = reference.dense_gradient(delta.detach(), a.detach(), scale, squared)
    return gW.copy_(sums[0]), gb.copy_(sums[1])


@contextmanager
def _cuda(op: str, out: Tensor) -> Iterator[Callable[..., object]]:
    """The CUDA form that serves results like ``out``, by the rule at the top."""
    if compiled_form(out):
        with cuda.serving(f"dense.{op}", "dense", out.device) as launch:
            yield partial(getattr(gpu, op), launch)
    else:
        with serving(f"dense.{op}", out.device):
            yield partial(getattr(_triton(), op), precision=matmul_precision())


def compiled_form(out: Tensor) -> bool:
    """Whether CUDA C++ makes ``out [G,...]``, and not Triton."""
    return (
        out.dtype == torch.float32
        and matmul_precision() == "ieee"
        and out.shape[0] <= gpu.MOST_NETS
        and cuda.why_unavailable("dense", out.device) is None
    )


def _triton() -> ModuleType:
    from hfcore.kernels.dense import gpu_triton  # needs Triton, which only CUDA data asks for

    return gpu_triton


def _nets(t: Tensor) -> Tensor:
    """Detached, every net contiguous, the group's stride as it is; one expanded net is cut to 1."""
    t = t.detach()
    if t.shape[0] > 1 and t.stride(0) == 0:
        t = t[:1]
    return t.resolve_neg() if t[0].is_contiguous() else t.contiguous().resolve_neg()


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
