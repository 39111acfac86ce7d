"""Multiplication and memorisation, centring, and the numbers of table 5, for every problem."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hfcore.losses import SquaredError
from hfcore.problems import (
    SEQUENCES,
    Addition,
    Memorization5,
    Memorization20,
    Multiplication,
    Problem,
    RandomPermutation,
    TemporalOrder2,
    TemporalOrder3,
    Xor,
    create,
)

DTYPES = [torch.float32, torch.float64]
MEMORIZATION: list[type[Memorization5] | type[Memorization20]] = [Memorization5, Memorization20]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def constant(problem: Problem, outputs: Tensor, batch: Any) -> Tensor:
    """The outputs ``[T,B,k]`` of a net that always answers ``outputs [k]``."""
    return outputs.expand(*batch.inputs.shape[:2], problem.output_size)


@pytest.mark.parametrize(
    ("name", "options", "dtype", "digest"),
    [
        ("addition", {"length": 10}, torch.float32, "58081b828127ea0e"),
        ("addition", {"length": 37, "target": "sum"}, torch.float64, "964dd2d2643b408a"),
        ("addition", {"length": 80}, torch.float32, "2b14a06b263edbb4"),
        ("addition", {"length": 80, "centre": True}, torch.float32, "44fe13a132def254"),
        ("multiplication", {"length": 80}, torch.float64, "45a352361fe84a40"),
        ("multiplication", {"length": 33, "centre": True}, torch.float32, "8b7821e4dc8c10f1"),
        ("memorization-5bit", {"length": 20}, torch.float32, "d87d196230a6b7de"),
        ("memorization-20bit", {"length": 80, "centre": True}, torch.float64, "d016c2e0344ea704"),
    ],
)
def test_a_seed_gives_the_same_batches_for_ever(
    name: str, options: dict[str, Any], dtype: torch.dtype, digest: str
) -> None:
    """Digests of two batches of 5; stored runs resume only if they never change."""
    problem, found = create(name, **options), hashlib.sha256()
    generator = rng({10: 0, 37: 1}.get(options["length"], 2))
    for _ in range(2):
        batch = problem.batch(5, generator, dtype)
        for array in (batch.inputs, batch.targets):
            found.update(array.numpy().tobytes())
    assert found.hexdigest()[:16] == digest


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [3, 10, 51], ids=lambda T: f"T{T}")
def test_multiplication_multiplies_the_marked_numbers(length: int, dtype: torch.dtype) -> None:
    problem = Multiplication(length)
    x, y, mask = problem.batch(257, rng(length), dtype)
    assert mask is not None
    assert length <= len(x) <= 11 * length // 10
    assert x.dtype == y.dtype == dtype
    assert x.shape[1:] == (257, 2)
    assert y.shape == (len(x), 257, 1)
    assert mask.dtype == torch.bool
    assert bool(mask[-1].all())
    assert not bool(mask[:-1].any())
    assert bool((x[..., 1].sum(0) == 2).all())
    marked = torch.where(x[..., 1] == 1, x[..., 0], 1.0)
    assert torch.equal(y[-1, :, 0], marked.prod(0))


def test_addition_and_multiplication_of_one_seed_have_the_same_inputs() -> None:
    add, mul = (p(20).batch(9, rng(1), torch.float64) for p in (Addition, Multiplication))
    assert torch.equal(add.inputs, mul.inputs)
    assert not torch.equal(add.targets, mul.targets)


def test_memorization_by_hand() -> None:
    """T = 3 blanks after 5 bits; the cue at step 8 asks for the first of them at once."""
    x, y, mask = Memorization5(3).all_sequences(torch.float64)
    assert mask is None
    assert x.shape == (13, 32, 4)
    assert y.shape == (13, 32)
    assert y.dtype == torch.int64
    bits = [1, 1, 0, 0, 1]  # 1 + 2 + 16 = 19
    assert x[:, 19].argmax(-1).tolist() == [*bits, 2, 2, 2, 3, 2, 2, 2, 2]
    assert y[:, 19].tolist() == [2] * 8 + bits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 7, 80], ids=lambda T: f"T{T}")
@pytest.mark.parametrize("kind", MEMORIZATION, ids=lambda kind: kind.name)
def test_memorization_is_what_its_definition_says(
    kind: type[Memorization5], length: int, dtype: torch.dtype
) -> None:
    problem = kind(length)
    n, k, S = problem.symbols, problem.alphabet, length + 2 * problem.symbols
    x, y, _ = problem.batch(131, rng(length), dtype)
    assert x.shape == (S, 131, k + 2)
    assert y.shape == (S, 131)
    assert x.dtype == dtype
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert bool((x.sum(-1) == 1).all())
    channel = x.argmax(-1)
    assert bool((channel[:n] < k).all())
    assert torch.equal(channel[:n], y[S - n :])
    assert bool((y[: S - n] == k).all())
    assert bool((channel[n + length] == k + 1).all())
    channel[n + length] = k
    assert bool((channel[n:] == k).all())


@pytest.mark.parametrize("kind", MEMORIZATION, ids=lambda kind: kind.name)
def test_symbols_are_equally_likely_and_independent(kind: type[Memorization5]) -> None:
    problem, draws = kind(1), 40_000
    n, k = problem.symbols, problem.alphabet
    symbols = problem.batch(draws, rng(3)).targets[-n:]
    spread = (draws / k) ** 0.5  # more than a binomial's deviation
    for step in symbols:
        counts = torch.bincount(step, minlength=k)
        assert float((counts - draws / k).abs().max()) < 5 * spread
    pairs = torch.bincount(symbols[0] * k + symbols[1], minlength=k * k)
    assert float((pairs - draws / k**2).abs().max()) < 5 * spread


def test_recall_masks_all_but_the_recalled_steps() -> None:
    x, y, mask = Memorization20(7, scored="recall").batch(3, rng())
    assert mask is not None
    assert mask.dtype == torch.bool
    assert mask.shape == y.shape
    assert mask.sum(0).tolist() == [10] * 3
    assert bool(mask[-10:].all())
    everything = Memorization20(7).batch(3, rng())
    assert torch.equal(x, everything.inputs)
    assert torch.equal(y, everything.targets)


def test_all_sequences_are_all_and_each_once() -> None:
    for centre in (False, True):
        batch = Memorization5(4, centre=centre).all_sequences()
        assert batch.inputs.dtype == torch.float32
        code = (batch.targets[-5:] * 2 ** torch.arange(5)[:, None]).sum(0)
        assert code.tolist() == list(range(32))
    with pytest.raises(ValueError, match=r"memorization-20bit has 9,765,625 of them, need at most"):
        Memorization20(4).all_sequences()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted(SEQUENCES))
def test_centring_takes_the_expected_values_away(name: str, dtype: torch.dtype) -> None:
    plain, centred = create(name, length=10), create(name, length=10, centre=True)
    for seed in range(6):  # lengths 10 and 11
        a, b = plain.batch(33, rng(seed), dtype), centred.batch(33, rng(seed), dtype)
        mean = plain.mean_input(len(a.inputs)).to(dtype)
        assert torch.equal(b.inputs, a.inputs - mean)
        if b.targets.dtype == torch.int64:
            assert torch.equal(b.targets, a.targets)
            assert torch.equal(centred.mean_target, plain.mean_target)
        elif isinstance(plain.loss, SquaredError):
            assert torch.equal(b.targets[:-1], a.targets[:-1])
            assert torch.equal(b.targets[-1], a.targets[-1] - plain.mean_target.to(dtype))
            assert not bool(centred.mean_target.any())
        else:
            assert torch.equal(b.targets, a.targets)
            assert torch.equal(centred.mean_target, plain.mean_target)


@pytest.mark.parametrize("name", sorted(SEQUENCES))
def test_expected_inputs_and_targets_are_what_sampling_gives(name: str) -> None:
    problem = create(name, length=10, centre=True)
    plain = create(name, length=10)
    draws = 100_000 if plain.input_size < 10 else 10_000
    x, _, _ = problem.batch(draws, rng(5), torch.float64)
    # a mean over cases of a mean over steps, whose deviation is below ½
    assert float(x.mean((0, 1)).abs().max()) < 5 * 0.5 / draws**0.5
    _, y, mask = plain.batch(draws, rng(6), torch.float64)
    scored = y if mask is None else y[mask]
    if y.dtype == torch.int64:
        found = torch.bincount(scored.ravel(), minlength=plain.output_size) / scored.numel()
    else:
        found = scored.mean(0)
    assert float((found - plain.mean_target).abs().max()) < 5 * 0.5 / draws**0.5


def test_recalled_classes_have_their_own_frequencies() -> None:
    assert Memorization20(80, scored="recall").mean_target.tolist() == [0.2] * 5 + [0.0]
    assert Memorization5(200).mean_target.tolist() == [5 / 2 / 210] * 2 + [205 / 210]


@pytest.mark.parametrize("name", sorted(SEQUENCES))
def test_batches_do_not_depend_on_their_size_through_the_means(name: str) -> None:
    """Expected values, not a batch's own: a case is centred alike in any batch."""
    small, large = (create(name, length=10, centre=True).batch(size, rng(7)) for size in (1, 4))
    plain = create(name, length=10).batch(1, rng(7))
    shift = plain.inputs - small.inputs
    assert torch.allclose(shift, shift[0, 0].expand_as(shift), atol=1e-6)
    again = create(name, length=10).batch(4, rng(7)).inputs - large.inputs
    assert torch.allclose(again[0, 0], shift[0, 0], atol=1e-6)


