"""hf.train on data as users have them: arrays, sequences, loaders, with their policies."""

from __future__ import annotations

import copy
import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import hfcore as hf
from hfcore.cases import ArrayCases, SequenceCases
from hfcore.training import (
    Callback,
    ConfigMismatchError,
    EarlyStopping,
    Limits,
    RunFolderError,
)

SQUARED = hf.losses.SquaredError()
FullGradient, SmallBatches = hf.minibatches.FullGradient, hf.minibatches.SmallBatches


@pytest.fixture(autouse=True)
def _draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcore.training.plots.draw_plots", lambda *a, **options: ())


def rnn(seed: int = 0, **options: Any) -> hf.RNN:
    generator = torch.Generator().manual_seed(seed)
    return hf.RNN(2, 5, 1, dtype=torch.float64, generator=generator, **options)


def mlp(seed: int = 0, dtype: torch.dtype = torch.float64) -> hf.MLP:
    generator = torch.Generator().manual_seed(seed)
    return hf.MLP([3, 4, 2], ["tanh", "linear"], dtype=dtype, generator=generator)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sequences(count: int = 7, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    rng = random.Random(seed)
    lengths = [rng.choice([1, 2, 3, 5, 7, 11]) for _ in range(count)]
    return [(noise(T, 2, seed=i), noise(T, 1, seed=100 + i)) for i, T in enumerate(lengths)]


def arrays(cases: int = 11) -> tuple[Tensor, Tensor]:
    return noise(cases, 3), noise(cases, 2, seed=1)


def masked(T: int = 6, B: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Case b has b as its first input, so that batches tell whom they hold."""
    x = noise(T, B, 2)
    x[..., 0] = torch.arange(B, dtype=torch.float64)
    mask = torch.rand(T, B, generator=torch.Generator().manual_seed(3)) > 0.4
    mask[-1] = True
    return x, noise(T, B, 1, seed=1), mask


def descent(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0)


def hessian_free(model: nn.Module, loss: Any = SQUARED, **options: Any) -> hf.HessianFree:
    return hf.HessianFree(model, loss, damping=1.0, cg_max_iter=5, **options)


def train(model: nn.Module, data: Any, optimizer: Any, iterations: int = 1, **options: Any) -> Any:
    stop = options.pop("stop", Limits(iterations=iterations))
    return hf.train(model, data, optimizer, stop=stop, progress=False, **options)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def moved(model: nn.Module, data: Any, **options: Any) -> Tensor:
    """The gradient of one plain descent step with rate 1."""
    before = flat(model)
    train(model, data, descent(model), **options)
    return before - flat(model)


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


# ---- policies cut cases, not time


def test_policies_on_sequences_keep_time_and_choose_cases() -> None:
    x, y, mask = masked()
    policy = FullGradient(x, y, mask, curvature_batches=4, batch_dim=1)
    seen: list[int] = []
    for step in range(4):
        batches = policy(step)
        for batch in (batches.gradient, batches.curvature):
            assert isinstance(batch, hf.Batch)
            who = batch.inputs[0, :, 0].long()
            assert torch.equal(batch.inputs, x[:, who])
            assert torch.equal(batch.targets, y[:, who])
            assert batch.mask is not None
            assert torch.equal(batch.mask, mask[:, who])
        seen += batches.curvature.inputs[0, :, 0].long().tolist()  # type: ignore[union-attr]
    assert sorted(seen) == list(range(9))


@pytest.mark.parametrize(
    "policy",
    [
        FullGradient(curvature_batches=2),
        FullGradient(curvature_batches=4, growth=1.5),
        SmallBatches(size=4),
        hf.minibatches.Epochs(size=4),
    ],
    ids=lambda p: type(p).__name__ + ("+" if getattr(p, "growth", 1) > 1 else ""),
)
def test_every_policy_steps_as_by_hand(policy: Any) -> None:
    """The bits of opt.step on the policy's own batches, for an hf.RNN on [T,B,n] with a mask."""
    data = masked()
    ours, by_hand = rnn(), rnn()
    bound = policy.on(ArrayCases(hf.Batch(*data), 1, 1))
    opt = hessian_free(by_hand)
    for step in range(5):
        work = bound(step)
        for batches in [work] if isinstance(work, hf.Batches) else work:
            opt.step(batches)
    train(ours, data, hessian_free(ours), 5, batches=policy)
    assert torch.equal(flat(ours), flat(by_hand))


def test_a_policy_larger_than_the_data_is_refused() -> None:
    model = mlp()
    with pytest.raises(ValueError, match="size: got 12, need 1 to 11 cases"):
        train(model, arrays(), descent(model), batches=SmallBatches(size=12))
    with pytest.raises(ValueError, match="curvature_batches: got 12, need 1 to 11 cases"):
        train(model, arrays(), hessian_free(model), batches=FullGradient(curvature_batches=12))
    with pytest.raises(ValueError, match="batch_size: got 12, need 1 to 11 cases"):
        train(model, arrays(), descent(model), batch_size=12)
    with pytest.raises(ValueError, match="batch_size: got 3 beside batches="):
        train(model, arrays(), descent(model), batch_size=3, batches=SmallBatches(size=2))


def test_a_pass_an_iteration_visits_every_case_once() -> None:
    model = mlp()
    seen: list[int] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            seen.extend(x[:, 0].long().tolist())
            return self.inner(x)

    x, y = arrays(12)
    x[:, 0] = torch.arange(12)
    watching = Watching()
    policy = hf.minibatches.Epochs(size=4, seed=3)
    run = train(watching, (x, y), descent(watching), 2, batches=policy, loss=SQUARED)
    assert run.iterations == 2
    assert run.minibatches == 24 / 1000
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]


# ---- arrays


def test_arrays_of_numpy_are_those_of_torch() -> None:
    """Floats in the model's dtype, whatever they were."""
    x, y = arrays()
    a, b = mlp(dtype=torch.float32), mlp(dtype=torch.float32)
    train(a, (x.float(), y.float()), hessian_free(a), 3)
    train(b, (x.numpy(), y.float().numpy()), hessian_free(b), 3)
    assert torch.equal(flat(a), flat(b))


@pytest.mark.parametrize("kind", ["int32", "uint8", "int64"])
def test_integers_of_numpy_are_classes(kind: str) -> None:
    x, _ = arrays()
    classes = np.arange(11) % 2
    loss = hf.losses.SoftmaxCrossEntropy()
    a, b = mlp(), mlp()
    train(a, (x.numpy(), classes.astype(kind)), hessian_free(a, loss), 2)
    train(b, (x, torch.from_numpy(classes)), hessian_free(b, loss), 2)
    assert torch.equal(flat(a), flat(b))


def test_the_step_is_the_gradient_of_the_mean_over_all_cases() -> None:
    x, y, mask = masked()
    model = rnn()
    s = model(x)
    expected = gradient(model, 0.5 * ((s - y)[mask] ** 2).sum() / 9)
    found = moved(model, (x, y, mask), loss=SQUARED)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_loss_of_ones_own_and_a_criterion_of_torch() -> None:
    x, y = arrays()
    classes = torch.arange(11) % 2
    for loss, targets in (
        (lambda s, y: ((s - y) ** 4).mean(), y),
        (nn.CrossEntropyLoss(label_smoothing=0.1), classes),
    ):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        expected = gradient(model, loss(model(x), targets))
        found = moved(model, (x, targets), loss=loss)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_loss_that_is_no_python_is_named() -> None:
    with pytest.raises(TypeError, match="loss: "):
        moved(nn.Linear(3, 2).double(), arrays(), loss=len)


def test_arrays_with_their_cases_on_another_axis() -> None:
    """A batch-first model on [B,T,n], and one whose batch_dim is told."""
    x, y = noise(4, 5, 3), noise(4, 5, 2, seed=1)
    model = nn.Linear(3, 2).double()
    expected = gradient(model, 0.5 * ((model(x) - y) ** 2).sum() / 4)
    first = moved(copy.deepcopy(model), (x, y), loss=SQUARED)
    second = moved(copy.deepcopy(model), (x, y), loss=SQUARED, batch_dim=1)
    torch.testing.assert_close(first, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(second, expected * 4 / 5, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", [hf.RNN, hf.LSTM, hf.GRU])
@pytest.mark.parametrize("hessian", [True, False])
def test_a_net_is_not_given_steps_for_cases(make: Any, hessian: bool) -> None:
    """[B,T,n] with batch_dim=0 would run the net through the cases."""
    x, y = noise(4, 5, 3), noise(4, 5, 2, seed=1)

    def trained(model: nn.Module, **options: Any) -> None:
        chosen = hessian_free(model, SQUARED) if hessian else hf.NAG(model, lr=0.01)
        loss = None if hessian else SQUARED
        limits = hf.training.Limits(iterations=1)
        hf.train(model, (x, y), chosen, loss=loss, stop=limits, progress=False, **options)

    net = make(3, 6, 2, dtype=torch.float64)
    said = f"need 1, where {make.__name__} has its cases"
    for dim in (0, (0, 0), (1, 0)):
        with pytest.raises(ValueError, match=re.escape(f"batch_dim: got {dim}, {said}")):
            trained(net, batch_dim=dim)
    wrong = SmallBatches(x, y, size=2)
    with pytest.raises(ValueError, match=re.escape(f"SmallBatches(batch_dim=0), {said}")):
        trained(net, batches=wrong)
    trained(net, batch_dim=1, batches=SmallBatches(x, y, size=2, batch_dim=1))

    class Turned(make):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            turned: Tensor = super().forward(x.transpose(0, 1)).transpose(0, 1)
            return turned

    trained(Turned(3, 6, 2, dtype=torch.float64), **({} if hessian else {"batch_dim": 0}))


def test_an_mlp_is_not_given_features_for_cases() -> None:
    x = noise(4, 4)
    model = hf.MLP([4, 4], ["linear"], dtype=torch.float64)
    with pytest.raises(ValueError, match="batch_dim: got 1, need 0, where MLP has its cases"):
        moved(model, (x, x), loss=SQUARED, batch_dim=1)


def test_a_data_set_of_images_is_inputs_and_targets() -> None:
    images = torch.rand(12, 6, generator=torch.Generator().manual_seed(0))
    data = hf.data.Dataset("dots", images[:8], images[8:10], images[10:], (2, 3), 2, "drawn here")
    model = hf.Autoencoder([6, 3, 2], generator=torch.Generator().manual_seed(1))
    loss = hf.losses.LogisticCrossEntropy()
    result = train(model, data, hessian_free(model, loss), 2)
    for part, error in ((data.test, result.test_error), (data.validation, result.validation_error)):
        assert part is not None
        with torch.no_grad():
            expected = nn.functional.binary_cross_entropy_with_logits(
                model(part), part, reduction="sum"
            ) / len(part)
        assert error == pytest.approx(float(expected), rel=1e-5)


def test_a_problem_with_given_cases_takes_policies() -> None:
    problem = hf.problems.Reconstruction("curves", images=12)
    a = hf.Autoencoder([784, 3, 2], generator=torch.Generator().manual_seed(1))
    b = copy.deepcopy(a)
    policy = FullGradient(curvature_batches=3)
    result = train(a, problem, hessian_free(a, problem.loss), 2, batches=policy)
    train(b, (problem.images, problem.images), hessian_free(b, problem.loss), 2, batches=policy)
    assert torch.equal(flat(a), flat(b))
    with torch.no_grad():
        error = (torch.sigmoid(a(problem.images)) - problem.images).square().sum() / 12
    assert result.test_error == pytest.approx(float(error), rel=1e-5)


# ---- sequences of unequal length


@pytest.mark.parametrize("batch_first", [False, True])
def test_unequal_sequences_have_the_gradient_of_their_mean(batch_first: bool) -> None:
    """Padding enters nothing: the oracle takes each sequence alone."""

    class Flipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = rnn()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.transpose(0, 1)).transpose(0, 1)

    model = Flipped() if batch_first else rnn()
    inner = model.inner if isinstance(model, Flipped) else model
    data = sequences()
    each = [0.5 * ((inner(x.unsqueeze(1)) - y.unsqueeze(1)) ** 2).sum() for x, y in data]
    expected = gradient(model, sum(each[1:], each[0]) / len(data))
    for policy in (SmallBatches(size=7), FullGradient(curvature_batches=2)):
        found = moved(copy.deepcopy(model), data, loss=SQUARED, batches=policy)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("curvature_batches", [1, 3])
def test_hessian_free_on_unequal_sequences_sees_their_mean(curvature_batches: int) -> None:
    data = sequences(8)
    model = rnn()
    with torch.no_grad():
        each = [0.5 * ((model(x.unsqueeze(1)) - y.unsqueeze(1)) ** 2).sum() for x, y in data]
    seen: list[float] = []

    class Watch(hf.Callback):
        def on_step(self, state: hf.TrainState) -> None:
            seen.append(state.metrics["loss"])

    policy = FullGradient(curvature_batches=curvature_batches)
    train(model, data, hessian_free(model), 4, batches=policy, callbacks=[Watch()])
    assert seen[0] == pytest.approx(float(sum(each)) / 8, rel=1e-12)
    assert seen[-1] < seen[0]


def test_one_target_for_a_sequence_counts_at_its_last_step() -> None:
    model = hf.RNN(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = [(x, int(len(x) % 3)) for x, _ in sequences()]
    last = [
        nn.functional.cross_entropy(model(x.unsqueeze(1))[-1], torch.tensor([y])) for x, y in data
    ]
    expected = gradient(model, torch.stack(last).mean())
    found = moved(model, data, loss=hf.losses.SoftmaxCrossEntropy())
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def test_masks_of_sequences_are_kept() -> None:
    data = [(x, y, torch.arange(len(x)) % 2 == 0) for x, y in sequences()]
    model = rnn()
    each = [0.5 * ((model(x.unsqueeze(1)) - y.unsqueeze(1))[m] ** 2).sum() for x, y, m in data]
    expected = gradient(model, torch.stack(each).mean())
    found = moved(model, data, loss=SQUARED)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def test_sequences_of_about_one_length_are_batched_together() -> None:
    rng = random.Random(1)
    lengths = [rng.randint(1, 100) for _ in range(240)]
    data = [(torch.full((T, 1), float(i)), torch.zeros(T, 1)) for i, T in enumerate(lengths)]
    full = [(x, y, torch.ones(len(x), dtype=torch.bool)) for x, y in data]
    policy = SmallBatches(size=8, seed=2).on(SequenceCases(full, 1, True))
    who: list[int] = []
    padded = 0
    for step in range(30):
        batch = policy(step).gradient
        assert isinstance(batch, hf.Batch)
        who += batch.inputs[0, :, 0].long().tolist()
        padded += batch.inputs.shape[0] * 8
    assert sorted(who) == list(range(240))
    assert padded < 1.25 * sum(lengths)  # unsorted batches of 8 would take 1.7 times the steps
    everything = FullGradient(curvature_batches=3).on(SequenceCases(full, 1, True))(0).gradient
    assert isinstance(everything, list)
    assert sum(b.inputs.shape[1] for b in everything) == 240
    assert sum(b.inputs.shape[:2].numel() for b in everything) < 1.25 * sum(lengths)


# ---- loaders and datasets of torch


class Drawn(Dataset[Any]):
    """Items that are augmented by every generator a program may use."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        extra = torch.rand(1).item() + random.random() + float(np.random.rand())  # noqa: NPY002
        return noise(3, seed=i) + extra, noise(2, seed=50 + i)


def loaders() -> dict[str, Callable[[], DataLoader[Any]]]:
    def own() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(7)
        return DataLoader(Drawn(), batch_size=3, shuffle=True, generator=generator)

    return {
        "in order": lambda: DataLoader(Drawn(), batch_size=3),
        "shuffled": lambda: DataLoader(Drawn(), batch_size=3, shuffle=True),
        "own generator": own,
        "workers": lambda: DataLoader(Drawn(), batch_size=3, shuffle=True, num_workers=2),
        "rest dropped": lambda: DataLoader(Drawn(), batch_size=4, shuffle=True, drop_last=True),
    }


@pytest.mark.parametrize("name", loaders())
@pytest.mark.parametrize("method", [hessian_free, descent])
def test_a_loader_resumes_in_the_middle_of_a_pass_to_the_bit(
    tmp_path: Path, name: str, method: Any
) -> None:
    def run(folder: str, iterations: int, resume: bool = False) -> Tensor:
        model = mlp()
        train(
            model,
            loaders()[name](),
            method(model),
            iterations,
            loss=SQUARED,
            batches=hf.minibatches.Fresh(count=1),
            run_dir=tmp_path / folder,
            resume=resume,
            checkpoint_every=1,
        )
        return flat(model)

    whole = run("whole", 9)
    run("parts", 2)
    for generator in (torch, random):
        generator.seed()  # whatever happened in between
    np.random.seed(None)  # noqa: NPY002
    run("parts", 5, resume=True)
    assert torch.equal(run("parts", 9, resume=True), whole)


def test_a_folder_is_free_although_a_forked_process_lives_on(tmp_path: Path) -> None:
    """As a worker of a DataLoader may: it inherits the lock of the folder."""

    class Forks(Callback):
        child = 0

        def on_step(self, state: Any) -> None:
            if state.iteration == 1:
                self.child = os.fork()
                if self.child == 0:
                    signal.pause()

    forks = Forks()
    options: dict[str, Any] = {"loss": SQUARED, "run_dir": tmp_path / "run"}
    model = mlp()
    try:
        train(model, arrays(), descent(model), callbacks=[forks], **options)
        again = mlp()
        result = train(again, arrays(), descent(again), 2, resume=True, **options)
    finally:
        os.kill(forks.child, signal.SIGKILL)
        os.waitpid(forks.child, 0)
    assert result.iterations == 2


def test_a_loader_leaves_the_programs_random_states_alone() -> None:
    model = mlp()
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate()
    train(model, loaders()["shuffled"](), descent(model), 5, loss=SQUARED)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_batches_of_a_loader_count_their_own_cases() -> None:
    """Ten cases in batches of 4, 4, 2: the last one's gradient is its own mean."""
    x, y = arrays(10)
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    model, by_hand = mlp(), mlp()
    result = train(model, loader, descent(model), 4, loss=SQUARED)
    for part in (slice(0, 4), slice(4, 8), slice(8, 10), slice(0, 4)):
        s = by_hand(x[part])
        g = gradient(by_hand, 0.5 * ((s - y[part]) ** 2).sum() / len(s))
        torch.nn.utils.vector_to_parameters(flat(by_hand) - g, by_hand.parameters())
    torch.testing.assert_close(flat(model), flat(by_hand), rtol=1e-11, atol=1e-12)
    assert result.minibatches == 14 / 1000


@pytest.mark.parametrize("unequal", [False, True])
def test_a_dataset_of_torch_is_read_into_memory(unequal: bool) -> None:
    data = sequences() if unequal else [(noise(4, 2, seed=i), noise(4, 1)) for i in range(5)]

    class Items(Dataset[Any]):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, i: int) -> Any:
            return data[i]

    a, b = rnn(), rnn()
    train(a, Items(), hessian_free(a), 2)
    train(b, data, hessian_free(b), 2)
    assert torch.equal(flat(a), flat(b))


def test_what_a_loader_gives_is_checked() -> None:
    model = mlp()
    with pytest.raises(TypeError, match=r"the DataLoader gave 1 items, need \(inputs, targets\)"):
        train(model, DataLoader(TensorDataset(noise(4, 3))), descent(model), loss=SQUARED)

    class Empty(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(ValueError, match="the DataLoader gave no batch"):
        train(model, DataLoader(Empty()), descent(model), loss=SQUARED)
    with pytest.raises(TypeError, match="Empty, which has no length; put it into a DataLoader"):
        train(model, Empty(), descent(model), loss=SQUARED)
    policy = FullGradient(curvature_batches=1)
    with pytest.raises(TypeError, match="FullGradient chooses among cases at hand, and the data"):
        train(model, loaders()["in order"](), hessian_free(model), batches=policy)


# ---- what is measured


def test_the_metric_is_a_plain_function() -> None:
    x, y = arrays()
    x_t, y_t = noise(2300, 3, seed=8), noise(2300, 2, seed=9)  # batches of 1000, 1000, 300
    model = mlp()

    def each(s: Tensor, y: Tensor) -> Tensor:
        return (s - y).abs().amax(1)

    def mean(s: Tensor, y: Tensor) -> float:
        return float(each(s, y).mean())

    options: dict[str, Any] = {"test": (x_t, y_t), "validation": (x, y)}
    a = train(model, (x, y), hessian_free(model), metric=each, **options)
    with torch.no_grad():
        assert a.test_error == pytest.approx(mean(model(x_t), y_t), rel=1e-12)
        assert a.validation_error == pytest.approx(mean(model(x), y), rel=1e-12)
    other = mlp()
    c = train(other, (x, y), hessian_free(other), metric=mean, **options)
    assert c.test_error == pytest.approx(a.test_error, rel=1e-12)


def test_a_metric_of_masked_data_takes_the_mask() -> None:
    x, y, mask = masked()
    model = rnn()

    def worst(s: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, (s - y).abs().squeeze(-1), 0).amax(0)

    result = train(model, (x, y, mask), hessian_free(model), metric=worst, test=(x, y, mask))
    with torch.no_grad():
        assert result.test_error == pytest.approx(float(worst(model(x), y, mask).mean()), rel=1e-12)
    with pytest.raises(TypeError, match="metric: has no parameter called mask"):
        train(model, (x, y, mask), hessian_free(model), metric=lambda s, y: 0.0, test=(x, y, mask))
    with pytest.raises(ValueError, match=r"metric: gave shape \[6, 9, 1\], need \[9\]"):
        train(model, (x, y), hessian_free(model), metric=lambda s, y: s - y, test=(x, y))


def test_without_a_metric_the_loss_is_measured_and_without_a_part_nothing() -> None:
    x, y = arrays()
    model = mlp()
    result = train(model, (x, y), hessian_free(model), 2, test=(x, y))
    with torch.no_grad():
        expected = 0.5 * ((model(x) - y) ** 2).sum() / 11
    assert result.test_error == pytest.approx(float(expected), rel=1e-12)
    alone = train(model, (x, y), hessian_free(model))
    assert np.isnan(alone.test_error)
    assert not alone.solved


# ---- what is refused


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing": ((), TypeError, "data: got a tuple of nothing, need a problem"),
    "a pair of pairs": (
        (arrays(), arrays()),
        TypeError,
        "data: got a tuple of tuple, tuple, need a problem of hf.problems",
    ),
    "a list of arrays": (list(arrays()), TypeError, "data: got a list of arrays, need a tuple"),
    "an empty list": ([], ValueError, "data: got an empty list"),
    "other counts": ((noise(4, 3), noise(5, 2)), ValueError, "data: targets: got 5 cases, need 4"),
    "no cases": ((noise(0, 3), noise(0, 2)), ValueError, "data: inputs: got no cases"),
    "another dtype": (
        (noise(4, 3).float(), noise(4, 2)),
        TypeError,
        "data: inputs: got torch.float32, need torch.float64 like the model",
    ),
    "texts": ((np.array(["a", "b"]), np.zeros(2)), TypeError, "data: inputs: got NumPy dtype <U1"),
    "complex": (
        (np.zeros((2, 3), complex), np.zeros(2)),
        TypeError,
        "got NumPy dtype comp",
    ),
    "a mask of another shape": (
        (noise(4, 3), noise(4, 2), torch.ones(5, dtype=torch.bool)),
        ValueError,
        r"data: mask: got shape \[5\], need the leading axes of the targets' \[4, 2\]",
    ),
    "a mask of nothing": (
        (noise(4, 3), noise(4, 2), np.zeros(4, bool)),
        ValueError,
        "data: mask: masks every output",
    ),
    "an odd mask": (
        (noise(4, 3), noise(4, 2), np.full(4, 2)),
        ValueError,
        "data: mask: holds values other than 0 and 1",
    ),
    "a sequence's mask": (
        [(noise(3, 2), noise(3, 1), np.ones(4, bool))],
        ValueError,
        r"data\[0\]: mask: got shape \[4\], need \[3\] like x",
    ),
    "unequal steps": (
        [(noise(3, 2), noise(3, 1)), (noise(4, 2), noise(3, 1))],
        ValueError,
        r"data\[1\]: y: got shape \[3, 1\], need a target for each of the 4 steps",
    ),
    "an empty sequence": ([(noise(0, 2), noise(0, 1))], ValueError, r"data\[0\]: x: got shape"),
    "unequal features": (
        [(noise(3, 2), noise(3, 1)), (noise(3, 5), noise(3, 1))],
        ValueError,
        r"data\[1\]: x: got steps of shape \[5\]",
    ),
    "a single": ([noise(3, 2).tolist()], TypeError, r"data\[0\]: x: got list"),
    "a number": (3, TypeError, "data: got int, need a problem of hf.problems"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_data_is_said(name: str) -> None:
    data, kind, message = REFUSED[name]
    model = mlp()
    with pytest.raises(kind, match=message):
        train(model, data, descent(model), loss=SQUARED)


def test_what_does_not_go_together_is_said() -> None:
    model, data = mlp(), arrays()
    with pytest.raises(ValueError, match="loss: got None, need one for these data and SGD"):
        train(model, data, descent(model))
    opt = hessian_free(model, hf.losses.LogisticCrossEntropy())
    with pytest.raises(ValueError, match=r"loss: got SquaredError\(\), need LogisticCross"):
        train(model, data, opt, loss=SQUARED)
    with pytest.raises(TypeError, match="loss: got str"):
        train(model, data, descent(model), loss="squared")
    with pytest.raises(TypeError, match=r"stop: got int, need hf\.training\.Limits"):
        train(model, data, hessian_free(model), stop=3)
    with pytest.raises(ValueError, match="minibatches: got 2 beside stop="):
        train(model, data, hessian_free(model), stop=Limits(minibatches=1), minibatches=2)
    with pytest.raises(TypeError, match="batches: got int"):
        train(model, data, hessian_free(model), batches=3)
    with pytest.raises(TypeError, match="batches: the policy gave int"):
        train(model, data, hessian_free(model), batches=lambda step: 3)
    with pytest.raises(TypeError, match="batches: Fresh draws from a problem or a DataLoader"):
        train(model, data, hessian_free(model), batches=hf.minibatches.Fresh())
    with pytest.raises(TypeError, match="SmallBatches chooses among cases at hand, and addition"):
        train(rnn(), hf.problems.Addition(6), hessian_free(rnn()), batches=SmallBatches(size=2))
    with pytest.raises(ValueError, match="gradient_batches: got 2, but cases at hand"):
        train(model, data, hessian_free(model), gradient_batches=2)
    with pytest.raises(TypeError, match="validation: got a problem"):
        train(model, data, hessian_free(model), validation=hf.problems.Addition(6))
    with pytest.raises(TypeError, match="callbacks: got int"):
        train(model, data, hessian_free(model), callbacks=[3])
    with pytest.raises(ValueError, match="FullGradient: has no data"):
        FullGradient(curvature_batches=1)(0)


# ---- what a resume compares


def test_a_resume_compares_everything_that_defines_the_run(tmp_path: Path) -> None:
    x, y = arrays()
    begun: dict[str, Any] = {
        "model": mlp,
        "data": (x, y),
        "loss": SQUARED,
        "method": descent,
        "batches": SmallBatches(size=4),
        "callbacks": [hf.training.Scheduled(lr=hf.schedules.Constant(0.5))],
        "validation": (x, y),
    }

    def run(**changes: Any) -> None:
        given = {**begun, **changes}
        model = given.pop("model")()
        method, data = given.pop("method"), given.pop("data")
        train(model, data, method(model), run_dir=tmp_path / "run", **given)

    run(metric=lambda s, y: 0.0)
    run(metric=lambda s, y: 0.0, resume=True)

    def relu() -> hf.MLP:
        return hf.MLP([3, 4, 2], ["relu", "linear"], dtype=torch.float64)

    changes: dict[str, tuple[dict[str, Any], str]] = {
        "activations": ({"model": relu}, r"model\.arguments\.activations is \['tanh', 'linear'\]"),
        "content": ({"data": (x, y + 1e-9)}, r"data\.train\.targets\.sha256"),
        "validation": ({"validation": (x[:5], y[:5])}, r"data\.validation\.inputs\.shape"),
        "policy": ({"batches": SmallBatches(size=5)}, r"data\.batches\.size is 4 there and 5"),
        "another": (
            {"batches": FullGradient(curvature_batches=4)},
            r"data\.batches\.name is 'SmallBatches' there and 'FullGradient' here",
        ),
        "loss": ({"loss": hf.losses.LogisticCrossEntropy()}, r"loss is 'SquaredError\(\)' there"),
        "metric": ({"metric": max}, r"metric is '<lambda>' there and 'max' here"),
        "schedule": (
            {"callbacks": [hf.training.Scheduled(lr=hf.schedules.Constant(0.25))]},
            r"callbacks\.Scheduled\.lr is 'Constant\(mu=0\.5\)' there",
        ),
        "no schedule": ({"callbacks": []}, r"callbacks\.Scheduled\.lr is .* and 'absent' here"),
    }
    for change, message in changes.values():
        with pytest.raises(ConfigMismatchError, match=message):
            run(**{"metric": lambda s, y: 0.0, **change}, resume=True)


def test_the_loss_of_hessian_free_is_compared(tmp_path: Path) -> None:
    images = torch.rand(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(loss: Any, resume: bool) -> None:
        model = hf.MLP([3, 3], ["linear"], dtype=torch.float64)
        opt = hessian_free(model, loss)
        train(model, (images, images), opt, 2, run_dir=tmp_path / "run", resume=resume)

    run(hf.losses.LogisticCrossEntropy(), False)
    with pytest.raises(ConfigMismatchError, match=r"optimizer\.loss is 'LogisticCrossEntropy\(\)'"):
        run(SQUARED, True)


def test_a_module_of_another_structure_is_another_run(tmp_path: Path) -> None:
    def run(between: nn.Module, resume: bool) -> None:
        model = nn.Sequential(nn.Linear(3, 4), between, nn.Linear(4, 2)).double()
        data = arrays()
        train(model, data, descent(model), loss=SQUARED, run_dir=tmp_path / "run", resume=resume)

    run(nn.Tanh(), False)
    with pytest.raises(ConfigMismatchError, match=r"model\.structure"):
        run(nn.Sigmoid(), True)


def test_a_folder_of_before_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    model = mlp()
    train(model, arrays(), hessian_free(model), run_dir=folder)
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"format": 2', '"was": 1'))
    with pytest.raises(RunFolderError, match="is of run folder format 1, this version of hfcore"):
        train(model, arrays(), hessian_free(model), run_dir=folder, resume=True)


# ---- objectives of one's own


class Quadratic:
    """f = ½ ‖Xθ − y‖² / n, the smallest objective there is."""

    def prepare(self, batch: Any) -> Any:
        return batch

    def loss(self, data: Any, theta: Tensor) -> float:
        x, y = data
        return float(0.5 * (x @ theta - y).square().mean())

    def gradient(self, data: Any, theta: Tensor) -> tuple[float, Tensor]:
        x, y = data
        return self.loss(data, theta), x.T @ (x @ theta - y) / len(x)

    def curvature(self, data: Any, theta: Tensor, kind: str = "ggn") -> Any:
        x, _ = data
        value = self.loss(data, theta)

        class G:
            loss = value

            def product(self, v: Tensor, *, damping: float = 0.0, **options: Any) -> Tensor:
                return x.T @ (x @ v) / len(x) + damping * v

        return G()


def test_an_objective_of_ones_own_goes_through_train(tmp_path: Path) -> None:
    x, theta = noise(12, 3), noise(3, seed=2)

    class Pairs(Quadratic):
        def prepare(self, batch: Any) -> Any:
            return batch.inputs, batch.targets.squeeze(1)

    model = nn.Linear(3, 1, bias=False).double()
    opt = hf.HessianFree(model, objective=Pairs(), damping=1e-3)
    y = (x @ theta).unsqueeze(1)
    result = train(
        model,
        (x, y),
        opt,
        20,
        metric=lambda s, y: (s - y).square().sum(1),
        test=(x, y),
        run_dir=tmp_path / "run",
    )
    assert result.test_error < 1e-8
    torch.testing.assert_close(model.weight.detach()[0], theta, rtol=1e-4, atol=1e-4)


def test_a_run_that_has_converged_says_so() -> None:
    x, y = arrays()
    model = hf.MLP([3, 2], ["linear"], dtype=torch.float64)
    result = train(model, (x, y), hf.HessianFree(model, SQUARED, damping=1e-3), 2000)
    assert result.reason == "converged"
    ones = torch.cat([x, torch.ones(11, 1, dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(ones, y).solution
    torch.testing.assert_close(model.layers[0].weight.detach(), solution[:3].T)


SPARSE: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: hf.SGD(m, lr=0.05),
    "cm": lambda m: hf.ClassicalMomentum(m, lr=0.05, momentum=0.9),
    "nag": lambda m: hf.NAG(m, lr=0.05, momentum=0.9),
    "hf": lambda m: hessian_free(m),
}


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_sparse_nets_in_double_resume_to_the_bit(tmp_path: Path, name: str, cut: int) -> None:
    """Where the parameters lie may decide the order of a sum: it is the same after a resume."""
    problem = hf.problems.Addition(9)

    def run(folder: str, iterations: int, resume: bool = False) -> Tensor:
        model = hf.RNN(2, 30, 1, sparse=True, fan_in=7, dtype=torch.float64)
        hf.init.sparse_(model, torch.Generator().manual_seed(0), fan_in=7)
        train(
            model,
            problem,
            SPARSE[name](model),
            iterations,
            batch_size=13,
            gradient_batches=2,
            test_size=10,
            solved_below=0.0,
            run_dir=tmp_path / folder,
            resume=resume,
        )
        return flat(model)

    whole = run("whole", 8)
    run("parts", cut)
    assert torch.equal(run("parts", 8, resume=True), whole)


NONSENSE: list[Any] = [True, "x", b"x", 0, -1, 2.5, np.nan, np.inf, 10**30, 1j, object(), [], {}]
COUNTS = ("batch_size", "gradient_batches", "test_size", "test_every", "checkpoint_every")
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    **{name: tuple(v for v in NONSENSE if v != 10**30) for name in COUNTS},
    "keep_checkpoints": tuple(v for v in NONSENSE if v != 10**30),
    "seed": (True, "x", -1, 2.5, 1j, object(), []),
    "minibatches": (True, "x", 0, -1, np.nan, np.inf, 1j, object(), []),
    "solved_below": (True, "x", -1, 2.5, np.nan, 1j, object()),
    "batch_dim": (True, "x", -1, 2.5, 10**30, object(), (0,), (0, 1, 2)),
    "batches": (True, "x", 0, 2.5, [], {}),
    "stop": (True, "x", 0, {}),
    "callbacks": (True, 0, "x", [3], EarlyStopping(3), Callback),
    "loss": (True, "x", 0, [], {}),
    "metric": (True, "x", 0, [], {}),
    "validation": (True, "x", 0, {}, object()),
    "test": (True, "x", 0, {}, object()),
    "run_dir": (True, 0, 2.5, [], object()),
    "notes": (True, 0, "x", [], object()),
    "resume": ("x", 0, None, []),
    "test_untrained": ("x", 0, None, []),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_nonsense_is_named(name: str) -> None:
    """A TypeError or ValueError that begins with the argument's name, before any step is taken."""
    for value in ARGUMENTS[name]:
        model = mlp()
        before = flat(model)
        options: dict[str, Any] = {"loss": SQUARED, "stop": Limits(iterations=1), name: value}
        if name == "minibatches":
            options.pop("stop")
        data: Any = DataLoader(TensorDataset(*arrays())) if name == "gradient_batches" else arrays()
        with pytest.raises((TypeError, ValueError), match=f"^{name}"):
            hf.train(model, data, hessian_free(model), progress=False, **options)
        assert torch.equal(flat(model), before)


def test_what_is_no_model_or_optimiser_is_named() -> None:
    for value in (None, 3, "x", [], nn.Linear):
        with pytest.raises(TypeError, match=r"^model: got \w+, need a torch\.nn\.Module"):
            train(value, arrays(), descent(mlp()))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^optimizer: got \w+, need a torch optimiser"):
            train(mlp(), arrays(), value)
    with pytest.raises(ValueError, match=r"^model: has no parameters"):
        train(nn.Tanh(), arrays(), descent(mlp()))


def test_buffers_and_dropout_are_resumed_to_the_bit(tmp_path: Path) -> None:
    """A module that was used before is no other run: buffers are state, not settings."""

    def module() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2)
        ).double()

    def run(folder: str, model: nn.Module, iterations: int, resume: bool = False) -> Tensor:
        torch.manual_seed(1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        options: dict[str, Any] = {"loss": SQUARED, "batch_size": 5, "checkpoint_every": 1}
        folders = {"run_dir": tmp_path / folder, "resume": resume}
        train(model, arrays(), optimizer, iterations, **options, **folders)
        return torch.cat([t.flatten().double() for t in model.state_dict().values()])

    whole = run("whole", module(), 7)
    used = module()
    run("parts", used, 3)
    assert torch.equal(run("parts", used, 7, resume=True), whole)
