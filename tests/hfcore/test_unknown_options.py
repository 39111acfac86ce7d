"""A keyword that nothing takes is named, with the one that it may have been meant for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import hfcore as hf

PLACES = (
    hf, hf.data, hf.distributed, hf.init, hf.losses, hf.minibatches, hf.pretraining, hf.problems,
    hf.schedules, hf.sweeps, hf.training,
)  # fmt: skip
# What a run, a step or a solver gives, protocols, and what people do not build.
NOT_BUILT = {
    "Callback", "CheckpointError", "Constant", "Dataset", "DistributedObjective",
    "EigenpairsNotConverged", "FiniteProblem", "FixedTest", "Identity", "Judged1997", "LoadedRun",
    "LineSearchStats", "Objective", "OptionSchedule", "Outcome", "PretrainResult", "Problem",
    "Ranks", "RunSettings", "Scheduled", "SequenceProblem", "SequenceSet", "SpectralDensity",
    "Start", "Statistics", "StepStats", "SweepResult", "Test", "TrainResult", "TrainState",
    "ZeroOne", "Criterion1997", "AutoencoderStart", "RnnStart",
    "Loss", "generator_of", "sweep_in_rounds",
}  # fmt: skip


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """What users call with options by name, each once."""
    seen = set()
    for place in PLACES:
        for name in getattr(place, "__all__", [n for n in dir(place) if n[0] != "_"]):
            found = getattr(place, name)
            if isinstance(found, ModuleType) or not callable(found) or name in NOT_BUILT:
                continue
            ours = getattr(found, "__module__", "").startswith("hfcore.")
            if ours and found not in seen and options(found):
                seen.add(found)
                yield f"{place.__name__}.{name}", found


def options(function: Callable[..., Any]) -> list[str]:
    try:
        given = inspect.signature(function).parameters.values()
    except ValueError:
        return []
    return [p.name for p in given if p.kind == p.KEYWORD_ONLY]


ENTRIES = dict(public())


def test_the_entries_are_those_of_the_interface() -> None:
    assert len(ENTRIES) >= 40
    for name in ("HessianFree", "NAG", "train", "sweep", "GaussNewton", "check_curvature", "RNN"):
        assert f"hfcore.{name}" in ENTRIES


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_names_the_option_that_may_be_meant(name: str) -> None:
    function = ENTRIES[name]
    known = options(function)
    for option in known:
        misspelt = option[:-2] + option[-1] if len(option) > 4 else option + option[-1]
        if misspelt in known:
            continue
        with pytest.raises(TypeError, match=f"^{misspelt}: unknown option; did you mean '"):
            function(**{misspelt: 1})


x, y = torch.zeros(4, 3), torch.zeros(4, 2)
SQUARED = hf.losses.SquaredError()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda n: hf.HessianFree(n, SQUARED, dampng=1.0), "damping"),
        (lambda n: hf.HessianFree(n, SQUARED, chunksize=1), "chunk_size"),
        (lambda n: hf.HessianFree(n, SQUARED, expected_product=9), "expected_products"),
        (lambda n: hf.NAG(n.parameters(), 0.1, momentun=0.9), "momentum"),
        (lambda n: hf.GaussNewton(n, SQUARED, x, y, dampng=1.0), "damping"),
        (lambda n: hf.GaussNewton(n, SQUARED, x, y, memroy="cached"), "memory"),
        (lambda n: hf.Hessian(n, SQUARED, x, y, methd="rop"), "method"),
        (lambda n: hf.objective_for(n, SQUARED, batchdim=0), "batch_dim"),
        (lambda n: hf.check_curvature(n, SQUARED, x, y, cordinates=1), "coordinates"),
        (lambda n: hf.GaussNewton(n, SQUARED, x, y).solve(y, preconditoner=None), "preconditioner"),
        (lambda n: hf.GaussNewton(n, SQUARED, x, y).eigsh(1, tolerence=0.1), "tolerance"),
        (lambda n: hf.training.Limits(iteration=3), "iterations"),
        (lambda n: hf.schedules.Increasing(mu_mx=0.9), "mu_max"),
        (lambda n: hf.minibatches.SmallBatches(x, y, sze=1), "size"),
        (lambda n: hf.nets.FusedObjective(n, normalise="outputs"), "normalize"),
    ],
)
def test_what_people_misspell(call: Callable[[nn.Module], Any], said: str) -> None:
    with pytest.raises(TypeError, match=f"unknown option; did you mean '{said}'"):
        call(nn.Linear(3, 2))


def test_an_option_like_no_other_is_told_what_there_is() -> None:
    with pytest.raises(TypeError, match=r"^zzz: unknown option; known are batch_dim, cases, "):
        hf.HessianFree(nn.Linear(3, 2), SQUARED, zzz=1)


def test_every_option_that_is_handed_on_is_taken() -> None:
    """By each operator those of all three, and those of the objective by the check."""
    net, loss = hf.RNN(2, 3, 1, dtype=torch.float64), hf.losses.SquaredError()
    x, y = torch.zeros(4, 2, 2).double(), torch.zeros(4, 2, 1).double()
    shared: dict[str, Any] = {
        "l2": 0.1, "structural": 0.1, "structural_distance": "quarter", "normalize": "outputs",
        "memory": "cached",
    }  # fmt: skip
    processes = {"process_group": hf.distributed.Ranks(), "cases": "own", "reduction": "exact"}
    for kind in (hf.GaussNewton, hf.Hessian, hf.EmpiricalFisher):
        for more in ({"local": True}, processes):
            A = kind(net, loss, x, y, damping=1.0, **shared, **more)
            assert A.shape[0] == A.shape[1]
    plain = {name: value for name, value in shared.items() if name != "l2"}
    assert hf.check_curvature(net, loss, x, y, **plain).checks
    hf.HessianFree(net, loss, **shared, local=True)
    module = nn.Linear(2, 1).double()
    options: dict[str, Any] = {"strategy": "double_vjp", "chunk_size": 1, "batch_dim": 1}
    assert hf.Hessian(module, loss, x, y, **options, local=True).shape == (3, 3)
