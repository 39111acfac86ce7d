"""Exclusive or, temporal order, random permutation, the paper's memorisation: what their
definitions say, distributions beside slow generators of their own, the criterion of 1997."""

from __future__ import annotations

import doctest
import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

import hfcore as hf
from hfcore.problems import (
    SEQUENCES,
    Criterion1997,
    FiniteProblem,
    FixedTest,
    Judged1997,
    Memorization5,
    Memorization20,
    Multiplication,
    RandomPermutation,
    TemporalOrder2,
    TemporalOrder3,
    Xor,
    create,
)

Key = tuple[Any, ...]
TIMES = 6000  # sequences of either generator


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- slow generators: one sequence, as the definitions say it, as what is counted of it


def ceiling_steps(L: int, low: int, high: int) -> list[int]:
    """Steps t of L with low·L ≤ 100 t < high·L."""
    return [t for t in range(L) if low * L <= 100 * t < high * L]


def slow_xor(L: int, draw: random.Random) -> Key:
    bits = [draw.randrange(2) for _ in range(L)]
    i = draw.choice(ceiling_steps(L, 0, 10))
    j = draw.choice(ceiling_steps(L, 10, 50))
    return (i, j, bits[i], bits[j]), (bits[1 if i == 0 else 0], bits[-1]), (bits[i] ^ bits[j],)


def fast_xor(problem: Xor, batch: hf.Batch) -> Iterator[Key]:
    for b in range(batch.inputs.shape[1]):
        bits, marks = batch.inputs[:, b, 0].int().tolist(), batch.inputs[:, b, 1].nonzero().ravel()
        i, j = marks.tolist()
        target = int(batch.targets[-1, b, 0])
        yield (i, j, bits[i], bits[j]), (bits[1 if i == 0 else 0], bits[-1]), (target,)


def slow_order(ranges: tuple[tuple[int, int], ...]) -> Callable[[int, random.Random], Key]:
    def slow(L: int, draw: random.Random) -> Key:
        symbols = ["E", *(draw.choice("abcd") for _ in range(L - 2)), "B"]
        places, order = [], ""
        for low, high in ranges:
            t, symbol = draw.choice(ceiling_steps(L, low, high)), draw.choice("XY")
            symbols[t], order = symbol, order + symbol
            places.append(t)
        quiet = [t for t in range(1, L - 1) if t not in places]
        return tuple(places), (order,), (symbols[quiet[0]], symbols[quiet[-1]])

    return slow


def fast_order(problem: TemporalOrder2, batch: hf.Batch) -> Iterator[Key]:
    for b, column in enumerate(batch.inputs.argmax(-1).T.tolist()):
        symbols = ["abcdXYBE"[channel] for channel in column]
        assert (symbols[0], symbols[-1]) == ("E", "B")
        places = [t for t, symbol in enumerate(symbols) if symbol in "XY"]
        code = format(int(batch.targets[-1, b]), f"0{len(problem.ranges)}b")
        order = code.replace("0", "X").replace("1", "Y")
        assert order == "".join(symbols[t] for t in places)
        quiet = [t for t in range(1, len(symbols) - 1) if t not in places]
        assert all(symbols[t] in "abcd" for t in quiet)
        yield tuple(places), (order,), (symbols[quiet[0]], symbols[quiet[-1]])


