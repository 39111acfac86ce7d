"""Random calls of the public interface: only errors that were meant may leave it.

Run as a script (``make fuzz-api``). A call is a recipe with good arguments, of which none, one or
two are spoilt. Good ones must succeed; a Gauss-Newton product among them must be that of a dense
matrix in float64. Spoilt ones may succeed, or raise ValueError, TypeError or an error of this
package, by a ``raise`` of this package (or of torch's optimisers, which ours derive from): what an
attribute, an index or an operator inside raises tells a user nothing. No call may hang.

HFCORE_FUZZ_CALLS sets the number of calls (10,000), HFCORE_FUZZ_SEED where they start (0).
"""

from __future__ import annotations

import collections
import copy
import linecache
import os
import random
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hfcore as hf

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parent))
import api_recipes
from api_source import Call, Source
from outside_net import Residual, ResidualNet

HERE = Path(__file__).parent
CALLS = int(os.environ.get("HFCORE_FUZZ_CALLS", "10000"))
SEED = int(os.environ.get("HFCORE_FUZZ_SEED", "0"))
# A call hangs that computes for longer, or does not answer for longer on a busy machine.
SECONDS, WAITING_SECONDS = 60, 1800

PACKAGE = str(Path(hf.__file__).parent)
# Where a raise may stand: here, and in what our optimisers and schedules inherit.
OWN_PLACES = (PACKAGE, str(Path(torch.__file__).parent / "optim"))

# How a message begins that names an argument.
NAMED = re.compile(r"\w+: (got|need|is|holds) ")

# How long a run is: what is legal and never ends is none of the package's faults.
LENGTHS = ("updates", "seeds", "gradient_batches", "batch_size", "test_size")
LONG, SHORT = 1000, 3

Recipe = Callable[[Source], Call]


class Hang(BaseException):
    """A call that did not answer in time."""


class Ends(hf.Callback):
    """Ends a run after a few iterations."""

    reads_gradients = False

    def on_step(self, state: hf.TrainState) -> str | None:
        return "enough" if state.iteration >= SHORT else None


def train(**arguments: Any) -> Any:
    """``hf.train`` that ends, whatever its limits say; a second argument of any name."""
    callbacks = arguments.get("callbacks", ())
    with suppress(TypeError):
        given = [*callbacks]
        if all(isinstance(hook, hf.Callback) for hook in given):
            arguments["callbacks"] = [*given, Ends()]
    data = arguments.pop("problem" if "problem" in arguments else "data")
    return hf.train(arguments.pop("model"), data, arguments.pop("optimizer"), **arguments)


def short(name: str, value: Any) -> Any:
    """A legal length of a run that nobody could wait for becomes a short one."""
    endless = isinstance(value, int | float | np.number) and LONG < value <= sys.maxsize
    return SHORT if name in LENGTHS and endless else value


# ----------------------------------------------------------------------------------- recipes


def use_operator(A: Any, source: Source) -> None:
    """Methods of an operator, with one argument spoilt now and then."""
    N = A.shape[0]
    v = source.tensor(N) if source.random.random() < 0.7 else source.spoilt(source.tensor(N))
    few = 2 if source.random.random() < 0.7 else source.spoilt(2)
    chosen = source.pick(
        lambda: A @ v,
        lambda: A.matvec(v, out=source.spoilt(source.tensor(N))),
        lambda: A @ source.spoilt(source.tensor(N, 3)),
        lambda: A.trace(probes=few),
        lambda: A.diagonal(probes=few),
        lambda: A.eigenvalues(few),
        lambda: A.solve(v, max_iter=few) if hasattr(A, "solve") else None,
        lambda: A.eigsh(few) if hasattr(A, "eigsh") else None,
        lambda: A.to_scipy() @ np.zeros(N),
        lambda: repr(A),
    )
    chosen()


def operator(source: Source) -> Call:
    kind = source.pick(hf.GaussNewton, hf.Hessian, hf.EmpiricalFisher)
    arguments = source.task()
    arguments["damping"] = source.pick(0.0, 0.1)
    if source.pick(True, False, False):
        arguments["l2"] = 0.01
    if isinstance(arguments["model"], hf.RNN | hf.MLP) and source.pick(True, False):
        arguments["structural"] = 0.1
    return Call(kind, arguments, use_operator)


