"""Flat vectors over a module's parameters."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.weak import WeakIdKeyDictionary

from hfcore.cut_parameters import drop_wholes, is_cut, whole, write
from hfcore.flat_memory import copied_if_odd, cut
from hfcore.layout import Layout, layout_of

IN_INFERENCE = "was made under torch.inference_mode and cannot be differentiated"
SINCE = "since this was built for the model's trainable parameters; build it anew"

# By the module, so that all that is built over the same one shares it.
_LOCKS = WeakIdKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def _lock_of(owner: object) -> RLock:
    key = getattr(
        owner, "_orig_mod", owner
    )  # a compiled module has the parameters of the eager one
    with _LOCKS_LOCK:
        if key not in _LOCKS:
            _LOCKS[key] = threading.RLock()
        lock: RLock = _LOCKS[key]
        return lock


class FlatParameters:
    """The trainable parameters of a module as one vector, in the order of ``parameters()``.

    An iterable of parameters, or of groups of them without options, serves in the module's place.
    Tied parameters appear once. Values are
    not cached: ``.to()`` and ``load_state_dict`` between two calls are seen; :meth:`refresh` looks
    whether the parameters are still the same ones.

    Raises ValueError without trainable parameters, with mixed dtypes or devices or where one has no
    values that can be trained (a lazy module's, on the meta device, made in inference mode),
    TypeError for parameters that are not real floating point.
    """

    def __init__(self, module: nn.Module | Iterable[nn.Parameter]) -> None:
        self._source: nn.Module | list[nn.Parameter] = (
            module if isinstance(module, nn.Module) else each_listed("model", module)
        )
        with _lock_of(module) if isinstance(module, nn.Module) else nullcontext():
            named = [(name, p) for name, p in _named(self._source) if p.requires_grad]
        if not named:
            raise ValueError("model: has no trainable parameters")
        _check_values_there(named)
        _check_alike(named)
        self.names = [name for name, _ in named]
        self.tensors = [p for _, p in named]
        self.numel = sum(p.numel() for p in self.tensors)
        # Whether this process has a part of each alone, see cut_parameters.
        self.are_cut = any(map(is_cut, self.tensors))
        self._lie_apart = False  # until it has been looked at
        self._layout: Layout | None = None
        self._trained: list[bool] = []
        self._lock: RLock | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @property
    def lock(self) -> RLock:
        """Held while the parameters are read, written or held at other values, by any thread and
        whatever has been built over the same module (or, without one, the same first parameter)."""
        if self._lock is None:
            owner = self._source if isinstance(self._source, nn.Module) else self._source[0]
            self._lock = _lock_of(owner)
        return self._lock

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None, "_layout": None}  # a copy is of another module

    @property
    def modules(self) -> list[nn.Module]:
        """All submodules when they were last looked at, each once; none of bare parameters."""
        return [] if self._layout is None else self._layout.modules

    def buffers(self) -> list[Tensor]:
        """The module's buffers, each ``[…]``; none of bare parameters."""
        return list(self._source.buffers()) if isinstance(self._source, nn.Module) else []

    def refresh(self) -> None:
        """Look at the module again: a parametrised or pruned one has its parameters by new names.

        Raises ValueError where its trainable parameters are not the ones they were.
        """
        layout = layout_of(self._source) if isinstance(self._source, nn.Module) else None
        if layout is not None and self._is_known(layout):
            _check_alike(zip(self.names, self.tensors, strict=True))
            return
        named = [(name, p) for name, p in _named(self._source) if p.requires_grad]
        if len(named) != len(self.tensors) or any(
            p is not q for (_, p), q in zip(named, self.tensors, strict=True)
        ):
            named = self._in_order(named)
        _check_alike(named)
        self.names = [name for name, _ in named]
        if layout is not None:
            self._layout, self._trained = layout, layout.trained()

    def _is_known(self, layout: Layout) -> bool:
        """Whether nothing has changed since the names were read."""
        known = self._layout
        return known is not None and layout.is_like(known) and layout.trained() == self._trained

    def _in_order(self, named: list[tuple[str, nn.Parameter]]) -> list[tuple[str, nn.Parameter]]:
        """The parameters of now in the order of the vector."""
        found = {id(p): name for name, p in named}
        for name, p in zip(self.names, self.tensors, strict=True):
            if id(p) not in found:
                what = "is another one" if p.requires_grad else "was frozen"
                raise ValueError(f"model: parameter {name} {what} {SINCE}")
        own = {id(p) for p in self.tensors}
        for name, p in named:
            if id(p) not in own:
                raise ValueError(f"model: parameter {name} was added or unfrozen {SINCE}")
        return [(found[id(p)], p) for p in self.tensors]

    def read(self) -> Tensor:
        """A copy of the parameters, ``[N]``."""
        with self.lock:
            values = [p.detach() for p in self.tensors]
            wholes = [whole(value) for value in values] if self.are_cut else values
            return torch.cat([value.reshape(-1) for value in wholes])

    def write(self, theta: Tensor) -> None:
        """Copy ``theta [N]`` into the parameters.

        Raises ValueError where two of them lie in the same memory and could not differ.
        """
        if not (self._lie_apart or self.are_cut):
            check_apart(zip(self.names, self.tensors, strict=True))
            self._lie_apart = True
        with self.lock, torch.no_grad():
            copy = write if self.are_cut else Tensor.copy_
            for p, part in zip(self.tensors, self.split(theta), strict=True):
                copy(p, part)
            if self.are_cut and isinstance(self._source, nn.Module):
                drop_wholes(self._source.modules())
        torch.clear_autocast_cache()  # casts of the old values

    @contextmanager
    def holding(self, theta: Tensor) -> Iterator[None]:
        """The module computes with ``theta [N]`` inside, and with its own values again after.

        Storage is swapped, not written: a graph retained from before stays valid. Other threads
        that come here wait. Each has a storage of its own, as those of the module have.
        """
        sizes = [p.numel() for p in self.tensors]
        # Its stub knows the form that writes alone.
        copies: Any = torch.split_with_sizes_copy(theta.detach(), sizes)  # type: ignore[func-returns-value]
        shaped = [c.view(p.shape) for c, p in zip(copies, self.tensors, strict=True)]
        with self.holding_views(shaped):
            yield

    @contextmanager
    def holding_views(self, values: list[Tensor]) -> Iterator[None]:
        """The same with values ``[…]`` in the parameters' shapes, which are not copied."""
        with self.lock:
            own = [p.data for p in self.tensors]
            try:
                self._hold(values)
                yield
            finally:
                self._hold(own)

    def _hold(self, values: list[Tensor]) -> None:
        for p, value in zip(self.tensors, values, strict=True):
            p.data = value
        torch.clear_autocast_cache()  # torch.autocast would go on with casts of the other values

    def split(self, theta: Tensor) -> list[Tensor]:
        """Views of ``theta [N]`` in the shapes of the parameters."""
        return cut(theta, self.tensors)

    def readable(self, theta: Tensor) -> list[Tensor]:
        """Parts of ``theta [N]`` for a model to read, not to write: copied where they must be."""
        return [copied_if_odd(part) for part in self.split(theta)]

    def slices(self) -> dict[str, slice]:
        """Where every parameter lies in a flat vector, by name."""
        found: dict[str, slice] = {}
        start = 0
        for name, p in zip(self.names, self.tensors, strict=True):
            found[name] = slice(start, start + p.numel())
            start += p.numel()
        return found

    def first_bad(self, theta: Tensor) -> str | None:
        """Name of the first parameter in ``theta [N]`` that holds NaN or Inf, or None."""
        for name, part in zip(self.names, self.split(theta), strict=True):
            if not bool(torch.isfinite(part).all()):
                return name
        return None


def _check_values_there(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    for name, p in named:
        if isinstance(p, UninitializedParameter):
            what = "has no shape yet; call the lazy model on some inputs first"
        elif p.is_meta:
            what = "is on the meta device, which holds no values; need it on a device that does"
        elif p.is_inference() and not torch.is_inference_mode_enabled():
            what = f"{IN_INFERENCE}; make the model outside of it"
        else:
            continue
        raise ValueError(f"model: parameter {name} {what}")


def check_apart(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ValueError where one of the tensors ``[…]`` has elements in the memory of another.

    ``a.data = b.data`` makes two parameters of one memory; one Parameter in two places is one.
    """
    dense = [(p.data_ptr(), p.nbytes, name) for name, p in named if p.is_contiguous() and p.numel()]
    end, last = 0, ""
    for start, size, name in sorted(dense):
        if start < end:
            raise ValueError(
                f"model: parameters {last} and {name} lie in the same memory and are two; need one "
                "torch.nn.Parameter in both places to tie them, or a .clone() to keep them apart"
            )
        if start + size > end:
            end, last = start + size, name


def _check_alike(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    first: tuple[str, torch.dtype, torch.device] | None = None
    for name, p in named:
        dtype, device = p.dtype, p.device
        known = first is not None and dtype is first[1]
        if not (known or dtype.is_floating_point):
            raise TypeError(f"model: parameter {name} is {dtype}, need real floating point")
        if first is None:
            first = name, dtype, device
        elif dtype is not first[1] or device != first[2]:
            raise ValueError(
                f"model: parameter {name} is {dtype} on {device}, "
                f"need {first[1]} on {first[2]} like {first[0]}"
            )


def listed(name: str, given: Any) -> list[Any]:
    """Parameters, or groups of them, as a list. Raises TypeError for what is no iterable of any."""
    if isinstance(given, Tensor | str | bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(
            f"{name}: got {type(given).__name__}, need a torch.nn.Module or its parameters"
        )
    return list(given)


def each_listed(name: str, given: Any) -> list[Any]:
    """The same for one matrix over all of them: parameters alone, whatever they came in."""
    return list(_one_by_one(listed(name, given)))


def _one_by_one(items: Iterable[Any]) -> Iterator[Any]:
    """Parameters as torch's optimisers take them: one by one, with names, or in groups.

    Raises ValueError for a group with options, since all parameters share one curvature matrix.
    """
    for item in items:
        if isinstance(item, Mapping):
            options = sorted(set(item) - {"params", "param_names"})
            if options:
                raise ValueError(
                    f"model: a group of parameters sets {', '.join(options)}, need groups without "
                    "options: all parameters share one curvature matrix"
                )
            params = item.get("params", ())
            yield from _one_by_one([params] if isinstance(params, Tensor) else params)
        elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
            yield item[1]
        else:
            yield item


def _named(module: nn.Module | Iterable[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    if isinstance(module, nn.Module):
        return list(module.named_parameters())
    unique: dict[int, nn.Parameter] = {}
    for i, p in enumerate(module):
        if not isinstance(p, nn.Parameter):
            raise TypeError(f"model: item {i} is {type(p).__name__}, need torch.nn.Parameter")
        unique.setdefault(id(p), p)
    return [(str(i), p) for i, p in enumerate(unique.values())]


def dense_gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """What a closure left as ``grad`` of each parameter, ``[…]`` in its shape.

    Raises ValueError where there is none or a sparse one.
    """
    found = []
    for i, p in enumerate(parameters):
        if p.grad is None or p.grad.layout != torch.strided:
            what = "none" if p.grad is None else f"one of layout {p.grad.layout}"
            raise ValueError(f"closure: left {what} as gradient of params[{i}], need a dense one")
        found.append(p.grad)
    return found
