"""What is recorded, replayed and put where, without a GPU: a stand-in does the work again.

Recordings themselves: tests/gpu.
"""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.bindings import graphs, momentum
from hfcore.bindings.graphs import Graphs
from hfcore.bindings.momentum import Step
from hfcore.bindings.replayed_products import BEFORE, ReplayedProducts
from hfcore.bindings.scratch import Scratch
from hfcore.nets import grouped
from hfcore.nets.grouped import Account, GroupedGradient, Row, grouped_gradient
from hfcore.nets.mlp import MlpNet
from hfcore.nets.net import FusedNet

CPU = torch.device("cpu")


class Recorder:
    """Stands in for CUDA graphs: a replay is the work done again, its result in the same place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded = self.replayed = 0
        self.refusal: str | None = None
        self.like = torch.full((3,), math.nan, dtype=torch.float64)
        monkeypatch.setattr(graphs, "record", self.record)
        self.pools: list[object] = []
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
        monkeypatch.setattr(graphs._Pool, "_all", {})

    def record(
        self, work: Callable[[], Any], pool: object, device: torch.device
    ) -> tuple[Callable[[], None], Any]:
        if self.refusal is not None:
            raise RuntimeError(self.refusal)
        self.recorded += 1
        self.pools.append(pool)
        result: Tensor | None = None

        def replay() -> None:
            self.replayed += 1
            got = work()
            if isinstance(result, Tensor):
                result.copy_(got)

        # Recording does nothing: the result holds no value yet.
        result = self.like.clone()
        return replay, result


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def test_work_is_done_then_recorded_then_replayed(recorder: Recorder) -> None:
    done: list[int] = []

    def work() -> Tensor:
        done.append(len(done))
        return torch.full((3,), float(len(done)), dtype=torch.float64)

    replays = Graphs()
    values = [float(replays.run("key", work, CPU)[0]) for _ in range(4)]
    assert values == [1, 2, 3, 4]
    assert (recorder.recorded, recorder.replayed) == (1, 3)


def test_another_key_backend_or_precision_is_recorded_apart(recorder: Recorder) -> None:
    replays = Graphs()

    def run(key: str = "key") -> int:
        replays.run(key, lambda: torch.zeros(3, dtype=torch.float64), CPU)
        return recorder.recorded

    assert [run(), run(), run()] == [0, 1, 1]
    assert [run("other"), run("other")] == [1, 2]
    with hf.use_backend("reference"):
        assert [run(), run()] == [2, 3]
    with hf.set_matmul_precision("tf32"):
        assert [run(), run()] == [3, 4]
    assert run() == 4


def test_the_oldest_recordings_make_room(recorder: Recorder) -> None:
    replays = Graphs(most=2)
    for key in ("a", "a", "b", "b", "a", "c", "c"):  # "b" was used longest ago
        replays.run(key, lambda: torch.zeros(3, dtype=torch.float64), CPU)
    assert recorder.recorded == 3
    replays.run("a", lambda: torch.zeros(3, dtype=torch.float64), CPU)
    assert recorder.recorded == 3
    replays.run("b", lambda: torch.zeros(3, dtype=torch.float64), CPU)
    assert recorder.replayed == 5  # the last was the first of its key again


def test_what_cannot_be_recorded_is_done_and_said_once(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.refusal = "operation not permitted\nwhen stream is capturing"
    replays, done = Graphs(), []
    with caplog.at_level(logging.INFO, logger="hfcore"):
        for i in range(4):
            assert replays.run("key", lambda i=i: done.append(i) or i, CPU) == i
    assert done == [0, 1, 2, 3]
    assert [r.getMessage() for r in caplog.records] == [
        "not recorded as a CUDA graph: operation not permitted when stream is capturing"
    ]


def record_once() -> None:
    """By Graphs of its own, that are gone then."""
    replays = Graphs()
    for _ in range(2):
        replays.run("key", lambda: torch.zeros(3, dtype=torch.float64), CPU)


def test_graphs_that_follow_one_another_share_a_pool(recorder: Recorder) -> None:
    """One solve after another asks for no memory of its own; another thread has a pool apart."""
    for _ in range(3):
        record_once()
    apart = threading.Thread(target=record_once)
    apart.start()
    apart.join()
    record_once()
    assert len(set(map(id, recorder.pools))) == 2
    assert recorder.pools[3] is not recorder.pools[0]


def test_a_pool_outlives_its_recordings(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One recording of it is always there; what could not be recorded leaves none."""

    class Start:
        def __call__(self) -> None:
            pass

    made: list[weakref.ref[Start]] = []

    def record(work: Any, pool: object, device: torch.device) -> tuple[Start, None]:
        recorder.record(work, pool, device)
        start = Start()
        made.append(weakref.ref(start))
        return start, None

    monkeypatch.setattr(graphs, "record", record)
    recorder.refusal = "no"
    record_once()
    assert graphs._Pool._all == {}
    recorder.refusal = None
    for _ in range(3):
        record_once()
    assert [start() is not None for start in made] == [False, False, True]


