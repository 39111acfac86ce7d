"""Recordings of CG's iterations that serve later Hessian-free steps, without a GPU.

What is recorded are torch's ops with the memory that they work on (``support/recorded_ops.py``):
whatever a step changes and a replay does not see shows in the bits. CUDA graphs: tests/gpu.
"""

from __future__ import annotations

import copy
import io
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.nets import objective as nets
from hfcore.optimisers import lasting_solves
from hfcore.optimisers.image import Image, NoImage, layout_of
from hfcore.optimisers.lasting_solves import LastingSolves
from hfcore.solvers.conjugate_gradient import StopRule
from hfcore.solvers.device_conjugate_gradient import device_conjugate_gradient

pytest.importorskip("triton")

from recorded_ops import RecordedOnCpu  # after Triton is known to be there

from hfcore.bindings import device_conjugate_gradient as bindings

Step = Callable[[hf.HessianFree], Any]
T, B = 5, 9


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedOnCpu]:
    with hf.use_backend("reference"):
        yield RecordedOnCpu(monkeypatch)


# ---------------------------------------------------------------------------- nets and data


class Made(NamedTuple):
    optimiser: hf.HessianFree
    batch: Callable[..., Any]


LOSSES: dict[str, Callable[[], hf.losses.Loss]] = {
    "squared": hf.losses.SquaredError,
    "softmax": hf.losses.SoftmaxCrossEntropy,
    "huber": lambda: hf.losses.HuberLoss(delta=0.3),
}


def made(kind: str, loss: str = "squared", **options: Any) -> Made:
    draw = torch.Generator().manual_seed(3)
    models: dict[str, Callable[[], torch.nn.Module]] = {
        "mlp": lambda: hf.MLP([4, 6, 5, 3], ["tanh", "logistic", "linear"], generator=draw),
        "rnn": lambda: hf.RNN(4, 6, 3, generator=draw),
        "stacked": lambda: hf.StackedRNN(4, [5, 3], 3, generator=draw),
        "lstm": lambda: hf.LSTM(4, 3, 3, generator=draw),
        "torch": lambda: TorchRnn(),
    }
    torch.manual_seed(0)
    model = models[kind]()

    def batch(seed: int = 0, cases: int = B, steps: int = T, mask: bool = False) -> hf.Batch:
        g = torch.Generator().manual_seed(seed)
        lead = (cases,) if kind == "mlp" else (steps, cases)
        x, y = torch.randn(*lead, 4, generator=g), torch.randn(*lead, 3, generator=g)
        target: Tensor = torch.randint(3, lead, generator=g) if loss == "softmax" else y
        return hf.Batch(x, target, torch.rand(lead, generator=g) < 0.8 if mask else None)

    settings = {"damping": 0.3, "cg_max_iter": 12, "cg_evaluate_every": 3, **options}
    return Made(hf.HessianFree(model, LOSSES[loss](), **settings), batch)


class TorchRnn(torch.nn.Module):
    batch_dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = torch.nn.RNN(4, 5), torch.nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


def parameters(opt: hf.HessianFree) -> Tensor:
    (group,) = opt.param_groups
    return torch.cat([p.detach().reshape(-1).clone() for p in group["params"]])


def ends(make: Callable[[], Made], steps: Callable[[Made], list[Step]], *, fresh: bool) -> Tensor:
    """Parameters after every step; ``fresh``: nothing is kept from one step to the next."""
    it = make()
    found = []
    for step in steps(it):
        if fresh:
            it.optimiser._lasting = LastingSolves()
        step(it.optimiser)
        found.append(parameters(it.optimiser))
    return torch.stack(found)


def same_as_without(
    recorder: RecordedOnCpu, make: Callable[[], Made], steps: Callable[[Made], list[Step]]
) -> int:
    """How many recordings the steps make, whose bits are those of steps that keep nothing."""
    before = recorder.recorded
    got = ends(make, steps, fresh=False)
    made, recorder.refusal = recorder.recorded - before, "no"
    want = ends(make, steps, fresh=True)
    recorder.refusal = None
    assert bool(got.isfinite().all())
    assert torch.equal(got, want)
    assert not any(torch.equal(a, b) for a, b in pairwise(got))
    return made


