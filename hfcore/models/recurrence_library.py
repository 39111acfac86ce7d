"""The recurrence ops as dispatcher ops, visible to tracing, compiling and capturing.

One node a sequence, whatever T: ``torch.ops.hfcore.rnn_outputs``, ``rnn_hidden``,
``linear_scan``. Each is given what it computes (any device, the backend chosen when it runs), its
shape, its derivative and its vmap. Every array has a leading group axis, 1 where it is shared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hfcore.bindings import recurrence as ops
from hfcore.bindings.recurrence import RnnWeights
from hfcore.models.recurrence_autograd import (
    LinearScan,
    RnnHidden,
    fold_into_group,
    group_size,
    rnn_hidden,
    times,
)

_library = torch.library.Library("hfcore", "FRAGMENT")


def rnn_outputs(x: Tensor, w: RnnWeights, nonlinearity: str) -> Tensor:
    """Outputs ``s [G,T,B,k]`` before their nonlinearity, differentiable.

    Where nobody asks for a derivative this is one fused pass that keeps no hidden states.
    """
    if torch._C._are_functorch_transforms_active():
        return _differentiable_outputs(x, *w, nonlinearity)
    s: Tensor = torch.ops.hfcore.rnn_outputs(x, *w, nonlinearity)
    return s


def _differentiable_outputs(x: Tensor, *rest: Any) -> Tensor:
    w, nonlinearity = _weights(*rest)
    h = rnn_hidden(x, w.W_hx, w.W_hh, w.b_h, w.b_init, nonlinearity)
    return times(h, w.W_yh.mT) + w.b_y[:, None, None]


def _compute_rnn_outputs(x: Tensor, *rest: Any) -> Tensor:
    w, nonlinearity = _weights(*rest)
    return ops.rnn_forward(x, w, nonlinearity=nonlinearity, states=False)[1]


def _weights(*rest: Any) -> tuple[RnnWeights, str]:
    """What the op ``rnn_outputs`` is given beside x."""
    return RnnWeights(*rest[:6]), rest[6]


def _compute_rnn_hidden(
    x: Tensor, W_hx: Tensor, W_hh: Tensor, b_h: Tensor, b_init: Tensor, nonlinearity: str
) -> Tensor:
    # The read-out is not part of this op: one output that is zero, at the last step only.
    weights = RnnWeights(
        W_hx, W_hh, W_hh.new_zeros(1, 1, W_hh.shape[1]), b_h, b_init, b_h.new_zeros(1, 1)
    )
    last = _step(x.shape[1] - 1, x.device)
    h, _ = ops.rnn_forward(x, weights, nonlinearity=nonlinearity, steps=last)
    assert h is not None
    return h


@functools.lru_cache(maxsize=64)
def _step(t: int, device: torch.device) -> Tensor:
    """The index of one step; kept, because making it on a GPU and checking it both wait for it."""
    with torch.inference_mode(False):
        return torch.tensor([t], device=device)


def _compute_linear_scan(u: Tensor, d: Tensor, W: Tensor, reverse: bool) -> Tensor:
    return ops.linear_scan(u, d, W, reverse=reverse)


def _fake_rnn_outputs(x: Tensor, *rest: Any) -> Tensor:
    weights = rest[:6]
    return x.new_empty(group_size([x, *weights]), *x.shape[1:3], weights[2].shape[1])


def _fake_rnn_hidden(x: Tensor, *rest: Any) -> Tensor:
    weights = rest[:4]
    return x.new_empty(group_size([x, *weights]), *x.shape[1:3], weights[1].shape[1])


def _fake_linear_scan(u: Tensor, d: Tensor, W: Tensor, reverse: bool) -> Tensor:
    return u.new_empty(group_size([u, d, W]), *u.shape[1:])


def _live(arguments: Sequence[Any]) -> bool:
    """Whether an argument carries a tangent, or a gradient that is being recorded."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    recording = torch.is_grad_enabled() and any(a.requires_grad for a in tensors)
    return recording or any(forward_ad.unpack_dual(a).tangent is not None for a in tensors)


def _register(
    schema: str,
    compute: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    differentiable: Callable[..., Tensor],
) -> None:
    """Define an op; ``differentiable`` stands for it where a derivative is asked for.

    Without that the dispatcher would give a tangent of zero and say nothing.
    """
    _library.define(schema)
    name = schema.partition("(")[0]
    op = getattr(torch.ops.hfcore, name).default

    def autograd(keyset: Any, *arguments: Any) -> Tensor:
        if not _live(arguments):
            with torch._C._AutoDispatchBelowAutograd():
                y: Tensor = op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)
                return y
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                f"torch.func cannot differentiate torch.ops.hfcore.{name} when it is called"
                " directly, as the graphs of torch.func.linearize and make_fx do;"
                " differentiate the hf.RNN, or use torch.autograd on the graph"
            )
        return differentiable(*arguments)

    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        return fold_into_group(op, info.batch_size, in_dims, arguments[:-1], arguments[-1])

    _library.impl(name, compute, "CompositeExplicitAutograd")
    _library.impl(name, autograd, "Autograd", with_keyset=True)
    torch.library.register_fake(op, fake, lib=_library)
    torch.library.register_vmap(op, vmap, lib=_library)


_register(
    "rnn_outputs(Tensor x, Tensor W_hx, Tensor W_hh, Tensor W_yh, Tensor b_h, Tensor b_init,"
    " Tensor b_y, str nonlinearity) -> Tensor",
    _compute_rnn_outputs,
    _fake_rnn_outputs,
    _differentiable_outputs,
)
_register(
    "rnn_hidden(Tensor x, Tensor W_hx, Tensor W_hh, Tensor b_h, Tensor b_init,"
    " str nonlinearity) -> Tensor",
    _compute_rnn_hidden,
    _fake_rnn_hidden,
    RnnHidden.apply,
)
_register(
    "linear_scan(Tensor u, Tensor d, Tensor W, bool reverse) -> Tensor",
    _compute_linear_scan,
    _fake_linear_scan,
    LinearScan.apply,
)
