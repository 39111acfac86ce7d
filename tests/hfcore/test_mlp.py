"""hf.MLP, hf.Autoencoder and their objective: forward, gradients, chunks, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.nets import data as checked
from hfcore.nets import objective as chunked
from hfcore.objective_factory import objective_for
from oracles.losses import LOSSES
from oracles.mlp import ACTIVATIONS, Problem, problem


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_forward_is_the_stack_of_its_layers() -> None:
    model = hf.MLP([3, 5, 4, 2], ["tanh", "relu", "logistic"], generator=seeded())
    x = torch.randn(7, 3)
    W, b = zip(*((layer.weight, layer.bias) for layer in model.layers), strict=True)
    y = torch.tanh(x @ W[0].T + b[0])
    y = torch.sigmoid(torch.relu(y @ W[1].T + b[1]) @ W[2].T + b[2])
    torch.testing.assert_close(model(x), y)


def test_autoencoder_is_mirrored_with_a_linear_code() -> None:
    model = hf.Autoencoder([9, 5, 3], activation="tanh", generator=seeded())
    assert model.sizes == (9, 5, 3, 5, 9)
    assert model.activations == ("tanh", "linear", "tanh", "linear")
    assert [n for n, _ in model.named_parameters()][:2] == ["layers.0.weight", "layers.0.bias"]
    assert repr(model).startswith("Autoencoder(\n  [9, 5, 3, 5, 9], ['tanh', 'linear', 'tanh'")
    other = hf.Autoencoder([9, 5, 3], code="logistic")
    assert other.activations == ("logistic", "logistic", "logistic", "linear")


def test_construction_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first = hf.MLP([4, 3], ["linear"], generator=seeded(1), dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), before)
    second = hf.MLP([4, 3], ["linear"], generator=seeded(1), dtype=torch.float64)
    assert torch.equal(first.layers[0].weight, second.layers[0].weight)
    assert first.layers[0].weight.dtype == torch.float64
    assert not first.layers[0].bias.any()


def test_first_weights_have_unit_fan_in_variance() -> None:
    W = hf.MLP([200, 300], ["linear"], generator=seeded()).layers[0].weight
    assert float(W.detach().std()) == pytest.approx(200**-0.5, rel=5 / (2 * 60000) ** 0.5)


@pytest.mark.parametrize(
    ("sizes", "activations", "error", "message"),
    [
        ([3], [], ValueError, r"sizes: got \[3\], need at least inputs and one layer"),
        ([3, 0], ["tanh"], ValueError, r"sizes\[1\]: got 0, need at least 1"),
        ([3, 2.0], ["tanh"], TypeError, r"sizes\[1\]: got 2.0, need an int"),
        (5, ["tanh"], TypeError, "sizes: got int, need a sequence of ints"),
        ([3, 2], [], ValueError, "activations: got 0, need 1, one for every layer"),
        ([3, 2], "tanh", TypeError, "activations: got str, need a sequence"),
        ([3, 2], ["gelu"], ValueError, r"activations\[0\]: got 'gelu', need one of 'linear'"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_bad_architectures_are_named(
    sizes: Any, activations: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        hf.MLP(sizes, activations)


def test_bad_constructor_and_forward_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"encoder_sizes\[1\]: got -1"):
        hf.Autoencoder([3, -1])
    with pytest.raises(ValueError, match="code: got 'sin'"):
        hf.Autoencoder([3, 2], code="sin")
    with pytest.raises(TypeError, match=r"dtype: got torch.int64, need a real floating type"):
        hf.MLP([3, 2], ["tanh"], dtype=torch.int64)
    model = hf.MLP([3, 2], ["tanh"])
    for x, error, message in (
        (torch.zeros(4, 2), ValueError, r"x: got shape \[4, 2\], need \[B,3\]"),
        (torch.zeros(4, 3, dtype=torch.float64), TypeError, "x: got torch.float64"),
        (torch.zeros(0, 3), ValueError, "B: got 0, need at least 1"),
        ([1.0], TypeError, "x: got list"),
    ):
        with pytest.raises(error, match=message):
            model(x)


# -------------------------------------------------------------------------------- objective


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("last", ["linear", "tanh"])
def test_loss_gradient_and_squares_equal_autograd(loss, activation: str, last: str) -> None:
    p = problem(loss, [5, 7, 1, 3], [activation, "logistic", last], cases=11)
    objective = objective_for(p.model, loss, l2=0.3)
    data = objective.prepare(hf.Batch(p.x, p.y))
    value, gradient = objective.gradient(data, p.theta)
    want = torch.func.grad(p.mean_loss)(p.theta)
    weighted = float(p.mean_loss(p.theta)) + 0.15 * float(p.theta @ p.theta)
    assert value == pytest.approx(weighted, rel=1e-13)
    assert objective.loss(data, p.theta) == pytest.approx(weighted, rel=1e-13)
    torch.testing.assert_close(gradient, want + 0.3 * p.theta, rtol=1e-11, atol=1e-14)
    squares = (p.case_gradients() ** 2).mean(0)
    torch.testing.assert_close(
        objective.squared_gradients(data, p.theta), squares, rtol=1e-11, atol=1e-14
    )


def test_parts_weigh_by_their_cases() -> None:
    p = problem(LOSSES[1], [3, 4, 2], ["tanh", "linear"], cases=13)
    objective = objective_for(p.model, p.loss)
    whole = objective.prepare(hf.Batch(p.x, p.y))
    parts = objective.prepare([hf.Batch(p.x[:2], p.y[:2]), hf.Batch(p.x[2:], p.y[2:])])
    assert objective.minibatches(parts) == 2
    assert objective.loss(parts, p.theta) == pytest.approx(objective.loss(whole, p.theta))
    for method in (lambda d: objective.gradient(d, p.theta)[1],
                   lambda d: objective.squared_gradients(d, p.theta)):  # fmt: skip
        torch.testing.assert_close(method(parts), method(whole), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("cases", [1, 64, 65, 131])
def test_chunks_equal_the_whole(cases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(LOSSES[2], [5, 6, 3], ["logistic", "linear"], cases=cases)
    objective = objective_for(p.model, p.loss, l2=0.1)
    data = objective.prepare(hf.Batch(p.x, p.y))
    want = (*objective.gradient(data, p.theta), objective.squared_gradients(data, p.theta))
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 0)
    monkeypatch.setattr(chunked, "CHUNK_CASES", 64)
    pieces = [c.count for c in objective.chunks(data)]
    assert sum(pieces) == cases
    assert max(pieces) <= 64
    assert len(pieces) == -(-cases // 64)
    got = (*objective.gradient(data, p.theta), objective.squared_gradients(data, p.theta))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-12, atol=1e-15)
    assert objective.loss(data, p.theta) == pytest.approx(want[0], rel=1e-13)


def test_theta_need_not_be_what_the_model_holds() -> None:
    p = problem(LOSSES[0], [3, 4, 2], ["tanh", "linear"], cases=5)
    objective = objective_for(p.model, p.loss)
    data = objective.prepare(hf.Batch(p.x, p.y))
    elsewhere = p.theta + 0.1
    value, gradient = objective.gradient(data, elsewhere)
    assert value == pytest.approx(float(p.mean_loss(elsewhere)), rel=1e-13)
    want = torch.func.grad(p.mean_loss)(elsewhere)
    torch.testing.assert_close(gradient, want, rtol=1e-11, atol=1e-14)


def _bad_batches(p: Problem) -> dict[str, tuple[Any, Any, type[Exception], str]]:
    x, y = p.x, p.y
    nan = x.clone()
    nan[1, 1] = float("nan")
    far = y.clone()
    far[0, 0] = 1.5
    return {
        "width": (x[:, :2], y, ValueError, r"inputs: got shape \[5, 2\], need \[B,3\]"),
        "rank": (x[None], y, ValueError, r"inputs: got shape \[1, 5, 3\]"),
        "empty": (x[:0], y[:0], ValueError, "inputs: got shape .* need at least one case"),
        "dtype": (x.float(), y, TypeError, "inputs: got torch.float32, need torch.float64"),
        "list": (x, [1.0], TypeError, "targets: got list"),
        "target shape": (x, y[:4], ValueError, r"targets: got shape \[4, 2\], need \[5, 2\]"),
        "target dtype": (x, y.float(), TypeError, "targets: got torch.float32"),
        "nan": (nan, y, ValueError, "inputs: holds NaN or Inf"),
        "inf": (x, y / 0, ValueError, "targets: holds NaN or Inf"),
        "range": (x, far, ValueError, r"targets: a target is 1.5, need values in \[0,1\]"),
    }


@pytest.mark.parametrize(
    "name", list(_bad_batches(problem(LOSSES[1], [3, 2], ["linear"], cases=5)))
)
def test_bad_data_is_named(name: str) -> None:
    p = problem(LOSSES[1], [3, 2], ["linear"], cases=5)
    x, y, error, message = _bad_batches(p)[name]
    with pytest.raises(error, match=message):
        objective_for(p.model, p.loss).prepare(hf.Batch(x, y))


def test_values_written_between_two_steps_are_checked_again() -> None:
    p = problem(LOSSES[1], [3, 2], ["linear"], cases=5)
    objective = objective_for(p.model, p.loss)
    batch = hf.Batch(p.x, p.y)
    objective.prepare(batch)
    p.x[0, 0] = float("inf")
    with pytest.raises(ValueError, match="inputs: holds NaN or Inf"):
        objective.prepare(batch)
    p.x[0, 0] = 0.0
    objective.prepare(batch)
    objective_for(p.model, LOSSES[0]).prepare(hf.Batch(p.x, p.y * 3))
    B, dtype = len(p.x), p.x.dtype
    for mask, error, text in (
        (torch.ones(B + 1), ValueError, r"mask: got shape"),
        (torch.ones(B, dtype=torch.int32), TypeError, "mask: got torch.int32, need torch.bool or"),
        (-torch.ones(B, dtype=dtype), ValueError, "mask: holds -1, need"),
        (torch.zeros(B, dtype=torch.bool), ValueError, "mask: masks every case"),
    ):
        with pytest.raises(error, match=text):
            objective.prepare(hf.Batch(p.x, p.y, mask))
    with pytest.raises(ValueError, match="data: got no batch"):
        objective.prepare([])


def test_values_that_come_to_lie_where_others_were_are_checked() -> None:
    """Also where Python gives the new tensor the identity of one that was fit."""
    p = problem(LOSSES[1], [3, 2], ["linear"], cases=5)
    objective = objective_for(p.model, p.loss)
    for _ in range(20):
        x = torch.zeros_like(p.x)
        objective.prepare(hf.Batch(x, p.y))
        del x
        with pytest.raises(ValueError, match="inputs: holds NaN or Inf"):
            objective.prepare(hf.Batch(torch.full_like(p.x, torch.inf), p.y))


def test_fit_values_are_forgotten_with_their_tensor() -> None:
    p = problem(LOSSES[1], [3, 2], ["linear"], cases=5)
    before = len(checked._ranges)
    for _ in range(5):
        objective_for(p.model, p.loss).prepare(hf.Batch(p.x.clone(), p.y.clone()))
    assert len(checked._ranges) == before


def test_classes_out_of_range_are_named() -> None:
    p = problem(LOSSES[2], [3, 2], ["linear"], cases=5)
    objective = objective_for(p.model, p.loss)
    data = objective.prepare(hf.Batch(p.x, p.y + 2))
    with pytest.raises(ValueError, match="targets: got class"):
        objective.loss(data, p.theta)


def test_models_that_the_fused_path_cannot_train_are_refused() -> None:
    tied = hf.MLP([3, 3, 3], ["tanh", "linear"])
    tied.layers[1].weight = tied.layers[0].weight
    with pytest.raises(ValueError, match="model: parameters are tied or missing"):
        objective_for(tied, LOSSES[0])
    frozen = hf.MLP([3, 3], ["linear"])
    frozen.layers[0].bias.requires_grad_(False)
    with pytest.raises(ValueError, match="model: some parameters of the MLP are frozen"):
        objective_for(frozen, LOSSES[0])
    with pytest.raises(ValueError, match="memory: got 'lots'"):
        objective_for(hf.MLP([3, 3], ["linear"]), LOSSES[0], memory="lots")  # type: ignore[arg-type]


def test_a_few_steps_lower_the_loss() -> None:
    model = hf.Autoencoder([12, 8, 3], generator=seeded())
    hf.init.sparse_(model, seeded(1))
    x = (torch.rand(40, 12, generator=seeded(2)) < 0.3).float()
    optimiser = hf.HessianFree(model, hf.losses.LogisticCrossEntropy(), damping=1.0, l2=2e-5)
    losses: list[Tensor | float] = [optimiser.step((x, x)).loss for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]
