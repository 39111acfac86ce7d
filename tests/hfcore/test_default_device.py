"""``torch.set_default_device`` is for the caller's tensors: what the package makes for itself lies
on the CPU or where the model is. The meta device, whose tensors hold no numbers, stands for it.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._device import _device_constructors

import hfcore as hf

generator = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 4, generator=generator), torch.randn(12, 3, generator=generator)
CLASSES = torch.arange(12) % 3
SEQUENCES = [(torch.randn(T, 2, generator=generator), torch.randn(T, 1, generator=generator))
             for T in (5, 3, 4, 5)]  # fmt: skip
CE = nn.CrossEntropyLoss()


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(4, 5, device="cpu"), nn.Tanh(), nn.Linear(5, 3, device="cpu")
    return nn.Sequential(*layers)


def rnn() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hf.RNN(2, 4, 1, device="cpu")


def curvature() -> Any:
    return hf.GaussNewton(net(), CE, X, CLASSES, damping=0.5)


def closure_of(model: nn.Module) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        model.zero_grad()
        loss = CE(model(X), CLASSES)
        loss.backward()
        return loss

    return closure


def step(make: Callable[[nn.Module], Any]) -> list[Tensor]:
    model = net()
    optimiser, closure = make(model), closure_of(model)
    for _ in range(2):
        optimiser.step(closure)
    return [*model.parameters()]


def trained(
    folder: Path, make: Callable[[], nn.Module], data: Any, loss: Any, **options: Any
) -> list[Tensor]:
    """Two iterations, and two more of a model that resumes."""
    for iterations in (2, 4):
        model = make()
        hf.train(
            model, data, hf.HessianFree(model, loss), run_dir=folder, resume=iterations > 2,
            stop=hf.training.Limits(iterations=iterations), **options,
        )  # fmt: skip
    return [*model.parameters()]


def sparse() -> list[Tensor]:
    model = rnn()
    hf.init.sparse_(model, torch.Generator().manual_seed(0))
    return [*model.parameters()]


CALLS: dict[str, Callable[[Path], Any]] = {
    "product": lambda _: curvature() @ torch.ones(43, device="cpu"),
    "hessian": lambda _: hf.Hessian(net(), CE, X, CLASSES) @ torch.eye(43, device="cpu"),
    "jacobian": lambda _: hf.Jacobian(net(), X) @ torch.ones(43, device="cpu"),
    "diagonal": lambda _: curvature().diagonal(),
    "trace": lambda _: curvature().trace(4, generator=torch.Generator().manual_seed(0)),
    "eigenvalues": lambda _: curvature().eigenvalues(2),
    "density": lambda _: curvature().spectral_density(
        probes=2, generator=torch.Generator().manual_seed(0)
    ).density,
    "nystrom": lambda _: curvature().solve(torch.ones(43, device="cpu"), 1e-6, "nystrom")[0],
    "check": lambda _: hf.check_curvature(net(), CE, X, CLASSES).right,
    "momentum": lambda _: step(lambda m: hf.NAG(m.parameters(), lr=0.1)),
    "conjugate": lambda _: step(lambda m: hf.NonlinearCG(m.parameters())),
    "differences": lambda _: step(lambda m: hf.HessianFree(m, curvature="hessian_fd")),
    "module": lambda d: trained(d, net, (X, CLASSES), CE, batch_size=6),
    "sequences": lambda d: trained(d, rnn, SEQUENCES, hf.losses.SquaredError()),
    "problem": lambda d: trained(
        d, rnn, hf.problems.Addition(6), hf.losses.SquaredError(), batch_size=8
    ),
    "sparse": lambda _: sparse(),
}  # fmt: skip


@pytest.fixture
def elsewhere() -> Iterator[Callable[[], None]]:
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


@pytest.mark.parametrize("name", CALLS)
def test_results_do_not_depend_on_it(
    name: str, tmp_path: Path, elsewhere: Callable[[], None]
) -> None:
    want = copy.deepcopy(CALLS[name](tmp_path / "here"))
    elsewhere()
    got = CALLS[name](tmp_path / "elsewhere")
    torch.set_default_device(None)
    for g, w in zip(*(v if isinstance(v, list) else [v] for v in (got, want)), strict=True):
        assert torch.equal(torch.as_tensor(g), torch.as_tensor(w))


PACKAGE = Path(hf.__file__).parent
# What makes models of its own, or runs as a program, where the default is its user's.
PROGRAMS = ("examples", "cli", "experiments")
NAMES = {constructor.__name__ for constructor in _device_constructors()}


def test_every_tensor_is_made_on_a_device_that_is_named() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in PROGRAMS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _constructs(node.func):
                given = {keyword.arg for keyword in node.keywords}
                if not given & {"device", "out", None}:
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert found == []


def _constructs(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr in NAMES
        and isinstance(function.value, ast.Name)
        and function.value.id == "torch"
    )
