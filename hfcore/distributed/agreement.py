"""What must be the same on every rank: compared, and at first sent by the first one."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from hfcore.distributed.ranks import Ranks

SHOWN = 100  # characters of a value in a message

# Version and checksum of tensors that were looked at: full data come back every step.
_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def checksum(value: Any) -> int:
    """32 bits of the content of a tensor ``[…]``, of a number, or of data of a step."""
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if is_dataclass(value) and not isinstance(value, type):  # hf.Batches
        value = [getattr(value, field.name) for field in fields(value)]
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    parts = [_of_tensor(t) for t in tensors] if tensors else [repr(value)]
    return zlib.crc32(repr(parts).encode())


def _of_tensor(t: Tensor) -> int:
    version = None if t.is_inference() else t._version
    known, value = _known.get(t, (None, 0))
    if version is not None and known == version:
        return int(value)
    plain = t.detach()
    if plain.device.type == "cpu":
        found = zlib.crc32(plain.contiguous().flatten().view(torch.uint8).numpy().data)
    else:  # 64-bit integers have the same sum in any order
        bits = plain.contiguous().flatten().view(torch.uint8).long()
        weights = torch.arange(1, 2 * len(bits), 2, device=bits.device)
        found = int((bits * weights).sum()) & 0xFFFFFFFF
    found = zlib.crc32(repr((list(t.shape), str(t.dtype))).encode(), found)
    if version is not None:
        _known[t] = version, found
    return found


def bits_of(number: float) -> int:
    """A float's 64 bits, as an integer."""
    (bits,) = struct.unpack("<q", struct.pack("<d", number))
    return int(bits)


def float_of(bits: int) -> float:
    """The float of these 64 bits."""
    (number,) = struct.unpack("<d", struct.pack("<q", bits))
    return float(number)


def check_checksums(ranks: Ranks, named: Mapping[str, int], need: Mapping[str, str]) -> None:
    """Raise ValueError on every rank where one has another number than the first.

    ``need`` completes the message: what is needed, by the name of what differs.
    """
    every = ranks.integers(list(named.values()))
    for rank, values in enumerate(every):
        for name, first, value in zip(named, every[0], values, strict=True):
            if value != first:
                raise ValueError(
                    f"{name}: rank {rank} has other values than rank 0, need "
                    f"{need.get(name, 'the same on every rank')}"
                )


def check_same(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    """Raise ValueError on every rank, naming the first fact that differs and the ranks."""
    if ranks.size == 1:
        return
    every = ranks.texts(json.dumps({key: str(value) for key, value in facts.items()}))
    first = json.loads(every[0])
    for rank, text in enumerate(every):
        if text == every[0]:
            continue
        there = json.loads(text)
        key = next(k for k in [*first, *there] if first.get(k) != there.get(k))
        raise ValueError(
            f"{key}: is {_shown(first.get(key))} on rank 0 and {_shown(there.get(key))} on rank "
            f"{rank}, need the same on every rank"
        )


def _shown(text: str | None) -> str:
    if text is None:
        return "absent"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def broadcast_optional(ranks: Ranks, vector: Tensor | None, like: Tensor) -> Tensor | None:
    """A vector ``[N]`` of the first rank, of the kind of ``like [N]``, or None as there."""
    (there,) = ranks.integers([vector is not None])[0]
    if not there:
        return None
    return ranks.broadcast(torch.zeros_like(like) if vector is None else vector.to(like))
