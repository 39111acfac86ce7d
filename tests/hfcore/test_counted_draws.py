"""Fresh cases that are counted out where the nets are: problems with ``counted_batches``, and
``on_device`` of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupts import interrupted_sweeps
from torch import Tensor

import hfcore as hf
from hfcore.bindings.draws import philox
from hfcore.counted_draws import BLOCK, CountedDraws
from hfcore.nets.grouped import grouped_gradient
from hfcore.problems import (
    Addition,
    CountedProblem,
    Memorization5,
    Memorization20,
    Multiplication,
    Xor,
)
from hfcore.sweeps import SweepResult, cohort

CPU = torch.device("cpu")
Problem = Addition | Multiplication | Xor | Memorization5 | Memorization20

# Those of table 5 and what else there is: lengths of a batch and of each sequence, of one length;
# outputs at the last step, at the recalled ones, at all.
MAKERS: dict[str, Callable[[], Problem]] = {
    "addition": lambda: Addition(30, centre=True),
    "sum": lambda: Addition(30, target="sum", mixed_lengths=True),
    "one length": lambda: Addition(9, centre=True),
    "multiplication": lambda: Multiplication(23, centre=True, mixed_lengths=True),
    "xor": lambda: Xor(20),
    "5 bits": lambda: Memorization5(12, scored="recall", centre=True),
    "20 bits": lambda: Memorization20(5),
    "paper's layout": lambda: Memorization20(15, layout="martens2011", scored="recall"),
}
every_problem = pytest.mark.parametrize("name", MAKERS)


def counted(problem: Problem, size: int, batches: int, dtype: Any = torch.float32) -> hf.Batch:
    W = problem.counted_words(size)
    words = philox(11, 5, batches * W, CPU).view(batches, W)
    return problem.counted_batches(words, size, dtype)


# ---------------------------------------------------------------------------- the cases


def numpy_words(count: int) -> Iterator[int]:
    """The same stream by NumPy's generator, whose first counter is one more than it is told."""
    key = np.array([11, 5], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=2**256 - 1).random_raw(count)
    return iter([int(word) >> 1 for word in words])


