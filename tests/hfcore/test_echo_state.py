"""hf.EchoState: the read-out by ridge regression against least squares, and by other means."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

import hfcore as hf
from hfcore.bindings import sparse as ops

LAG = 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(
    H: int = 40, dtype: torch.dtype = torch.float64, k: int = 1, **options: Any
) -> hf.EchoState:
    return hf.EchoState(1, H, k, dtype=dtype, generator=generator(), **options)


def recall(B: int, T: int = 60, seed: int = 1, dtype: torch.dtype = torch.float64) -> hf.Batch:
    """The input of three steps ago, of sequences uniform on ±1/2."""
    x = torch.rand(T, B, 1, generator=generator(seed), dtype=torch.float64) - 0.5
    y = torch.cat([torch.zeros(LAG, B, 1, dtype=torch.float64), x[:-LAG]])
    return hf.Batch(x.to(dtype), y.to(dtype))


def relative_error(model: hf.EchoState, data: hf.Batch, washout: int) -> float:
    """Root of the squared error over the targets' variance, behind the washout."""
    wrong = (model(data.inputs).detach() - data.targets)[washout:].square().mean()
    return math.sqrt(float(wrong / data.targets[washout:].var()))


@pytest.mark.parametrize("entries", [True, False])
def test_states_follow_the_recurrence(entries: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "ell_is_faster", lambda *_: entries)
    for e, f in (("tanh", torch.tanh), ("logistic", torch.sigmoid), ("relu", torch.relu)):
        model = net(nonlinearity=e, fan_in=7)
        x = recall(3, 5).inputs
        W = torch.zeros(40, 40, dtype=torch.float64)
        W.scatter_(1, model.hidden_index.long(), model.hidden_value)
        assert float(torch.linalg.eigvals(W).abs().max()) == pytest.approx(0.9, rel=1e-6)
        h, want = torch.zeros(3, 40, dtype=torch.float64), []
        for x_t in x:
            h = f(x_t @ model.W_hx.mT + h @ W.mT)
            want.append(h)
        torch.testing.assert_close(model.states(x), torch.stack(want), rtol=1e-12, atol=1e-13)