def test_a_buffer_that_a_recording_has_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch that grows lets go of a buffer only if no graph was recorded with it."""
    taken = Scratch()
    like = SimpleNamespace(
        device="cuda", dtype=torch.float32, new_empty=lambda size: Buffer(torch.empty(size))
    )
    held = []
    for capturing, size in ((False, 2), (True, 3), (True, 3), (False, 4), (False, 5)):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda now=capturing: now)
        taken.take("name", like, size)  # type: ignore[arg-type]
        held.append(weakref.ref(taken._kept["name"]))
    assert [one() is not None for one in held] == [False, True, True, False, True]


class Buffer:
    """As much of a tensor on a device as Scratch looks at."""

    device, dtype, is_cuda = "cuda", torch.float32, True

    def __init__(self, values: Tensor) -> None:
        self.values, self.numel, self.data_ptr = values, values.numel, values.data_ptr

    def __getitem__(self, part: slice) -> Tensor:
        return self.values[part]


def test_a_constant_made_while_recording_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds its value only where that graph has been replayed."""
    made: list[Tensor] = []
    monkeypatch.setattr(torch, "full", lambda *_, **__: made.append(torch.zeros(1)) or made[-1])
    momentum._constant.cache_clear()
    for capturing in (True, False, False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda now=capturing: now)
        momentum._filled(0.9, 3, torch.device("cuda", 0))
    momentum._constant.cache_clear()
    assert len(made) == 3


def test_errors_of_the_work_are_not_swallowed(recorder: Recorder) -> None:
    def refuse() -> None:
        raise ValueError("targets: no")

    replays = Graphs()
    for _ in range(2):
        with pytest.raises(ValueError, match="targets: no"):
            replays.run("key", refuse, CPU)


def test_values_are_put_in_places_that_stay() -> None:
    replays = Graphs()
    first = replays.put("x", torch.tensor([1.0, 2.0]), CPU)
    assert first.tolist() == [1.0, 2.0]
    second = replays.put("x", torch.tensor([3.0, 4.0]), CPU)
    assert second is first
    assert first.tolist() == [3.0, 4.0]
    for value in (torch.ones(3), torch.ones(2, dtype=torch.float64)):
        assert replays.put("x", value, CPU) is not first
    assert replays.put("y", torch.ones(2), CPU) is not first


# ---------------------------------------------------------------------------- products