@pytest.mark.parametrize("centre", [False, True], ids=["plain", "centred"])
@pytest.mark.parametrize(
    ("problem", "published"),
    [
        (Addition(10), 0.846),
        (Addition(10, target="sum"), 0.922),
        (Addition(10, tolerance=0.3), 0.16),
        (Addition(10, tolerance=0.7), 0.0),
        (Multiplication(10), 0.889),
        (Multiplication(10, tolerance=0.3), None),
        (Multiplication(10, tolerance=0.8), 0.0),
        (Memorization5(10), 2.5),
        (Memorization20(10), 8.0),
        (Xor(10), 0.5),
        (TemporalOrder2(10), 0.75),
        (TemporalOrder3(10), 0.875),
        (RandomPermutation(10, symbols=7), 0.5),
        (RandomPermutation(10, symbols=7, scored="all"), 0.5),
    ],
    ids=repr,
)
def test_bias_error_is_what_the_constant_predictor_gets(
    problem: Problem, published: float | None, centre: bool
) -> None:
    problem = create(**{**problem.config(), "centre": centre})
    assert published is None or problem.bias_error == pytest.approx(published, abs=5e-4)
    batch = problem.batch(100_000, rng(8), torch.float64)
    if batch.targets.dtype == torch.int64:
        best = torch.tensor([1.0] + [0.0] * (problem.output_size - 1), dtype=torch.float64)
    else:
        best = problem.mean_target
    errors = problem.errors(constant(problem, best, batch), batch)
    assert errors.dtype == torch.float64
    assert errors.shape == (100_000,)
    deviation = max(float(errors.std()), 1e-9)
    assert float(errors.mean()) == pytest.approx(
        problem.bias_error, abs=5 * deviation / 100_000**0.5
    )


