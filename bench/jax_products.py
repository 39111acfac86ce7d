"""JAX's Gauss-Newton products (1/B) Σ Jᵀ J v: ``f`` and its arguments are JAX's own arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Function = Callable[[Any], Any]


def cached(f: Function, parameters: Any, tangents: Any, B: int) -> Callable[[], Any]:
    """``jax.linearize`` once; one jitted call runs the linear map and its transpose."""
    import jax

    linear = jax.block_until_ready(jax.jit(lambda p: jax.linearize(f, p)[1])(parameters))

    @jax.jit  # type: ignore[untyped-decorator]
    def product(linear: Any, v: Any) -> Any:
        return jax.linear_transpose(linear, v)(linear(v) / B)[0]

    return lambda: jax.block_until_ready(product(linear, tangents))


def uncached(f: Function, parameters: Any, tangents: Any, B: int) -> Callable[[], Any]:
    """``jax.jvp`` then ``vjp`` in one jitted call, nothing kept between products."""
    import jax

    @jax.jit  # type: ignore[untyped-decorator]
    def product(p: Any, v: Any) -> Any:
        _, tangent = jax.jvp(f, (p,), (v,))
        _, vjp = jax.vjp(f, p)
        return vjp(tangent / B)[0]

    return lambda: jax.block_until_ready(product(parameters, tangents))
