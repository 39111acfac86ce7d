"""What the forwards of a recurrent module with a linear read-out compute, as they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_packed_sequence

Forward = Callable[[Any], Any]


class Form(NamedTuple):
    """The fields of :class:`hfcore.nets.recognition.ReadOut` that a forward says."""

    last_only: bool = False
    classes_second: bool = False
    final: bool = False
    packed: bool = False
    pads_batch_first: bool = False
    arguments: tuple[str, str] | None = None
    is_sorted: bool = False
    all_steps: bool = False
    also: Form | None = None


def forwards(rnn: nn.RNNBase, out: nn.Linear) -> Iterator[tuple[Forward, Form]]:
    """What such modules compute, as it is written."""
    yield lambda x: out(rnn(x)[0]), Form()
    lasts: tuple[Any, ...] = (-1, (-1, slice(None)), (-1, slice(None), slice(None)), (-1, ...))
    if rnn.batch_first:
        every = slice(None)
        lasts = ((every, -1), (every, -1, every), (every, -1, ...), (..., -1, every))
    last = Form(last_only=True)
    for at in lasts:
        yield partial(_of_state, rnn, out, at), last
        yield partial(_of_output, rnn, out, at), last
    final = Form(last_only=True, final=True)
    yield lambda x: out(final_state(rnn(x)[1])[-1]), final
    if rnn.num_layers == 1:
        yield lambda x: out(final_state(rnn(x)[1])[0]), final
        yield lambda x: out(final_state(rnn(x)[1]).squeeze(0)), final
    for move in moves(rnn.batch_first):
        yield partial(then, lambda x: out(rnn(x)[0]), move), Form(classes_second=True)


def forwards_of_packed(rnn: nn.RNNBase, out: nn.Linear) -> Iterator[tuple[Forward, Form]]:
    """The same of packed sequences."""
    for first in (False, True):
        form = Form(packed=True, pads_batch_first=first)
        yield partial(_of_padded, rnn, out, first), form
        for move in moves(first):
            moved = partial(then, partial(_of_padded, rnn, out, first), move)
            yield moved, form._replace(classes_second=True)


def _of_padded(rnn: nn.RNNBase, out: nn.Linear, batch_first: bool, x: Any) -> Any:
    return out(pad_packed_sequence(rnn(x)[0], batch_first=batch_first)[0])


def then(forward: Forward, move: Callable[[Tensor], Tensor], x: Any) -> Any:
    return move(forward(x))


def moves(batch_first: bool) -> Iterator[Callable[[Tensor], Tensor]]:
    """Outputs ``[B,T,k]``, or ``[T,B,k]``, to ``[B,k,T]``, as nn.CrossEntropyLoss takes them."""
    order = (0, 2, 1) if batch_first else (1, 2, 0)
    yield lambda s: s.permute(*order)
    yield lambda s: s.permute(order)
    yield lambda s: torch.permute(s, order)
    if not batch_first:
        return
    for first, second in ((1, 2), (2, 1), (-1, -2), (-2, -1), (1, -1), (-1, 1)):
        yield partial(_swapped, first, second)
        yield partial(_swapped_by_torch, first, second)
    yield lambda s: s.mT


def _swapped(first: int, second: int, s: Tensor) -> Tensor:
    return s.transpose(first, second)


def _swapped_by_torch(first: int, second: int, s: Tensor) -> Tensor:
    return torch.transpose(s, first, second)


def _of_state(rnn: nn.RNNBase, out: nn.Linear, last: Any, x: Tensor) -> Any:
    return out(rnn(x)[0][last])


def _of_output(rnn: nn.RNNBase, out: nn.Linear, last: Any, x: Tensor) -> Any:
    return out(rnn(x)[0])[last]


def final_state(states: Any) -> Tensor:
    """h of the last step of every layer, ``[L,B,H]``; an LSTM returns its cells beside them."""
    h: Tensor = states[0] if isinstance(states, tuple) else states
    return h