def some_operator(source: Source) -> Any:
    """A curvature, or an operator made of some."""
    A = operator(source)
    for name in ("structural", "l2"):
        A.arguments.pop(name, None)
    G = A.function(**A.arguments)
    first = next(iter(G.parameter_slices))
    return source.pick(
        lambda: G,
        lambda: G + 2 * G,
        lambda: G.shifted(0.5),
        lambda: G.block(first),
        lambda: G @ G,
        lambda: hf.Identity(G) - G,
    )()


def linear_solve(source: Source) -> Call:
    A = some_operator(source)
    N = A.shape[0]
    b = source.tensor(N) if source.pick(True, False) else source.tensor(N, source.pick(1, 2, 3))
    arguments: dict[str, Any] = {"b": b, "rtol": 1e-3, "max_iter": source.pick(None, 1, 5)}
    if source.pick(True, False):
        arguments["x0"] = torch.randn(b.shape, generator=source.generator, dtype=source.dtype)
    function = source.pick("solve", "solve", "cg", "minres")
    if function == "solve":
        if source.pick(True, False, False):
            arguments["preconditioner"] = "jacobi"
        arguments["method"] = source.pick("auto", "cg", "minres")
        return Call(A.solve, arguments)
    if source.pick(True, False, False):
        arguments["preconditioner"] = torch.rand(N, generator=source.generator).to(source.dtype) + 1
    product = source.pick(A, lambda v: A @ v)
    return Call(partial(getattr(hf, function), product), arguments)


def spectrum(source: Source) -> Call:
    A = some_operator(source)
    if source.pick(True, False):
        k = source.random.randint(1, A.shape[0])
        which = source.pick("LA", "SA", "LM")
        return Call(A.eigsh, {"k": k, "which": which, "tolerance": 1e-3, "seed": 0})

    def then(density: Any, source: Source) -> None:
        density.trace(source.pick(torch.exp, 3, None))

    arguments: dict[str, Any] = {"probes": 2, "steps": source.pick(1, 5), "grid": 7, "width": 0.1}
    return Call(A.spectral_density, {**arguments, "generator": source.generator}, then)


def algebra(source: Source) -> Call:
    A, B = some_operator(source), some_operator(source)
    name, arguments = source.pick(
        ("shifted", {"c": 0.5}),
        ("block", {"names": "*"}),
        ("__add__", {"other": A.shifted(1.0)}),
        ("__sub__", {"other": 2 * A}),
        ("__mul__", {"c": 2.0}),
        ("__truediv__", {"c": 2.0}),
        ("__matmul__", {"v": A}),
    )

    def then(result: Any, source: Source) -> None:
        if result is not NotImplemented and not isinstance(result, Tensor):
            use_operator(result if source.random.random() < 0.9 else result + B, source)

    return Call(getattr(A, name), arguments, then)


OPTIONS: dict[str, tuple[Any, ...]] = {
    "curvature": ("ggn", "hessian_fd", "fisher"),
    "damping": (1.0, 0.1, "auto"),
    "damping_rule": ("martens2010", "rnn2011", "chapelle2011"),
    "damping_window": (None, (0.5, 0.95)),
    "scale_damping": (None, 0.1),
    "trust_radius": (None, 1.0),
    "l2": (0.0, 1e-3),
    "cg_max_iter": (1, 5, 20),
    "cg_tolerance": (5e-4, 0.0),
    "cg_lookback": (1, 10),
    "cg_residual": (1e-10, 0.0),
    "cg_decay": (0.95, 0.0),
    "cg_restart": (True, False),
    "cg_evaluate_every": (1, 10, "geometric"),
    "cg_backtracking": ("best", "walk", "last"),
    "cg_loss_increase_after": (None,),
    "preconditioner": (None, "fisher", "ggn_diagonal"),
    "preconditioner_exponent": (None, 0.75),
    "diagonal_probes": (1, 3),
    "rho": ("damped", "undamped", None),
    "rho_low": (0.25,),
    "rho_high": (0.75,),
    "damping_up": (1.5, None),
    "damping_down": (0.5, None),
    "damping_failed": (2.0, None),
    "step_size": (None, 0.5),
    "line_search_decay": (0.8,),
    "line_search_armijo": (0.0, 0.01),
    "line_search_max": (50, 3),
    "seed": (0, 7),
}


