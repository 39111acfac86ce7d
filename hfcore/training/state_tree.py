"""Nested state (dicts, lists, numbers, tensors) as JSON plus named tensors, without pickle.

A tensor becomes ``{"$tensor": name}``, a tuple ``{"$tuple": [...]}``, a non-finite float
``{"$float": "nan"}`` and a dict with keys other than plain strings ``{"$items": [[k, v], ...]}``.
Python's JSON writes finite floats with the digits that give the same bits back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from hfcore.training.errors import CheckpointError

Json = Any  # None, bool, int, float, str, list or dict of these


def flatten(value: object, name: str, tensors: dict[str, Tensor]) -> Json:
    """JSON form of ``value``; its tensors ``[…]`` are copied to the CPU into ``tensors``.

    ``name`` is the prefix of their names. Raises :class:`CheckpointError` naming the entry for a
    type that cannot be stored.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, Tensor):
        while name in tensors:  # keys may themselves hold a slash
            name += "'"
        # clone: parameters may be views of one flat buffer, which safetensors refuses
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"$tensor": name}
    if isinstance(value, tuple | list):
        items = [flatten(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, dict):
        return _flatten_dict(value, name, tensors)
    raise CheckpointError(
        f"{name}: a {type(value).__module__}.{type(value).__qualname__} cannot be stored in a "
        "checkpoint; need tensors, numbers, strings, None, or lists, tuples and dicts of these"
    )


def _flatten_dict(value: dict[Any, object], name: str, tensors: dict[str, Tensor]) -> Json:
    if all(isinstance(k, str) and not k.startswith("$") for k in value):
        return {str(k): flatten(v, f"{name}/{k}", tensors) for k, v in value.items()}
    items = []
    for i, (k, v) in enumerate(value.items()):
        label = f"{name}/{k}" if isinstance(k, int | str) else f"{name}/{i}"
        items.append([flatten(k, f"{label} (key)", tensors), flatten(v, label, tensors)])
    return {"$items": items}


def unflatten(node: Json, tensors: dict[str, Tensor]) -> Any:
    """Inverse of :func:`flatten`, with ``tensors […]`` by name.

    Raises KeyError for a tensor that is not there.
    """
    if isinstance(node, list):
        return [unflatten(v, tensors) for v in node]
    if not isinstance(node, dict):
        return node
    if "$tensor" in node:
        return tensors[node["$tensor"]]
    if "$tuple" in node:
        return tuple(unflatten(v, tensors) for v in node["$tuple"])
    if "$float" in node:
        return float(node["$float"])
    if "$items" in node:
        return {unflatten(k, tensors): unflatten(v, tensors) for k, v in node["$items"]}
    return {k: unflatten(v, tensors) for k, v in node.items()}


def packed(state: Mapping[str, object]) -> bytes:
    """A whole state as bytes: the length of its JSON, that, and safetensors."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(flatten(dict(state), "state", tensors), allow_nan=False).encode()
    return len(tree).to_bytes(8, "little") + tree + safetensors.torch.save(tensors)


def unpacked(data: bytes) -> Any:
    """Inverse of :func:`packed`."""
    end = 8 + int.from_bytes(data[:8], "little")
    return unflatten(json.loads(data[8:end]), safetensors.torch.load(data[end:]))
