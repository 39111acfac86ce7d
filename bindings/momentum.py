"""The momentum update and its lookahead point: checks, choice of implementation.

Implementations: ``forms/momentum``. Formulas: ``kernels/momentum/reference.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hfcore.bindings.checks import check_positive, check_tensor
from hfcore.bindings.dispatch import choose
from hfcore.bindings.forms.momentum import form

Coefficient = Tensor | float
# Learning rate, momentum, lookahead and l2 of a step, each [G] float64.
Rates = tuple[Tensor, Tensor, Tensor, Tensor | None]


class Step(NamedTuple):
    """Coefficients of one update, floats or ``[G]`` float64 (Sutskever et al. 2013, eqs. 1-4)."""

    learning_rate: Coefficient
    """ε."""
    momentum: Coefficient
    """μ."""
    lookahead: Coefficient = 0.0
    """The gradient is taken at θ + lookahead·v: μ for Nesterov's, 0 for classical momentum."""
    l2: Coefficient | None = None
    """Weight of ½‖a‖², a being where the gradient is taken."""


def momentum_update(
    theta: Tensor,
    velocity: Tensor,
    gradient: Tensor,
    *,
    learning_rate: Coefficient,
    momentum: Coefficient,
    lookahead: Coefficient = 0.0,
    l2: Coefficient | None = None,
    ahead: Tensor | None = None,
    active: Tensor | None = None,
) -> None:
    """One update of G nets of N parameters, in place and in one pass over memory.

    With a the point where the gradient was taken, ``ahead`` if given and else ``theta``::

        v = μ v − ε (g + l2 a),   θ = θ + v,   and with ``ahead``:  ahead = θ + lookahead·v

    (Sutskever et al. 2013: eqs. 1-2 without ``ahead``, eqs. 3-4 with it, where ``lookahead`` is the
    momentum of the *next* update.) ``theta``, ``velocity``, ``ahead`` ``[G,N]`` are contiguous and
    share no memory; ``gradient`` is ``[G,N]``, or ``[1,N]`` for all nets. ``learning_rate`` ε,
    ``momentum`` μ, ``lookahead`` and ``l2`` are floats or ``[G]`` float64, ``active`` is ``[G]``
    bool; these may be on the CPU or on the data's device. A net that is not active is neither read
    nor written. The bits of a net are those that it has alone, on any number of threads.

    Raises TypeError or ValueError that names the argument; the compiled CPU form also refuses
    arrays that overlap.
    """
    G = check_arrays(theta, velocity=velocity, ahead=ahead)
    _check_gradient(gradient, theta)
    rates = check_step(Step(learning_rate, momentum, lookahead, l2), G, theta)
    active = check_active(active, G, theta)
    serving = form(choose("momentum.momentum_update", theta))
    serving.momentum_update(theta, velocity, gradient, *rates, ahead, active)


def lookahead_point(
    theta: Tensor,
    velocity: Tensor,
    momentum: Coefficient,
    *,
    out: Tensor | None = None,
    active: Tensor | None = None,
) -> Tensor:
    """θ + μ v ``[G,N]``, where Nesterov's gradient is taken, into ``out`` or a new tensor.

    On the CPU with the bits of ``ahead`` that :func:`momentum_update` leaves for this μ as
    ``lookahead``. Arguments as there; of a net that is not active ``out`` is left alone.
    """
    G = check_arrays(theta, velocity=velocity, out=out)
    out = torch.empty_like(theta) if out is None else out
    rate = _coefficient("momentum", momentum, G, theta)
    active = check_active(active, G, theta)
    serving = form(choose("momentum.lookahead_point", theta))
    serving.lookahead_point(theta, velocity, rate, out, active)
    return out


