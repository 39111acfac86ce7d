"""Tensor cores in Triton's interpreter, which multiplies in float32 whatever it is asked for.

A dot of "bf16x6" becomes what Triton's compiler makes of it: each operand is the sum of three
bfloat16, six of their nine products are added from the smallest to the largest (what is NaN before
the largest counts as zero), and their sum joins the dot's third operand by one float32 addition;
tests/gates/test_triton_aot.py compares the order with the compiler's. A tensor core adds 8 products
at once to what it has and cuts the sum one bit below float32, as in
``emulation/tensor_cores_on_cpu.h``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from triton.runtime import interpreter

# Pieces of the left and of the right operand, the smallest products first.
ORDER = ((1, 1), (2, 0), (0, 2), (1, 0), (0, 1), (0, 0))
AT_ONCE, EXTRA_BITS = 8, 1


@dataclass
class Emulated:
    """How many dots were emulated."""

    dots: int = 0


def pieces(x: np.ndarray) -> list[np.ndarray]:
    """Three bfloat16 whose sum is the float32 ``x``, as float32: each rounds what is left."""
    found = []
    for _ in range(3):
        piece = _bfloat16(x)
        found.append(piece)
        x = x - piece
    return found


def _bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to nearest, ties to even; NaN stays."""
    bits = x.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    kept = np.where(np.isnan(x), bits, rounded & np.uint32(0xFFFF0000))
    return kept.astype(np.uint32).view(np.float32)


def dot(a: np.ndarray, b: np.ndarray, start: np.ndarray, products: int = 6) -> np.ndarray:
    """``start [M,N]`` + a b, of ``a [M,K]``, ``b [K,N]``, by the largest so many products."""
    total = np.zeros_like(start)
    with np.errstate(invalid="ignore", over="ignore"):
        left, right = pieces(np.ascontiguousarray(a)), pieces(np.ascontiguousarray(b))
        for i, j in ORDER[6 - products :]:
            if (i, j) == (0, 0):  # an infinite number has NaN in its other pieces
                total = np.where(np.isnan(total), np.float32(0), total)
            total = _tensor_core(left[i].astype(np.float64), right[j].astype(np.float64), total)
        return start + total


def _tensor_core(a: np.ndarray, b: np.ndarray, start: np.ndarray) -> np.ndarray:
    for k in range(0, a.shape[1], AT_ONCE):
        terms = a[:, k : k + AT_ONCE, None] * b[None, k : k + AT_ONCE, :]
        terms = np.concatenate([terms, start[:, None, :].astype(np.float64)], axis=1)
        largest = np.abs(terms).max(axis=1, keepdims=True)
        place = np.ldexp(1.0, np.frexp(largest)[1] - 1 - 23 - EXTRA_BITS)
        place = np.where(largest == 0, 1.0, place)
        exact = (np.trunc(terms / place) * place).sum(axis=1)
        exact = np.where(np.isfinite(terms).all(axis=1), exact, terms.sum(axis=1))
        start = exact.astype(np.float32)
        beyond = np.abs(start.astype(np.float64)) > np.abs(exact)
        start = np.where(beyond, np.nextafter(start, np.float32(0)), start)
    return start


@contextmanager
def six_products(products: int = 6) -> Iterator[Emulated]:
    """Dots of "bf16x6" in the interpreter are such ones inside, or of fewer products."""
    builder: Any = interpreter.interpreter_builder
    seen, before = Emulated(), builder.options
    plain = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, *rest: Any) -> Any:
        if "bf16x6" not in str(precision).lower():
            return plain(self, a, b, d, precision, *rest)
        seen.dots += 1
        return interpreter.TensorHandle(dot(a.data, b.data, d.data, products), d.dtype.scalar)

    allowed = (*before.allowed_dot_input_precisions, "bf16x6")
    builder.options = interpreter.InterpreterOptions(allowed_dot_input_precisions=allowed)
    interpreter.InterpreterBuilder.create_dot = create_dot
    try:
        yield seen
    finally:
        builder.options = before
        interpreter.InterpreterBuilder.create_dot = plain
