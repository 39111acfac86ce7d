"""LSTM and GRU ops on every backend against torch.func in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hfcore.bindings.forms.gated import cpu
from hfcore.bindings.gated import (
    GatedStates,
    GatedWeights,
    gated_backward,
    gated_forward,
    gated_gradient,
    gated_tangent,
)
from oracles.cases.gated import CELLS, GROUPS, SHAPES, Case, h_of


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_every_op(cell: str, shape: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    Case(shape, dtype, cell).check(with_Rx=False)


@pytest.mark.parametrize("shape", [(3, 13, 5, 17), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_group(
    cell: str, group: str, shape: tuple[int, ...], dtype: torch.dtype, backend: str
) -> None:
    Case(shape, dtype, cell, group).check(with_Rx=True)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_many_weights_are_products(
    cell: str, group: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where their sums are too many to be made on the way back."""
    monkeypatch.setattr(cpu, "SUMS_BYTES", 0)
    for shape in ((3, 13, 5, 17), (1, 2, 3, 4)):
        Case(shape, dtype, cell, group).check(with_Rx=True)


@pytest.mark.parametrize("cell", CELLS)
def test_the_way_back_and_its_sums_apart(cell: str, backend: str) -> None:
    """∂L/∂a may be kept or not, and made without the gradient: with the same bits."""
    case = Case((7, 29, 3, 18), torch.float32, cell, "nets")
    at = case.states()
    both = case.gradient(at)
    alone = gated_gradient(case.gh, case.x, at, case.w.W_hh, cell=cell)
    assert all(map(torch.equal, alone, both.weights))
    out = torch.full_like(both.ga, float("nan"))
    assert torch.equal(gated_backward(case.gh, at, case.w.W_hh, cell=cell, out=out), both.ga)


def test_the_oracle_is_torch() -> None:
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    for cell, kind in (("lstm", nn.LSTM), ("gru", nn.GRU)):
        module = kind(2, 5).double()
        W_ih, W_hh, b_ih, b_hh = (p.detach() for p in module.parameters())
        b = (b_ih + b_hh).view(-1, 5)
        if cell == "gru":
            b = torch.stack([b_hh[10:], b[0], b[1], b_ih[10:]])
        torch.testing.assert_close(h_of(x, W_ih, W_hh, b, cell), module(x)[0].detach())


@pytest.mark.parametrize("cell", CELLS)
def test_states_are_left_out(cell: str, dtype: torch.dtype, backend: str) -> None:
    """h is the same without what derivatives need."""
    case = Case((3, 13, 5, 17), dtype, cell)
    alone = gated_forward(case.x, case.w, cell=cell, states=False)
    assert torch.equal(alone.h, case.states().h)
    assert alone.gates.numel() == 0


@pytest.mark.parametrize("cell", CELLS)
def test_bits_depend_on_a_sequence_alone(cell: str) -> None:
    """Neither neighbours nor threads change them."""
    case = Case((3, 101, 5, 17), torch.float32, cell)
    at = case.states()
    gradient = case.gradient(at).weights
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, case.gradient(at).weights, gradient))
            for part in (slice(0, 101), slice(5, 43)):
                own = gated_forward(case.x[:, :, part], case.w, cell=cell)
                assert torch.equal(own.h, at.h[:, :, part])
                arguments = case.x[:, :, part], own, case.w, case.v
                Rh = gated_tangent(*arguments, cell=cell)
                assert torch.equal(
                    Rh, gated_tangent(case.x, at, case.w, case.v, cell=cell)[:, :, part]
                )
                ga = gated_backward(case.gh[:, :, part], own, case.w.W_hh, cell=cell)
                whole = gated_backward(case.gh, at, case.w.W_hh, cell=cell)
                assert torch.equal(ga, whole[:, :, :, part])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("cell", CELLS)
