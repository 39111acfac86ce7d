"""Objects as the words by which config.json tells one run from another."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def describe(value: object) -> Any:
    """JSON-able and the same in every process: numbers and texts as they are, functions by name,
    arrays by their content, other objects by their ``config()`` or ``repr`` without addresses."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor | np.ndarray):
        array = torch.as_tensor(value, device="cpu")
        return array.tolist() if array.ndim == 0 else describe_array(array)
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if isinstance(value, nn.Module):
        return _module(value)
    if isinstance(value, functools.partial):
        return [describe(value.func), describe(value.args), describe(value.keywords)]
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}{_inside(value)}"
    config = getattr(value, "config", None)
    return describe(config()) if callable(config) else ADDRESS.sub("", repr(value))


def _inside(function: object) -> str:
    """What tells a lambda from another one of the same place: the names and constants in it."""
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType) or code.co_name != "<lambda>":
        return ""
    return f"({', '.join(_words(code))})"


def _words(code: CodeType) -> list[str]:
    words = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            words += _words(constant)
        elif constant is not None:
            words.append(repr(constant))
    return words


def name_of(function: Callable[..., Any]) -> str:
    """The short name of a function or of what is called like one."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    return str(getattr(function, "__name__", type(function).__name__))


def describe_array(array: Tensor) -> dict[str, Any]:
    """Shape, dtype and SHA-256 of the content of an array ``[…]``."""
    plain = array.detach().cpu().contiguous().flatten().view(torch.uint8)
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype).removeprefix("torch."),
        "sha256": hashlib.sha256(plain.numpy().data).hexdigest(),
    }


def _module(module: nn.Module) -> Any:
    """Structure, and the options that a criterion such as CrossEntropyLoss does not show."""
    options = {
        key: describe(value)
        for key, value in vars(module).items()
        if not key.startswith("_") and key != "training" and isinstance(value, int | float | str)
    }
    buffers = {key: describe_array(value) for key, value in module.named_buffers()}
    shown = ADDRESS.sub("", repr(module))
    return {"module": shown, **options, **buffers} if options or buffers else shown