def slow_permutation(L: int, draw: random.Random) -> Key:
    first = draw.randrange(2)
    drawn = [first, *(draw.randrange(2, 7) for _ in range(L - 1))]
    return (first,), (drawn[1], drawn[-1]), (drawn[L // 2],)


def fast_permutation(problem: RandomPermutation, batch: hf.Batch) -> Iterator[Key]:
    drawn, targets = batch.inputs.argmax(-1), batch.targets
    assert torch.equal(targets[:-1], drawn[1:])
    assert torch.equal(targets[-1], drawn[0])
    for column in drawn.T.tolist():
        yield (column[0],), (column[1], column[-1]), (column[len(column) // 2],)


SLOW: dict[str, tuple[Any, Any, Any]] = {
    "xor": (Xor(23), slow_xor, fast_xor),
    "xor short": (Xor(3), slow_xor, fast_xor),
    "order of two": (TemporalOrder2(29), slow_order(TemporalOrder2.ranges), fast_order),
    "order of two, shortest": (TemporalOrder2(6), slow_order(TemporalOrder2.ranges), fast_order),
    "order of three": (TemporalOrder3(31), slow_order(TemporalOrder3.ranges), fast_order),
    "order of three, shortest": (
        TemporalOrder3(8), slow_order(TemporalOrder3.ranges), fast_order,
    ),
    "permutation": (RandomPermutation(13, symbols=7), slow_permutation, fast_permutation),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOW)
def test_the_distribution_is_that_of_a_slow_generator(name: str) -> None:
    """Each count beside its like: 1e-5 is the chance that a right generator fails, for one seed."""
    problem, slow, fast = SLOW[name]
    generator, draw = rng(1), random.Random(2)
    mine: list[Counter[Key]] = [Counter() for _ in range(3)]
    theirs: list[Counter[Key]] = [Counter() for _ in range(3)]
    batch = problem.batch(TIMES, generator)
    for keys in fast(problem, batch):
        for counter, key in zip(mine, keys, strict=True):
            counter[key] += 1
    for _ in range(TIMES):
        for counter, key in zip(theirs, slow(len(batch.inputs), draw), strict=True):
            counter[key] += 1
    for a, b in zip(mine, theirs, strict=True):
        keys = sorted({*a, *b})
        if len(keys) > 1:
            assert chi2_contingency([[a[k] for k in keys], [b[k] for k in keys]]).pvalue > 1e-5
        else:
            assert a == b


@pytest.mark.parametrize("problem", [Xor(20), TemporalOrder2(20), TemporalOrder3(20)], ids=repr)
def test_every_length_is_equally_likely(problem: Any) -> None:
    generator = rng(3)
    counts = np.bincount([len(problem.batch(1, generator).inputs) for _ in range(1500)])
    assert counts[:20].sum() == 0
    assert len(counts) == 23
    assert np.abs(counts[20:] - 500).max() < 5 * math.sqrt(1500 * 2 / 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "problem",
    [Xor(11), TemporalOrder2(7), TemporalOrder3(17), RandomPermutation(2, symbols=3)],
    ids=repr,
)
def test_batches_have_their_shapes_and_count_at_the_last_step(
    problem: Any, dtype: torch.dtype
) -> None:
    x, y, mask = problem.batch(19, rng(4), dtype)
    L = len(x)
    assert x.dtype == dtype
    assert x.shape == (L, 19, problem.input_size)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert y.shape == ((L, 19, 1) if problem.name == "xor" else (L, 19))
    assert y.dtype == (dtype if problem.name == "xor" else torch.int64)
    assert mask is not None
    assert mask.dtype == torch.bool
    assert mask.nonzero()[:, 0].tolist() == [L - 1] * 19
    again = problem.batch(19, rng(4), torch.float64)
    assert torch.equal(again.inputs.to(dtype), x)
    if problem.name != "xor":
        assert bool((x.sum(-1) == 1).all())


@pytest.mark.parametrize(
    ("name", "options", "digest"),
    [
        ("xor", {"length": 30}, "7dfeb8a70e774d03"),
        ("temporal-order-2bit", {"length": 30}, "a8d82e16f650c211"),
        ("temporal-order-3bit", {"length": 30, "centre": True}, "5d79aa056b4832f1"),
        ("random-permutation", {"length": 30}, "9b10291b359f97aa"),
        ("memorization-20bit", {"length": 30, "layout": "martens2011"}, "142308c96d332e36"),
    ],
)
def test_a_seed_gives_the_same_batches_for_ever(
    name: str, options: dict[str, Any], digest: str
) -> None:
    """Digests of two batches of 5; stored runs resume only if they never change."""
    problem, generator, found = create(name, **options), rng(5), hashlib.sha256()
    for _ in range(2):
        batch = problem.batch(5, generator)
        for array in (batch.inputs, batch.targets):
            found.update(array.numpy().tobytes())
    assert found.hexdigest()[:16] == digest


def test_a_permutation_that_is_scored_everywhere_has_no_mask() -> None:
    x, y, mask = RandomPermutation(9, symbols=5, scored="all").batch(4, rng(6))
    assert mask is None
    last = RandomPermutation(9, symbols=5).batch(4, rng(6))
    assert torch.equal(x, last.inputs)
    assert torch.equal(y, last.targets)
    problem = RandomPermutation(9, symbols=5, scored="all")
    assert problem.mean_target.tolist() == pytest.approx([1 / 18] * 2 + [8 / 27] * 3)
    assert float(problem.mean_target.sum()) == pytest.approx(1.0)


# ---- the paper's memorisation


def test_the_papers_memorisation_by_hand() -> None:
    """n + T steps: with T = 8 three blanks, the cue and the bits while four blanks come in."""
    problem = Memorization5(8, layout="martens2011")
    x, y, mask = problem.all_cases(torch.float64)
    assert mask is None
    assert x.shape == (13, 32, 4)
    bits = [1, 1, 0, 0, 1]  # 1 + 2 + 16 = 19
    assert x[:, 19].argmax(-1).tolist() == [*bits, 2, 2, 2, 3, 2, 2, 2, 2]
    assert y[:, 19].tolist() == [2] * 8 + bits
    assert torch.equal(x, Memorization5(3).all_cases(torch.float64).inputs)
    assert problem.mean_input().tolist() == pytest.approx(x.mean((0, 1)).tolist())
    assert problem.mean_target.tolist() == [2.5 / 13, 2.5 / 13, 8 / 13]


@pytest.mark.parametrize("kind", [Memorization5, Memorization20])
def test_the_papers_memorisation_is_shorter_by_the_symbols(kind: type[Memorization5]) -> None:
    n = kind.symbols
    paper, other = kind(30, layout="martens2011"), kind(30 - n)
    assert paper.steps == 30 + n == other.steps
    a, b = (p.batch(7, rng(7)) for p in (paper, other))
    assert torch.equal(a.inputs, b.inputs)
    assert torch.equal(a.targets, b.targets)
    with pytest.raises(ValueError, match=r"length: got 3, need \d+ = n \+ T"):
        paper.mean_input(3)
    assert create(**paper.config()).config()["layout"] == "martens2011"


def test_five_bits_are_trained_and_tested_on_all_of_them() -> None:
    problem: Any = Memorization5(4)
    assert isinstance(problem, FiniteProblem)
    assert isinstance(problem, FixedTest)
    (batch,) = problem.test_set(10_000)
    assert torch.equal(batch.inputs, problem.all_cases().inputs)
    assert not isinstance(Memorization20(4), FixedTest)
    with pytest.raises(ValueError, match="size: got 0"):
        problem.test_set(0)


# ---- what is wrong, and the criterion of 1997


def test_xor_is_judged_by_the_sign() -> None:
    problem = Xor(10)
    batch = problem.batch(6, rng(8), torch.float64)
    batch.targets[-1, :, 0] = torch.tensor([1.0, 1, 1, 0, 0, 0])
    s = torch.full_like(batch.targets, 9.0)  # earlier outputs must not matter
    s[-1, :, 0] = torch.tensor([1e-9, 0.0, float("nan"), -3.0, 0.0, 2.0], dtype=torch.float64)
    assert problem.wrong(s, batch).tolist() == [False, True, True, False, True, True]
    found = problem.deviation(s, batch).tolist()
    p = [1 - 1 / (1 + math.exp(-1e-9)), 0.5, None, 1 / (1 + math.e**3), 0.5, 1 / (1 + math.e**-2)]
    assert math.isnan(found[2])
    assert [f for f in found if not math.isnan(f)] == pytest.approx([q for q in p if q is not None])


@pytest.mark.parametrize(
    "problem", [TemporalOrder2(9), TemporalOrder3(9), RandomPermutation(4)], ids=repr
)
def test_classes_are_judged_by_the_largest_of_the_last_outputs(problem: Any) -> None:
    batch = problem.batch(5, rng(9), torch.float64)
    k = problem.output_size
    s = torch.nn.functional.one_hot(batch.targets, k).double()
    s[:-1] = float("nan")  # earlier steps must not matter
    s[-1, 1] = s[-1, 1].roll(1)
    s[-1, 2] = 0.0  # a tie
    s[-1, 3, (int(batch.targets[-1, 3]) + 1) % k] = float("nan")
    s[-1, 4] *= 40.0
    assert problem.wrong(s, batch).tolist() == [False, True, True, True, False]
    assert problem.errors(s, batch).tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    found = problem.deviation(s, batch).tolist()
    total = math.e + k - 1
    assert found[:3] == pytest.approx([1 - math.e / total, 1 - 1 / total, 1 - 1 / k])
    assert math.isnan(found[3])
    assert found[4] == pytest.approx(0.0, abs=1e-12)


def test_the_deviation_of_memorisation_is_that_of_its_worst_step() -> None:
    problem = Memorization20(3)
    batch = problem.batch(2, rng(10), torch.float64)
    s = 30.0 * torch.nn.functional.one_hot(batch.targets, 6).double()
    s[:-10] = float("nan")
    s[-4, 1] = 0.0
    assert problem.deviation(s, batch).tolist() == pytest.approx([0.0, 5 / 6], abs=1e-10)


def test_deviations_are_in_the_units_of_1997() -> None:
    for problem, unit in (
        (hf.problems.Addition(10), 1.0),
        (hf.problems.Addition(10, target="sum"), 0.5),
        (hf.problems.Addition(10, centre=True), 1.0),
        (Multiplication(10), 1.0),
    ):
        batch = problem.batch(3, rng(11), torch.float64)
        s = batch.targets.clone()
        s[-1, :, 0] += torch.tensor([0.02, -0.06, 0.0], dtype=torch.float64)
        expected = [unit * 0.02, unit * 0.06, 0.0]
        assert problem.deviation(s, batch).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_criterion_of_1997() -> None:
    def met(criterion: Criterion1997, *deviations: float) -> bool:
        return criterion.met(torch.tensor(deviations, dtype=torch.float64))

    strict = Criterion1997(0.3, mean_below=0.1, sequences=3)
    assert met(strict, 0.3, 0.0, -0.01)
    assert not met(strict, 0.31, 0.0, 0.0)
    assert not met(strict, 0.1, 0.1, 0.1)  # a mean of 0.1 is not below
    assert not met(strict, 0.0, float("nan"), 0.0)
    some = Criterion1997(0.04, allowed=1)
    assert met(some, 9.0, 0.0)
    assert not met(some, 9.0, 9.0, 0.0)
    assert some.beyond(torch.tensor([0.04, 0.05, float("nan")])).tolist() == [False, True, True]


@pytest.mark.parametrize("name", SEQUENCES)
def test_every_problem_is_judged_as_in_1997(name: str) -> None:
    """Perfect outputs meet it, those of a constant do not."""
    problem: Any = create(name, length=12)
    assert isinstance(problem, Judged1997)
    batch = problem.batch(200, rng(12), torch.float64)
    if batch.targets.dtype == torch.int64:
        perfect = 50.0 * torch.nn.functional.one_hot(batch.targets, problem.output_size).double()
    else:
        perfect = batch.targets if name != "xor" else 50.0 * (2 * batch.targets - 1)
    assert problem.criterion_1997.met(problem.deviation(perfect, batch))
    assert not problem.criterion_1997.met(problem.deviation(torch.zeros_like(perfect), batch))


def test_the_log_has_the_criterion_beside_the_errors() -> None:
    """Means over the first 2000 test sequences, wherever the batches end; the 2500 are tested."""
    problem = Xor(5)
    model = hf.RNN(2, 4, 1)
    hf.init.sparse_(model, torch.Generator().manual_seed(0))
    optimizer = hf.NAG(model, lr=0.1, momentum=0.5)
    options: dict[str, Any] = {"batch_size": 5, "test_size": 2500, "test_every": 3, "seed": 3}
    stop = hf.training.Limits(iterations=3)
    lines: list[dict[str, Any]] = []

    class Log(hf.Callback):
        def on_step(self, state: hf.TrainState) -> None:
            lines.append(state.metrics)

    hf.train(model, problem, optimizer, stop=stop, callbacks=[Log()], progress=False, **options)
    *untested, tested = lines
    assert all("deviation_1997" not in line for line in untested)
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence(3).spawn(2)[1]))
    deviations, wrong = [], 0
    for size in (1000, 1000, 500):
        batch = problem.batch(size, stream)
        with torch.no_grad():
            s = model(batch.inputs)
        wrong += int(problem.wrong(s, batch).sum())
        deviations += problem.deviation(s, batch).tolist()
    assert tested["test_error"] == wrong / 2500
    judged = np.array(deviations[:2000])
    assert tested["deviation_1997"] == pytest.approx(judged.mean(), rel=1e-12)
    assert tested["wrong_1997"] == (judged > 0.3).mean() > 0
    assert tested["solved_1997"] is False


# ---- bad input


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("xor", {"length": 2}, ValueError, "length: got 2, need at least 3 so that both marker"),
        ("xor", {"target": "sum"}, ValueError, "got option 'target', need length, centre"),
        ("xor", {"centre": 1}, TypeError, "centre: got 1, need a bool"),
        ("temporal-order-2bit", {"length": 5}, ValueError, "got 5, need at least 6 so that all 2"),
        ("temporal-order-3bit", {"length": 7}, ValueError, "got 7, need at least 8 so that all 3"),
        ("temporal-order-3bit", {"length": 9.0}, TypeError, "length: got 9.0, need an int"),
        ("random-permutation", {"length": 1}, ValueError, "length: got 1, need at least 2"),
        ("random-permutation", {"symbols": 2}, ValueError, "symbols: got 2, need at least 3"),
        ("random-permutation", {"scored": "recall"}, ValueError, "need one of 'last', 'all'"),
        ("memorization-5bit", {"layout": "2011"}, ValueError, "layout: got '2011', need one of"),
        (
            "memorization-20bit",
            {"length": 10, "layout": "martens2011"},
            ValueError,
            "length: got 10, need at least 11 so that there is something to wait for",
        ),
    ],
)
def test_bad_options_are_named(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        create(name, **options)


def test_a_permutation_has_one_length() -> None:
    with pytest.raises(ValueError, match="length: got 5, need 9 = T"):
        RandomPermutation(9).mean_input(5)


# ---- a problem of one's own


def test_a_problem_of_ones_own_is_trained_as_the_docstring_says() -> None:
    assert hf.problems.__doc__ is not None
    (example,) = doctest.DocTestParser().get_examples(hf.problems.__doc__)
    names: dict[str, Any] = {"hf": hf, "torch": torch}
    exec(example.source, names)
    problem = names["LastInput"]()
    assert isinstance(problem, hf.problems.Problem)
    assert isinstance(problem, hf.problems.ZeroOne)
    model = hf.RNN(1, 4, 1)
    hf.init.sparse_(model, torch.Generator().manual_seed(0))
    small: dict[str, Any] = {"batch_size": 40, "gradient_batches": 2, "test_size": 40}
    stop = hf.training.Limits(iterations=30)
    optimizer = hf.HessianFree(model, problem.loss)
    result = hf.train(
        model, problem, optimizer, stop=stop, solved_below=0.3, progress=False, **small
    )
    assert result.solved
    start = hf.RnnStart(hidden_size=4, init="sparse")
    grid = {"learning_rate": [0.1, 0.01]}
    swept = hf.sweep(problem, grid, updates=2, test_size=40, start=start, progress=False)
    assert len(swept.runs) == 2