def hessian_free(source: Source) -> Call:
    task = source.task()
    chosen = source.random.sample(sorted(OPTIONS), source.random.randrange(6))
    options = {name: source.pick(*OPTIONS[name]) for name in chosen}
    if "damping_window" in options or "cg_loss_increase_after" in options:
        options.pop("trust_radius", None)
    data = [task["inputs"], task["targets"], task.get("mask")]

    def then(opt: Any, source: Source) -> None:
        for _ in range(2):
            if source.random.random() < 0.3:
                i = source.random.randrange(2 if data[2] is None else 3)
                data[i] = source.spoilt(data[i])
            shape = source.pick(tuple, list, lambda d: hf.Batch(*d), lambda d: [hf.Batch(*d)])
            opt.step(shape(data) if source.random.random() < 0.9 else source.spoilt(data))
        opt.load_state_dict(opt.state_dict())

    return Call(hf.HessianFree, {"model": task["model"], "loss": task["loss"], **options}, then)


def closure_step(source: Source) -> Call:
    task = source.cases()
    net: Any = task["model"]

    def closure() -> Any:
        s = net(task["inputs"])
        return (s - 1).square().mean(), s

    options = {"params": net.parameters(), "lr": 0.1}
    kind = source.pick(hf.SGD, hf.NAG, hf.ClassicalMomentum, hf.AdaptiveNAG, hf.HessianFree)
    if kind is hf.HessianFree:
        arguments: dict[str, Any] = {"model": net.parameters(), "damping": 1.0}
    elif kind is hf.AdaptiveNAG:
        arguments = {"params": net.parameters(), "lr": source.pick(0.1, None)}
    else:
        arguments = {**options, "weight_decay": source.pick(0.0, 0.1)}

    def first_order() -> Any:
        net.zero_grad()
        loss, _ = closure()
        loss.backward()
        return loss

    def then(opt: Any, source: Source) -> None:
        given: Any = closure if isinstance(opt, hf.HessianFree) else first_order
        opt.step(given if source.random.random() < 0.7 else source.spoilt(given))
        opt.load_state_dict(opt.state_dict())

    return Call(kind, arguments, then)


def initialisation(source: Source) -> Call:
    name = source.pick("sparse_", "gaussian_", "glorot_", "esn_")
    task = source.sequences() if name == "esn_" else source.task()
    if name == "esn_" and not isinstance(task["model"], hf.RNN):  # serves no other, and says so
        name = "gaussian_"
    arguments = {"model": task["model"], "generator": source.generator}
    if getattr(task["model"], "sparse", False):
        if name in ("esn_", "sparse_"):  # draw more entries than the model has, unless it is told
            arguments["fan_in"] = task["model"].fan_in
        elif name == "glorot_":  # serves dense models, and says so
            name = "gaussian_"
    return Call(getattr(hf.init, name), arguments)


def model(source: Source) -> Call:
    sizes = {"input_size": source.n, "hidden_size": source.H, "output_size": source.k}
    kind = source.pick("RNN", "MLP", "Autoencoder", "EchoState", "StackedRNN")
    arguments: dict[str, Any] = {
        "RNN": {**sizes, "nonlinearity": source.pick("tanh", "relu"), "sparse": False},
        "MLP": {"sizes": [source.n, source.H], "activations": ["tanh"]},
        "Autoencoder": {"encoder_sizes": [source.n, source.H]},
        "EchoState": {**sizes},
        "StackedRNN": {
            "input_size": source.n, "hidden_sizes": [source.H, 2], "output_size": source.k,
        },
    }[kind]  # fmt: skip
    arguments |= {"dtype": torch.float32, "device": "cpu", "generator": source.generator}
    cases = kind in ("MLP", "Autoencoder")
    shape = (source.B, source.n) if cases else (source.T, source.B, source.n)

    def then(net: Any, source: Source) -> None:
        x = torch.zeros(*shape)
        net(x if source.random.random() < 0.5 else source.spoilt(x))

    return Call(getattr(hf, kind), arguments, then)


