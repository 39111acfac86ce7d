"""The data of one optimisation step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfcore.arguments import naming_fields


class Batch(NamedTuple):
    """Cases with their targets, and a mask of the outputs that count: bool, or weights ≥ 0 in the
    dtype of the inputs; None for all.

    hf.RNN: sequences of one length, ``inputs [T,B,n]``, ``targets [T,B,k]`` (classes ``[T,B]``),
    ``mask [T,B]``. hf.MLP: ``inputs [B,n]``, ``targets [B,k]`` (classes ``[B]``). Any other
    module: what it takes, cases along the objective's batch dimension; a tuple of inputs goes to a
    ``forward`` of as many arguments, a mapping to arguments of its names.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor | None = None


# The targets in a batch that is a mapping.
LABELS = "labels"


def labelled(data: Any) -> Any:
    """A mapping with ``"labels"`` as the Batch of its other items and these; else ``data``."""
    if not isinstance(data, Mapping) or LABELS not in data:
        return data
    inputs: Any = {key: data[key] for key in data if key != LABELS}
    return Batch(inputs, data[LABELS])


def check_dense(name: str, t: Tensor) -> None:
    """Raise TypeError for ``t […]`` that is sparse or nested."""
    if t.layout != torch.strided or t.is_nested:
        what = "a nested tensor" if t.is_nested else f"a tensor of layout {t.layout}"
        raise TypeError(f"{name}: got {what}, need a dense one")


def check_unambiguous(name: str, data: Any) -> None:
    """Raise TypeError for what may be one batch of several inputs and targets, or several batches.

    That is a tuple of tuples or lists, and a list of two of which one is a list. A list of tuples
    ``(x, y)`` holds batches.
    """
    if not isinstance(data, tuple | list) or isinstance(data, Batch):
        return
    inner = all(isinstance(item, tuple | list) and not isinstance(item, Batch) for item in data)
    if not data or not inner:
        return
    two_lists = len(data) == 2 and any(isinstance(item, list) for item in data)
    if isinstance(data, tuple) or two_lists:
        kind, other = type(data).__name__, type(data[-1]).__name__
        raise TypeError(
            f"{name}: a {kind} of {len(data)} {other}s is one batch or several; need "
            "hf.Batch(inputs, targets) for one, a list of tuples (inputs, targets) for several"
        )


@naming_fields
@dataclass(frozen=True)
class Batches:
    """Which data plays which part in one HF step (paper: curvature is a part of the gradient data).

    A role may be one batch or a list of batches (lengths may differ between them). ``rho`` is what
    the objective in the reduction ratio ρ is evaluated on; the quadratic model there is always that
    of ``curvature``. Left out: curvature is the first gradient batch, backtracking the second,
    line search the third, each falling back to the last there is, and rho is the curvature's data,
    as in both releases (Martens 2010, section 4.3, has it on all data: rho = gradient).
    """

    gradient: Sequence[Batch] | Batch
    curvature: Sequence[Batch] | Batch | None = None
    backtracking: Sequence[Batch] | Batch | None = None
    line_search: Sequence[Batch] | Batch | None = None
    rho: Sequence[Batch] | Batch | None = None
