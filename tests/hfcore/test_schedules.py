"""Options that change as training goes on: hf.schedules, and the presets that use them."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import hfcore as hf
from hfcore.schedules import OptionSchedule, Phase, Phases, Reciprocal


def optimiser(**options) -> hf.HessianFree:
    model = hf.RNN(1, 3, 1, generator=torch.Generator().manual_seed(0))
    return hf.HessianFree(model, hf.losses.SquaredError(), **options)


def took(cg_iterations: int) -> SimpleNamespace:
    return SimpleNamespace(cg_iterations=cg_iterations)


def test_option_schedule_sets_options_and_resumes() -> None:
    opt = optimiser()
    schedule = OptionSchedule(opt, cg_decay=lambda t: 1 - 1 / (t + 2), cg_max_iter=7)
    group = opt.param_groups[0]
    assert (group["cg_decay"], group["cg_max_iter"]) == (0.5, 7)
    schedule.step()
    schedule.step()
    assert group["cg_decay"] == 0.75
    other = optimiser()
    resumed = OptionSchedule(other, cg_decay=lambda t: 1 - 1 / (t + 2))
    resumed.load_state_dict(schedule.state_dict())
    assert other.param_groups[0]["cg_decay"] == 0.75


def test_phases_follow_the_count_of_cg_iterations() -> None:
    opt = optimiser()
    phases = Phases(
        opt,
        [
            Phase("a", {"cg_decay": 0.95}, cg_total=100),
            Phase("b", {"cg_decay": 0.99, "step_size": Reciprocal(6, 1)}, cg_total=50),
        ],
    )
    names, sizes = [], []
    for _ in range(6):
        names.append(phases.present.name)
        sizes.append(opt.param_groups[0]["step_size"])
        phases.step(took(40))
    assert names == ["a", "a", "a", "b", "b", "b"]
    assert sizes[3:5] == [6 / 2, 6 / 3]  # t − 1 at t = 3 and 4
    assert phases.done
    again = Phases(optimiser(), phases.phases)
    assert again.state_dict() != phases.state_dict()
    again.load_state_dict(phases.state_dict())
    assert again.done


def test_unknown_options_and_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match="cg_dekay: is no option"):
        OptionSchedule(optimiser(), cg_dekay=1.0)
    with pytest.raises(ValueError, match="cg_decay: the schedule gave inf"):
        OptionSchedule(optimiser(), cg_decay=lambda t: float("inf"))
    with pytest.raises(ValueError, match="phases: got none"):
        Phases(optimiser(), [])


def test_second_phases_of_the_hybrid_begin_at_half_a_step() -> None:
    """paper-facts: t counts updates, and both schedules then start at ε = 0.5."""
    curves, mnist = hf.presets.hybrid2013_curves, hf.presets.hybrid2013_mnist
    for first, second in (curves[:2], mnist[:2]):
        updates = first.cg_total // first.options["cg_max_iter"]
        assert second.options["step_size"](updates) == 0.5


@pytest.mark.parametrize("name", ["curves", "mnist", "faces"])
def test_autoencoder_presets_are_options_of_the_optimiser(name: str) -> None:
    net = hf.presets.autoencoders[name]
    opt = optimiser(**net.optimiser)
    assert opt.param_groups[0]["rho"] == "undamped"
    assert net.encoder_sizes[0] in (784, 625)


def test_hybrid_phases_are_options_of_the_optimiser() -> None:
    for preset in (hf.presets.hybrid2013_curves, hf.presets.hybrid2013_mnist):
        opt = optimiser(**hf.presets.hybrid2013)
        phases = Phases(opt, preset)
        for _ in range(40_000):
            if phases.done:
                break
            phases.step(took(1000))
        assert phases.done


@pytest.mark.parametrize("name", ["curves", "mnist"])
def test_the_hybrid_trains_and_resumes_within_a_phase(name: str) -> None:
    """The presets as they are but for the length of their phases and the start of t."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1000, 3, generator=g) @ torch.rand(3, 12, generator=g) / 3
    short = []
    for phase in getattr(hf.presets, f"hybrid2013_{name}"):
        options = dict(phase.options)
        if isinstance(options["step_size"], Reciprocal):
            options["step_size"] = Reciprocal(10)
        short.append(replace(phase, options=options, cg_total=400))

    class Training:
        def __init__(self) -> None:
            model = hf.Autoencoder([12, 8, 3], generator=torch.Generator().manual_seed(1))
            loss = hf.losses.LogisticCrossEntropy()
            self.opt = hf.HessianFree(model, loss, **hf.presets.hybrid2013)
            self.phases = Phases(self.opt, short)
            self.batches = hf.minibatches.PhaseBatches(x, x)
            self.parts = (model, self.opt, self.phases)

        def step(self) -> float:
            stats = self.opt.step(self.batches(self.phases.present, self.phases.t))
            self.phases.step(stats)
            return stats.loss

        def state(self) -> list[dict]:
            return copy.deepcopy([part.state_dict() for part in self.parts])

    run, losses, passed = Training(), [], []
    while not run.phases.done:
        if len(losses) == 15:
            middle = run.state()
        passed.append(run.phases.present.name)
        losses.append(run.step())
    assert list(dict.fromkeys(passed)) == [phase.name for phase in short]
    floor = float(torch.nn.functional.binary_cross_entropy(x, x, reduction="sum") / len(x))
    assert losses[-1] - floor < 0.5 * (losses[0] - floor)

    again = Training()
    for part, state in zip(again.parts, middle, strict=True):
        part.load_state_dict(state)
    assert [again.step() for _ in losses[15:]] == losses[15:]
