"""What is recorded as CUDA graphs has the bits of what is not, and waits for nobody."""

from __future__ import annotations

import copy
import logging
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.bindings import graphs
from hfcore.bindings.device_conjugate_gradient import KeptSolves
from hfcore.bindings.momentum import Step
from hfcore.bindings.replayed_products import BEFORE
from hfcore.counted_batches import CountedBatches
from hfcore.nets.grouped import Account, GroupedGradient, Row, grouped_gradient
from hfcore.optimisers import lasting_solves
from hfcore.solvers import device_conjugate_gradient
from hfcore.solvers.conjugate_gradient import StopRule

pytestmark = pytest.mark.gpu

PROBLEMS = {
    "addition": lambda: hf.problems.Addition(20, centre=True),
    "memorization": lambda: hf.problems.create("memorization-5bit", length=20, scored="recall"),
    "images": lambda: hf.problems.create("curves", images=300),
}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many graphs were recorded; a refusal is an error here."""
    count: list[int] = []
    record = graphs.record

    def counted(*given: Any) -> Any:
        made = record(*given)
        count.append(1)
        return made

    def refused(message: str, *values: object) -> None:
        raise AssertionError(message % values)

    monkeypatch.setattr(graphs, "record", counted)
    monkeypatch.setattr(graphs.logger, "info", refused)
    return count


def forbid_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs.Graphs, "run", lambda self, key, work, device: work())


def ends_of_updates(name: str, updates: int, **options: Any) -> list[Tensor]:
    problem = PROBLEMS[name]()
    start: Any = hf.RnnStart(hidden_size=50)
    if name == "images":
        start = hf.AutoencoderStart((problem.input_size, 40, 12))
    result = hf.sweep(
        problem,
        {"learning_rate": [1e-2, 1e-3], "momentum": [0.5, 0.9], "method": ["nag", "cm"]},
        updates=updates,
        batch_size=40,
        start=start,
        test_size=50,
        progress=False,
        **{"device": "cuda", "test_every": 7 if updates < 100 else 75, **options},
    )
    return [result.parameters[i] for i in sorted(result.parameters)]


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_sweep_has_the_bits_of_one_without_graphs(
    name: str, recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    got = ends_of_updates(name, 30)
    assert recorded
    forbid_recording(monkeypatch)
    want = ends_of_updates(name, 30)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert not any(torch.equal(a, b) for a, b in pairwise(got))


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_sweep_on_the_device_has_the_bits_of_one_without_graphs(
    name: str, recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of updates; they are recorded once for each length, and see the cases of the CPU."""
    got = ends_of_updates(name, 150, on_device=True)
    rows = len(recorded)
    assert rows >= 1
    forbid_recording(monkeypatch)
    want = ends_of_updates(name, 150, on_device=True)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    other = ends_of_updates(name, 150, on_device=True, device="cpu")
    for a, b in zip(got, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_a_row_of_updates_waits_for_nobody() -> None:
    problem = PROBLEMS["images"]()
    model = hf.AutoencoderStart((problem.input_size, 40, 12)).build(problem, 0)
    passes = grouped_gradient(model, problem.loss)
    assert isinstance(passes, GroupedGradient)
    device = torch.device("cuda", torch.cuda.current_device())
    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    theta = start.expand(3, -1).contiguous().cuda()
    velocity, account = torch.zeros_like(theta), Account.of(3, device)
    images = problem.all_cases().inputs.cuda()
    cases = passes.resident(hf.Batch(images, images))
    batches = CountedBatches(cases.count, 40, 0, device)
    steps = torch.full((8, 3, 3), 1e-3, dtype=torch.float64)

    def row(first: int) -> Tensor:
        return passes.row(Row(theta, velocity, cases, batches(first, 8), steps, account))

    row(0), row(8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = row(16)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses.shape == (8, 3)
    assert bool(losses.isfinite().all())


def test_a_run_of_a_sweep_is_what_it_is_alone() -> None:
    problem = PROBLEMS["addition"]()
    options: dict[str, Any] = {
        "updates": 25, "batch_size": 33, "test_every": 10, "test_size": 50, "device": "cuda",
        "progress": False,
    }  # fmt: skip
    rates = [1e-2, 3e-3, 1e-3]
    together = hf.sweep(problem, {"learning_rate": rates, "momentum": [0.9]}, **options)
    for i, rate in enumerate(rates):
        alone = hf.sweep(problem, {"learning_rate": [rate], "momentum": [0.9]}, **options)
        assert torch.equal(alone.parameters[0], together.parameters[i])


def test_a_sweep_resumes_to_the_bit(tmp_path: Path) -> None:
    problem = PROBLEMS["addition"]()
    grid = {"learning_rate": [1e-2, 1e-3], "momentum": [0.9]}
    options: dict[str, Any] = {
        "batch_size": 20, "test_every": 10, "test_size": 50, "device": "cuda", "progress": False,
    }  # fmt: skip
    whole = hf.sweep(problem, grid, updates=40, **options)
    hf.sweep(problem, grid, updates=20, run_dir=tmp_path / "run", **options)
    resumed = hf.sweep(problem, grid, updates=40, run_dir=tmp_path / "run", resume=True, **options)
    for i in range(2):
        assert torch.equal(resumed.parameters[i], whole.parameters[i])


@pytest.mark.parametrize("method", ["NAG", "ClassicalMomentum", "SGD"])
def test_training_is_the_sweeps_run(method: str, recorded: list[int]) -> None:
    problem = PROBLEMS["addition"]()
    settings = {} if method == "SGD" else {"momentum": 0.9}
    short = {"NAG": "nag", "ClassicalMomentum": "cm", "SGD": "sgd"}[method]
    grid = {"learning_rate": [1e-2], "method": [short], **{k: [v] for k, v in settings.items()}}
    swept = hf.sweep(
        problem, grid, updates=20, batch_size=40, schedule="constant", test_size=50,
        device="cuda", progress=False,
    )  # fmt: skip
    model = hf.RnnStart().build(problem, 0).to("cuda")
    opt = getattr(hf, method)(model.parameters(), lr=1e-2, **settings)
    hf.train(
        model, problem, opt, minibatches=20 * 0.04, batch_size=40, test_size=50, progress=False
    )
    assert recorded
    got = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).cpu()
    assert torch.equal(got, swept.parameters[0])


def test_an_update_waits_for_nobody() -> None:
    problem = PROBLEMS["addition"]()
    model = hf.RnnStart(hidden_size=30).build(problem, 0)
    passes = grouped_gradient(model, problem.loss)
    assert isinstance(passes, GroupedGradient)
    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    theta = start.expand(3, -1).contiguous().cuda()
    velocity = torch.zeros_like(theta)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(9, 20, 2, generator=draw), torch.rand(9, 20, 1, generator=draw)
    rates = torch.full((3,), 1e-3, dtype=torch.float64)

    def update() -> Tensor:
        data = passes.prepare(hf.Batch(x, y))
        return passes.update(theta, velocity, data, Step(rates, 9 * rates, 9 * rates))

    update(), update()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(losses.isfinite().all())


@pytest.mark.parametrize("look_every", [1, 10])
@pytest.mark.parametrize("hidden", [40, 260])
def test_recorded_iterations_of_cg_have_the_same_bits(
    hidden: int, look_every: int, recorded: list[int]
) -> None:
    """With W_hh on chip, and with one GEMM a step."""
    draw = torch.Generator().manual_seed(1)
    model = hf.RNN(2, hidden, 1, generator=draw).to("cuda")
    x, y = (torch.rand(12, 100, w, generator=draw).to("cuda") for w in (2, 1))
    G = hf.GaussNewton(model, hf.losses.SquaredError(), x, y, damping=0.1)
    b = torch.randn(G.shape[0], generator=draw).to("cuda")

    def solve(*, record: bool) -> Any:
        return device_conjugate_gradient.device_conjugate_gradient(
            lambda v, out, stop: G.matvec(v, out=out), b, torch.zeros_like(b),
            rule=StopRule(max_iterations=40), look_every=look_every, recorded=record,
        )[0]  # fmt: skip

    want, got = solve(record=False), solve(record=True)
    assert recorded == [1]
    assert torch.equal(got.x, want.x)
    assert (got.history, got.stop) == (want.history, want.stop)


@pytest.mark.parametrize("hidden", [40, 260])
def test_products_are_replayed_with_the_same_bits(hidden: int, recorded: list[int]) -> None:
    draw = torch.Generator().manual_seed(1)
    model = hf.RNN(2, hidden, 1, generator=draw).to("cuda")
    x, y = (torch.rand(12, 100, w, generator=draw).to("cuda") for w in (2, 1))
    G = hf.GaussNewton(model, hf.losses.SquaredError(), x, y, damping=0.1)
    v = torch.randn(2, G.shape[0], generator=draw).to("cuda")
    want = [G @ v[0], G @ v[1]]
    for i in range(BEFORE + 4):
        assert torch.equal(G @ v[i % 2], want[i % 2])
    assert recorded == [1]


@pytest.mark.parametrize("preconditioner", [None, "fisher"])
def test_one_recording_serves_all_steps_of_hessian_free(
    preconditioner: str | None, recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a batch, a λ and parameters of its own each."""

    def stepped(model: torch.nn.Module, loss: hf.losses.Loss, batches: list[Any]) -> Tensor:
        opt = hf.HessianFree(model, loss, damping=1.0, preconditioner=preconditioner)
        ends = []
        for batch in batches:
            assert math.isfinite(opt.step(batch).loss_after)
            ends.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        assert not any(torch.equal(a, b) for a, b in pairwise(ends))
        return torch.stack(ends)

    def all_nets() -> list[Tensor]:
        draw = torch.Generator().manual_seed(1)
        nets: list[tuple[torch.nn.Module, hf.losses.Loss]] = [
            (hf.RNN(2, 30, 2, generator=draw), hf.losses.SquaredError()),
            (hf.RNN(2, 260, 2, generator=draw), hf.losses.SquaredError()),
            (hf.StackedRNN(2, [20, 10], 2, generator=draw), hf.losses.SquaredError()),
        ]
        series = [torch.rand(10, 50, 2, generator=draw).cuda() for _ in range(4)]
        ends = [stepped(net.to("cuda"), loss, [(x, x) for x in series]) for net, loss in nets]
        mlp = hf.MLP([20, 11, 20], ["logistic", "linear"], generator=draw).to("cuda")
        images = [torch.rand(300, 20, generator=draw).cuda() for _ in range(4)]
        loss = hf.losses.LogisticCrossEntropy()
        return [*ends, stepped(mlp, loss, [(x, x) for x in images])]

    got = all_nets()
    assert len(recorded) == 4
    forbid_recording(monkeypatch)
    monkeypatch.setattr(KeptSolves, "keep", lambda self, solve: None)
    monkeypatch.setattr(lasting_solves, "MOST_KEPT", 0)
    assert all(torch.equal(a, b) for a, b in zip(got, all_nets(), strict=True))


def test_what_a_recording_does_not_see_is_recorded_anew(recorded: list[int]) -> None:
    """Sizes, structural damping or none, and the stream: as where nothing is kept."""
    draw = torch.Generator().manual_seed(1)
    start = hf.RNN(2, 30, 2, generator=draw).to("cuda")
    batches = [torch.rand(10, cases, 2, generator=draw).cuda() for cases in (50, 50, 40, 50, 50)]
    streams = [torch.cuda.current_stream()] * 4 + [torch.cuda.Stream()]

    def steps(*, keeps: bool) -> list[Tensor]:
        model = copy.deepcopy(start)
        opt = hf.HessianFree(model, hf.losses.SquaredError(), damping=1.0, structural=0.1)
        ends = []
        for i, (x, stream) in enumerate(zip(batches, streams, strict=True)):
            if not keeps:
                opt._lasting = lasting_solves.LastingSolves()
            opt.param_groups[0]["structural"] = 0.0 if i == 1 else 0.1
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                opt.step((x, x))
            torch.cuda.synchronize()
            ends.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        return ends

    got = steps(keeps=True)
    assert len(recorded) == 4  # the fourth step is the first one's again
    assert all(torch.equal(a, b) for a, b in zip(got, steps(keeps=False), strict=True))


@pytest.mark.parametrize("hidden", [30, 130])
@pytest.mark.parametrize("cell", [hf.LSTM, hf.GRU])
def test_a_step_of_a_gated_net_is_recorded_and_has_the_same_bits(
    cell: type[torch.nn.Module], hidden: int, recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps in one kernel, and one product a step."""

    def stepped() -> Tensor:
        torch.manual_seed(0)
        x = torch.rand(10, 50, 2).cuda()
        model = cell(2, hidden, 2).to("cuda")
        opt = hf.HessianFree(model, hf.losses.SquaredError(), damping=1.0)
        for _ in range(2):
            stats = opt.step((x, x))
        assert math.isfinite(stats.loss_after)
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    got = stepped()
    assert recorded
    forbid_recording(monkeypatch)
    assert torch.equal(got, stepped())


def test_what_waits_is_refused_and_done_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """A product that looks at a value cannot be recorded: the solve goes on without."""
    A = torch.diag(torch.arange(1.0, 21.0)).cuda()
    b = torch.ones(20, device="cuda")

    def product(v: Tensor, out: Tensor, stop: Tensor) -> Tensor:
        assert float(v[0]) == float(v[0])
        return torch.mv(A, v, out=out)

    with caplog.at_level(logging.INFO, logger="hfcore"):
        solution, _ = device_conjugate_gradient.device_conjugate_gradient(
            product, b, torch.zeros_like(b),
            rule=StopRule(max_iterations=30, tolerance=0.0), recorded=True,
        )  # fmt: skip
    assert "not recorded as a CUDA graph" in caplog.text
    torch.testing.assert_close(solution.x.cpu(), 1 / torch.arange(1.0, 21.0), rtol=1e-3, atol=1e-4)