def on(batch: Any) -> Step:
    return lambda opt: opt.step(batch)


def after(change: Callable[[hf.HessianFree], object], batch: Any) -> Step:
    """A step after something was changed."""

    def step(opt: hf.HessianFree) -> None:
        change(opt)
        opt.step(batch)

    return step


def option(name: str, value: Any, batch: Any) -> Step:
    return after(lambda opt: opt.param_groups[0].update({name: value}), batch)


# ---------------------------------------------------------------------------- one recording


def kinds(*quick: str) -> pytest.MarkDecorator:
    """Every kind of net; those beside the ``quick`` ones are slow."""
    names = ("mlp", "rnn", "stacked", "lstm", "torch")
    slow = pytest.mark.slow
    given = [name if name in quick else pytest.param(name, marks=slow) for name in names]
    return pytest.mark.parametrize("kind", given)


@kinds("mlp", "rnn", "stacked")
@pytest.mark.parametrize("loss", ["squared", pytest.param("softmax", marks=pytest.mark.slow)])
def test_one_recording_serves_all_steps(kind: str, loss: str, recorder: RecordedOnCpu) -> None:
    """Each with its batch, its λ and its parameters."""

    def steps(it: Made) -> list[Step]:
        return [on(it.batch(seed)) for seed in range(4)]

    assert same_as_without(recorder, lambda: made(kind, loss), steps) == 1
    assert recorder.replayed > 20


