"""How a module takes a batch's inputs, and which of its results are the outputs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from hfcore.arguments import called as asked
from hfcore.arguments import check_call

# A key or an attribute, an index, or a function of what the module returned.
Select = str | int | Callable[[Any], Any]

# What torch's layers say of inputs whose shape or dtype they do not take.
MISFIT = re.compile(
    "mat1 and mat2|same dtype|expected scalar type|size mismatch|to have|must be equal|"
    "must match|Input type|input and weight"
)


@contextmanager
def naming_inputs(inputs: Any) -> Iterator[None]:
    """What torch's layers say of inputs that do not fit becomes a ValueError that names them."""
    try:
        yield
    except RuntimeError as error:
        if MISFIT.search(str(error)) is None:
            raise
        raise ValueError(f"inputs: the model does not take {shown(inputs)}: {error}") from error


def shown(inputs: Any) -> str:
    """Shapes and dtypes of the inputs."""
    tensors = [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]
    return ", ".join(f"{list(t.shape)} {t.dtype}" for t in tensors)


def called(module: nn.Module, inputs: Any) -> Any:
    """``module(inputs)``; ``module(**inputs)`` where a mapping names arguments of ``forward``, and
    ``module(*inputs)`` of a tuple or list where it takes as many and not one alone."""
    if isinstance(inputs, Mapping):
        named = all(isinstance(key, str) for key in inputs)
        return module(**inputs) if named and _takes(module, **inputs) else module(inputs)
    several = isinstance(inputs, tuple | list) and not isinstance(inputs, PackedSequence)
    if several and not _takes(module, inputs) and _takes(module, *inputs):
        return module(*inputs)
    return module(inputs)


def _takes(module: nn.Module, /, *args: Any, **kwargs: Any) -> bool:
    """Whether ``forward`` has arguments for these; False where it has no signature."""
    try:
        inspect.signature(module.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True


def check_select(select: Any) -> None:
    """Raise TypeError for what does not say which result the outputs are."""
    if select is None:
        return
    if callable(select):
        check_call("outputs", select, None)
        return
    if not isinstance(select, str | int) or isinstance(select, bool):
        raise TypeError(
            f"outputs: got {type(select).__name__}, need a key or attribute, an index or a function"
        )


def selected(result: Any, select: Select | None) -> Tensor:
    """The outputs ``[B,…]`` among what a module returned; ``select`` None: it is one tensor.

    Raises TypeError or ValueError if there are none.
    """
    found = result if select is None else _item(result, select)
    if isinstance(found, Tensor):
        return found
    what = type(found).__name__
    if select is not None:
        raise TypeError(f"outputs: {select!r} gave {what}, need one tensor")
    raise TypeError(
        f"outputs: the model returned {what}, need one tensor; say which it is, such as "
        f"outputs={_example(found)}"
    )


def _item(result: Any, select: Select) -> Any:
    if not isinstance(select, str | int):
        return asked("outputs", select, result)
    if isinstance(select, str) and not (isinstance(result, Mapping) and select in result):
        if hasattr(result, select):
            return getattr(result, select)
    elif isinstance(result, Mapping | tuple | list):
        try:
            return result[select]  # type: ignore[index]  # an index of a mapping may be its key
        except LookupError:
            pass
    raise ValueError(f"outputs: the model returned {type(result).__name__}, without {select!r}")


def chosen(module: nn.Module, inputs: Any, select: Select | None) -> Any:
    """What a module gives for inputs: the outputs ``[B,…]`` that are selected; None: all of it.

    Raises ValueError for inputs whose shape or dtype its layers do not take.
    """
    with naming_inputs(inputs):
        result = called(module, inputs)
    return result if select is None else selected(result, select)


def _example(result: Any) -> str:
    """What would choose a tensor of this result."""
    found: Mapping[Any, Any] = getattr(result, "__dict__", {})
    if isinstance(result, Mapping):
        found = result
    elif isinstance(result, tuple | list):
        found = dict(enumerate(result))
    tensors = (repr(key) for key, value in found.items() if isinstance(value, Tensor))
    return next(tensors, "lambda o: …")
