"""Bad input of the recurrence ops: each a clear error that names the argument, never a crash."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.bindings import dispatch
from hfcore.bindings import recurrence as ops
from hfcore.kernels.recurrence import RnnShape, RnnWeights

T, B, n, H, k = 4, 3, 2, 5, 2
SHAPE = RnnShape(n, H, k)
Arguments = dict[str, Any]


@pytest.fixture(params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both implementations refuse the same things."""
    with hf.use_backend(request.param):
        yield request.param


both_backends = pytest.mark.usefixtures("backend")


def forward_arguments() -> Arguments:
    w = RnnWeights(*(torch.randn(1, *s) for s in SHAPE.shapes))
    return {
        "x": torch.randn(1, T, B, n),
        **w._asdict(),
        "nonlinearity": "tanh",
        "steps": None,
        "out": torch.empty(1, T, B, H),
    }


def scan_arguments() -> Arguments:
    u, d, a, out = (torch.rand(1, T, B, H) for _ in range(4))
    return {"u": u, "d": d, "W": torch.randn(1, H, H), "a": a, "out": out}


def backward_arguments() -> Arguments:
    return {
        **forward_arguments(),
        "h": torch.rand(1, T, B, H),
        "gs": torch.randn(1, T, B, k),
        "out": torch.empty(1, SHAPE.numel),
    }


def product_arguments() -> Arguments:
    arguments = backward_arguments()
    del arguments["gs"]
    return {
        **arguments,
        "v": torch.randn(1, SHAPE.numel),
        "c": torch.rand(1, T, B, k),
        "scale": 1.0,
        "structural": 0.1,
        "damping": 0.1,
    }


OPS: dict[str, tuple[Callable[..., object], Callable[[], Arguments]]] = {
    "rnn_forward": (ops.rnn_forward, forward_arguments),
    "linear_scan": (ops.linear_scan, scan_arguments),
    "rnn_backward": (ops.rnn_backward, backward_arguments),
    "rnn_gauss_newton": (ops.rnn_gauss_newton, product_arguments),
}


def call(op: str, **changed: object) -> object:
    function, make = OPS[op]
    arguments = {**make(), **changed}
    if op != "linear_scan":
        arguments["w"] = RnnWeights(*(arguments.pop(name) for name in RnnWeights._fields))
    return function(**arguments)


def tensors_of(op: str) -> list[str]:
    return [name for name, value in OPS[op][1]().items() if isinstance(value, Tensor)]


EVERY_TENSOR = [(op, name) for op in OPS for name in tensors_of(op)]


@both_backends
@pytest.mark.parametrize("op", OPS)
def test_the_arguments_here_are_good(op: str) -> None:
    call(op)


@both_backends
@pytest.mark.parametrize(("op", "name"), EVERY_TENSOR)
@pytest.mark.parametrize("value", [1.5, [1.0], np.zeros(3), "x"], ids=lambda v: type(v).__name__)
def test_not_a_tensor(op: str, name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: got {type(value).__name__}, need a torch"):
        call(op, **{name: value})


@both_backends
@pytest.mark.parametrize(("op", "name"), EVERY_TENSOR)
def test_wrong_rank(op: str, name: str) -> None:
    good = OPS[op][1]()[name]
    for bad in (good[0], good.unsqueeze(0), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=rf"^{name}: got shape \[.*\], need \["):
            call(op, **{name: bad})


@both_backends
@pytest.mark.parametrize(("op", "name"), EVERY_TENSOR)
def test_wrong_length(op: str, name: str) -> None:
    """One more along any axis but the group's: this argument is named, or the one it sets."""
    good = OPS[op][1]()[name]
    # x and u set T, B, n; W_hh and W_yh set H and k; n alone is wrong when W_hx disagrees
    owner = {"x": "W_hx|h|out", "u": "d", "W_hh": "W_hh|W_hx|W_yh|h", "W_yh": "W_yh|gs|c|b_y"}
    for axis in range(1, good.ndim):
        bad = torch.cat([good, good.narrow(axis, 0, 1)], dim=axis)
        with pytest.raises(
            ValueError, match=rf"^({owner.get(name, name)}): got shape \[.*\], need \["
        ):
            call(op, **{name: bad})


@both_backends
@pytest.mark.parametrize(("op", "name"), EVERY_TENSOR)
def test_empty(op: str, name: str) -> None:
    """A length of zero anywhere, the group axis included."""
    good = OPS[op][1]()[name]
    for axis in range(good.ndim):
        bad = good.narrow(axis, 0, 0)
        with pytest.raises(ValueError, match=r"(got .*, need)"):
            call(op, **{name: bad})


@both_backends
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("axis", "letter"), [(0, "group axis 0"), (1, "T: got 0"), (2, "B: got 0"), (3, "(n|H): got 0")]
)
def test_empty_batch(op: str, axis: int, letter: str) -> None:
    first = "u" if op == "linear_scan" else "x"
    with pytest.raises(ValueError, match=f"{letter}.*need at least 1"):
        call(op, **{first: OPS[op][1]()[first].narrow(axis, 0, 0)})


