"""Forwards that take padded sequences and their lengths, as they are written.

``both`` are the sequences ``[B,T,n]``, or ``[T,B,n]``, and the lengths, int64 ``[B]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hfcore.nets.forward_forms import Form, Forward, final_state, moves, then

Read = Callable[[Tensor, Tensor, Tensor], Tensor]


def forwards_with_lengths(
    rnn: nn.RNNBase, out: nn.Linear, begins: Callable[[Forward], bool]
) -> Iterator[tuple[Forward, Form]]:
    """What such modules compute; of those whose states ``begins`` does not find, nothing."""
    for (states, pads), first, is_sorted in _packed(rnn):
        if not begins(states):
            continue
        form = Form(last_only=True, pads_batch_first=first, is_sorted=is_sorted)
        for last in _last_layer(rnn.num_layers):
            yield partial(_final, states, out, last), form
        for pad, all_steps in pads:
            every = form._replace(last_only=False, all_steps=all_steps)
            yield partial(_every, states, pad, out), every
            for move in moves(first):
                moved = partial(then, partial(_every, states, pad, out), move)
                yield moved, every._replace(classes_second=True)
            yield from _lasts(partial(_padded, states, pad), out, form)
    form = Form(last_only=True, pads_batch_first=rnn.batch_first)
    states = partial(_plain, rnn)
    if begins(states):
        yield from _lasts(states, out, form)


def _plain(rnn: nn.RNNBase, both: Any) -> Tensor:
    h: Tensor = rnn(both[0])[0]
    return h


# ---- packed inside


def _packed(rnn: nn.RNNBase) -> Iterator[tuple[tuple[Forward, list[Any]], bool, bool]]:
    """(states and how they are padded, whether cases come first, whether they must be sorted)."""
    to_cpu: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda l: l, lambda l: l.cpu(), lambda l: l.to("cpu"),
    )  # fmt: skip
    for first, is_sorted, moved in product((True, False), (False, True), to_cpu):
        axis = 1 if first else 0
        pads: list[Any] = [
            (partial(_pad, first, lambda x: None), False),
            (partial(_pad, first, partial(_size, axis)), True),
            (partial(_pad, first, partial(_shape, axis)), True),
        ]
        yield (partial(_of_packed, rnn, first, is_sorted, moved), pads), first, is_sorted


def _size(axis: int, x: Tensor) -> int:
    return x.size(axis)


def _shape(axis: int, x: Tensor) -> int:
    return x.shape[axis]


def _of_packed(
    rnn: nn.RNNBase, first: bool, is_sorted: bool, moved: Callable[[Tensor], Tensor], both: Any
) -> Any:
    x, lengths = both
    packed = pack_padded_sequence(x, moved(lengths), batch_first=first, enforce_sorted=is_sorted)
    return rnn(packed)


def _pad(first: bool, steps: Callable[[Tensor], int | None], x: Tensor, h: Any) -> Tensor:
    return pad_packed_sequence(h, batch_first=first, total_length=steps(x))[0]


def _padded(states: Forward, pad: Callable[[Tensor, Any], Tensor], both: Any) -> Tensor:
    return pad(both[0], states(both)[0])


def _every(states: Forward, pad: Callable[[Tensor, Any], Tensor], out: nn.Linear, both: Any) -> Any:
    return out(_padded(states, pad, both))


def _final(states: Forward, out: nn.Linear, last: Callable[[Tensor], Tensor], both: Any) -> Any:
    return out(last(final_state(states(both)[1])))


def _last_layer(layers: int) -> Iterator[Callable[[Tensor], Tensor]]:
    yield lambda h: h[-1]
    if layers == 1:
        yield lambda h: h[0]
        yield lambda h: h.squeeze(0)


# ---- the last step of each sequence, taken out of all


def _lasts(states: Forward, out: nn.Linear, form: Form) -> Iterator[tuple[Forward, Form]]:
    for read in _indexed(form.pads_batch_first):
        yield partial(_read_states, states, out, read), form
        yield partial(_read_outputs, states, out, read), form
    if form.pads_batch_first:
        for read in _gathered():
            yield partial(_read_states, states, out, read), form


def _read_states(states: Forward, out: nn.Linear, read: Read, both: Any) -> Any:
    return out(read(both[0], both[1], states(both)))


def _read_outputs(states: Forward, out: nn.Linear, read: Read, both: Any) -> Any:
    return read(both[0], both[1], out(states(both)))


def _indexed(first: bool) -> Iterator[Read]:
    """h[torch.arange(B), lengths − 1], or h[lengths − 1, torch.arange(B)]."""
    axis = 0 if first else 1
    counts: list[Callable[[Tensor, Tensor, Tensor], int]] = [
        lambda x, l, h: x.size(axis), lambda x, l, h: h.size(axis),
        lambda x, l, h: x.shape[axis], lambda x, l, h: h.shape[axis],
        lambda x, l, h: len(l), lambda x, l, h: l.size(0), lambda x, l, h: l.shape[0],
    ]  # fmt: skip
    if first:
        counts += [lambda x, l, h: len(x), lambda x, l, h: len(h)]
    places: list[Callable[[Tensor, Tensor], dict[str, Any]]] = [
        lambda x, h: {}, lambda x, h: {"device": x.device}, lambda x, h: {"device": h.device},
    ]  # fmt: skip
    for count, place, rows_first in product(counts, places, (first, not first)):
        yield partial(_at_last, count, place, first, rows_first)


def _at_last(
    count: Callable[[Tensor, Tensor, Tensor], int],
    place: Callable[[Tensor, Tensor], dict[str, Any]],
    first: bool,
    rows_first: bool,
    x: Tensor,
    lengths: Tensor,
    h: Tensor,
) -> Tensor:
    """``rows_first``: which of the two indices is made first."""
    if rows_first:
        rows = torch.arange(count(x, lengths, h), **place(x, h))
        steps = lengths - 1
    else:
        steps = lengths - 1
        rows = torch.arange(count(x, lengths, h), **place(x, h))
    return h[rows, steps] if first else h[steps, rows]


def _gathered() -> Iterator[Read]:
    """h.gather(1, …) with the last step of each sequence for every unit."""
    widths: tuple[Callable[[Tensor], int], ...] = (
        lambda h: h.size(2), lambda h: h.size(-1), lambda h: h.shape[2], lambda h: h.shape[-1],
    )  # fmt: skip
    for width in widths:
        yield partial(_by_expanded, width)
        yield partial(_by_unsqueezed, width)


def _by_expanded(width: Callable[[Tensor], int], x: Tensor, l: Tensor, h: Tensor) -> Tensor:
    return h.gather(1, (l - 1).view(-1, 1, 1).expand(-1, 1, width(h))).squeeze(1)


def _by_unsqueezed(width: Callable[[Tensor], int], x: Tensor, l: Tensor, h: Tensor) -> Tensor:
    return h.gather(1, (l - 1).view(-1, 1).expand(len(l), width(h)).unsqueeze(1)).squeeze(1)
