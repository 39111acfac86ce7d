"""The data of a run in the forms that users have them, checked and brought to one of three.

:class:`Problem` draws its cases; cases at hand are :mod:`hfcore.cases`; a DataLoader gives batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from hfcore.batches import Batch, check_dense, check_unambiguous, labelled
from hfcore.cases import ArrayCases, Cases, SequenceCases
from hfcore.data.dataset import Dataset
from hfcore.losses.weights import checked_weights
from hfcore.numpy_arrays import check_unmasked, floats
from hfcore.problems.base import TEST_BATCH, Problem, check_problem
from hfcore.training.describe import describe_array

NEED = (
    "need a problem of hf.problems, (x, y) or (x, y, mask) of tensors or NumPy arrays, a list of "
    "sequences (x_i, y_i), an hf.data.Dataset, or a torch DataLoader or Dataset"
)


@dataclass(frozen=True)
class Form:
    """How a model takes its cases: their axes in inputs and in targets, and its dtype."""

    input_dim: int
    target_dim: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Part:
    """One part of the data: a problem, cases at hand, or a loader; exactly one is there."""

    problem: Problem | None = None
    cases: Cases | None = None
    loader: DataLoader[Any] | None = None
    name: str = "data"

    def batches(self) -> Iterator[Batch]:
        """All of the cases once, in batches of at most 1000; a loader's as they come."""
        if self.loader is not None:
            yield from (loaded(batch) for batch in self.loader)
        if self.cases is not None:
            for at in range(0, len(self.cases), TEST_BATCH):
                part = self.cases.parts(at, min(at + TEST_BATCH, len(self.cases)))
                yield from [part] if isinstance(part, Batch) else part

    def config(self) -> dict[str, Any]:
        """What tells these data from others."""
        if self.problem is not None:
            return dict(self.problem.config())
        if self.loader is not None:
            return _loader_config(self.loader)
        if isinstance(self.cases, ArrayCases):
            arrays = self.cases.batch._asdict()
            return {key: describe_array(t) for key, t in arrays.items() if t is not None}
        assert isinstance(self.cases, SequenceCases)
        columns = zip(*self.cases.sequences, strict=True)
        return {
            "sequences": len(self.cases),
            **{
                key: describe_array(torch.cat([t.flatten() for t in column]))
                for key, column in zip(Batch._fields, columns, strict=True)
            },
            "lengths": describe_array(self.cases.lengths),
        }


def part_of(name: str, data: Any, form: Form) -> Part:
    """The part called ``name``. Raises TypeError or ValueError naming what is wrong."""
    if isinstance(data, Part):
        return data
    if isinstance(data, DataLoader):
        return Part(loader=data, name=type(data.dataset).__name__)
    if isinstance(data, Dataset):
        return Part(cases=image_cases(data.train, form), name=data.name)
    if isinstance(data, TorchDataset):
        return Part(cases=_stacked(name, data, form), name=type(data).__name__)
    if isinstance(data, tuple) and len(data) in (2, 3) and all(map(_is_array, data[:2])):
        return Part(cases=_arrays(name, data, form))
    if isinstance(data, list):
        check_unambiguous(name, data)
        return Part(cases=_sequences(name, data, form))
    if callable(getattr(data, "batch", None)):
        check_problem(name, data)
        return Part(problem=data, name=str(data.name))
    got = type(data).__name__
    if isinstance(data, tuple):
        got = f"a tuple of {', '.join(type(item).__name__ for item in data) or 'nothing'}"
    raise TypeError(f"{name}: got {got}, {NEED}")


def image_cases(images: Tensor, form: Form) -> ArrayCases:
    """Images ``[N,n]`` that are inputs and targets in one, in the model's dtype."""
    images = images.to(form.dtype)
    return ArrayCases(Batch(images, images))