def draw(source: Source) -> Call:
    problem = source.problem()
    arguments = {"size": source.B, "generator": np.random.default_rng(0), "dtype": source.dtype}

    def then(batch: Any, source: Source) -> None:
        s = torch.zeros(*batch.inputs.shape[:2], problem.output_size, dtype=source.dtype)
        problem.wrong(s if source.random.random() < 0.5 else source.spoilt(s), batch)

    return Call(problem.batch, arguments, then)


def make_problem(source: Source) -> Call:
    kind = source.pick(hf.problems.Addition, hf.problems.Multiplication)
    arguments = {"length": source.pick(3, 9), "tolerance": 0.04, "centre": source.pick(True, False)}
    return Call(kind, arguments)


def policy(source: Source) -> Call:
    task = source.cases()
    arguments: dict[str, Any] = {"inputs": task["inputs"], "targets": task["targets"]}
    kind = source.pick(hf.minibatches.FullGradient, hf.minibatches.SmallBatches)
    if kind is hf.minibatches.FullGradient:
        arguments |= {"curvature_batches": source.random.randint(1, source.B), "growth": 1.5}
    else:
        arguments |= {"size": source.random.randint(1, source.B)}
    arguments["seed"] = 0

    def then(policy: Any, source: Source) -> None:
        policy(3 if source.random.random() < 0.5 else source.spoilt(3))

    return Call(kind, arguments, then)


def loss_value(source: Source) -> Call:
    loss, targets = source.loss_and_targets(source.T, source.B)
    arguments: dict[str, Any] = {"s": source.tensor(source.T, source.B, source.k)}
    method = source.pick("value", "gradient")
    return Call(getattr(loss, method), {**arguments, "targets": targets.clone()})


def make_loss(source: Source) -> Call:
    """A loss with options, then called; and those of torch."""
    weight = torch.rand(source.k, generator=source.generator) + 0.1
    mean = source.pick("cases", "weights", "elements", "sum")
    softmax = {"weight": weight, "ignore_index": 0, "label_smoothing": 0.1, "mean": mean}
    torchs = source.pick(
        nn.MSELoss(), nn.HuberLoss(), nn.SmoothL1Loss(), nn.PoissonNLLLoss(),
        nn.BCEWithLogitsLoss(pos_weight=weight),
    )  # fmt: skip
    kind, arguments = source.pick(
        (hf.losses.SoftmaxCrossEntropy, softmax),
        (hf.losses.LogisticCrossEntropy, {"weight": weight, "pos_weight": weight, "mean": mean}),
        (hf.losses.HuberLoss, {"delta": 0.5, "mean": mean}),
        (hf.losses.PoissonNLL, {"mean": mean}),
        (hf.losses.LinkedSquaredError, {"link": "tanh", "stand_in": "positive"}),
        (hf.losses.from_torch, {"module": torchs}),
    )

    def then(loss: hf.losses.Loss, source: Source) -> None:
        s = source.tensor(source.B, source.k)
        targets = s.sigmoid()
        if loss.takes_classes:
            targets = source.classes(source.B)
        given = source.pick(targets, source.spoilt(targets))
        mask = source.pick(None, torch.rand(source.B, dtype=source.dtype))
        if source.pick(True, False):
            mask = source.spoilt(torch.ones(source.B, dtype=torch.bool))
        source.pick(loss.value, loss.gradient, loss.hessian)(s, given, mask)

    return Call(kind, arguments, then)


