"""Modules of torch made of one recurrent module and a linear read-out, as users write them.

Which function such a module computes is found by running its forward once on zeros and comparing
its calls of torch (:mod:`hfcore.nets.recorded_calls`) with those of ``out(rnn(x)[0])``, say.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import CellType, CodeType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.weak import WeakIdKeyDictionary

from hfcore.nets.forms_with_lengths import forwards_with_lengths
from hfcore.nets.forward_forms import Form, Forward, forwards, forwards_of_packed
from hfcore.nets.recorded_calls import Calls, calls_of
from hfcore.nets.unaltered import HOOKS, why_not_fused

KINDS: tuple[type[nn.RNNBase], ...] = (nn.RNN, nn.LSTM, nn.GRU)
DTYPES = (torch.float32, torch.float64)
# Attributes that are looked at by their value.
SIMPLE = (bool, int, float, str, type(None))
# Kinds of arguments that a call may go without.
NEEDLESS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# Steps and sequences of the zeros that the forward is run on.
STEPS, SEQUENCES = 2, 3

# Of the packed ones: not sorted.
LENGTHS = (1, 2, 1)
# Of those that are given beside padded sequences, as many steps as sequences: sorted, and below T.
GIVEN_LENGTHS = (2, 1, 1)


@dataclass(frozen=True)
class ReadOut:
    """A recurrent module, the linear one on its states, and where a user's batches have their axes.

    Inputs are ``[T,B,n]``, or ``[B,T,n]`` where ``batch_first``; outputs likewise, or ``[B,k]``
    of the last step alone (``last_only``), or ``[B,k,T]`` (``classes_second``). What reads the
    ``final`` states takes packed sequences, too. What is ``packed`` takes those alone, and pads its
    outputs, ``[B,T,k]`` where ``pads_batch_first``.

    With ``arguments`` inputs are a mapping of these two names to padded sequences, cases first
    where ``pads_batch_first``, and their lengths ``[B]``. The last step is each sequence's own,
    outputs end with the longest unless there are ``all_steps``, and lengths must not increase where
    ``is_sorted``. ``also`` is such a form of a forward that goes without lengths, too.
    """

    model: nn.Module
    rnn: nn.RNNBase
    out: nn.Linear
    last_only: bool
    classes_second: bool = False
    final: bool = False
    packed: bool = False
    pads_batch_first: bool = False
    arguments: tuple[str, str] | None = None
    is_sorted: bool = False
    all_steps: bool = False
    also: Form | None = None

    def of_inputs(self, inputs: Any) -> ReadOut:
        """What it is for these inputs: ``also`` where they are the mapping that this form takes."""
        names = () if self.also is None or self.also.arguments is None else self.also.arguments
        if self.also is None or not isinstance(inputs, Mapping) or set(inputs) != set(names):
            return self
        return ReadOut(self.model, self.rnn, self.out, **self.also._asdict())

    @property
    def batch_first(self) -> bool:
        own = self.packed or self.arguments is not None
        return self.pads_batch_first if own else bool(self.rnn.batch_first)

    @property
    def batch_dim(self) -> tuple[int, int]:
        """The axes of the cases in inputs and in outputs."""
        axis = 0 if self.batch_first else 1
        return axis, 0 if self.last_only or self.classes_second else axis

    @property
    def cases(self) -> str:
        """The option that says where the cases are, in words."""
        inputs, outputs = self.batch_dim
        return f"batch_dim={inputs if inputs == outputs else (inputs, outputs)}"

    @property
    def shown(self) -> str:
        """In words."""
        names = {id(m): name for name, m in self.model.named_modules()}
        read = "the last step" if self.last_only else "every step"
        moved = ", its outputs [B,k,T]" if self.classes_second else ""
        moved += ", of packed sequences" if self.packed else ""
        moved += "" if self.arguments is None else ", of sequences with their lengths"
        return (
            f"nn.{type(self.rnn).__name__} {names[id(self.rnn)]!r}, read at {read} by nn.Linear "
            f"{names[id(self.out)]!r}{moved}"
        )


Found = ReadOut | str | None


class _Known(NamedTuple):
    """What was found of a module in some state: its form, or why it has none.

    ``rnn`` and ``out`` are the places of the two parts among its submodules.
    """

    state: tuple[Any, ...]
    rnn: int
    out: int
    found: Form | str


# By the module, of the state that it was in last.
_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


def recognised(model: Any) -> Found:
    """The :class:`ReadOut` that a module is; why it is none, though made of such parts; or None.

    It is looked at again where attributes, modes, hooks, parameters or submodules have changed.
    """
    if not isinstance(model, nn.Module):
        return None
    model = getattr(model, "_orig_mod", model)  # the eager one inside a compiled one
    modules, known = list(model.modules()), _known.get(model)
    state = None if known is None else _state_of(modules)
    if known is None or known.state != state:
        parts = _parts(model, modules)
        if parts is None:
            return None
        state = _state_of(modules) if state is None else state
        found = _why_unlike(model, *parts) or _by_forward(model, *parts)
        places = [next(i for i, m in enumerate(modules) if m is part) for part in parts]
        known = _known[model] = _Known(state, places[0], places[1], found)
    if isinstance(known.found, str):
        return known.found
    rnn, out = modules[known.rnn], modules[known.out]
    return ReadOut(model, rnn, out, **known.found._asdict())


def _parts(model: nn.Module, modules: list[nn.Module]) -> tuple[nn.RNNBase, nn.Linear] | None:
    """The recurrent module and the linear one that hold all parameters of a module."""
    rnns = [m for m in modules if isinstance(m, nn.RNNBase)]
    outs = [m for m in modules if isinstance(m, nn.Linear)]
    if len(rnns) != 1 or len(outs) != 1 or not isinstance(rnns[0], KINDS):
        return None
    theirs = {id(p) for part in (*rnns, *outs) for p in part.parameters()}
    if any(id(p) not in theirs for p in model.parameters()):
        return None
    return rnns[0], outs[0]


def _state_of(modules: list[nn.Module]) -> tuple[Any, ...]:
    """What a forward can see of a module besides its inputs, and what may alter its function.

    Parameters by identity; a forward that computes with their values is seen in its calls.
    """
    found: list[Any] = [len(getattr(torch_module, f"_global{kind}")) for kind in HOOKS]
    for part in modules:
        own = vars(part)
        found += id(part), type(part).forward, *(len(own[kind]) for kind in HOOKS)
        for key, value in own.items():
            found += key, _identity(value)
        found += _outside_of(type(part).forward)
        for p in own["_parameters"].values():
            if p is not None:
                hooked = bool(p._backward_hooks) or bool(p._post_accumulate_grad_hooks)
                found += id(p), p.requires_grad, p.dtype, p.device, hooked
        found += own["_buffers"]
    return tuple(found)


def _identity(value: object) -> object:
    """The value where that is simple, else which object it is."""
    return value if isinstance(value, SIMPLE) else id(value)


def _outside_of(forward: Any) -> list[Any]:
    """What the code of a forward names beside its arguments: globals and variables around it.

    What functions that it calls read is unseen, and so is what changes within an object.
    """
    code = getattr(forward, "__code__", None)
    if code is None or (forward.__module__ or "").startswith("torch."):
        return []
    around = [_identity(cell.cell_contents) for cell in forward.__closure__ or () if _filled(cell)]
    seen = forward.__globals__
    return around + [_identity(seen[name]) for name in _names(code) if name in seen]


def _names(code: CodeType) -> list[str]:
    """All names that it looks up, those of functions within it too."""
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    return [*code.co_names, *(name for c in inner for name in _names(c))]


def _filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _why_unlike(model: nn.Module, rnn: nn.RNNBase, out: nn.Linear) -> str | None:
    """What stands in the way before its forward is looked at."""
    names = {id(m): name for name, m in model.named_modules()}
    wanted: type[nn.Module] = next(k for k in KINDS if isinstance(rnn, k))
    for part, kind in ((rnn, wanted), (out, nn.Linear)):
        shown = f"{type(part).__name__} {names[id(part)]!r}"
        if type(part) is not kind:
            return f"{shown} is derived from nn.{kind.__name__}, and may compute otherwise"
    reason = why_not_fused(model, [type(m) for m in model.modules()])
    if reason is not None:
        return reason
    shown = f"{type(rnn).__name__} {names[id(rnn)]!r}"
    if rnn.bidirectional:
        return f"{shown} is bidirectional"
    if rnn.proj_size:
        return f"{shown} has proj_size={rnn.proj_size}"
    for m in model.modules():
        between = isinstance(m, nn.RNNBase) and m.num_layers > 1 and m.dropout > 0
        if m.training and (between or (isinstance(m, _DropoutNd) and m.p > 0)):
            where = f"{type(m).__name__} {names[id(m)]!r}"
            return f"{where} drops units in train mode; call .eval() on it or on the model"
    return _why_other_tensors(model)


def _why_other_tensors(model: nn.Module) -> str | None:
    name = next((name for name, _ in model.named_buffers()), None)
    if name is not None:
        return f"it holds the buffer {name!r}"
    held = [p for m in model.modules() for p in m._parameters.values() if p is not None]
    if len({id(p) for p in held}) != len(held):
        return "some of its parameters are tied"
    for name, p in model.named_parameters():
        if not p.requires_grad:
            return f"its parameter {name} is frozen"
        if p.dtype not in DTYPES:
            return f"its parameter {name} is {p.dtype}, need torch.float32 or torch.float64"
    return None


def _by_forward(model: nn.Module, rnn: nn.RNNBase, out: nn.Linear) -> Form | str:
    """What its forward gives; or why it is none that is known."""
    shape = [STEPS, SEQUENCES, rnn.input_size]
    if rnn.batch_first:
        shape[:2] = SEQUENCES, STEPS
    like = next(model.parameters())
    x = torch.zeros(shape, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        rnn(x)  # which looks at its weights where they lie elsewhere than at its last call
    arguments, needs_both = _two_arguments(model)
    if arguments is not None and needs_both:
        return _by_lengths(model, rnn, out, arguments)
    found = _compared(model, rnn, x, forwards(rnn, out))
    if isinstance(found, Form) and arguments:
        also = _by_lengths(model, rnn, out, arguments)
        if isinstance(also, Form) and _lie_alike(model, rnn, out, found, also):
            return found._replace(also=also)
    if isinstance(found, str):
        lengths = torch.tensor(LENGTHS, device="cpu")
        packed = pack_padded_sequence(x, lengths, rnn.batch_first, enforce_sorted=False)
        of_packed = _compared(model, rnn, packed, forwards_of_packed(rnn, out))
        return found if isinstance(of_packed, str) else of_packed
    return found


def _two_arguments(model: nn.Module) -> tuple[tuple[str, str] | None, bool]:
    """(the names of a forward's arguments where it has two, whether it needs both)."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return None, False
    named = [p for p in parameters if p.kind not in NEEDLESS]
    if len(named) != 2 or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in named):
        return None, False
    return (named[0].name, named[1].name), named[1].default is inspect.Parameter.empty