def loaded(batch: Any) -> Batch:
    """What a DataLoader gave, as a batch. Raises TypeError for other things."""
    batch = labelled(batch)
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, tuple | list) and len(batch) in (2, 3):
        return Batch(*batch)
    what = f"{len(batch)} items" if isinstance(batch, tuple | list) else type(batch).__name__
    raise TypeError(
        f"data: the DataLoader gave {what}, need (inputs, targets) or (inputs, targets, mask)"
    )


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _tensor(name: str, value: Any, dtype: torch.dtype) -> Tensor:
    """A tensor as it is; of a NumPy array floats in the model's dtype, integers as int64.

    Raises TypeError for a tensor of another floating dtype than the model's, and for complex
    numbers, texts and objects.
    """
    if isinstance(value, Tensor):
        if value.is_complex() or (value.is_floating_point() and value.dtype != dtype):
            raise TypeError(f"{name}: got {value.dtype}, need {dtype} like the model, or integers")
        check_dense(name, value)
        return value.detach()
    if isinstance(value, np.ndarray | np.generic | int | float):
        check_unmasked(name, value)
        array = np.asarray(value)
        if array.dtype.kind == "f":
            return floats(array, dtype)
        if array.dtype.kind in "iu":
            return torch.from_numpy(array.astype(np.int64))
        if array.dtype.kind == "b":
            return torch.from_numpy(array.copy())
        raise TypeError(f"{name}: got NumPy dtype {array.dtype}, need floats, integers or bool")
    raise TypeError(f"{name}: got {type(value).__name__}, need a torch.Tensor or a NumPy array")


def _checked_mask(name: str, mask: Any, dtype: torch.dtype) -> Tensor:
    """Bool, from bool or from 0 and 1, or floating weights."""
    t = _tensor(name, mask, dtype)
    if t.is_floating_point():
        try:
            t = checked_weights(t)
        except ValueError as error:
            raise ValueError(f"{name.removesuffix('mask')}{error}") from None
    elif t.dtype != torch.bool:
        if not bool(((t == 0) | (t == 1)).all()):
            raise ValueError(f"{name}: holds values other than 0 and 1")
        t = t.bool()
    if not bool(t.any()):
        raise ValueError(f"{name}: masks every output, need at least one that counts")
    return t


def _arrays(name: str, data: tuple[Any, ...], form: Form) -> ArrayCases:
    given = dict(zip(("inputs", "targets", "mask"), data, strict=False))
    inputs = _tensor(f"{name}: inputs", given["inputs"], form.dtype)
    one = given["targets"] is given["inputs"]
    targets = inputs if one else _tensor(f"{name}: targets", given["targets"], form.dtype)
    mask = given.get("mask")
    if mask is not None:
        mask = _checked_mask(f"{name}: mask", mask, form.dtype)
    try:
        return ArrayCases(Batch(inputs, targets, mask), form.input_dim, form.target_dim)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _stacked(name: str, data: TorchDataset[Any], form: Form) -> Cases:
    """The items of a map-style torch Dataset, stacked; as sequences where their lengths differ."""
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        raise TypeError(
            f"{name}: got {type(data).__name__}, which has no length; put it into a DataLoader"
        )
    items = [data[i] for i in range(len(data))]
    if not items:
        raise ValueError(f"{name}: got an empty {type(data).__name__}, need at least 1 case")
    for i, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) not in (2, 3):
            raise TypeError(
                f"{name}[{i}]: got {type(item).__name__}, need (inputs, targets) or "
                "(inputs, targets, mask)"
            )
    columns = [
        [_tensor(f"{name}[{i}]", v, form.dtype) for i, v in enumerate(column)]
        for column in zip(*items, strict=True)
    ]
    if any(len({t.shape for t in column}) > 1 for column in columns):
        return _sequences(name, [tuple(item) for item in items], form)
    dims = (form.input_dim, form.target_dim, form.target_dim)
    stacked = tuple(
        torch.stack(column, min(dim, column[0].ndim))
        for column, dim in zip(columns, dims, strict=False)
    )
    return _arrays(name, stacked, form)


