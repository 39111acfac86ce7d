"""JAX's whole Gauss-Newton product of the same net, where a JAX for this GPU is installed.

JAX has its own streams, which torch's events do not see: a call ends when its result is there, so
the host's wait of some tens of microseconds is part of its time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bench import jax_products
from bench.gpu.timing import Call

if TYPE_CHECKING:
    from bench.gpu.ops import Net

CACHED = "JAX, cached linearize"
UNCACHED = "JAX, jvp + vjp"


def products(net: Net) -> dict[str, Callable[[], Call]]:
    """Makers of JAX's products; each raises ImportError or RuntimeError where JAX cannot."""
    return {
        CACHED: lambda: jax_products.cached(*_functional(net), net.B),
        UNCACHED: lambda: jax_products.uncached(*_functional(net), net.B),
    }


def _functional(net: Net) -> tuple[Callable[[Any], Any], Any, Any]:
    """(outputs of the last step as a function of the parameters, parameters, tangents)."""
    import jax
    import jax.numpy as jnp

    if jax.default_backend() != "gpu":
        raise RuntimeError(f"this JAX computes on {jax.default_backend()}")
    jax.config.update("jax_default_matmul_precision", "highest")  # true float32
    x = jnp.asarray(net.x[0].cpu().numpy())

    def outputs(parameters: Any) -> Any:
        W_hx, W_hh, W_yh, b_h, b_init, b_y = parameters
        u = x @ W_hx.T + b_h
        first = jnp.tanh(u[0] + b_init)
        last, _ = jax.lax.scan(lambda h, u_t: (jnp.tanh(u_t + h @ W_hh.T), None), first, u[1:])
        return last @ W_yh.T + b_y

    parameters = tuple(jnp.asarray(p[0].cpu().numpy()) for p in net.w)
    parts = net.v[0].split(net.shape.sizes)
    tangents = tuple(
        jnp.asarray(part.view(shape).cpu().numpy())
        for part, shape in zip(parts, net.shape.shapes, strict=True)
    )
    return outputs, parameters, tangents
