"""Which cases play which part: hf.minibatches."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import hfcore as hf


def cases(n: int) -> tuple[Tensor, Tensor]:
    x = torch.arange(n, dtype=torch.float64).unsqueeze(1)
    return x, 10 * x


def seen(batch: hf.Batch) -> list[int]:
    assert torch.equal(batch.targets, 10 * batch.inputs)
    return [int(v) for v in batch.inputs.flatten()]


@pytest.mark.parametrize(("n", "batches"), [(20, 4), (23, 4), (7, 7), (5, 1)])
def test_full_gradient_cycles_through_everything(n: int, batches: int) -> None:
    policy = hf.minibatches.FullGradient(*cases(n), curvature_batches=batches)
    turns = [policy(step) for step in range(2 * batches)]
    for turn in turns:
        assert sorted(seen(turn.gradient)) == list(range(n))
        assert turn.backtracking is turn.gradient
        assert turn.line_search is turn.gradient
    curvature = [seen(turn.curvature) for turn in turns]
    assert sorted(i for part in curvature[:batches] for i in part) == list(range(n))
    assert curvature[batches:] == curvature[:batches]
    assert max(map(len, curvature)) - min(map(len, curvature)) <= 1


def test_full_gradient_permutes_once_and_by_seed() -> None:
    orders = [
        seen(hf.minibatches.FullGradient(*cases(50), curvature_batches=2, seed=s)(0).gradient)
        for s in (0, 0, 1, None)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[3] == list(range(50))


def test_rho_is_on_the_curvatures_batch_or_on_everything() -> None:
    demo = hf.minibatches.FullGradient(*cases(9), curvature_batches=3)
    paper = hf.minibatches.FullGradient(*cases(9), curvature_batches=3, rho="gradient")
    assert demo(1).rho is None
    assert paper(1).rho is paper(1).gradient
    assert torch.equal(paper(1).curvature.inputs, demo(1).curvature.inputs)
    assert "rho" not in demo.config()  # as runs were recorded before there was a choice
    assert paper.config()["rho"] == "gradient"
    preset = hf.presets.autoencoders["mnist"]
    assert preset.policy(seed=4).config() == {**demo.config(), "curvature_batches": 8, "seed": 4}
    assert dataclasses.replace(preset, rho="gradient").policy().rho == "gradient"
    with pytest.raises(ValueError, match="rho: got 'all', need"):
        hf.minibatches.FullGradient(curvature_batches=3, rho="all")


def test_growing_curvature_batches_follow_each_other() -> None:
    policy = hf.minibatches.FullGradient(*cases(64), curvature_batches=16, growth=1.5, seed=None)
    sizes = [len(policy(step).curvature.inputs) for step in range(9)]
    assert sizes == [4, 6, 9, 14, 20, 30, 46, 64, 64]
    order = [i for step in range(7) for i in seen(policy(step).curvature)]
    assert order == [i % 64 for i in range(sum(sizes[:7]))]
    for step in (7, 100_000):  # once everything it is not copied
        assert policy(step).curvature is policy(step).gradient


def test_an_autoencoders_targets_stay_its_inputs() -> None:
    x = cases(9)[0]
    batch = hf.minibatches.FullGradient(x, x, curvature_batches=3)(0).gradient
    assert batch.targets is batch.inputs


def test_small_batches_cover_a_pass_and_reshuffle() -> None:
    policy = hf.minibatches.SmallBatches(*cases(23), size=5, seed=3)
    passes = []
    for number in range(3):
        turns = [policy(step) for step in range(4 * number, 4 * number + 4)]
        for turn in turns:
            assert turn.curvature is turn.gradient
            assert turn.line_search is turn.gradient
        order = [i for turn in turns for i in seen(turn.gradient)]
        assert len(set(order)) == 20
        passes.append(order)
    assert passes[0] != passes[1]
    fresh = hf.minibatches.SmallBatches(*cases(23), size=5, seed=3)
    assert seen(fresh(9).gradient) == passes[2][5:10]
    other = hf.minibatches.SmallBatches(*cases(23), size=5, seed=4)
    assert [i for step in range(4) for i in seen(other(step).gradient)] != passes[0]


def test_phases_name_their_shares_of_the_data() -> None:
    x, y = cases(32)
    batches = hf.minibatches.PhaseBatches(x, y, seed=2)
    small = hf.schedules.Phase("small", gradient=1 / 16, curvature=1 / 16)
    part = hf.schedules.Phase("part", curvature=1 / 4)
    turn = batches(small, 17)
    assert turn.curvature is turn.gradient
    assert seen(turn.gradient) == seen(
        hf.minibatches.SmallBatches(x, y, size=2, seed=2)(17).gradient
    )
    turn = batches(part, 18)
    assert len(seen(turn.gradient)) == 32
    want = hf.minibatches.FullGradient(x, y, curvature_batches=4, seed=2)(18)
    assert seen(turn.curvature) == seen(want.curvature)
    whole = batches(hf.schedules.Phase("whole"), 19)
    assert whole.curvature is whole.gradient
    assert sorted(seen(whole.gradient)) == list(range(32))
    for shares in ({"gradient": 0.5}, {"gradient": 0.5, "curvature": 0.25}, {"curvature": 0.0}):
        with pytest.raises(ValueError, match="phase 'odd': got gradient"):
            batches(hf.schedules.Phase("odd", **shares), 0)


def test_bad_arguments_are_named() -> None:
    x, y = cases(6)
    with pytest.raises(ValueError, match="targets: got 5 cases, need 6"):
        hf.minibatches.FullGradient(x, y[:5], curvature_batches=2)
    with pytest.raises(ValueError, match="inputs: got no cases"):
        hf.minibatches.SmallBatches(x[:0], y[:0], size=1)
    for count in (0, 7):
        with pytest.raises(ValueError, match=f"curvature_batches: got {count}"):
            hf.minibatches.FullGradient(x, y, curvature_batches=count)
        with pytest.raises(ValueError, match=f"size: got {count}"):
            hf.minibatches.SmallBatches(x, y, size=count)
    with pytest.raises(ValueError, match=r"growth: got 0\.5"):
        hf.minibatches.FullGradient(x, y, curvature_batches=2, growth=0.5)
