"""Argument checks of the bindings: every error names the argument, what came, what is needed."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from itertools import chain, combinations, product

import torch
from torch import Tensor

# Where sizes end: they reach compiled code as 64 bits.
MOST = 2**63 - 1


def check_tensor(
    name: str,
    value: object,
    shape: Sequence[int | str],
    *,
    like: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Check rank and shape (``["G", "T", 3]``: letters are any length), dtype, device of a value.

    Raises TypeError for something that is not a tensor or has the wrong dtype,
    ValueError for shape or device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, need a torch.Tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: got layout {value.layout}, need a dense (strided) tensor")
    if not _fits(value.shape, shape):
        letters = ",".join(map(str, shape))
        raise ValueError(f"{name}: got shape {list(value.shape)}, need [{letters}]")
    wanted = dtype if dtype is not None else (like.dtype if like is not None else None)
    if wanted is not None and value.dtype != wanted:
        raise TypeError(f"{name}: got {value.dtype}, need {wanted}")
    if like is not None and value.device != like.device:
        raise ValueError(
            f"{name}: is on {value.device}, need {like.device} like the other arguments"
        )
    return value


def _fits(got: torch.Size, want: Sequence[int | str]) -> bool:
    # A plain loop: every op passes here several times, and small layers cost little more than this.
    if len(got) != len(want):
        return False
    for g, w in zip(got, want, strict=True):  # noqa: SIM110
        if g != w and not isinstance(w, str):
            return False
    return True


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Check that ``value`` is one of ``choices``; ValueError otherwise."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: got {value!r}, need one of {', '.join(map(repr, choices))}")
    return value


def check_positive(**sizes: int) -> None:
    """Check that every named size is an integer of at least 1 that 64 bits hold.

    Raises TypeError or ValueError naming the first that is not.
    """
    for name, value in sizes.items():
        if type(value) is not int:  # a plain one as a rule, and operators check their sizes
            _check_integer(name, value)
        if value < 1:
            raise ValueError(f"{name}: got {value}, need at least 1")
        if value > MOST:
            raise ValueError(f"{name}: got {value:.3g}, need at most {MOST}")


def _check_integer(name: str, value: object) -> None:
    """Raise TypeError for what is no integer, booleans and arrays included."""
    if isinstance(value, torch.SymInt):  # of a shape while torch.compile traces
        return
    try:
        if isinstance(value, bool | Tensor) or (hasattr(value, "shape") and value.shape != ()):
            raise TypeError
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        shown = repr(value) if isinstance(value, bool | float | str) else type(value).__name__
        raise TypeError(f"{name}: got {shown}, need an integer") from None


def dense(t: Tensor) -> Tensor:
    """``t [G,...]`` detached and C-contiguous; one expanded from a single net is ``[1,...]``."""
    if t.ndim > 0 and t.shape[0] > 1 and t.stride(0) == 0:
        t = t[:1]
    return plain(t)


def plain(t: Tensor) -> Tensor:
    """``t [...]`` detached and C-contiguous."""
    if t.is_contiguous() and not (t.requires_grad or t.is_neg()):
        return t  # as most are: torch's ops cost a microsecond each, more with cold caches
    # A lazily negated view (such as z.conj().imag) holds the opposite sign in memory.
    return t.detach().contiguous().resolve_neg()


def nets(t: Tensor) -> Tensor:
    """Detached, each net ``t[g]`` contiguous, the group's stride free; one expanded is cut to 1."""
    t = t.detach()
    if t.shape[0] > 1 and t.stride(0) == 0:
        t = t[:1]
    return t.resolve_neg() if t[0].is_contiguous() else t.contiguous().resolve_neg()


def check_group(**arrays: Tensor | None) -> int:
    """The group size G of arrays ``[1 or G,...]``; ValueError names a stranger."""
    G = 1
    for name, array in arrays.items():
        if array is None or array.shape[0] == 1:
            continue
        if array.shape[0] < 1:
            raise ValueError(f"{name}: got group axis {array.shape[0]}, need at least 1")
        if G != 1 and array.shape[0] != G:
            raise ValueError(f"{name}: got group axis {array.shape[0]}, need 1 or {G}")
        G = array.shape[0]
    return G


def check_group_of(name: str, G: int, **arrays: Tensor) -> None:
    """Check arrays ``[1 or G,...]`` beside the argument ``name``, which has G nets."""
    for other, array in arrays.items():
        if len(array) not in (1, G):
            wanted = f"1 or {G}" if G > 1 else "1"
            raise ValueError(f"{other}: got group axis {len(array)}, need {wanted} like {name}")


def check_out(out: Tensor | None, shape: Sequence[int], like: Tensor) -> Tensor:
    """A new output ``[*shape]``, or the caller's if of this shape, like's dtype, and contiguous."""
    if out is None:
        return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
    check_tensor("out", out, shape, like=like)
    if not out.is_contiguous() or out.is_neg():
        raise ValueError("out: is not contiguous, need a C-contiguous output buffer")
    if out.requires_grad:
        raise ValueError("out: requires grad, need a plain buffer")
    return out


def check_apart(written: Mapping[str, Tensor | None], **read: Tensor) -> None:
    """Check that what is written ``[...]`` shares memory with nothing else."""
    arrays = [(name, array) for name, array in written.items() if array is not None]
    for (name, array), (other, there) in chain(
        combinations(arrays, 2), product(arrays, read.items())
    ):
        if overlap(array, there):
            raise ValueError(f"{name}: shares memory with {other}, need its own")


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether any byte between first and last element of two tensors ``[...]`` is common."""
    (from_a, to_a), (from_b, to_b) = span(a), span(b)
    return from_a < to_b and from_b < to_a


def span(t: Tensor) -> tuple[int, int]:
    """Addresses of the first byte of ``t [...]`` and of the one behind its last.

    Strides of a tensor are never negative.
    """
    start = t.data_ptr()
    if t.is_contiguous():
        return start, start + t.numel() * t.element_size()
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return start, start + (last + 1) * t.element_size()