def least_squares(
    model: hf.EchoState, data: list[hf.Batch], ridge: float, washout: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """W_yh and b_y by SciPy's lstsq on [h, 1; √ridge·I, 0]: no normal equations."""
    rows, wanted = [], []
    for x, y, mask in data:
        h = model.states(x).double()
        keep = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        keep[:washout] = False
        rows.append(torch.cat([h, torch.ones_like(h[..., :1])], -1)[keep])
        wanted.append(y[keep].double())
    H = model.hidden_size
    penalty = torch.eye(H, H + 1, dtype=torch.float64) * math.sqrt(ridge)
    A = torch.cat([*rows, penalty]).numpy()
    b = torch.cat([*wanted, torch.zeros(H, wanted[0].shape[1])]).numpy()
    solution = scipy.linalg.lstsq(A, b)[0]
    return solution[:H].T, solution[H]


@pytest.mark.parametrize("washout", [0, 10])
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_ridge_is_the_least_squares_solution(
    ridge: float, washout: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfcore.models.echo_state.FIT_BYTES", 1 << 15)  # several parts
    model, data = net(k=2), []
    for seed, (B, T) in enumerate([(5, 30), (3, 47), (1, 11)]):
        x, y, _ = recall(B, T, seed)
        mask = torch.rand(T, B, generator=generator(seed)) < 0.8 if seed else None
        y = torch.cat([y, 2 + x.square()], -1)
        if mask is not None:
            y = y.masked_fill(~mask[..., None], math.nan)
        data.append(hf.Batch(x, y, mask))
    model.fit(iter(data), ridge=ridge, washout=washout)
    W, b = least_squares(model, data, ridge, washout)
    np.testing.assert_allclose(model.W_yh.detach().numpy(), W, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(model.b_y.detach().numpy(), b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_recalls_the_input_of_three_steps_ago(dtype: torch.dtype) -> None:
    model = net(200, dtype)
    model.fit(recall(50, dtype=dtype), ridge=1e-4, washout=10)
    # New sequences, 200 units: 2.4 % of the targets' standard deviation, 4.4 % with 100 units.
    assert relative_error(model, recall(20, seed=2, dtype=dtype), 10) < 0.03


def test_hessian_free_on_the_read_out_reaches_the_ridge_solution() -> None:
    model, data = net(20), recall(40, 30)
    fitted = copy.deepcopy(model)
    fitted.fit(data, ridge=0.0)
    reservoir = copy.deepcopy(dict(model.named_buffers()))
    optimiser = hf.HessianFree(
        model,
        hf.losses.SquaredError(),
        damping=1e-6,
        cg_max_iter=200,
        cg_tolerance=0.0,
        batch_dim=1,
    )
    for _ in range(6):
        optimiser.step(hf.Batches(data))
    torch.testing.assert_close(model(data.inputs), fitted(data.inputs), rtol=0, atol=1e-4)
    assert all(torch.equal(b, reservoir[name]) for name, b in model.named_buffers())


def test_only_the_read_out_is_trained() -> None:
    model = net()
    assert [name for name, _ in model.named_parameters()] == ["W_yh", "b_y"]
    x = recall(4, 9).inputs.requires_grad_()
    model(x).sum().backward()
    assert x.grad is None
    assert model.W_yh.grad is not None
    torch.testing.assert_close(model.W_yh.grad[0], model.states(x).sum((0, 1)))


def test_state_dict_holds_the_reservoir() -> None:
    model, other = net(), hf.EchoState(1, 40, 1, dtype=torch.float64, generator=generator(5))
    model.fit(recall(8))
    x = recall(3, 7).inputs
    assert not torch.equal(model(x), other(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))
    assert repr(model) == "EchoState(1, 40, 1, fan_in=15, nonlinearity='tanh')"
    assert model.float()(x.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ridge": -1.0}, ValueError, r"ridge: got -1\.0, need a finite number of at least 0"),
        ({"ridge": math.nan}, ValueError, "ridge: got nan"),
        ({"washout": -1}, ValueError, "washout: got -1, need an int of at least 0"),
        ({"washout": 60}, ValueError, "data: no output counts, need some behind the washout"),
    ],
)
def test_bad_options_of_a_fit(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        net().fit(recall(2), **options)


def test_bad_data_of_a_fit() -> None:
    model, (x, y, _) = net(), recall(2)
    before = copy.deepcopy(model.state_dict())

    def bad(t: Tensor) -> Tensor:
        return t.index_fill(0, torch.tensor([20]), math.nan)

    for data, message in (
        ([], "data: no output counts"),
        (hf.Batch(x[:9], y[:9]), "ridge: with 0.0 the equations of 18 outputs and 41 unknowns"),
        (hf.Batch(bad(x), y), "data: inputs or targets hold NaN or Inf"),
        (hf.Batch(x, bad(y)), "data: inputs or targets hold NaN or Inf"),
        (hf.Batch(x, y[..., :0]), r"targets: got shape \[60, 2, 0\], need \[60,2,1\]"),
        (hf.Batch(x, y, torch.ones(60)), r"mask: got shape \[60\], need \[60,2\]"),
        (hf.Batch(x[:, :0], y[:, :0]), "data: no output counts"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(data, ridge=0.0)
    assert all(torch.equal(v, before[key]) for key, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fan_in": 0}, "fan_in: got 0, need at least 1"),
        ({"spectral_radius": -0.5}, r"spectral_radius: got -0\.5"),
        ({"input_scale": math.inf}, "input_scale: got inf"),
        ({"nonlinearity": "sin"}, "nonlinearity: got 'sin', need one of"),
        ({"k": 0}, "output_size: got 0, need at least 1"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        net(**options)


# ------------------------------------------------------------------- transforms and curvature


def _reservoir_and_data() -> tuple[hf.EchoState, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = hf.EchoState(3, 9, 2, fan_in=4, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator)
    x, y = (torch.randn(4, 5, n, generator=generator, dtype=torch.float64) for n in (3, 2))
    return model, x, y


def test_torch_func_goes_through_the_read_out() -> None:
    """vmap over cases and over reservoirs, jvp and grad: of the read-out; states are constants."""
    model, x, _ = _reservoir_and_data()
    s = model(x).detach()
    by_case = torch.vmap(lambda case: model(case[:, None])[:, 0], in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(by_case, s, rtol=1e-13, atol=1e-13)
    _, tangent = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    assert not bool(tangent.any())
    assert not bool(torch.func.grad(lambda z: model(z).square().sum())(x).any())
    values = {name: p.detach() for name, p in model.named_parameters()}
    _, tangent = torch.func.jvp(
        lambda p: torch.func.functional_call(model, p, (x,)), (values,), (values,)
    )
    torch.testing.assert_close(tangent, s, rtol=1e-13, atol=1e-13)  # linear in the read-out
    other = hf.EchoState(3, 9, 2, fan_in=4, dtype=torch.float64)
    stacked = torch.func.stack_module_state([model, other])
    both = torch.vmap(lambda p, b: torch.func.functional_call(model, (p, b), (x,)))(*stacked)
    torch.testing.assert_close(both, torch.stack([s, other(x)]), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("strategy", ["auto", "double_vjp", "jvp", "trace"])
def test_operators_of_a_reservoir_are_those_of_its_read_out(strategy) -> None:
    """Linear regression on [h, 1]: dense G, Hessian and Fisher from the states."""
    model, x, y = _reservoir_and_data()
    h = model.states(x)
    s = model(x).detach()
    T, B, k = y.shape
    features = torch.cat([h, torch.ones(T, B, 1, dtype=h.dtype)], 2)
    J = torch.zeros(T, B, k, k * 9 + k, dtype=h.dtype)
    for i in range(k):
        J[:, :, i, i * 9 : (i + 1) * 9] = h
        J[:, :, i, k * 9 + i] = features[..., -1]
    flat = J.reshape(T * B * k, -1)
    gradients = torch.einsum("tbi,tbin->bn", s - y, J)
    eye = torch.eye(flat.shape[1], dtype=h.dtype)
    for make, want in (
        (hf.GaussNewton, flat.T @ flat / B),
        (hf.Hessian, flat.T @ flat / B),
        (hf.EmpiricalFisher, gradients.T @ gradients / B),
    ):
        A = make(model, hf.losses.SquaredError(), x, y, strategy=strategy)
        torch.testing.assert_close(A @ eye, want, rtol=1e-11, atol=1e-12)
    G = hf.GaussNewton(model, hf.losses.SquaredError(), x, y)
    torch.testing.assert_close(G.diagonal(), (flat.T @ flat / B).diagonal(), rtol=1e-11, atol=1e-12)
    optimiser = hf.HessianFree(model, hf.losses.SquaredError(), preconditioner="fisher")
    assert optimiser.step((x, y)).accepted
