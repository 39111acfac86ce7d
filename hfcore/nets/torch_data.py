"""Batches of torch's recurrent modules, brought to the layout of the ops: time first, padded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from hfcore.batches import Batch
from hfcore.bindings.checks import check_tensor
from hfcore.losses import Loss
from hfcore.nets.data import Data, check_sequences
from hfcore.nets.recognition import ReadOut


def check_read_out(
    read: ReadOut,
    batch: Batch,
    loss: Loss,
    sizes: tuple[int, int],
    *,
    like: Tensor | None = None,
    dtype: torch.dtype | None = None,
    every_step: bool = False,
) -> Data:
    """Check a batch whose axes are those of the module: inputs ``[T,B,n]`` or ``[B,T,n]``.

    Targets are ``[…,k]`` or classes ``[…]`` and the mask ``[…]`` with the leading axes of the
    outputs, ``[B]`` where the last step alone is read; where outputs are ``[B,k,T]`` so are
    targets, and classes and mask ``[B,T]``. ``sizes``, ``like``, ``dtype`` and errors:
    :func:`check_sequences`.

    Inputs may be a PackedSequence where the module takes one; the last step is then each sequence's
    own. Targets of every step are packed alike, or padded as the outputs are, with a mask (or
    ignored classes) where sequences have ended. So it is where the module's forward takes padded
    sequences and their lengths: inputs are a mapping with both, and outputs end with the longest
    sequence, unless the forward pads them to the inputs' length.
    """
    read = read.of_inputs(batch.inputs)
    x, lengths = _inputs(read, batch.inputs, sizes[0], like, dtype)
    targets, mask = _outputs(read, batch, loss, (*x.shape[:2], sizes[1]), lengths, x.dtype)
    arrays = Batch(x, targets, mask)
    return check_sequences(arrays, loss, sizes, like=like, dtype=dtype, every_step=every_step)


def _inputs(
    read: ReadOut, inputs: Any, n: int, like: Tensor | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """``[T,B,n]``, and the lengths ``[B]`` of sequences that are packed or have them beside."""
    if read.arguments is not None:
        return _with_lengths(read, read.arguments, inputs, n, like, dtype)
    if isinstance(inputs, Mapping):
        raise TypeError(
            f"inputs: got a mapping of {', '.join(map(str, inputs))}, need a torch.Tensor: of the "
            "module's forward the form with one argument is known; strategy='trace' serves the "
            "others through autograd"
        )
    if isinstance(inputs, PackedSequence):
        if not (read.packed or read.final):
            raise TypeError(
                "inputs: got a PackedSequence, which the module's forward does not take"
            )
        check_tensor("inputs", inputs.data, ["steps", n], like=like, dtype=dtype)
        x, lengths = pad_packed_sequence(inputs)
        return x, lengths.to(x.device)
    if read.packed:
        got = type(inputs).__name__
        raise TypeError(f"inputs: got {got}, need a PackedSequence as the module's forward does")
    return _time_first(read, inputs, n, like, dtype), None


def _time_first(
    read: ReadOut, inputs: Any, n: int, like: Tensor | None, dtype: torch.dtype | None
) -> Tensor:
    axes: list[int | str] = ["B", "T", n] if read.batch_first else ["T", "B", n]
    x = check_tensor("inputs", inputs, axes, like=like, dtype=dtype)
    return x.transpose(0, 1) if read.batch_first else x


def _with_lengths(
    read: ReadOut,
    arguments: tuple[str, str],
    inputs: Any,
    n: int,
    like: Tensor | None,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """``[T,B,n]``, as long as the outputs are, and the lengths ``[B]``."""
    if not isinstance(inputs, Mapping) or set(inputs) != set(arguments):
        got = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise TypeError(
            f"inputs: got {got}, need a mapping with {arguments[0]!r} and {arguments[1]!r}, the "
            "arguments of the module's forward"
        )
    x = _time_first(read, inputs[arguments[0]], n, like, dtype)
    lengths, name = inputs[arguments[1]], f"inputs[{arguments[1]!r}]"
    T, B = x.shape[:2]
    check_tensor(name, lengths, [B], dtype=torch.int64)
    if T * B == 0:
        return x, lengths  # which are refused
    least, most = (int(length) for length in lengths.aminmax())
    if least < 1 or most > T:
        wrong = least if least < 1 else most
        raise ValueError(f"{name}: got the length {wrong}, need 1 to {T}")
    if read.is_sorted and bool((lengths[1:] > lengths[:-1]).any()):
        raise ValueError(
            f"{name}: increase, need decreasing order, as the module packs its sequences with "
            "enforce_sorted=True"
        )
    return x if read.all_steps else x[:most], lengths.to(x.device)


def _outputs(
    read: ReadOut,
    batch: Batch,
    loss: Loss,
    sizes: tuple[int, int, int],
    lengths: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Any, Tensor | None]:
    """Targets and mask, time first, of (T, B, k) = ``sizes``."""
    targets: Any = batch.targets
    mask, (T, B, k) = batch.mask, sizes
    if isinstance(targets, PackedSequence):
        return _unpacked(read, targets, mask, lengths)
    cases_first = read.batch_first or read.classes_second
    lead = [B] if read.last_only else [B, T] if cases_first else [T, B]
    if isinstance(targets, Tensor):
        if read.classes_second and not loss.takes_classes:
            loss.check_targets(torch.Size([B, k, T]), targets, dtype)
            targets = targets.mT
        loss.check_targets(torch.Size([*lead, k]), targets, dtype)
    loss.check_output_count(k)
    if mask is not None:
        check_tensor("mask", mask, lead)
    if not isinstance(targets, Tensor) or T * B == 0:
        return targets, mask  # which are refused
    if read.last_only:
        return _at_last_step(targets, mask, T, lengths)
    if cases_first:
        targets, mask = targets.transpose(0, 1), None if mask is None else mask.transpose(0, 1)
    if lengths is not None:
        _check_within(loss, targets, mask, lengths)
    return targets, mask


def _at_last_step(
    targets: Tensor, mask: Tensor | None, T: int, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Targets ``[B,…]`` and mask ``[B]`` of each sequence's last step as those of T steps."""
    counts = torch.ones(len(targets), dtype=torch.bool, device=targets.device)
    counts = counts if mask is None else mask
    last = T - 1 if lengths is None else lengths.to(counts.device) - 1
    steps = torch.arange(T, device=counts.device).unsqueeze(1)
    return targets.expand(T, *targets.shape), torch.where(steps == last, counts, 0).to(counts.dtype)