def _sequences(name: str, data: Sequence[Any], form: Form) -> SequenceCases:
    """``[(x_i [T_i,…], y_i), …]`` with an optional mask_i ``[T_i]``.

    y_i is ``[T_i,k]`` or int64 ``[T_i]``; one of a whole sequence, ``[k]`` or an int, counts at its
    last step.
    """
    if not data:
        raise ValueError(f"{name}: got an empty list, need at least one sequence (x_i, y_i)")
    if form.input_dim != form.target_dim or form.input_dim > 1:
        raise ValueError(
            f"{name}: sequences need a model whose cases lie along axis 0 or 1 of inputs and "
            f"outputs alike, got axes {form.input_dim} and {form.target_dim}"
        )
    if any(map(_is_array, data)):
        raise TypeError(
            f"{name}: got a list of arrays, need a tuple (x, y) of all cases, or a list with one "
            "(x_i, y_i) for each sequence"
        )
    sequences: list[tuple[Tensor, Tensor, Tensor]] = []
    masked = False
    for i, item in enumerate(data):
        if not isinstance(item, tuple | list) or len(item) not in (2, 3):
            raise TypeError(
                f"{name}[{i}]: got {type(item).__name__}, need (x_i, y_i) or (x_i, y_i, mask_i)"
            )
        sequence, whole = _sequence(f"{name}[{i}]", item, form.dtype)
        if sequences:
            _check_like(f"{name}[{i}]", sequence, sequences[0])
        sequences.append(sequence)
        masked |= not whole
    masked |= len({len(x) for x, _, _ in sequences}) > 1
    return SequenceCases(sequences, form.input_dim, masked)


def _sequence(
    name: str, item: Sequence[Any], dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor, Tensor], bool]:
    """One sequence with a target and a mask for every step; whether all of its steps count."""
    x = _tensor(f"{name}: x", item[0], dtype)
    y = _tensor(f"{name}: y", item[1], dtype)
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"{name}: x: got shape {list(x.shape)}, need [T, n] with T at least 1")
    T = len(x)
    mask = torch.ones(T, dtype=torch.bool, device="cpu")
    whole = len(item) == 2 or item[2] is None
    if not whole:
        mask = _checked_mask(f"{name}: mask", item[2], dtype)
        if mask.shape != (T,):
            raise ValueError(f"{name}: mask: got shape {list(mask.shape)}, need [{T}] like x")
    if y.ndim == 0 and y.is_floating_point():
        y = y.reshape(1)
    per_step = 2 if y.is_floating_point() else 1
    if y.ndim == per_step - 1:  # one target for the whole sequence
        last = y.new_zeros(T, *y.shape)
        last[-1] = y
        mask = mask & (torch.arange(T, device="cpu") == T - 1)
        return (x, last, mask), False
    if y.ndim < per_step or len(y) != T:
        raise ValueError(
            f"{name}: y: got shape {list(y.shape)}, need a target for each of the {T} steps of x, "
            "or one for the sequence"
        )
    return (x, y, mask), whole


def _check_like(name: str, one: tuple[Tensor, ...], first: tuple[Tensor, ...]) -> None:
    for label, t, like in zip(("x", "y"), one, first, strict=False):
        if t.shape[1:] != like.shape[1:] or t.dtype != like.dtype:
            # [T_i] without k is what was given as one target [k] of the whole sequence.
            flat = label == "y" and [t.shape[1:], like.shape[1:]] == [t.shape[:1], like.shape[:1]]
            hint = "; a number in every step is [T_i, 1]" if flat else ""
            raise ValueError(
                f"{name}: {label}: got steps of shape {list(t.shape[1:])} and {t.dtype}, need "
                f"{list(like.shape[1:])} and {like.dtype} like those of the first sequence{hint}"
            )


def _loader_config(loader: DataLoader[Any]) -> dict[str, Any]:
    """What is known of a loader without reading it."""
    dataset = loader.dataset
    return {
        "dataset": type(dataset).__name__,
        "items": len(dataset) if hasattr(dataset, "__len__") else None,
        "batch_size": loader.batch_size,
        "drop_last": loader.drop_last,
        "sampler": type(loader.sampler).__name__,
    }
