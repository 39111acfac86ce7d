"""Operators used by several threads at once, and operators whose data is written to."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.autograd.checks import differentiable_kernels
from hfcore.autograd.objective import ModuleObjective
from hfcore.flat import FlatParameters

LOSS = hf.losses.SquaredError()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def mlp() -> hf.MLP:
    generator = torch.Generator().manual_seed(0)
    return hf.MLP([3, 5, 2], ["tanh", "linear"], dtype=torch.float64, generator=generator)


def rnn() -> hf.RNN:
    return hf.RNN(3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


MODELS: dict[str, Callable[[], nn.Module]] = {"module": module, "mlp": mlp, "rnn": rnn}


def data(model: str) -> tuple[Tensor, Tensor]:
    lead = (4, 30) if model == "rnn" else (60,)
    return normal(*lead, 3), normal(*lead, 2, seed=2)


OPERATORS: dict[str, Callable[..., hf.GaussNewton]] = {
    "ggn": hf.GaussNewton,
    "hessian": hf.Hessian,
    "fisher": hf.EmpiricalFisher,
    "differences": lambda *a, **k: hf.Hessian(*a, method="finite_difference", **k),
}


def together(work: Callable[[int], None], threads: int = 4) -> None:
    """Runs ``work`` in several threads at once; an error of one is raised here."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(threads)

    def run(i: int) -> None:
        try:
            barrier.wait()
            work(i)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("model", MODELS)
def test_one_operator_in_several_threads(model, operator) -> None:
    net = MODELS[model]()
    A = OPERATORS[operator](net, LOSS, *data(model), damping=0.1)
    vectors = [normal(A.shape[0], seed=10 + i) for i in range(4)]
    wants = [A @ v for v in vectors]
    before = [p.clone() for p in net.parameters()]
    wrong = []

    def work(i: int) -> None:
        for _ in range(25):
            if not torch.equal(A @ vectors[i], wants[i]):
                wrong.append(i)

    together(work)
    assert not wrong
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("strategy", ["double_vjp", "jvp", "trace"])
def test_operators_of_one_module_in_several_threads(strategy) -> None:
    """Each its own operator, all over the same parameters, which evaluations exchange."""
    net = module()
    operators = [
        hf.GaussNewton(net, LOSS, *data("module"), strategy=strategy),
        hf.Hessian(net, LOSS, *data("module"), method="finite_difference"),
        hf.GaussNewton(net, LOSS, *data("module"), strategy="jvp"),
        hf.Hessian(net, LOSS, *data("module"), method="finite_difference"),
    ]
    v = normal(operators[0].shape[0])
    wants = [A @ v for A in operators]
    before = FlatParameters(net).read()
    wrong = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(operators[i] @ v, wants[i]):
                wrong.append(i)
            if not torch.equal(FlatParameters(net).read(), before):
                wrong.append(-1)

    together(work)
    assert not wrong
    assert torch.equal(FlatParameters(net).read(), before)


def test_operators_of_one_objective_in_several_threads() -> None:
    """The buffers belong to the objective, which two operators may share."""
    net = mlp()
    objective = hf.objective_for(net, LOSS)
    theta = FlatParameters(net).read()
    batch = hf.Batch(*data("mlp"))
    operators = [
        make(objective=objective, theta=theta, inputs=batch)
        for make in (hf.GaussNewton, hf.Hessian, hf.EmpiricalFisher, hf.GaussNewton)
    ]
    v = normal(len(theta))
    wants = [A @ v for A in operators]
    wrong = []

    def work(i: int) -> None:
        for _ in range(50):
            if not torch.equal(operators[i] @ v, wants[i]):
                wrong.append(i)

    together(work)
    assert not wrong


def test_settings_of_the_process_come_back_whoever_leaves_last() -> None:
    """An LSTM's kernels are exchanged while any thread evaluates one, and never afterwards."""
    before = (torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled)
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with differentiable_kernels(None):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with differentiable_kernels(None):
        leave.set()
        thread.join()
        assert not torch.backends.cudnn.enabled  # the first has left, this one has not
        assert not torch.backends.mha.get_fastpath_enabled()
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled) == before


# ------------------------------------------------------------------------- data written to


@pytest.mark.parametrize("which", ["inputs", "targets"])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("model", MODELS)
def test_data_that_was_written_to_is_refused(model, operator, which) -> None:
    x, y = data(model)
    A = OPERATORS[operator](MODELS[model](), LOSS, x, y)
    v = normal(A.shape[0])
    want = A @ v
    assert torch.equal(A @ v, want)
    (x if which == "inputs" else y).mul_(2)
    for product in (
        lambda: A @ v,
        lambda: A @ torch.stack([v, v], 1),
        lambda: A.diagonal(2),
        lambda: A.trace(),
    ):
        with pytest.raises(ValueError, match="was written to since the operator was built"):
            product()


def test_data_in_lists_and_tuples_that_was_written_to() -> None:
    x, y = data("module")
    parts = [hf.Batch(x[:20].clone(), y[:20]), hf.Batch(x[20:].clone(), y[20:])]
    A = hf.GaussNewton(module(), LOSS, parts)
    v = normal(A.shape[0])
    A @ v
    parts[1].inputs.zero_()
    with pytest.raises(ValueError, match=r"a tensor of shape \[40, 3\] was written to"):
        A @ v


@pytest.mark.parametrize("strategy", ["double_vjp", "trace"])
def test_what_a_closure_reads_and_was_written_to_is_refused(strategy) -> None:
    net = module()
    x, y = data("module")

    def closure() -> tuple[Tensor, Tensor]:
        s = net(x)
        return (s - y).square().mean(), s

    built = ModuleObjective(net, strategy=strategy)
    curvature = built.curvature(closure, built.parameters.read())
    v = normal(built.parameters.numel)
    curvature.product(v)
    x.mul_(2)
    for product in (lambda: curvature.product(v), lambda: curvature.products(v[None])):
        with pytest.raises(ValueError, match="was written to since; need data that stays"):
            product()