def test_tangent_and_gradient_are_adjoint(cell: str, backend: str) -> None:
    """⟨gh, Rh⟩ = ⟨gradient, v⟩."""
    case = Case((5, 11, 4, 13), torch.float64, cell)
    found = case.results(with_Rx=True)
    forward = (case.gh * found["Rh"]).sum()
    along = {"W_ih": case.v.W_ih, "W_hh": case.v.W_hh, "b": case.v.b, "x": case.Rx}
    back = sum((found[name] * v).sum() for name, v in along.items())
    torch.testing.assert_close(back, forward, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cell", CELLS)
def test_nan_and_saturation(cell: str, backend: str) -> None:
    """A NaN stays in its sequence, and large inputs give finite derivatives."""
    case = Case((4, 9, 3, 5), torch.float32, cell)
    x = case.x.clone()
    x[:, 1, 3] = float("nan")
    x[:, :, 4] = 1e4
    at = gated_forward(x, case.w, cell=cell)
    Rh = gated_tangent(x, at, case.w, case.v, cell=cell)
    ga = gated_backward(case.gh, at, case.w.W_hh, cell=cell)
    assert bool(at.h[0, 1:, 3].isnan().all())
    others = [b for b in range(9) if b != 3]
    for finite in (at.h[:, :, others], Rh[:, :, others], ga[:, :, :, others]):
        assert bool(finite.isfinite().all())


def arguments(op: str, cell: str) -> dict[str, Any]:
    case = Case((3, 4, 2, 5), torch.float32, cell)
    at = case.states()
    if op == "forward":
        return {"x": case.x, "w": case.w}
    if op == "tangent":
        return {"x": case.x, "at": at, "w": case.w, "v": case.v, "Rx": case.Rx}
    inputs = {"x": case.x} if op == "gradient" else {}
    return {"gh": case.gh, "at": at, "W_hh": case.w.W_hh, **inputs}


OPS: dict[str, Any] = {
    "forward": gated_forward, "tangent": gated_tangent, "backward": gated_backward,
    "gradient": gated_gradient,
}  # fmt: skip


def _with(given: Any, name: str, change: Any) -> Any:
    """The arguments with one tensor, maybe a field of a tuple, changed."""
    key, _, field = name.partition(".")
    value = given[key]
    new = value._replace(**{field: change(getattr(value, field))}) if field else change(value)
    return {**given, key: new}


TENSORS = {
    "forward": ("x", "w.W_ih", "w.W_hh", "w.b"),
    "tangent": (
        "x", "at.h", "at.gates", "at.cells", "w.W_ih", "w.W_hh", "v.W_ih", "v.W_hh", "v.b", "Rx",
    ),
    "backward": ("gh", "at.h", "at.gates", "at.cells", "W_hh"),
    "gradient": ("gh", "x", "at.h", "at.gates", "at.cells", "W_hh"),
}  # fmt: skip


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in OPS for name in TENSORS[op]])
def test_every_tensor_is_checked(op: str, name: str, backend: str) -> None:
    good = arguments(op, "lstm")
    for change, error in (
        (lambda t: t.double(), TypeError),
        (lambda t: t[..., None], ValueError),
        (lambda t: torch.cat([t, t], -1), ValueError),
        (lambda t: torch.cat([t, t, t, t])[:0], ValueError),
        (lambda t: [1.0], TypeError),
    ):
        bad = _with(good, name, change)
        if error is TypeError and name in ("x", "gh") and not isinstance(bad[name], list):
            continue  # the others are then what is wrong
        if op == "gradient" and name == "x" and getattr(bad["x"], "shape", None) == (1, 3, 4, 4):
            continue  # any number of inputs is fine
        with pytest.raises(error, match=r"\w+: "):
            OPS[op](**bad, cell="lstm")


@pytest.mark.parametrize("op", OPS)
def test_other_arguments_are_checked(op: str, backend: str) -> None:
    good = arguments(op, "lstm")
    with pytest.raises(ValueError, match="cell: got 'rnn', need one of 'lstm', 'gru'"):
        OPS[op](**good, cell="rnn")
    if op == "forward":
        return
    without = {**good, "at": good["at"]._replace(cells=None)}
    with pytest.raises(ValueError, match="cells: got None"):
        OPS[op](**without, cell="lstm")
    gru = arguments(op, "gru")
    gru["at"] = gru["at"]._replace(cells=good["at"].cells)
    with pytest.raises(ValueError, match="cells: got a tensor, need None for a GRU"):
        OPS[op](**gru, cell="gru")
    wrong = torch.zeros(1)
    with pytest.raises(ValueError, match="out: "):
        OPS[op](**good, cell="lstm", out=[wrong] * 3 if op == "gradient" else wrong)


def test_named_tuples_are_needed() -> None:
    good = arguments("tangent", "gru")
    with pytest.raises(TypeError, match="w: got tuple, need GatedWeights"):
        gated_tangent(**{**good, "w": tuple(good["w"])}, cell="gru")
    with pytest.raises(TypeError, match="at: got tuple, need GatedStates"):
        gated_tangent(**{**good, "at": tuple(good["at"])}, cell="gru")
    assert isinstance(good["w"], GatedWeights)
    assert isinstance(good["at"], GatedStates)


def test_outputs_are_apart_from_inputs() -> None:
    case = Case((3, 4, 5, 5), torch.float32, "gru")
    at = case.states()
    with pytest.raises(ValueError, match="out: shares memory with x"):
        gated_tangent(case.x, at, case.w, case.v, cell="gru", out=case.x)
    with pytest.raises(ValueError, match="ga: shares memory with gates"):
        gated_gradient(case.gh, case.x, at, case.w.W_hh, cell="gru", ga=at.gates)
    with pytest.raises(ValueError, match="shares memory with"):
        gated_forward(case.x, case.w, cell="gru", out=at._replace(h=case.x))
