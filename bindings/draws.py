"""Random numbers that are counted out: checks, choice of implementation (``forms/draws``)."""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings.checks import MOST, check_out, check_positive, check_tensor
from hfcore.bindings.dispatch import choose
from hfcore.bindings.forms.draws import form


def philox(seed: int, number: int, count: int, device: torch.device) -> Tensor:
    """The first ``count`` words of the stream (seed, number), int64 ``[count]`` on ``device``.

    The same on every device, and none negative: Philox 4x64-10 less the lowest bit of each word
    (``kernels/draws/reference.py``). Raises TypeError or ValueError naming the argument.
    """
    check_positive(count=count)
    _check_stream(seed, number)
    backend = choose("draws.philox", torch.empty(0, device=device))
    return form(backend).philox(seed, number, count, device)


def uniform(seed: int, number: int, out: Tensor) -> Tensor:
    """Numbers in [0, 1) of the stream (seed, number) into ``out [...]``, float32 or float64.

    The same on every device: 24 bits in float32, 53 in float64, from the words' upper bits.
    Raises TypeError or ValueError naming the argument.
    """
    _check_stream(seed, number)
    check_tensor("out", out, getattr(out, "shape", ()))
    if out.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"out: got {out.dtype}, need torch.float32 or torch.float64")
    check_out(out, out.shape, out)
    check_positive(elements=out.numel())
    form(choose("draws.uniform", out)).uniform(seed, number, out)
    return out


def shuffled(seed: int, number: int, count: int, device: torch.device) -> Tensor:
    """0 … count − 1 in the order of the words of a stream, int64 ``[count]``: all as likely.

    Equal words, of which there is one pair in 2⁶³/count² draws, keep their order: the same on every
    device. Raises as :func:`philox`.
    """
    return philox(seed, number, count, device).argsort(stable=True)


def _check_stream(seed: int, number: int) -> None:
    for name, value in (("seed", seed), ("number", number)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name}: got {type(value).__name__}, need an int")
        if not 0 <= value <= MOST:
            raise ValueError(f"{name}: got {value}, need 0 to {MOST}")