@both_backends
@pytest.mark.parametrize(("op", "name"), EVERY_TENSOR)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32], ids=str)
def test_wrong_dtype(op: str, name: str, dtype: torch.dtype) -> None:
    bad = OPS[op][1]()[name].to(dtype)
    with pytest.raises(TypeError, match=r"^\w+: got torch\.\w+, need"):
        call(op, **{name: bad})


@both_backends
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_only_floating_dtypes(op: str, dtype: torch.dtype) -> None:
    arguments = {
        name: value.to(dtype) for name, value in OPS[op][1]().items() if isinstance(value, Tensor)
    }
    with pytest.raises(TypeError, match=rf"^(x|u): got {dtype}, need a floating-point dtype"):
        call(op, **arguments)


@both_backends
@pytest.mark.parametrize(("op", "name"), EVERY_TENSOR)
def test_wrong_device(op: str, name: str) -> None:
    bad = OPS[op][1]()[name].to("meta")
    with pytest.raises(ValueError, match=r"^\w+: is on \w+, need \w+ like the other arguments"):
        call(op, **{name: bad})


@both_backends
@pytest.mark.parametrize(("op", "name"), EVERY_TENSOR)
def test_sparse(op: str, name: str) -> None:
    bad = OPS[op][1]()[name].to_sparse()
    with pytest.raises(TypeError, match=rf"^{name}: got layout torch\.sparse_coo, need a dense"):
        call(op, **{name: bad})


@both_backends
@pytest.mark.parametrize("op", OPS)
def test_group_axes_differ(op: str) -> None:
    names = [name for name in tensors_of(op) if name != "out"]
    arguments = OPS[op][1]()
    for one, other in zip(names, [*names[1:], names[0]], strict=True):
        two = arguments[one].expand(2, *arguments[one].shape[1:])
        three = arguments[other].expand(3, *arguments[other].shape[1:])
        with pytest.raises(ValueError, match=rf"^({one}|{other}): got group axis \d, need 1 or"):
            call(op, **{one: two, other: three, "out": None})


@both_backends
@pytest.mark.parametrize("op", OPS)
def test_output_buffer(op: str) -> None:
    good = OPS[op][1]()["out"]
    wide = torch.empty(*good.shape[:-1], 2 * good.shape[-1])
    with pytest.raises(ValueError, match=r"^out: is not contiguous, need"):
        call(op, out=wide[..., ::2])
    with pytest.raises(ValueError, match=r"^out: requires grad, need"):
        call(op, out=torch.empty_like(good).requires_grad_())
    with pytest.raises(ValueError, match=r"^out: got shape \[2,.*need \[1,"):
        call(op, out=good.expand(2, *good.shape[1:]).contiguous())


@both_backends
@pytest.mark.parametrize("op", OPS)
def test_output_buffer_shares_memory(op: str, backend: str) -> None:
    if backend == "reference":
        pytest.skip("the reference reads everything before it writes")
    arguments = OPS[op][1]()
    size = arguments["out"].numel()
    for name in tensors_of(op):
        if name == "out":
            continue
        pool = torch.zeros(size + arguments[name].numel())
        shared = pool[: arguments[name].numel()].view_as(arguments[name])
        out = pool[shared.numel() - 1 :][:size].view_as(arguments["out"])  # one element in common
        with pytest.raises(ValueError, match=rf"^out: shares memory with {name}, need its own"):
            call(op, **{name: shared, "out": out})
        apart = pool[shared.numel() :][:size].view_as(arguments["out"])
        call(op, **{name: shared, "out": apart})


STEPPED = ["rnn_forward", "rnn_backward", "rnn_gauss_newton"]