@pytest.mark.parametrize("problem", [Addition(10), Multiplication(10)], ids=repr)
def test_mean_predictor_loss_is_half_the_variance(problem: Addition | Multiplication) -> None:
    y = problem.batch(200_000, rng(6), torch.float64).targets[-1]
    assert 0.5 * float(y.var()) == pytest.approx(problem.mean_predictor_loss, rel=0.02)


@pytest.mark.parametrize("name", ["addition", "multiplication"])
def test_errors_and_verdicts_do_not_see_the_centring(name: str) -> None:
    plain, centred = create(name, length=10), create(name, length=10, centre=True)
    a, b = (p.batch(500, rng(9), torch.float64) for p in (plain, centred))
    noise = torch.from_numpy(rng(10).normal(0, 0.05, (500, 1)))
    s_a, s_b = torch.zeros_like(a.targets), torch.zeros_like(b.targets)
    s_a[-1], s_b[-1] = a.targets[-1] + noise, b.targets[-1] + noise
    assert torch.equal(plain.wrong(s_a, a), centred.wrong(s_b, b))
    assert 0 < int(plain.wrong(s_a, a).sum()) < 500
    assert torch.equal(plain.errors(s_a, a), plain.wrong(s_a, a).double())


def test_memorization_counts_the_wrong_steps() -> None:
    problem = Memorization20(3)
    batch = problem.batch(6, rng(11), torch.float64)
    s = torch.nn.functional.one_hot(batch.targets, 6).double()
    s[:-10] = float("nan")  # steps that are not recalled must not matter
    s[-1, 1] = s[-1, 1].roll(1)  # another symbol or the blank
    s[-10:-7, 2] = 0.0  # ties
    s[-4, 3, 0] = float("nan")
    s[-4, 4] = -1e30  # ties again, far away
    s[-10:, 5] = torch.tensor([0.0, 0, 0, 0, 0, 1])  # answers blanks
    assert problem.errors(s, batch).tolist() == [0, 1, 3, 1, 1, 10]
    assert problem.wrong(s, batch).tolist() == [False, True, True, True, True, True]


