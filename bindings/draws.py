"""Random numbers that are counted out: checks, choice of implementation (``forms/draws``)."""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings.checks import MOST, check_positive
from hfcore.bindings.dispatch import choose
from hfcore.bindings.forms.draws import form


def philox(seed: int, number: int, count: int, device: torch.device) -> Tensor:
    """The first ``count`` words of the stream (seed, number), int64 ``[count]`` on ``device``.

    The same on every device, and none negative: Philox 4x64-10 less the lowest bit of each word
    (``kernels/draws/reference.py``). Raises TypeError or ValueError naming the argument.
    """
    check_positive(count=count)
    for name, value in (("seed", seed), ("number", number)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name}: got {type(value).__name__}, need an int")
        if not 0 <= value <= MOST:
            raise ValueError(f"{name}: got {value}, need 0 to {MOST}")
    backend = choose("draws.philox", torch.empty(0, device=device))
    return form(backend).philox(seed, number, count, device)


def shuffled(seed: int, number: int, count: int, device: torch.device) -> Tensor:
    """0 … count − 1 in the order of the words of a stream, int64 ``[count]``: all as likely.

    Equal words, of which there is one pair in 2⁶³/count² draws, keep their order: the same on every
    device. Raises as :func:`philox`.
    """
    return philox(seed, number, count, device).argsort(stable=True)