@both_backends
@pytest.mark.parametrize("op", STEPPED)
def test_steps(op: str) -> None:
    for bad in ([-1], [T], [0, 0], [2, 1], [0, 1, 2, 3, 4], [2**62], [-(2**63)]):
        with pytest.raises(ValueError, match=r"^steps: got \[.*\], need increasing indices within"):
            call(op, steps=torch.tensor(bad))
    with pytest.raises(ValueError, match=r"^steps: got no step, need at least one"):
        call(op, steps=torch.empty(0, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"^steps: got torch\.int32, need torch\.int64"):
        call(op, steps=torch.tensor([1], dtype=torch.int32))
    with pytest.raises(TypeError, match=r"^steps: got list, need a torch\.Tensor"):
        call(op, steps=[1])
    with pytest.raises(ValueError, match=r"^steps: got shape \[1,1\]|^steps: got shape \[1, 1\]"):
        call(op, steps=torch.tensor([[1]]))
    with pytest.raises(ValueError, match=r"^steps: is on meta, need cpu"):
        call(op, steps=torch.tensor([1], device="meta"))


@both_backends
@pytest.mark.parametrize("op", ["rnn_backward", "rnn_gauss_newton"])
def test_fewer_outputs_than_steps(op: str) -> None:
    name = "gs" if op == "rnn_backward" else "c"
    with pytest.raises(ValueError, match=rf"^{name}: got shape \[1, {T}, {B}, {k}\], need"):
        call(op, steps=torch.tensor([1, 2]))


@both_backends
@pytest.mark.parametrize("op", STEPPED)
def test_unknown_nonlinearity(op: str) -> None:
    for bad in ("sigmoid", "", None, 3, ["tanh"]):
        with pytest.raises(ValueError, match=r"^nonlinearity: got .*, need one of 'tanh'"):
            call(op, nonlinearity=bad)


@both_backends
@pytest.mark.parametrize("name", ["scale", "structural", "damping"])
def test_factors(name: str) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=rf"^{name}: got .*, need a finite number"):
            call("rnn_gauss_newton", **{name: bad})
    for not_a_number in ("1", None, 1j, torch.zeros(2)):
        with pytest.raises(TypeError, match=rf"^{name}: got \w+, need a float"):
            call("rnn_gauss_newton", **{name: not_a_number})


@both_backends
def test_buffer_for_states_that_are_not_wanted() -> None:
    with pytest.raises(ValueError, match=r"^out: got a buffer for the states with states=False"):
        call("rnn_forward", states=False)
    call("rnn_forward", states=False, out=None)


@both_backends
def test_weights_are_named() -> None:
    weights = tuple(forward_arguments()[name] for name in RnnWeights._fields)
    with pytest.raises(TypeError, match=r"^w: got tuple, need RnnWeights"):
        ops.rnn_forward(torch.zeros(1, T, B, n), weights)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the compiled module by itself


def native_arguments(op: str) -> Arguments:
    """Good arguments of the compiled function, in its own order and names."""
    made = OPS[op][1]()
    made["steps"] = torch.tensor([0, 2, 3]) if op != "linear_scan" else None
    made.update(threads=2, nonlinearity=0, reverse=False, rank_one=True)
    if op == "rnn_forward":
        made.update(s=torch.empty(1, 3, B, k))
    for name in ("gs", "c"):
        if name in made:
            made[name] = torch.rand(1, 3, B, k)
    order = {
        "rnn_forward": "x W_hx W_hh W_yh b_h b_init b_y steps nonlinearity out s threads",
        "linear_scan": "u d W a reverse out threads",
        "rnn_backward": "x h W_hx W_hh W_yh b_h b_init b_y gs steps nonlinearity out threads",
        "rnn_gauss_newton": "x h W_hx W_hh W_yh b_h b_init b_y v c rank_one steps nonlinearity "
        "scale structural damping out threads",
    }[op]
    return {name: made[name] for name in order.split()}


def call_native(op: str, **changed: object) -> object:
    return getattr(dispatch.native(), op)(*{**native_arguments(op), **changed}.values())


NATIVE_TENSORS = [
    (op, name)
    for op in OPS
    for name, value in native_arguments(op).items()
    if isinstance(value, Tensor)
]


@pytest.mark.parametrize("op", OPS)
def test_native_arguments_here_are_good(op: str) -> None:
    call_native(op)