def expected(problem: Problem, size: int, batches: int, real: Any) -> tuple[np.ndarray, ...]:
    """Inputs, targets and mask, case by case and step by step."""
    words = numpy_words(batches * problem.counted_words(size))
    if isinstance(problem, Memorization5 | Memorization20):
        return of_symbols(problem, size, batches, words, real)
    shortest, longest = problem.lengths
    cases = longest, batches * size
    x, y, mask = np.zeros((*cases, 2), real), np.zeros((*cases, 1), real), np.zeros(cases, bool)
    for start in range(0, batches * size, size):
        draws = size if problem.mixed_lengths else 1
        L = [shortest + next(words) % (longest - shortest + 1) for _ in range(draws)]
        L = L if problem.mixed_lengths else L * size
        i = [next(words) % -(-L[b] // 10) for b in range(size)]
        first, half = [-(-n // 10) for n in L], [-(-n // 2) for n in L]
        j = [first[b] + next(words) % (half[b] - first[b]) for b in range(size)]
        for t in range(longest):
            for b in range(size):
                value = (next(words) >> 10) / 2**53
                if isinstance(problem, Xor):
                    value = float(value < 0.5)
                if t < L[b]:
                    x[t, start + b] = value, float(t in (i[b], j[b]))
        for b in range(size):
            one, other = (float(x[at[b], start + b, 0]) for at in (i, j))
            if isinstance(problem, Addition):
                result = (one + other) * (0.5 if problem.target == "mean" else 1.0)
            else:
                result = one * other if isinstance(problem, Multiplication) else abs(one - other)
            y[L[b] - 1, start + b], mask[L[b] - 1, start + b] = result, True
            if problem.centre:
                x[: L[b], start + b] -= problem.mean_input(L[b]).numpy().astype(real)
                shift = 0.25 if isinstance(problem, Multiplication) else 0.5
                y[L[b] - 1, start + b] -= real(shift)
    return x, y, mask


def of_symbols(
    problem: Memorization5 | Memorization20,
    size: int,
    batches: int,
    words: Iterator[int],
    real: Any,
) -> tuple[np.ndarray, ...]:
    n, k, S = problem.symbols, problem.alphabet, problem.steps
    x, y = np.zeros((S, batches * size, k + 2), real), np.full((S, batches * size), k)
    for start in range(0, batches * size, size):
        for t in range(n):
            for b in range(start, start + size):
                y[S - n + t, b] = next(words) % k
                x[t, b, y[S - n + t, b]] = 1
    x[n:, :, k] = 1
    x[S - n, :, k:] = 0, 1
    if problem.centre:
        x -= problem.mean_input().numpy().astype(real)
    mask = np.zeros(y.shape, bool)
    mask[-n if problem.scored == "recall" else 0 :] = True
    return x, y, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_problem
def test_cases_are_those_of_numpys_words(name: str, dtype: torch.dtype) -> None:
    """To the bit."""
    problem, size, batches = MAKERS[name](), 5, 3
    assert isinstance(problem, CountedProblem)
    got = counted(problem, size, batches, dtype)
    real = np.float32 if dtype == torch.float32 else np.float64
    x, y, mask = expected(problem, size, batches, real)
    assert got.inputs.dtype == dtype
    assert np.array_equal(got.inputs.numpy(), x)
    assert np.array_equal(got.targets.numpy(), y)
    assert (got.mask is None) == bool(mask.all())
    if got.mask is not None:
        assert np.array_equal(got.mask.numpy(), mask)
        assert problem.counted_steps is not None
        assert not bool(got.mask[~problem.counted_steps].any())


def features(problem: Problem, batch: hf.Batch) -> dict[str, np.ndarray]:
    """Whole numbers of each case: length and marked steps and values in tenths, or its symbols."""
    if isinstance(problem, Memorization5 | Memorization20):
        recalled = batch.targets[-problem.symbols :].numpy()
        return {f"symbol {t}": row for t, row in enumerate(recalled)}
    marked = batch.inputs[..., 1].argsort(dim=0, descending=True, stable=True)[:2].numpy()
    value = batch.inputs[..., 0].numpy()
    assert batch.mask is not None
    target = batch.targets.sum(0)[:, 0].numpy()
    places = {
        "length": batch.mask.int().argmax(0).numpy(), "first": marked[0], "second": marked[1],
        "target": np.floor(10 * target),
    }  # fmt: skip
    return {**places, **{f"value {t}": np.floor(10 * value[t]) for t in range(0, 20, 6)}}


@pytest.mark.parametrize(
    "problem",
    [
        Addition(30, mixed_lengths=True), Multiplication(30, mixed_lengths=True),
        Xor(20, mixed_lengths=True), Memorization5(3), Memorization20(2),
    ],
    ids=lambda p: p.name,
)  # fmt: skip
def test_cases_are_distributed_as_those_of_the_generator(problem: Problem) -> None:
    """χ² of two samples of 4,000, feature by feature."""
    ours = features(problem, counted(problem, 400, 10))
    theirs = features(problem, problem.batch(4000, np.random.default_rng(1)))
    for name, mine in ours.items():
        known, pairs = np.unique(np.concatenate([mine, theirs[name]])), []
        for value in known:
            pairs.append(((mine == value).sum(), (theirs[name] == value).sum()))
        chi = sum((a - b) ** 2 / (a + b) for a, b in pairs)
        freedom = len(known) - 1
        assert chi < freedom + 5 * (2 * max(freedom, 1)) ** 0.5, name


def test_a_batch_of_one_length_has_one() -> None:
    problem = Addition(80)
    ends = counted(problem, 9, 40).mask.int().argmax(0).view(40, 9)  # type: ignore[union-attr]
    assert bool((ends == ends[:, :1]).all())
    assert set(ends[:, 0].tolist()) <= set(range(79, 88))
    assert len(set(ends[:, 0].tolist())) > 3


def test_wrong_words_and_dtypes_are_named() -> None:
    problem = Memorization5(3)
    with pytest.raises(ValueError, match=r"words: got shape \[2, 14\], need \[K,15\]"):
        problem.counted_batches(torch.zeros(2, 14, dtype=torch.int64), 3)
    with pytest.raises(TypeError, match=r"words: got torch.float32, need torch.int64"):
        problem.counted_batches(torch.zeros(2, 15), 3)
    with pytest.raises(TypeError, match=r"dtype: got torch.float16, need"):
        counted(problem, 3, 2, torch.float16)


# ---------------------------------------------------------------------------- batches


def draws(problem: Problem, size: int = 4, seed: int = 3) -> CountedDraws:
    model = hf.RnnStart(hidden_size=3).build(problem, 0)
    passes = grouped_gradient(model, problem.loss)
    assert passes is not None
    return CountedDraws(problem, size, seed, CPU, passes.resident)


@every_problem
def test_a_batch_depends_on_its_number_alone(name: str) -> None:
    """Whatever was drawn before; and it lies where others lay."""
    one, other = draws(MAKERS[name]()), draws(MAKERS[name]())
    places = [t.data_ptr() for t in (one.cases.x, one.cases.y)]
    for first in (0, 130, 63, 64, 2 * BLOCK + 2):
        ours = one.cases.taken(one(first, 1)[0])
        other(5 * BLOCK, 1)
        theirs = other.cases.taken(other(first, 1)[0])
        assert torch.equal(ours.x, theirs.x)
        assert torch.equal(ours.y, theirs.y)
        assert (ours.w is None) == (theirs.w is None)
        assert ours.w is None or torch.equal(ours.w, theirs.w)  # type: ignore[arg-type]
        assert ours.outputs == theirs.outputs
    assert [t.data_ptr() for t in (one.cases.x, one.cases.y)] == places
    another = draws(MAKERS[name](), seed=4)
    assert not torch.equal(another.cases.x, draws(MAKERS[name]()).cases.x)


def test_batches_end_with_their_block() -> None:
    batches = draws(MAKERS["20 bits"]())
    assert [batches.most(first, 64) for first in (0, 1, 63, 64, 130)] == [64, 63, 1, 64, 62]
    assert batches.most(3, 7) == 7
    assert batches(5, 3).tolist() == torch.arange(20, 32).view(3, 4).tolist()


# ---------------------------------------------------------------------------- sweeps

GRID = {"learning_rate": [0.05, 0.01], "momentum": [0.9], "method": ["nag", "cm"]}


def swept(problem: Problem, grid: Any = GRID, **options: Any) -> SweepResult:
    settings: dict[str, Any] = {
        "updates": 90, "batch_size": 6, "test_every": 37, "test_size": 20, "progress": False,
        "start": hf.RnnStart(hidden_size=5), "on_device": True, "schedule": "constant",
    }  # fmt: skip
    return hf.sweep(problem, grid, **{**settings, **options})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("addition", "5 bits") else pytest.mark.slow)
        for name in ("addition", "multiplication", "5 bits", "20 bits")
    ],
)
def test_updates_are_those_of_autograd_on_these_batches(name: str) -> None:
    """Plain gradient descent over the end of a block, by small steps: larger ones are chaotic."""
    problem, rate, size = MAKERS[name](), 0.002, 6
    grid = {"learning_rate": [rate], "momentum": [0.0], "method": ["sgd"]}
    result = swept(problem, grid, updates=BLOCK + 3)
    model, W = hf.RnnStart(hidden_size=5).build(problem, 0).double(), problem.counted_words(size)
    for block in range(2):
        words = philox(0, block, BLOCK * W, CPU).view(BLOCK, W)
        for number in range(BLOCK if block == 0 else 3):
            x, y, mask = problem.counted_batches(words[number : number + 1], size, torch.float32)
            s = model(x.double())
            if y.is_floating_point():
                each = (s - y).square().sum(-1) / 2
            else:
                each = torch.nn.functional.cross_entropy(s.movedim(-1, 1), y, reduction="none")
            loss = (each if mask is None else each * mask).sum() / size
            gradient = torch.autograd.grad(loss, [*model.parameters()])
            for p, g in zip(model.parameters(), gradient, strict=True):
                p.data -= rate * g
    want = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(result.parameters[0].double(), want, rtol=1e-5, atol=2e-6)


def test_rows_of_updates_are_updates_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = swept(MAKERS["addition"](), seeds=2)
    monkeypatch.setattr(cohort, "AT_ONCE", 1)
    alone = swept(MAKERS["addition"](), seeds=2)
    assert repr(alone.tests) == repr(whole.tests)
    assert all(torch.equal(alone.parameters[i], p) for i, p in whole.parameters.items())


def test_a_stopped_and_resumed_sweep_has_the_same_bits(tmp_path: Path) -> None:
    problem = MAKERS["multiplication"]()
    whole = swept(problem)
    with interrupted_sweeps(2):
        stopped = swept(problem, run_dir=tmp_path / "sweep")
    assert stopped.reason == "interrupted"
    resumed = swept(problem, run_dir=tmp_path / "sweep", resume=True)
    assert repr(resumed.tests) == repr(whole.tests)
    assert all(torch.equal(resumed.parameters[i], p) for i, p in whole.parameters.items())


def flat(result: SweepResult) -> list[Tensor]:
    return [result.parameters[i] for i in sorted(result.parameters)]


def test_a_run_is_what_it_is_alone() -> None:
    problem = MAKERS["5 bits"]()
    alone = swept(problem, {"learning_rate": [0.05], "momentum": [0.9], "method": ["nag"]})
    beside = swept(problem, GRID)
    (at,) = [i for i, run in enumerate(beside.runs) if run == alone.runs[0]]
    assert torch.equal(flat(beside)[at], flat(alone)[0])
