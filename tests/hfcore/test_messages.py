"""Bad arguments are named: every kind of leak that random calls have found, with its message."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hfcore as hf

x, y = torch.zeros(4, 3), torch.zeros(4, 2)
OUT = nn.Linear(3, 2)
SQUARED, SOFTMAX = hf.losses.SquaredError(), hf.losses.SoftmaxCrossEntropy()


def training(**more: Any) -> None:
    problem = hf.problems.Addition(5)
    net = hf.RNN(2, 3, 1)
    hf.train(net, problem, hf.NAG(net, 0.01), **{"minibatches": 0.01, "progress": False, **more})


def sweep(**more: Any) -> None:
    problem = more.pop("problem", hf.problems.Addition(5))
    grid = more.pop("grid", {"learning_rate": [0.01]})
    hf.sweep(problem, grid, **{"updates": 1, "test_size": 3, "progress": False, **more})


def step(inputs: torch.Tensor) -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    hf.HessianFree(net, SQUARED).step((inputs, y))


def training_by(metric: Callable[..., Any]) -> None:
    net = nn.Linear(3, 2)
    opt, stop = hf.NAG(net, 0.01), hf.training.Limits(iterations=1)
    hf.train(net, (x, y), opt, loss=SQUARED, validation=(x, y), metric=metric, stop=stop)


NOT_MOVED = "model: the outputs do not depend on the model's parameters"


def natural(closure: Callable[..., Any]) -> None:
    hf.NaturalGradient(OUT, "normal").step(closure)


def train_by(opt: torch.optim.Optimizer) -> None:
    hf.train(OUT, (x, y), opt, loss=SQUARED, stop=hf.training.Limits(iterations=1))


def of_sizes(*sizes: int) -> Callable[[], Any]:
    """A closure of other cases in every call."""
    left = list(sizes)

    def closure() -> Any:
        s = OUT(x[: left.pop(0)])
        return s.square().mean(), s

    return closure


def scheduled(make: Callable[..., Any]) -> None:
    opt = make(nn.Linear(3, 2))
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a scheduler that goes first
        scheduler.step()
    opt.step(lambda: None)


class Named(nn.Linear):
    """Gives its outputs by name."""

    def __init__(self) -> None:
        super().__init__(3, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"logits": super().forward(x)}


def module_loss(loss: Any, classes: list[int]) -> None:
    hf.GaussNewton(nn.Linear(3, 2), loss, x, torch.tensor(classes))


def closure_step(closure: Callable[..., Any]) -> None:
    hf.HessianFree(nn.Linear(3, 2).parameters()).step(closure)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        # ---- sizes of models
        (lambda: hf.EchoState(2, 1j, 1), TypeError, "hidden_size: got complex, need an integer"),
        (lambda: hf.EchoState("2", 3, 1), TypeError, "input_size: got '2', need an integer"),
        (lambda: hf.EchoState([2], 3, 1), TypeError, "input_size: got list, need an integer"),
        (lambda: hf.EchoState(np.zeros(3), 3, 1), TypeError, "input_size: got ndarray"),
        (lambda: hf.EchoState(2, torch.zeros(2), 1), TypeError, "hidden_size: got Tensor"),
        (lambda: hf.EchoState(2, 3, np.float64(1)), TypeError, "output_size: got np.float64"),
        (lambda: hf.RNN(2, 10**30, 1), ValueError, "hidden_size: got 1e.30, need at most"),
        # ---- where and in what models are
        (lambda: hf.RNN(2, 3, 1, dtype="x"), TypeError, "dtype: got 'x', need a real floating"),
        (lambda: hf.MLP([2, 1], ["tanh"], dtype=int), TypeError, "dtype: got type, need a real"),
        (lambda: hf.StackedRNN(2, [3], 1, dtype=torch.int64), TypeError, "dtype: got torch.int64"),
        (lambda: hf.RNN(2, 3, 1, device="gpu!"), ValueError, "device: got 'gpu!', need a device"),
        (lambda: hf.MLP([2, 1], ["tanh"], device={}), TypeError, "device: got dict, need a torch"),
        (lambda: hf.RNN(2, 3, 1, generator=7), TypeError, "generator: got int, need a torch.Gen"),
        (lambda: hf.RNN(2, 3, 1, sparse=x), TypeError, "sparse: got Tensor, need True or False"),
        (lambda: hf.RNN(2, 3, 1, nonlinearity=[]), ValueError, r"nonlinearity: got \[\], need one"),
        # ---- losses
        *(
            (call, TypeError, f"loss: got the class {name}, need an object of it, as {name}")
            for name, call in (
                ("MSELoss", lambda: hf.HessianFree(nn.Linear(3, 2), nn.MSELoss)),
                ("MSELoss", lambda: hf.GaussNewton(nn.Linear(3, 2), nn.MSELoss, x, y)),
                ("SquaredError", lambda: hf.HessianFree(hf.RNN(2, 3, 1), type(SQUARED))),
                ("SquaredError", lambda: hf.check_curvature(nn.Linear(3, 2), type(SQUARED), x, y)),
                ("SquaredError", lambda: training(loss=type(SQUARED))),
            )
        ),
        (lambda: SQUARED.value("s", y), TypeError, "s: got str, need a torch.Tensor"),
        (lambda: SQUARED.gradient(y, [0.0]), TypeError, "targets: got list, need a torch.Tensor"),
        (lambda: SQUARED.hessian(y, y, [True]), TypeError, "mask: got list, need a torch.Tensor"),
        (lambda: SQUARED.value(torch.zeros(2, 2, 2, 2, 2), y), ValueError, r"s: got shape \[2, 2,"),
        (lambda: SQUARED.value(y.long(), y), TypeError, "s: got torch.int64"),
        (lambda: SQUARED.value(y, y[0]), ValueError, r"targets: got shape \[2\], need \[4, 2\]"),
        (lambda: SOFTMAX.gradient(y, y), ValueError, r"targets: got shape \[4, 2\], need classes"),
        (lambda: SOFTMAX.value(y, y[:, 0]), TypeError, "targets: got torch.float32, need torch.in"),
        (
            lambda: SQUARED.value(y, y, x.bool()),
            ValueError,
            r"mask: got shape \[4, 3\], need \[4\]",
        ),
        (lambda: SQUARED.value(y, y.to("meta")), ValueError, "targets: is on meta, need cpu"),
        (
            lambda: hf.losses.LinkedSquaredError("tanh").gradient(y, None),
            TypeError,
            "targets: got NoneType, need a torch.Tensor",
        ),
        (lambda: hf.losses.HuberLoss("1"), TypeError, "delta: got '1', need a number"),
        (lambda: hf.losses.LinkedSquaredError([]), ValueError, r"link: got \[\], need one of"),
        (
            lambda: hf.losses.SoftmaxCrossEntropy(weight="abc"),
            TypeError,
            r"weight: got str, need numbers \[k\]",
        ),
        (
            lambda: hf.losses.SoftmaxCrossEntropy(ignore_index=0.5),
            TypeError,
            "ignore_index: got float, need an integer",
        ),
        (
            lambda: hf.losses.SoftmaxCrossEntropy(label_smoothing={}),
            TypeError,
            "label_smoothing: got dict, need a number",
        ),
        (
            lambda: SOFTMAX.value(y, y[:, 0].long(), y[:, 0].bool().to("meta")),
            ValueError,
            "mask: is on meta, need cpu like s",
        ),
        # ---- problems
        (
            lambda: hf.problems.Addition(5, tolerance={}),
            TypeError,
            "tolerance: got dict, need",
        ),
        (lambda: hf.problems.Addition(10**30), ValueError, "length: got 1.*, need at most"),
        (
            lambda: hf.problems.Addition(5).batch(10**30, np.random.default_rng(0)),
            ValueError,
            "size: got 1.*, need at least 1 case and at most",
        ),
        (
            lambda: hf.problems.Addition(5).batch(1, np.random.default_rng(0), {}),
            TypeError,
            "dtype: got {}, need torch.float32 or torch.float64",
        ),
        (
            lambda: hf.init.sparse_(hf.RNN(2, 9, 1, sparse=True, fan_in=3), torch.Generator()),
            ValueError,
            "fan_in: got 15, need at most 3, the entries a row of the model",
        ),
        # ---- policies and schedules
        (
            lambda: training(batches=lambda: []),
            TypeError,
            "batches: takes other arguments .*; it is called with 1",
        ),
        (lambda: hf.minibatches.SmallBatches(0.5, y, size=1), TypeError, "inputs: got float"),
        (lambda: hf.minibatches.SmallBatches(x.numpy(), y, size=1), TypeError, "inputs: got ndarr"),
        (lambda: hf.minibatches.SmallBatches(x, y, [1], size=1), TypeError, "mask: got list"),
        (lambda: hf.minibatches.SmallBatches(x, y, size=1)({}), TypeError, "step: got dict"),
        (lambda: hf.minibatches.SmallBatches(x, y, size=1)(0.5), TypeError, "step: got float"),
        (lambda: hf.minibatches.SmallBatches(x, y, size=1)(10**30), ValueError, "step: got more"),
        (lambda: hf.minibatches.Epochs(x, y, size=1)("1"), TypeError, "step: got '1', need an int"),
        (
            lambda: hf.minibatches.FullGradient(x, y, curvature_batches=1, batch_dim="1"),
            TypeError,
            "batch_dim: got '1', need an integer",
        ),
        (
            lambda: hf.minibatches.FullGradient(x, y, curvature_batches=2, growth=2.0)([]),
            TypeError,
            "step: got list, need an integer",
        ),
        (
            lambda: hf.schedules.Final(lambda: 0.5, 10_000),
            TypeError,
            "schedule: takes other arguments .*; it is called with 1",
        ),
        (
            lambda: hf.schedules.Final(lambda t: None, 10_000)(0),
            TypeError,
            "schedule: got NoneType, need a number",
        ),
        # ---- training and sweeps
        (lambda: training(progress=np.zeros(3)), TypeError, "progress: got ndarray, need True or"),
        (lambda: sweep(problem=object()), TypeError, "problem: got object, need a problem of"),
        (
            lambda: sweep(seeds=10**30),
            ValueError,
            "seeds: got more than 1000000, need 1 to 1000000",
        ),
        (
            lambda: sweep(grid={"learning_rate": [10**400]}),
            ValueError,
            r"grid\['learning_rate'\]: got an integer that no float holds",
        ),
        (lambda: sweep(grid=0.5), TypeError, "grid: got float, need a mapping"),
        (lambda: sweep(device=""), ValueError, "device: got '', need a device"),
        (lambda: sweep(device={}), TypeError, "device: got dict, need a torch.device or its name"),
        (lambda: sweep(test_size=[1]), TypeError, "test_size: got list, need an integer"),
        (lambda: sweep(final_updates="1"), TypeError, "final_updates: got '1', need an integer"),
        (lambda: sweep(weight_decay={}), TypeError, "weight_decay: got dict, need a number"),
        (lambda: sweep(resume=np.zeros(2)), TypeError, "resume: got ndarray, need True or False"),
        (lambda: training(run_dir=7), TypeError, "run_dir: got int"),
        (lambda: hf.load_run(torch.zeros(2)), TypeError, "run_dir: got Tensor, need a path"),
        (lambda: hf.data.mnist(7), TypeError, "folder: got int, need a path"),
        (lambda: hf.data.faces(b"x"), TypeError, "folder: got bytes, need a path"),
        (
            lambda: hf.training.EarlyStopping(1, min_delta=1j),
            TypeError,
            "min_delta: got complex, need a number",
        ),
        (lambda: hf.training.EarlyStopping(1, 5), TypeError, "metric: got int, need the name of a"),
        (
            lambda: hf.training.BestModel(restore=[]),
            TypeError,
            "restore: got list, need True",
        ),
        # ---- a module's data and closures
        (lambda: step(x.half()), ValueError, r"inputs: .* not take \[4, 3\] torch.float16: mat1"),
        (lambda: step(x[:, :2]), ValueError, r"inputs: .* not take \[4, 2\] torch.float32: mat1"),
        (lambda: closure_step(len), TypeError, "closure: takes other arguments .* called without"),
        (lambda: closure_step(nn.Linear(2, 2)), TypeError, "closure: takes other arguments"),
        (
            lambda: hf.SGD(nn.Linear(2, 2).parameters(), 0.1).step(nn.Linear(2, 2)),
            TypeError,
            "closure: takes other arguments",
        ),
        (
            lambda: hf.NAG(nn.Linear(2, 2).parameters(), 0.1).step(len),
            TypeError,
            "closure: takes other arguments",
        ),
        (
            lambda: hf.AdaptiveNAG(nn.Linear(2, 2).parameters()).step(len),
            TypeError,
            "closure: takes other arguments",
        ),
        (
            lambda: module_loss(SOFTMAX, [0, 1, 2, 1]),
            ValueError,
            "targets: got class 2, need classes below 2, the number of outputs",
        ),
        (
            lambda: module_loss(SOFTMAX, [0, 1, -3, 1]),
            ValueError,
            "targets: got class -3, need classes from 0",
        ),
        (
            lambda: module_loss(nn.CrossEntropyLoss(), [0, 7, -100, 1]),
            ValueError,
            "targets: got class 7, need classes below 2, the number of outputs",
        ),
        (
            lambda: hf.NonlinearCG(nn.Linear(2, 2), line_searches=torch.zeros(2)),
            TypeError,
            "line_searches: got Tensor, need an integer",
        ),
        (
            lambda: hf.NonlinearCG(nn.Linear(2, 2), local="yes"),
            TypeError,
            "local: got 'yes', need True or False",
        ),
        (
            lambda: hf.AdaptiveNAG(nn.Linear(2, 2), local=1),
            TypeError,
            "local: got int, need True or False",
        ),
        (
            lambda: hf.Jacobian(nn.Linear(3, 2), x, outputs=lambda: 0),
            TypeError,
            "outputs: takes other arguments .*; it is called with 1",
        ),
        (
            lambda: hf.pretrain(hf.Autoencoder([3, 2]), x.to("meta")),
            ValueError,
            "data: is on meta, need a device that holds its values",
        ),
        # ---- functions of the caller's that are no Python, whose errors say not where they stood
        (
            lambda: hf.Jacobian(Named(), x, outputs=int),
            TypeError,
            "outputs: int raised TypeError: int.. argument must be",
        ),
        (
            lambda: hf.GaussNewton(nn.Linear(3, 2), len, x, y),
            TypeError,
            "loss: takes other arguments .*; it is called with 2",
        ),
        (
            lambda: hf.EmpiricalFisher(nn.Linear(3, 2), lambda s: s, x, y),
            TypeError,
            "loss: takes other arguments .*; it is called with 2",
        ),
        (
            lambda: hf.GaussNewton(nn.Linear(3, 2), torch.dot, x, y),
            TypeError,
            "loss: dot raised RuntimeError: 1D tensors expected",
        ),
        (lambda: hf.cg(int, x[0] + 1), TypeError, "product: int raised"),
        (lambda: hf.minres(lambda: 0, x[0] + 1), TypeError, "product: takes other arguments"),
        (
            lambda: training_by(lambda s: s),
            TypeError,
            "metric: takes other arguments .*; it is called with 2",
        ),
        (
            lambda: hf.pretrain(hf.Autoencoder([3, 2]), x, report=lambda: None, epochs=1),
            TypeError,
            "report: takes other arguments .*; it is called with 1",
        ),
        (
            lambda: hf.NaturalGradient(OUT, lambda: None).step(lambda: (OUT(x).mean(), OUT(x))),
            TypeError,
            "distribution: takes other arguments .*; it is called with 1",
        ),
        # ---- closures and schedulers
        (lambda: closure_step(lambda: (OUT(x).mean(), OUT(x).detach())), ValueError, NOT_MOVED),
        (lambda: natural(lambda: (OUT(x).mean(), OUT(x).detach())), ValueError, NOT_MOVED),
        (
            lambda: natural(of_sizes(4, 3)),
            ValueError,
            r"closure: returned outputs of shape \[3, 2\], need \[4, 2\] as in the call before",
        ),
        (lambda: scheduled(hf.LeastSquares), ValueError, "lr: got 0.5, need 1: LeastSquares"),
        (lambda: scheduled(hf.NonlinearCG), ValueError, "lr: got 0.5, need 1: NonlinearCG finds"),
        (
            lambda: scheduled(lambda net: hf.NaturalGradient(net, "normal")),
            ValueError,
            "lr: got 0.5, need 1: NaturalGradient finds",
        ),
        (
            lambda: natural(lambda: OUT(x).square().mean()),
            TypeError,
            r"closure: returned a scalar loss alone, need \(loss, outputs\): how far",
        ),
        (
            lambda: train_by(hf.LeastSquares(OUT)),
            TypeError,
            "optimizer: LeastSquares takes closures that return residuals, which hf.train",
        ),
        (
            lambda: train_by(hf.NaturalGradient(OUT, "normal")),
            TypeError,
            r"optimizer: NaturalGradient takes closures that return \(loss, outputs\), which",
        ),
        # ---- checks of products
        (
            lambda: hf.check_curvature(nn.Linear(3, 2), SQUARED, x, y, seed=0.5),
            TypeError,
            "seed: got float, need an integer",
        ),
        (
            lambda: hf.check_curvature(nn.Linear(3, 2), SQUARED, x, y, seed=10**30),
            ValueError,
            "seed: got more than",
        ),
    ],
)
def test_what_is_wrong_is_named(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call()


@pytest.mark.parametrize(
    ("s", "error", "message"),
    [
        (0.5, TypeError, "s: got float, need a torch.Tensor"),
        ([0.5], TypeError, "s: got list, need a torch.Tensor"),
        (torch.zeros(13, 2, 3, dtype=torch.complex64), TypeError, "s: got torch.complex64"),
        (torch.zeros(13, 2, 3, device="meta"), ValueError, "s: is on meta, need cpu"),
        (torch.zeros(13, 2, 4), ValueError, r"s: got shape \[13, 2, 4\], need \[13, 2, 3\]"),
    ],
)
def test_outputs_that_a_problem_cannot_judge(s: Any, error: type[Exception], message: str) -> None:
    problem = hf.problems.Memorization5(3)
    batch = problem.batch(2, np.random.default_rng(0))
    with pytest.raises(error, match=f"^{message}"):
        problem.wrong(s, batch)


def test_a_fault_in_the_callers_own_closure_stays_as_it_is() -> None:
    def closure() -> Any:
        return None + 1  # type: ignore[operator]

    with pytest.raises(TypeError, match="unsupported operand"):
        closure_step(closure)


def test_a_share_that_is_a_tensor_is_kept_as_a_number(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    training(run_dir=run_dir, solved_below=torch.tensor(0.25), batch_size=2, test_size=2)
    config = json.loads((run_dir / "config.json").read_text())
    assert config["run"]["solved_below"] == 0.25


def test_sizes_may_be_numpy_integers() -> None:
    assert hf.EchoState(np.int64(2), 3, np.int32(1)).W_yh.shape == (1, 3)


@pytest.mark.parametrize("model", [3, "weights", None, torch.zeros(2)])
def test_what_is_no_model_is_named(model: object) -> None:
    with pytest.raises(
        TypeError, match=f"model: got {type(model).__name__}, need a torch.nn.Module"
    ):
        hf.flat.FlatParameters(model)