def update_through(
    gradient: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    velocity: Tensor,
    step: Step,
    *,
    active: Tensor | None = None,
    point: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One update of ``theta``, ``velocity`` ``[G,N]`` in place; gives the losses ``[G]`` float64.

    ``gradient(a, out)`` writes the gradients at ``a [G,N]`` and gives the losses there. ``point``
    and ``out`` are buffers for a and the gradients. A net whose loss is not finite does not move;
    one that is not active neither, and its loss is NaN.
    """
    looks = isinstance(step.lookahead, Tensor) or step.lookahead != 0
    at = lookahead_point(theta, velocity, step.lookahead, out=point) if looks else theta
    out = torch.empty_like(theta) if out is None else out
    losses = gradient(at, out)
    if active is not None:
        losses = losses.where(active, torch.nan)
    momentum_update(
        theta,
        velocity,
        out,
        learning_rate=step.learning_rate,
        momentum=step.momentum,
        lookahead=step.lookahead,
        l2=step.l2,
        ahead=at if looks and step.l2 is not None else None,
        active=losses.isfinite(),
    )
    return losses


def check_arrays(theta: Tensor, **others: Tensor | None) -> int:
    """Check shapes, types and layouts of the arrays ``[G,N]`` to work on in place; gives G."""
    check_tensor("theta", theta, ["G", "N"])
    if not theta.is_floating_point():
        raise TypeError(f"theta: got {theta.dtype}, need a real floating point type")
    G, N = theta.shape
    check_positive(G=G, N=N)
    for name, array in {"theta": theta, **others}.items():
        if array is None:
            continue
        check_tensor(name, array, [G, N], like=theta)
        if not array.is_contiguous() or array.is_neg():
            raise ValueError(f"{name}: is not contiguous, need a contiguous array")
        if array.requires_grad:
            raise ValueError(f"{name}: requires grad, need a plain array to work on in place")
    return G


def _check_gradient(gradient: Tensor, theta: Tensor) -> None:
    G, N = theta.shape
    check_tensor("gradient", gradient, ["G", N], like=theta)
    if gradient.shape[0] not in (1, G):
        wanted = f"1 or {G}" if G > 1 else "1"
        raise ValueError(f"gradient: got group axis {gradient.shape[0]}, need {wanted}")


def check_active(active: Tensor | None, G: int, theta: Tensor) -> Tensor | None:
    """``[G]`` bool on the data's device."""
    if active is None:
        return None
    return _near("active", check_tensor("active", active, [G], dtype=torch.bool), theta)


def check_step(step: Step, G: int, theta: Tensor) -> Rates:
    """All coefficients, ``[G]`` float64 on the data's device."""
    return (
        _coefficient("learning_rate", step.learning_rate, G, theta),
        _coefficient("momentum", step.momentum, G, theta),
        _coefficient("lookahead", step.lookahead, G, theta),
        None if step.l2 is None else _coefficient("l2", step.l2, G, theta),
    )


def stacked(step: Step, theta: Tensor) -> Tensor:
    """The coefficients that the step has, float64 ``[3 or 4,G]``; on the CPU if they all are."""
    apart = any(isinstance(c, Tensor) and c.device.type != "cpu" for c in step)
    rates = check_step(step, len(theta), theta if apart else torch.empty(0, device="cpu"))
    return torch.stack([rate for rate in rates if rate is not None])


def served_by_cuda(theta: Tensor) -> bool:
    """Whether updates of ``theta [G,N]`` are CUDA kernels."""
    return choose("momentum.momentum_update", theta) == "cuda"


def _coefficient(name: str, value: Coefficient, G: int, theta: Tensor) -> Tensor:
    """``[G]`` float64 on the data's device."""
    if isinstance(value, Tensor):
        check_tensor(name, value, [G], dtype=torch.float64)
        return _near(name, value, theta)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {type(value).__name__}, need a float or a float64 tensor")
    return _filled(float(value), G, theta.device)


def _filled(value: float, G: int, device: torch.device) -> Tensor:
    """A constant; one made while a CUDA graph is recorded holds its value in that graph alone."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _constant.__wrapped__(value, G, device)
    return _constant(value, G, device)


@lru_cache(maxsize=64)  # training asks for the same few again and again; nobody writes to them
def _constant(value: float, G: int, device: torch.device) -> Tensor:
    return torch.full((G,), value, dtype=torch.float64, device=device)


def _near(name: str, value: Tensor, theta: Tensor) -> Tensor:
    """The small array, contiguous and on the data's device."""
    if value.device not in (theta.device, torch.device("cpu")):
        others = "" if theta.device.type == "cpu" else ", or cpu"
        raise ValueError(f"{name}: is on {value.device}, need {theta.device} like theta{others}")
    return value.detach().to(theta.device).contiguous().resolve_neg()