def schedule(source: Source) -> Call:
    kinds: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (hf.schedules.Increasing, {"mu_max": 0.99}),
        (hf.schedules.Delayed, {"mu_0": 0.9}),
        (hf.schedules.Constant, {"mu": 0.5}),
        (hf.schedules.NesterovSequence, {}),
        (hf.schedules.Final, {"schedule": hf.schedules.Constant(0.99), "total": 10_000}),
    ]
    kind, arguments = source.pick(*kinds)

    def then(schedule: Any, source: Source) -> None:
        schedule(5)

    return Call(kind, arguments, then)


def training(source: Source) -> Call:
    problem = source.problem()
    net = hf.RNN(problem.input_size, source.H, problem.output_size)
    optimiser = source.pick(
        lambda: hf.HessianFree(net, problem.loss, damping=1.0, cg_max_iter=3),
        lambda: hf.NAG(net, 0.01),
        lambda: torch.optim.Adam(net.parameters()),
    )()
    arguments: dict[str, Any] = {
        "model": net, "problem": problem, "optimizer": optimiser, "minibatches": 0.01,
        "batch_size": 4, "gradient_batches": 2, "test_size": 4, "solved_below": 0.01,
        "test_every": 1, "seed": 0, "checkpoint_every": 1, "callbacks": (), "progress": False,
    }  # fmt: skip
    if source.pick(True, False):
        arguments |= {"run_dir": Path(tempfile.mkdtemp(dir=FOLDER.name)) / "run", "resume": False}

    return Call(train, arguments)


def array_training(source: Source) -> Call:
    """hf.train on cases at hand, with policies, limits and callbacks."""
    task = source.cases()
    net: Any = task["model"]
    opt = source.pick(
        lambda: hf.HessianFree(net, task["loss"], damping=1.0, cg_max_iter=3),
        lambda: hf.NAG(net, 0.01),
    )()
    x, y = task["inputs"], task["targets"]
    data = source.pick((x, y), (x.numpy(), y.numpy()))
    arguments: dict[str, Any] = {
        "model": net, "data": data, "optimizer": opt, "loss": task["loss"],
        "validation": source.pick((x, y), None), "stop": hf.training.Limits(iterations=2),
        "seed": 0, "progress": False, "test_every": 1, "batch_dim": source.pick(None, 0),
    }  # fmt: skip
    if arguments["validation"] is not None:
        arguments["callbacks"] = [hf.training.EarlyStopping(1)]
    if source.pick(True, False):
        arguments["batches"] = source.pick(
            hf.minibatches.SmallBatches(size=1),
            hf.minibatches.FullGradient(curvature_batches=1),
        )

    return Call(train, arguments)


def limits(source: Source) -> Call:
    kind, arguments = source.pick(
        (hf.training.Limits, {"iterations": 2, "minibatches": 3.0, "seconds": 1.5}),
        (hf.training.EarlyStopping, {"patience": 3, "metric": "loss", "min_delta": 0.1}),
        (hf.minibatches.Fresh, {"count": 2, "size": 3}),
    )
    return Call(kind, arguments)


def load(source: Source) -> Call:
    """A run folder that is none, and one that is."""
    run_dir = Path(tempfile.mkdtemp(dir=FOLDER.name)) / "run"
    net = hf.RNN(2, 2, 1)
    problem = hf.problems.Addition(3)
    hf.train(
        net, problem, hf.NAG(net, 0.01), stop=hf.training.Limits(iterations=1), batch_size=2,
        test_size=2, test_every=1, checkpoint_every=1, run_dir=run_dir, progress=False,
    )  # fmt: skip
    return Call(hf.load_run, {"run_dir": run_dir, "checkpoint": "last", "device": "cpu"})