@pytest.mark.parametrize("curvature", ["hessian", pytest.param("fisher", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["mlp", pytest.param("stacked", marks=pytest.mark.slow)])
def test_other_curvatures(kind: str, curvature: str, recorder: RecordedOnCpu) -> None:
    def steps(it: Made) -> list[Step]:
        return [on(it.batch(seed)) for seed in range(3)]

    def make() -> Made:
        return made(kind, curvature=curvature, damping=4.0)

    assert same_as_without(recorder, make, steps) == 1


def changes_of_values(it: Made) -> list[Step]:
    """What is written where it was: λ, l2, the model's memory, masks, κ·diag(G)."""

    def rebind(opt: hf.HessianFree) -> None:
        for p in opt.param_groups[0]["params"]:
            p.data = 1.1 * p.data

    batch, masked = it.batch(), it.batch(1, mask=True)
    return [
        on(batch),
        option("damping", 0.05, batch),
        option("l2", 0.02, it.batch(2)),
        option("cg_residual", 0.3, it.batch(2)),
        option("cg_tolerance", 0.1, it.batch(2)),
        after(rebind, it.batch(3)),
        after(lambda opt: opt.load_state_dict(copy.deepcopy(opt.state_dict())), batch),
        on(masked),
        on(it.batch(2, mask=True)),
    ]


@pytest.mark.parametrize(("kind", "scale"), [("mlp", None), ("rnn", 1e-2)])
def test_values_are_seen(kind: str, scale: float | None, recorder: RecordedOnCpu) -> None:
    def make() -> Made:
        return made(kind, "huber", preconditioner="fisher", scale_damping=scale)

    assert same_as_without(recorder, make, changes_of_values) == 1


def changes_of_options(it: Made) -> list[Step]:
    """What other launches serve."""
    batch = it.batch()
    return [
        on(batch),
        option("preconditioner", "fisher", batch),
        on(batch),
        option("preconditioner", None, batch),
        option("scale_damping", 1e-2, batch),
        option("scale_damping", None, batch),
        option("cg_max_iter", 9, batch),
        option("cg_evaluate_every", 2, batch),
        option("curvature", "fisher", batch),
        option("curvature", "ggn", batch),
    ]


@pytest.mark.parametrize("kind", ["mlp", pytest.param("rnn", marks=pytest.mark.slow)])
def test_options_are_seen(kind: str, recorder: RecordedOnCpu) -> None:
    """Those that come back are replayed: a curvature and a workspace of either kind are kept."""
    assert same_as_without(recorder, lambda: made(kind, cg_max_iter=8), changes_of_options) == 6


# ---------------------------------------------------------------------------- other recordings


def test_sizes_that_come_back_are_not_recorded_again(recorder: RecordedOnCpu) -> None:
    def steps(it: Made) -> list[Step]:
        return [on(it.batch(i, cases=cases)) for i, cases in enumerate((9, 7, 9, 7, 9))]

    assert same_as_without(recorder, lambda: made("rnn"), steps) == 2


@pytest.mark.slow
def test_what_was_used_longest_ago_makes_room(recorder: RecordedOnCpu) -> None:
    def steps(it: Made) -> list[Step]:
        return [on(it.batch(i, cases=cases)) for i, cases in enumerate((9, 7, 5, 9, 5))]

    assert same_as_without(recorder, lambda: made("mlp"), steps) == 4


@kinds("rnn")
def test_structural_damping_is_recorded_once(kind: str, recorder: RecordedOnCpu) -> None:
    """Whatever λμ is; without it launches are others."""

    def steps(it: Made) -> list[Step]:
        batch = it.batch()
        weights = [0.1, 0.2, 0.1, 0.0, 0.1]
        changed = [option("structural", mu, batch) for mu in weights]
        return [option("damping", 0.7, it.batch(1)), on(batch), *changed]

    assert same_as_without(recorder, lambda: made(kind, structural=0.1), steps) == 2


@pytest.mark.parametrize("kind", [pytest.param("mlp", marks=pytest.mark.slow), "rnn"])
def test_several_chunks(
    kind: str, recorder: RecordedOnCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of a list, and those that are walked through a chunk at a time."""
    monkeypatch.setattr(nets, "CHUNK_CASES", 4)
    monkeypatch.setattr(nets, "CHUNK_BYTES", 1)

    def steps(it: Made) -> list[Step]:
        def of(*curvature: hf.Batch) -> Step:
            return on(hf.Batches(gradient=curvature[0], curvature=list(curvature)))

        a, b, c = (it.batch(i) for i in range(3))
        return [of(a), of(b), of(a, c), of(b, a), of(a, it.batch(5, cases=6))]

    assert same_as_without(recorder, lambda: made(kind), steps) == 3


def test_precision_backend_thread_and_stream(
    recorder: RecordedOnCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them is served by what another has recorded."""

    def with_precision(batch: Any) -> Step:
        def step(opt: hf.HessianFree) -> None:
            with hf.set_matmul_precision("tf32"):
                opt.step(batch)

        return step

    def in_a_thread(batch: Any) -> Step:
        def step(opt: hf.HessianFree) -> None:
            run = threading.Thread(target=within, args=(opt,))
            run.start()
            run.join()

        def within(opt: hf.HessianFree) -> None:
            with hf.use_backend("reference"):
                opt.step(batch)

        return step

    def on_stream(batch: Any) -> Step:
        def step(opt: hf.HessianFree) -> None:
            with monkeypatch.context() as patch:
                for module in (lasting_solves, bindings):
                    patch.setattr(module, "here", lambda device: "another stream")
                opt.step(batch)

        return step

    def steps(it: Made) -> list[Step]:
        batches = [it.batch(i) for i in range(8)]
        changes = [on, with_precision, on, in_a_thread, on, on_stream, on_stream, on]
        return [change(batch) for change, batch in zip(changes, batches, strict=True)]

    assert same_as_without(recorder, lambda: made("rnn"), steps) == 4


def test_streams_share_no_memory(recorder: RecordedOnCpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work of one may not have ended when another begins to write."""
    it = made("mlp")
    for stream in range(2):
        for module in (lasting_solves, bindings):
            monkeypatch.setattr(module, "here", lambda device, stream=stream: stream)
        it.optimiser.step(it.batch())
    kept = it.optimiser._lasting
    one, other = kept._products.values()
    addresses = {m.data_ptr() for m in one.image._memory}
    assert not addresses & {m.data_ptr() for m in other.image._memory}
    assert len(kept.workspaces._kept) == 2


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_solution_is_not_written_to_by_the_next_solve(
    sign: float, recorder: RecordedOnCpu
) -> None:
    A, b = sign * torch.diag(torch.tensor([1.0, 2.0, 4.0])), torch.ones(3)
    kept = bindings.KeptSolves()

    def solve(b: Tensor) -> Any:
        return device_conjugate_gradient(
            lambda v, out, stop: torch.mv(A, v, out=out), b, torch.zeros(3),
            rule=StopRule(tolerance=0.0, residual=1e-6), solves=kept, key="A",
        )[0]  # fmt: skip

    first = solve(b)
    x, direction = first.x.clone(), copy.deepcopy(first.direction)
    assert (direction is None) == (sign > 0)
    second = solve(5.0 * b)
    assert len(kept._kept) == 1
    assert torch.equal(first.x, x)
    assert direction is None or torch.equal(first.direction, direction)
    if sign > 0:
        torch.testing.assert_close(second.x, 5.0 * x)
    with pytest.raises(ValueError, match="preconditioner: got an operator"):
        device_conjugate_gradient(
            lambda v, out, stop: out, b, b, rule=StopRule(), solves=kept, preconditioner=Halved()
        )


@pytest.mark.slow
def test_each_optimiser_records_its_own(recorder: RecordedOnCpu) -> None:
    for _ in range(2):
        it = made("mlp")
        for seed in range(3):
            it.optimiser.step(it.batch(seed))
    assert recorder.recorded == 2


# ---------------------------------------------------------------------------- nothing to replay


@pytest.mark.parametrize("why", ["refused", "large", "recompute", "sparse", "operator", "formula"])
def test_what_is_not_kept_is_solved_as_ever(
    why: str, recorder: RecordedOnCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {}
    it = made("mlp")
    if why == "refused":
        recorder.refusal = "operation not permitted when stream is capturing"
    elif why == "large":
        monkeypatch.setattr(lasting_solves, "MOST_BYTES", 100)
        monkeypatch.setattr(bindings, "MOST_BYTES", 100)
    elif why == "recompute":
        options["memory"] = "recompute"
    elif why == "operator":
        options["preconditioner"] = Halved()
    elif why == "formula":
        model, batch = it.optimiser._model, it.batch
        it = Made(hf.HessianFree(model, Quartic(), damping=0.3), batch)
    if why == "sparse":
        model = hf.RNN(4, 6, 3, fan_in=3, sparse=True, generator=torch.Generator().manual_seed(0))
        it = Made(hf.HessianFree(model, hf.losses.SquaredError()), made("rnn").batch)
    elif options:
        it = made("mlp", **options)
    losses = [it.optimiser.step(it.batch()).loss for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    kept = it.optimiser._lasting
    assert bool(kept._products) == (why == "refused")
    assert bool(kept.workspaces._kept) == (why == "refused")


class Halved:
    def apply(self, r: Tensor, out: Tensor) -> Tensor:
        return torch.mul(r, 0.5, out=out)


class Quartic(hf.losses.Loss):
    """A formula whose L'' is a graph of autograd."""

    convex = True

    def per_output(self, s: Tensor, targets: Tensor) -> Tensor:
        return (s - targets).square().sum(-1).square()


@pytest.mark.slow
def test_a_workspace_that_grew_is_not_kept(
    recorder: RecordedOnCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {**device_conjugate_gradient.__kwdefaults__, "room": 4}
    monkeypatch.setattr(device_conjugate_gradient, "__kwdefaults__", short)

    def steps(it: Made) -> list[Step]:
        return [on(it.batch(seed)) for seed in range(3)]

    assert same_as_without(recorder, lambda: made("mlp", cg_tolerance=0.0), steps) > 3
    it = made("mlp", cg_tolerance=0.0)
    it.optimiser.step(it.batch())
    assert not it.optimiser._lasting.workspaces._kept


# ---------------------------------------------------------------------------- steps that fail


def test_nothing_of_the_step_before_is_read(recorder: RecordedOnCpu) -> None:
    """Workspace and image are full of NaN when a step begins, and copies of x are its own."""

    def poison(opt: hf.HessianFree) -> None:
        kept = opt._lasting
        for solve in kept.workspaces._kept.values():
            for name, value in vars(solve._w).items():
                if value is not None and value.is_floating_point():
                    value[: solve._N if name == "M" else None].fill_(math.nan)
        for product in kept._products.values():
            for memory in product.image._memory:
                memory.fill_(255)
            for weight in product._weights.values():
                weight.fill_(math.nan)
            for buffer in product._curvature._net.work._kept.values():
                buffer.fill_(math.nan)

    def steps(it: Made) -> list[Step]:
        return [on(it.batch()), *(after(poison, it.batch(seed)) for seed in range(1, 4))]

    def make() -> Made:
        return made("stacked", preconditioner="fisher")

    assert same_as_without(recorder, make, steps) == 1


@pytest.mark.parametrize("where", ["look", pytest.param("iterate", marks=pytest.mark.slow), "copy"])
def test_a_step_that_fails_leaves_a_usable_optimiser(
    where: str, recorder: RecordedOnCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(batch: Any) -> Step:
        def fail(*_: Any) -> Any:
            raise KeyboardInterrupt

        def step(opt: hf.HessianFree) -> None:
            start = parameters(opt)
            with monkeypatch.context() as patch:
                if where == "look":
                    patch.setattr(bindings.DeviceSolve, "look", fail)
                elif where == "iterate":
                    patch.setattr(bindings.DeviceSolve, "_iterate", fail)
                else:
                    patch.setattr(Image, "take", fail)
                with pytest.raises(KeyboardInterrupt):
                    opt.step(batch)
            assert torch.equal(parameters(opt), start)
            opt.step(batch)

        return step

    def steps(it: Made) -> list[Step]:
        return [on(it.batch()), failing(it.batch(1, cases=7)), on(it.batch(2)), on(it.batch(3))]

    # A workspace whose solve failed is gone, with what was recorded in it.
    made_in_all = same_as_without(recorder, lambda: made("rnn"), steps)
    assert made_in_all == {"copy": 2, "iterate": 3, "look": 4}[where]


@pytest.mark.slow
def test_a_curvature_that_is_not_finite_is_gone_in_the_next_step(recorder: RecordedOnCpu) -> None:
    """An infinite α writes NaN behind the end of vectors that are padded."""

    def steps(it: Made) -> list[Step]:
        def overflow(opt: hf.HessianFree) -> None:
            batch = it.batch()
            opt.step(hf.Batch(1e18 * batch.inputs, batch.targets))
            with torch.no_grad():
                for p in opt.param_groups[0]["params"]:
                    p.mul_(0.9)

        return [on(it.batch()), overflow, on(it.batch(1)), on(it.batch(2))]

    same_as_without(recorder, lambda: made("rnn"), steps)


def test_a_resumed_optimiser_goes_on_with_the_same_bits(recorder: RecordedOnCpu) -> None:
    """From a file, and as a copy; neither has anything of what was recorded."""
    it = made("rnn", structural=0.1, preconditioner="fisher")
    for seed in range(3):
        it.optimiser.step(it.batch(seed))
    file = io.BytesIO()
    torch.save({"model": it.optimiser._model.state_dict(), "opt": it.optimiser.state_dict()}, file)
    twin = copy.deepcopy(it.optimiser)
    assert not twin._lasting._products
    file.seek(0)
    saved = torch.load(file)
    resumed = made("rnn", structural=0.1, preconditioner="fisher")
    resumed.optimiser._model.load_state_dict(saved["model"])
    resumed.optimiser.load_state_dict(saved["opt"])
    for seed in range(3, 6):
        for opt in (it.optimiser, twin, resumed.optimiser):
            opt.step(it.batch(seed))
        assert torch.equal(parameters(twin), parameters(it.optimiser))
        assert torch.equal(parameters(resumed.optimiser), parameters(it.optimiser))


@pytest.mark.slow
def test_what_is_kept_is_bounded(recorder: RecordedOnCpu) -> None:
    it = made("mlp")
    for cases in range(3, 9):
        for preconditioner in (None, "fisher"):
            option("preconditioner", preconditioner, it.batch(cases=cases))(it.optimiser)
    kept = it.optimiser._lasting
    assert len(kept._products) == lasting_solves.MOST_KEPT
    assert len(kept.workspaces._kept) == bindings.MOST_KEPT
    for solve in kept.workspaces._kept.values():
        assert solve._graphs is not None
        assert len(solve._graphs._seen) <= bindings.MOST_RECORDINGS


# ---------------------------------------------------------------------------- copies


@dataclass
class Some:
    a: Tensor
    rest: list[Any]


def test_an_image_shares_memory_as_the_value_does() -> None:
    base = torch.arange(12.0)
    value = {"x": Some(base[2:8].view(2, 3), [base[4:], 1.5, None]),
             "y": (torch.zeros(0), base[::2])}  # fmt: skip
    layout = layout_of(value)
    image = Image(value, layout)
    copied = image.value["x"]
    assert torch.equal(copied.a, value["x"].a)
    assert torch.equal(copied.rest[0], base[4:])
    assert layout_of(image.value).key == layout.key
    copied.rest[0][0] = 50.0
    assert copied.a[0, 2] == 50.0
    assert base[4] == 4.0
    later = torch.arange(12.0) + 100
    same = {"x": Some(later[2:8].view(2, 3), [later[4:], 1.5, None]),
            "y": (torch.zeros(0), later[::2])}  # fmt: skip
    assert layout_of(same).key == layout.key
    image.take(layout_of(same))
    assert copied.rest[0].tolist() == later[4:].tolist()


def test_layouts_tell_apart_all_but_elements() -> None:
    base = torch.arange(6.0)
    values: list[Any] = [
        [base, base],
        [base, base.clone()],
        (base, base),
        [base[:3], base[3:]],
        [base[:3], base[:3]],
        [base.view(2, 3)],
        [base.view(2, 3).mT],
        [base.double()],
        [1, 0.5],
        [1.0, 0.5],
        [True, 0.5],
        {"a": 1},
        {"b": 1},
        Some(base, []),
        [math.nan],
    ]
    keys = [layout_of(value).key for value in values]
    assert len(set(keys)) == len(keys)
    assert layout_of([math.nan]).key != layout_of([float("nan")]).key


@pytest.mark.parametrize(
    "value",
    [object(), torch.nn.Linear(1, 1), torch.ones(2, requires_grad=True),
     torch.ones(2).to_sparse(), torch.nn.Parameter(torch.ones(2))],
)  # fmt: skip
def test_what_cannot_be_compared_has_no_image(value: Any) -> None:
    with pytest.raises(NoImage):
        layout_of([value])


def test_an_image_that_was_written_to_is_not_used(recorder: RecordedOnCpu) -> None:
    """What somebody keeps with a pass would hold values of another."""
    it = made("stacked")
    it.optimiser.step(it.batch())
    (product,) = it.optimiser._lasting._products.values()
    assert product.image.is_intact
    product.image.value.cached[0].at.states.slopes[7] = torch.ones(3)
    assert not product.image.is_intact
    it.optimiser.step(it.batch(1))
    (other,) = it.optimiser._lasting._products.values()
    assert other is not product