def _unpacked(
    read: ReadOut, targets: PackedSequence, mask: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Targets of every step and the mask of those that there are."""
    if lengths is None or read.last_only:
        need = "inputs packed alike" if lengths is None else "one target for each sequence, [B,…]"
        raise TypeError(f"targets: got a PackedSequence, need {need}")
    if mask is not None:
        raise ValueError("mask: got a tensor, need None beside packed targets")
    y, theirs = pad_packed_sequence(targets)
    if theirs.tolist() != lengths.tolist():
        raise ValueError(
            f"targets: are packed from sequences of lengths {theirs.tolist()}, need "
            f"{lengths.tolist()} like the inputs"
        )
    return y, torch.arange(len(y), device=lengths.device).unsqueeze(1) < lengths


def _check_within(loss: Loss, targets: Tensor, mask: Tensor | None, lengths: Tensor) -> None:
    """Raise ValueError where an output counts after the end of its sequence."""
    ended = torch.arange(len(targets), device=lengths.device).unsqueeze(1) >= lengths
    ignored = getattr(loss, "ignore_index", None)
    counts = torch.ones_like(ended)
    if mask is not None:
        counts = mask != 0
    elif ignored is not None:
        counts = targets != ignored
    wrong = (counts.to(ended.device) & ended).nonzero()
    if len(wrong):
        t, b = wrong[0].tolist()
        raise ValueError(
            f"mask: counts step {t} of sequence {b}, whose length is {int(lengths[b])}; need a "
            "mask that is zero there, packed targets, or strategy='trace', which counts what the "
            "module gives there"
        )