class Bowl(hf.Objective):
    """½θᵀθ, with one of its answers spoilt now and then."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.spoilt = source.pick("", "", "loss", "gradient", "curvature", "product")

    def answer(self, name: str, value: Any) -> Any:
        return self.source.spoilt(value) if self.spoilt == name else value

    def loss(self, data: Any, theta: Tensor) -> Any:
        return self.answer("loss", 0.5 * float(theta @ theta))

    def gradient(self, data: Any, theta: Tensor) -> Any:
        return self.loss(data, theta), self.answer("gradient", theta.clone())

    def curvature(self, data: Any, theta: Tensor, kind: Any = "ggn") -> Any:
        class Eye:
            def product(_, v: Tensor) -> Any:
                return self.answer("product", v.clone())

        return self.answer("curvature", Eye())


def own_objective(source: Source) -> Call:
    """An objective of one's own: steps, operators, the check and a run."""
    net = nn.Linear(source.n, source.k).to(source.dtype)
    x, y = source.tensor(source.B, source.n), source.tensor(source.B, source.k)
    bowl = Bowl(source)
    given = {"model": net, "objective": bowl}

    def then(opt: Any, source: Source) -> None:
        opt.step((torch.zeros(2), torch.zeros(2)))

    def run(opt: Any, source: Source) -> None:
        stop = hf.training.Limits(iterations=2)
        metric = source.pick(lambda s, t: (s - t).square().mean(), None)
        validation = None if metric is None else (x, y)
        train(
            model=net, data=(x, y), optimizer=opt, validation=validation, metric=metric, stop=stop,
            progress=False,
        )  # fmt: skip

    theta = source.pick(None, source.tensor(net.weight.numel() + net.bias.numel()))
    operator = source.pick(hf.GaussNewton, hf.Hessian, hf.EmpiricalFisher)
    call = source.pick(
        lambda: Call(hf.HessianFree, {**given, "damping": 1.0}, then),
        lambda: Call(hf.HessianFree, {**given, "damping": 1.0}, run),
        lambda: Call(
            operator,
            {**given, "inputs": x, "targets": y, "theta": theta, "damping": 0.1},
            lambda A, source: use_operator(A, source),
        ),
        lambda: Call(
            hf.check_curvature,
            {**given, "inputs": x, "targets": y, "theta": theta, "directions": 2, "seed": 0},
        ),
    )()
    call.spoilt = bool(bowl.spoilt)
    return call


def registered(source: Source) -> Call:
    """A net of one's own, made known and used; nothing spoilt: its products are right."""

    class Mine(Residual):
        pass

    model = Mine(source.n, source.H, source.generator).to(source.dtype)
    x = source.tensor(source.B, source.n)
    task = {"model": model, "loss": hf.losses.SquaredError(), "inputs": x, "targets": x * x}
    arguments = {"model_class": Mine, "factory": ResidualNet, "layers": (nn.ModuleList, nn.Linear)}

    def then(_: None, source: Source) -> None:
        G = hf.GaussNewton(**task)
        use_operator(G, source)
        compare(G, task, source)
        hf.HessianFree(model, task["loss"], damping=1.0, cg_max_iter=3).step((x, x * x))

    return Call(hf.nets.register, arguments, then)


def stacked(source: Source) -> Call:
    """Every operator of a net of several recurrent layers, and steps on it."""
    layers = [source.size() for _ in range(source.pick(1, 2, 3))]
    phi = source.pick("tanh", "logistic", "relu")
    model = hf.StackedRNN(
        source.n, layers, source.k, nonlinearity=phi, dtype=source.dtype, generator=source.generator
    )
    loss, targets = source.loss_and_targets(source.T, source.B)
    task = {"model": model, "loss": loss, "inputs": source.tensor(source.T, source.B, source.n)}
    arguments = {**task, "targets": targets, "damping": source.pick(0.0, 0.1)}
    kind = source.pick(hf.GaussNewton, hf.GaussNewton, hf.Hessian, hf.EmpiricalFisher)
    arguments["memory"] = source.pick("auto", "cached", "recompute")

    def then(A: Any, source: Source) -> None:
        use_operator(A, source)
        batch = hf.Batch(task["inputs"], targets)
        hf.HessianFree(model, loss, damping=1.0, cg_max_iter=3).step(batch)

    return Call(kind, arguments, then)


def folder(source: Source) -> Call:
    """Data sets from folders that do not hold them."""
    holding = Path(tempfile.mkdtemp(dir=FOLDER.name))
    (holding / source.pick("train-images-idx3-ubyte.gz", "olivettifaces.mat")).write_bytes(b"x")
    kind = source.pick(hf.data.mnist, hf.data.faces)

    def function(folder: Any) -> Any:
        try:
            return kind(folder)
        except hf.data.DataFileError:
            return None

    return Call(function, {"folder": source.pick(holding, str(holding), holding / "none")})