def _lie_alike(model: nn.Module, rnn: nn.RNNBase, out: nn.Linear, one: Form, other: Form) -> bool:
    """Whether two forms have their cases and outputs along the same axes."""
    a, b = (ReadOut(model, rnn, out, **form._asdict()) for form in (one, other))
    alike = (one.last_only, one.classes_second) == (other.last_only, other.classes_second)
    return alike and a.batch_dim == b.batch_dim


def _by_lengths(
    model: nn.Module, rnn: nn.RNNBase, out: nn.Linear, arguments: tuple[str, str]
) -> Form | str:
    """The same of a forward that takes padded sequences and their lengths."""
    like, sequences = next(model.parameters()), len(GIVEN_LENGTHS)
    x = torch.zeros(sequences, sequences, rnn.input_size, dtype=like.dtype, device=like.device)
    both, parameters = (x, torch.tensor(GIVEN_LENGTHS, device="cpu")), list(model.parameters())
    try:
        calls = calls_of(lambda both: model(*both), both, parameters)
    except Exception as error:  # the user's own code
        said = str(error).partition("\n")[0]
        return f"its forward raised {type(error).__name__} for sequences and lengths: {said}"

    def begins(states: Forward) -> bool:
        return calls.begin_like(calls_of(states, both, parameters))

    for forward, form in forwards_with_lengths(rnn, out, begins):
        if calls.are(calls_of(forward, both, parameters)):
            return form._replace(arguments=arguments)
    return (
        f"its forward does otherwise with {arguments[0]} and {arguments[1]} than to pack the "
        "sequences, or to take the last step of each out of the states"
    )


def _compared(
    model: nn.Module, rnn: nn.RNNBase, x: Any, forwards: Iterator[tuple[Forward, Form]]
) -> Form | str:
    """Which of ``forwards`` makes the same calls for x; or what the first does not do."""
    parameters = list(model.parameters())
    try:
        calls = calls_of(model, x, parameters)
    except Exception as error:  # the user's own code
        said = str(error).partition("\n")[0]
        return f"its forward raised {type(error).__name__} for a tensor of inputs: {said}"
    if calls.returned is None:
        return "its forward returns something else than one tensor"
    plain: Calls | None = None
    for forward, form in forwards:
        expected = calls_of(forward, x, parameters)
        if calls.are(expected):
            return form
        plain = expected if plain is None else plain
    assert plain is not None
    unlike = calls.unlike(plain)
    does = "returns something else" if unlike is None else f"calls {unlike}"
    return f"its forward {does} where nn.{type(rnn).__name__} and nn.Linear alone do not"
