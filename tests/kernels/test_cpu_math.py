"""Errors of the kernels' vector exp, log1p, tanh and logistic, in units of the last place."""

from __future__ import annotations

import numpy as np
import pytest

from hfcore.bindings.dispatch import native

FUNCTIONS = ("exp", "log1p", "tanh", "logistic")
# Each chain has at most five roundings after its polynomial; the worst of 2.5e7 floats is 2.4 ulp,
# of 1.4e7 doubles 2.55 ulp (tanh).
MOST_ULP = 3.0


def compiled(function: str, x: np.ndarray) -> np.ndarray:
    out = np.full_like(x, np.nan)
    native()._math(function, x, out)
    return out


def wide(function: str, x: np.ndarray) -> np.ndarray:
    """The truth, in float64 for float32 and in long double for float64."""
    with np.errstate(all="ignore"):
        w = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
        if function == "logistic":
            e = np.exp(-np.abs(w))
            return np.where(w < 0, e, 1.0) / (1 + e)
        return getattr(np, function)(w)


def ulps(got: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """|got - truth| in units of the last place of got's type, denormals included."""
    info = np.finfo(got.dtype)
    _, exponent = np.frexp(truth)
    place = np.maximum(exponent - info.nmant - 1, info.minexp - info.nmant)
    return np.ldexp(np.abs(got.astype(truth.dtype) - truth), -place)


def grid(dtype: type) -> np.ndarray:
    """Dense near zero and over the working range, then every exponent of both signs."""
    rng = np.random.default_rng(0)
    info = np.finfo(dtype)
    exponents = np.arange(info.minexp - info.nmant, info.maxexp)
    mantissas = np.array([1.0, 1.0 + info.eps, 1.3, 1.4142, 1.9999])
    powers = np.ldexp(mantissas[:, None], exponents).ravel()
    dense = [np.linspace(-1, 1, 200_001), np.linspace(-110, 110, 400_003)]
    if dtype is np.float64:
        dense.append(np.linspace(-760, 720, 400_003))
    bits = rng.integers(0, 2**info.bits, 200_000, dtype=np.uint64)
    random = bits.astype(f"u{info.bits // 8}").view(dtype)
    return np.concatenate([*(v.astype(dtype) for v in (*dense, powers, -powers)), random])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_error_below_three_ulp(function: str, dtype: type) -> None:
    x = grid(dtype)
    got, truth = compiled(function, x), wide(function, x)
    with np.errstate(over="ignore"):
        rounded = truth.astype(dtype)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(rounded))
    # At the edge of overflow a result within 1 ulp of the largest number may be infinite.
    infinite = np.isinf(rounded) | np.isinf(got)
    edge = np.abs(truth) > np.finfo(dtype).max * (1 - 1e-6)
    np.testing.assert_array_equal(got[infinite & ~edge], rounded[infinite & ~edge])
    finite = np.isfinite(rounded) & np.isfinite(got)
    error = ulps(got[finite], truth[finite])
    worst = int(np.argmax(error))
    assert error[worst] <= MOST_ULP, f"{function}({x[finite][worst]!r}): {error[worst]:.2f} ulp"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_special_values(function: str, dtype: type) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, tiny, -tiny, -1.0], dtype)
    wanted = {
        "exp": [np.nan, np.nan, np.inf, 0.0, 1.0, 1.0, 1.0, 1.0, np.exp(dtype(-1))],
        "log1p": [np.nan, np.nan, np.inf, np.nan, 0.0, -0.0, tiny, -tiny, -np.inf],
        "tanh": [np.nan, np.nan, 1.0, -1.0, 0.0, -0.0, tiny, -tiny, np.tanh(dtype(-1))],
        "logistic": [np.nan, np.nan, 1.0, 0.0, 0.5, 0.5, 0.5, 0.5, 1 / (1 + np.exp(dtype(1)))],
    }[function]
    got = compiled(function, x)
    exact = slice(0, -1) if function != "log1p" else slice(None)
    np.testing.assert_array_equal(got[exact], np.array(wanted, dtype)[exact])
    np.testing.assert_array_equal(np.signbit(got[4:8]), np.signbit(np.array(wanted, dtype)[4:8]))
    np.testing.assert_allclose(got[-1], wanted[-1], rtol=3 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tanh_is_odd_and_bounded(dtype: type) -> None:
    x = grid(dtype)
    x = x[~np.isnan(x)]
    y = compiled("tanh", x)
    np.testing.assert_array_equal(compiled("tanh", -x), -y)
    assert np.abs(y).max() == 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33])
def test_tail_equals_whole_vectors(n: int, dtype: type) -> None:
    x = np.linspace(-3, 3, 64).astype(dtype)
    buffer = np.full(65, np.nan, dtype)
    native()._math("tanh", x[:n], buffer[:n])
    np.testing.assert_array_equal(buffer[:n], compiled("tanh", x)[:n])
    assert np.isnan(buffer[n:]).all()


def test_refuses_what_it_cannot_compute() -> None:
    x = np.zeros(3)
    with pytest.raises(ValueError, match="function: got sin"):
        native()._math("sin", x, x.copy())
    with pytest.raises(ValueError, match=r"out: got shape \[2\], need \[3\]"):
        native()._math("exp", x, np.zeros(2))
    with pytest.raises(TypeError, match="out"):
        native()._math("exp", x, np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="float32 or float64"):
        native()._math("exp", np.zeros(3, np.int64), x)