def sweep(source: Source) -> Call:
    grid = {"learning_rate": [1e-2, 1e-3], "momentum": [0.0, 0.9], "method": ["nag"]}
    arguments = {
        "problem": source.problem(), "grid": grid, "seeds": 1, "updates": 2, "batch_size": 3,
        "test_every": 1, "test_size": 3, "schedule": "constant", "weight_decay": 0.0,
        "progress": False, "device": "cpu",
    }  # fmt: skip
    return Call(hf.sweep, arguments)


def checked(source: Source) -> Call:
    arguments = source.cases()
    return Call(hf.check_curvature, {**arguments, "coordinates": 1, "directions": 1, "seed": 0})


RECIPES: list[tuple[int, Recipe]] = [
    (6, operator), (8, hessian_free), (3, closure_step), (2, initialisation), (2, model), (2, draw),
    (1, make_problem), (2, policy), (2, loss_value), (1, schedule), (3, training), (1, sweep),
    (2, make_loss), (2, array_training), (1, limits), (1, load), (4, own_objective), (1, folder),
    (2, registered), (2, stacked), (1, checked), (2, linear_solve), (2, spectrum), (2, algebra),
    *api_recipes.RECIPES,
]  # fmt: skip
FOLDER = tempfile.TemporaryDirectory(prefix="hfcore-fuzz-")
# Without it, a data set that is not where it is looked for would be downloaded.
os.environ["HFCORE_DATA"] = FOLDER.name


# ------------------------------------------------------------------------------- the judgement


def meant(error: BaseException) -> bool:
    """Whether the error comes from a ``raise`` for the user, of a kind that may leave."""
    own = type(error).__module__.split(".")[0] == "hfcore"
    if not (own or isinstance(error, ValueError | TypeError)):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    if Path(last.filename).parent == HERE:  # the signature itself: a missing or an unknown argument
        return isinstance(error, TypeError)
    frames = list(traceback.walk_tb(error.__traceback__))
    if "_native." in source_of(
        last.filename, last.lineno or 0
    ):  # the compiled module's own refusal
        return isinstance(error, ValueError) and NAMED.match(str(error)) is not None
    # A context manager that translates an error raises from within.
    return any(
        frame.f_code.co_filename.startswith(OWN_PLACES)
        and "raise" in source_of(frame.f_code.co_filename, line)
        for frame, line in frames[-3:]
    )


def source_of(filename: str, line: int) -> str:
    """The statement's lines around ``line``: a raise may span several."""
    return "\n".join(linecache.getline(filename, line - i) for i in range(4))


@contextmanager
def in_time() -> Iterator[None]:
    def over(*_: Any) -> None:
        raise Hang

    clocks = (
        (signal.SIGPROF, signal.ITIMER_PROF, SECONDS),
        (signal.SIGALRM, signal.ITIMER_REAL, WAITING_SECONDS),
    )
    before = [signal.signal(number, over) for number, _, _ in clocks]
    for _, clock, seconds in clocks:
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for (number, clock, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)