@pytest.mark.parametrize("kind", ["rnn", "mlp"])
def test_products_are_replayed_once_there_were_some(
    kind: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the vector of each call; into a buffer or a new tensor, which a later call leaves."""
    draw = torch.Generator().manual_seed(0)
    if kind == "rnn":
        model: torch.nn.Module = hf.RNN(2, 5, 3, generator=draw)
        x, y = torch.rand(4, 6, 2, generator=draw), torch.rand(4, 6, 3, generator=draw)
    else:
        model = hf.MLP([4, 3, 2], ["tanh", "linear"], generator=draw)
        x, y = torch.rand(6, 4, generator=draw), torch.rand(6, 2, generator=draw)
    G = hf.GaussNewton(model, hf.losses.SquaredError(), x, y, damping=0.1)
    vectors = torch.randn(BEFORE + 5, G.shape[0], generator=draw)
    want = [G @ v for v in vectors]
    monkeypatch.setattr(ReplayedProducts, "serve", lambda self, v: len(v) == 1)
    recorder.like = torch.full((1, G.shape[0]), math.nan)
    got = [G @ v for v in vectors]
    assert (recorder.recorded, recorder.replayed) == (1, 4)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    out = torch.empty_like(vectors[0])
    assert G.matvec(vectors[1], out=out) is out
    assert torch.equal(out, want[1])
    assert recorder.replayed == 5
    assert torch.equal(G.products(vectors[:2]), torch.stack(want[:2]))
    assert recorder.replayed == 5


def test_products_on_the_cpu_are_not_replayed() -> None:
    assert not ReplayedProducts().serve(torch.zeros(1, 3))


# ---------------------------------------------------------------------------- updates of nets


def passes_of(model: torch.nn.Module, loss: hf.losses.Loss) -> GroupedGradient:
    passes = grouped_gradient(model, loss)
    assert passes is not None
    return passes


def batches(kind: str) -> list[hf.Batch]:
    draw = torch.Generator().manual_seed(1)
    made = []
    for size in (5, 7, 5, 5, 7, 7, 5):  # lengths or cases that come back
        if kind == "mlp":
            x = torch.rand(size, 4, generator=draw)
            made.append(hf.Batch(x, x))
            continue
        x = torch.rand(size, 6, 2, generator=draw)
        mask = torch.zeros(size, 6, dtype=torch.bool)
        mask[-2:] = True
        if kind == "masked":
            mask[-1, 2:] = False
        y = torch.rand(size, 6, 3, generator=draw)
        classes = torch.randint(3, (size, 6), generator=draw)
        made.append(hf.Batch(x, classes if kind == "softmax" else y, mask))
    return made


@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("kind", ["rnn", "masked", "softmax", "mlp"])
def test_replayed_updates_are_those_of_the_ops(
    kind: str, l2: bool, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates, batches, lengths and who is active change between replays, and are seen."""
    torch.manual_seed(0)
    if kind == "mlp":
        model: torch.nn.Module = hf.MLP([4, 3, 4], ["tanh", "linear"])
        loss: hf.losses.Loss = hf.losses.SquaredError()
    else:
        model = hf.RNN(2, 5, 3)
        soft = kind == "softmax"
        loss = hf.losses.SoftmaxCrossEntropy() if soft else hf.losses.SquaredError()
    if kind == "mlp":  # the CPU has a whole call of its own for these
        monkeypatch.setattr(MlpNet, "whole_update", FusedNet.whole_update)
    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    thetas = torch.stack([start, 2 * start, -start])
    ends = []
    for recorded in (False, True):
        monkeypatch.setattr(grouped, "served_by_cuda", lambda theta, on=recorded: on)
        passes = passes_of(model, loss)
        theta, velocity = thetas.clone(), torch.zeros_like(thetas)
        active = torch.tensor([True, True, True])
        losses = []
        for t, batch in enumerate(batches(kind)):
            if t == 4:
                active[1] = False
            rates = torch.tensor([0.1, 0.05, 0.2], dtype=torch.float64) / (t + 1)
            mu = torch.full((3,), min(0.9, t / 4), dtype=torch.float64)
            step = Step(rates, mu, mu / 2, 0.01 if l2 else None)
            data = passes.prepare(batch)
            losses.append(passes.update(theta, velocity, data, step, active=active))
        ends.append((theta, velocity, torch.stack(losses)))
    assert recorder.recorded == 2  # one for each shape of a batch
    assert recorder.replayed == 5
    for plain, replayed in zip(*ends, strict=True):
        assert torch.equal(plain.nan_to_num(7.0), replayed.nan_to_num(7.0))
    assert ends[0][2][4:, 1].isnan().all()


@pytest.mark.parametrize("kind", ["rnn", "mlp"])
def test_replayed_rows_are_the_updates_one_by_one(
    kind: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cases, coefficients and who is active are those of each replay; losses of each update too."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    if kind == "mlp":
        model: torch.nn.Module = hf.MLP([4, 3, 4], ["tanh", "linear"])
        x = torch.rand(23, 4, generator=draw)
        batch = hf.Batch(x, x)
    else:
        model = hf.RNN(2, 5, 3)
        x = torch.rand(4, 23, 2, generator=draw)
        batch = hf.Batch(x, torch.rand(4, 23, 3, generator=draw))
    passes = passes_of(model, hf.losses.SquaredError())
    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    thetas = torch.stack([start, 2 * start, -start])
    cases, K = passes.resident(batch), 3
    index = torch.randint(23, (4, K, 5), generator=draw)
    steps = torch.rand(4, K, 3, 3, generator=draw, dtype=torch.float64) / 20
    ends = []
    for recorded in (False, True):
        monkeypatch.setattr(grouped, "served_by_cuda", lambda theta, on=recorded: on)
        theta, velocity = thetas.clone(), torch.zeros_like(thetas)
        theta[1] *= math.inf
        account = Account.of(3, CPU)
        account.done.fill_(7)
        found: list[Tensor] = []
        for i, s in zip(index, steps, strict=True):
            if recorded:
                row = Row(theta, velocity, cases, i, s, account)
                recorder.like = torch.full((K, 3), math.nan, dtype=torch.float64)
                found.append(passes.row(row))
            else:
                for k in range(K):
                    data, step = cases.taken(i[k]), Step(*s[k])
                    found.append(passes.update(theta, velocity, data, step, account=account))
        losses = torch.cat(found) if recorded else torch.stack(found)
        ends.append([theta[::2], velocity[::2], losses.nan_to_num(7.0), *vars(account).values()])
    assert (recorder.recorded, recorder.replayed) == (1, 3)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert ends[0][4].tolist() == [-1, 7, -1]
    assert ends[0][3].tolist() == [True, False, True]
    assert int(ends[0][6]) == 7 + 4 * K


def test_cases_with_weights_of_their_own_are_not_resident() -> None:
    passes = passes_of(hf.RNN(2, 5, 3), hf.losses.SquaredError())
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1, 2] = False
    with pytest.raises(ValueError, match="mask: differs between the cases, need the same outputs"):
        passes.resident(hf.Batch(torch.rand(4, 6, 2), torch.rand(4, 6, 3), mask))


def test_classes_out_of_range_are_refused_before_they_are_put(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouped, "served_by_cuda", lambda theta: True)
    passes = passes_of(hf.RNN(2, 5, 3), hf.losses.SoftmaxCrossEntropy())
    data = passes.prepare(hf.Batch(torch.rand(4, 6, 2), torch.full((4, 6), 3)))
    theta = torch.rand(1, hf.RNN(2, 5, 3).shape.numel)
    before = theta.clone()
    with pytest.raises(ValueError, match=r"targets: got class 3, need 0\.\.2"):
        passes.update(theta, torch.zeros_like(theta), data, Step(0.1, 0.9))
    assert torch.equal(theta, before)


def test_a_step_is_one_array_on_the_cpu() -> None:
    theta = torch.zeros(2, 5)
    rates = torch.tensor([0.1, 0.2], dtype=torch.float64)
    stacked = momentum.stacked(Step(rates, 0.9), theta)
    assert stacked.tolist() == [[0.1, 0.2], [0.9, 0.9], [0.0, 0.0]]
    assert momentum.stacked(Step(rates, 0.9, rates, 0.5), theta)[3].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"learning_rate: got shape \[3\], need \[2\]"):
        momentum.stacked(Step(torch.zeros(3, dtype=torch.float64), 0.9), theta)


def test_nothing_is_recorded_on_the_cpu() -> None:
    assert not graphs.recording(torch.zeros(1))
    assert not momentum.served_by_cuda(torch.zeros(1, 2))