@pytest.mark.parametrize("name", sorted(SEQUENCES))
def test_a_group_is_judged_net_by_net(name: str) -> None:
    problem = create(name, length=10)
    batch = problem.batch(50, rng(12))
    s = torch.from_numpy(rng(13).random((3, *batch.targets.shape[:2], problem.output_size)))
    s = s.float()
    for judge in (problem.wrong, problem.errors):
        assert torch.equal(judge(s, batch), torch.stack([judge(net, batch) for net in s]))


@pytest.mark.parametrize("name", sorted(SEQUENCES))
def test_outputs_of_another_shape_are_refused(name: str) -> None:
    problem = create(name, length=10)
    batch = problem.batch(4, rng())
    T, k = len(batch.inputs), problem.output_size
    for shape in ((1, 4, k), (T, 4, k + 1), (T, 4), (2, 2, T, 4, k)):
        with pytest.raises(ValueError, match=r"s: got shape .* need \[\d+, 4, \d+\]"):
            problem.errors(torch.zeros(shape), batch)


@pytest.mark.parametrize("name", sorted(SEQUENCES))
def test_config_rebuilds_the_problem(name: str) -> None:
    problem = create(name, length=37, centre=True)
    again = create(**problem.config())
    assert isinstance(again, Problem)
    assert again.config() == problem.config()
    assert again.config()["centre"] is True
    assert torch.equal(again.batch(5, rng(8)).inputs, problem.batch(5, rng(8)).inputs)
    assert repr(problem).startswith(f"{type(problem).__name__}(37, ")


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("multiplication", {"length": 2}, ValueError, "length: got 2, need at least 3"),
        ("multiplication", {"target": "mean"}, ValueError, "need length, tolerance, centre"),
        ("multiplication", {"tolerance": -1.0}, ValueError, "tolerance: got -1.0"),
        ("memorization-5bit", {"length": 0}, ValueError, "length: got 0, need at least 1"),
        ("memorization-5bit", {"length": 2.0}, TypeError, "length: got 2.0, need an int"),
        ("memorization-20bit", {"scored": "last"}, ValueError, "scored: got 'last', need one of"),
        ("memorization-20bit", {"centre": 1}, TypeError, "centre: got 1, need a bool"),
        ("addition", {"centre": "yes"}, TypeError, "centre: got 'yes', need a bool"),
    ],
)
def test_bad_options_are_named(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        create(name, **options)


def test_memorization_has_one_length() -> None:
    with pytest.raises(ValueError, match=r"length: got 5, need 23 = T \+ 2n"):
        Memorization20(3).mean_input(5)
    with pytest.raises(TypeError, match=r"dtype: got torch.int64, need torch.float32"):
        Memorization5(3).all_sequences(torch.int64)