@pytest.mark.parametrize(("op", "name"), NATIVE_TENSORS)
def test_native_wrong_array(op: str, name: str) -> None:
    good = native_arguments(op)[name]
    wrong_type: list[object] = [None, 1.0, "x", [1.0], good.to(torch.complex64)]
    wrong_type += [good.to(torch.float16), good.to(torch.int32), good.to(torch.float64)]
    wrong_type += [good.to("meta"), good.to_sparse()]
    wrong_type.append(torch.stack([good, good], dim=-1)[..., 0])  # not contiguous
    optional = name in ("steps", "a") or (op, name) in (
        ("rnn_forward", "out"),
        ("rnn_gauss_newton", "h"),
    )
    for bad in wrong_type:
        if bad is None and optional and name != "steps":
            continue  # may be left out; without steps, the output lengths are wrong
        with pytest.raises((TypeError, ValueError)):
            call_native(op, **{name: bad})


@pytest.mark.parametrize(("op", "name"), NATIVE_TENSORS)
def test_native_wrong_shape(op: str, name: str) -> None:
    good = native_arguments(op)[name]
    for axis in range(good.ndim):
        for bad in (torch.cat([good, good], dim=axis), good.narrow(axis, 0, 0)):
            if axis == 0 and name == "out" and len(bad):
                continue  # a larger group of which every net is the same
            with pytest.raises(ValueError, match=r"got|need"):
                call_native(op, **{name: bad.contiguous()})
    for bad in (good[0], good.unsqueeze(0), good.reshape(-1), good.reshape(-1)[0]):
        if bad.shape != good.shape:
            with pytest.raises(ValueError, match=r"got|need"):
                call_native(op, **{name: bad})


@pytest.mark.parametrize("op", OPS)
def test_native_empty_with_huge_axes(op: str) -> None:
    """Arrays without elements may claim any other lengths."""
    for name, value in native_arguments(op).items():
        if not isinstance(value, Tensor):
            continue
        for zero in range(value.ndim):
            shape = [2**20] * value.ndim
            shape[zero] = 0
            with pytest.raises(ValueError, match=r"got|need"):
                call_native(op, **{name: torch.empty(shape, dtype=value.dtype)})


@pytest.mark.parametrize("op", STEPPED)
def test_native_steps_and_nonlinearity(op: str) -> None:
    for bad in ([0, 1, T], [-1, 1, 2], [0, 2, 1], [1, 1, 2], [0, 1, 2**62], [-(2**63), 1, 2]):
        with pytest.raises(ValueError, match=r"^steps: need increasing indices within 0\.\.3"):
            call_native(op, steps=torch.tensor(bad))
    for code in (-1, 3, 2**31 - 1, -(2**31)):
        with pytest.raises(ValueError, match=r"^nonlinearity: need"):
            call_native(op, nonlinearity=code)
    for not_int in (2**40, 1.5, "tanh", None):
        with pytest.raises(TypeError):
            call_native(op, nonlinearity=not_int)


@pytest.mark.parametrize("op", OPS)
def test_native_any_number_of_threads_works(op: str) -> None:
    arguments = native_arguments(op)
    out = "s" if op == "rnn_forward" else "out"
    call_native(op, **arguments)
    want = arguments[out].clone()
    for threads in (-(2**31), -1, 0, 1, 7, 40):
        arguments[out].fill_(math.nan)
        call_native(op, **{**arguments, "threads": threads})
        assert torch.equal(arguments[out], want)


def test_native_read_only_output() -> None:
    out = np.zeros((1, T, B, H), dtype=np.float32)
    out.flags.writeable = False
    with pytest.raises(TypeError):
        call_native("linear_scan", out=out)
    assert not out.any()


@pytest.mark.parametrize("op", OPS)
def test_native_wrong_number_of_arguments(op: str) -> None:
    function = getattr(dispatch.native(), op)
    values = list(native_arguments(op).values())
    for arguments in ([], values[:-1], [*values, 1]):
        with pytest.raises(TypeError):
            function(*arguments)


@both_backends
def test_backpropagation_needs_the_states() -> None:
    arguments = forward_arguments()
    w = RnnWeights(*(arguments[name] for name in RnnWeights._fields))
    with pytest.raises(TypeError, match=r"^h: got NoneType, need a torch\.Tensor"):
        ops.rnn_backward(arguments["x"], None, w, torch.randn(1, T, B, k))  # type: ignore[arg-type]