def dense_gauss_newton(task: dict[str, Any]) -> Tensor:
    """JᵀL''J of the mean loss in float64, the structural term left out."""
    net = task["model"].double()
    names = [name for name, _ in net.named_parameters()]
    shapes = [p.shape for _, p in net.named_parameters()]
    theta = torch.cat([p.detach().reshape(-1) for p in net.parameters()])

    def outputs(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        values = {n: p.view(shape) for n, p, shape in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(net, values, (task["inputs"].double(),))

    targets = task["targets"]
    targets = targets.double() if targets.is_floating_point() else targets
    mask = task.get("mask")
    keep = torch.ones(targets.shape[: task["inputs"].ndim - 1], dtype=torch.bool)
    keep = keep if mask is None else mask.bool()
    cases = task["inputs"].shape[-2]

    def loss(s: Tensor) -> Tensor:
        kind = type(task["loss"]).__name__
        if kind == "SquaredError":
            per = 0.5 * (s - targets).square().sum(-1)
        elif kind == "HuberLoss":
            per = nn.functional.huber_loss(s, targets, reduction="none", delta=0.8).sum(-1)
        elif kind == "PoissonNLL":
            per = (s.exp() - targets * s).sum(-1)
        elif kind == "LogisticCrossEntropy":
            per = nn.functional.softplus(s).sum(-1) - (targets * s).sum(-1)
        else:
            per = torch.logsumexp(s, -1) - s.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return per[keep].sum() / cases

    s = outputs(theta)
    J = torch.func.jacrev(outputs)(theta).reshape(s.numel(), -1)
    L = torch.func.hessian(lambda flat: loss(flat.view_as(s)))(s.reshape(-1))
    return J.mT @ L @ J


def check_product(call: Call, A: Any, source: Source) -> None:
    """A Gauss-Newton operator of good arguments is right."""
    if call.function is hf.GaussNewton and not {"structural", "objective"} & call.arguments.keys():
        compare(A, call.arguments, source)


def compare(A: Any, task: dict[str, Any], source: Source) -> None:
    """One product with a random vector against the dense matrix; raises AssertionError."""
    v = source.tensor(A.shape[0])
    got = (A @ v).double()
    G, wide = dense_gauss_newton(copy.deepcopy(task)), v.double()
    shift = task.get("damping", 0.0) + task.get("l2", 0.0)
    want = G @ wide + shift * wide
    scale = G.abs() @ wide.abs() + shift * wide.abs()
    bound = 1e3 * torch.finfo(source.dtype).eps * (scale.max() + 1e-30)
    worst = float((got - want).abs().max())
    assert worst <= bound, f"product off by {worst:.2e}, bound {float(bound):.2e}"


def run(seed: int, recipe: Recipe, outcomes: collections.Counter[str]) -> str | None:
    """One call; gives what is wrong with it, or None."""
    source = Source(seed)
    torch.manual_seed(seed)
    call = recipe(source)
    spoilt = source.pick(0, 0, 1, 1, 1, 2)
    for name in source.random.sample(sorted(call.arguments), min(spoilt, len(call.arguments))):
        call.arguments[name] = short(name, source.spoilt(call.arguments[name]))
    what = f"seed {seed}, {recipe.__name__}"
    built = False
    try:
        with in_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = call.function(**call.arguments)
            built = True
            if not spoilt:
                check_product(call, result, source)
            if call.then is not None:
                call.then(result, source)
    except AssertionError as error:
        if Path(traceback.extract_tb(error.__traceback__)[-1].filename).parent == HERE:
            return f"{what}: {error}"
        return f"{what}: AssertionError inside\n{traceback.format_exc(limit=-4)}"
    except Hang:
        return f"{what}: no answer in {SECONDS} s\n{traceback.format_exc(limit=-4)}"
    except Exception as error:
        if not (spoilt or call.spoilt or built):
            return f"{what}: good arguments were refused\n{traceback.format_exc(limit=-4)}"
        if not meant(error):
            return f"{what}: {type(error).__name__} leaks\n{traceback.format_exc(limit=-4)}"
        outcomes[f"{recipe.__name__}: refused"] += 1
        return None
    outcomes[f"{recipe.__name__}: answered"] += 1
    return None


def main() -> int:
    os.chdir(FOLDER.name)  # spoilt paths are relative ones
    outcomes: collections.Counter[str] = collections.Counter()
    weights, recipes = [w for w, _ in RECIPES], [r for _, r in RECIPES]
    faults = []
    for seed in range(SEED, SEED + CALLS):
        (recipe,) = random.Random(seed).choices(recipes, weights)
        fault = run(seed, recipe, outcomes)
        if fault is not None:
            faults.append(fault)
            print(fault, flush=True)
    for name, count in sorted(outcomes.items()):
        print(f"{count:6d} {name}")
    print(f"{CALLS} calls, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
