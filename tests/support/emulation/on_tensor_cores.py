"""The recurrence on tensor cores in the emulation: what launches it, and what holds its results.

Results are held to first-order bounds in float64; what is above asks for kernels on tensor cores in
the first place.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import tensor_core_errors as quality
from emulation import ORDERS, EmulationError, Emulator, Order, gpu_source
from hfcore.kernels.recurrence import Curvature, ForwardPass, RnnWeights, gpu, reference
from hfcore.kernels.recurrence.gpu_launch import TensorLaunch
from hfcore.kernels.scratch import Scratch
from oracles.cases import recurrence as cases
from oracles.recurrence_bounds import (
    ON_TENSOR_CORES,
    U,
    assert_within,
    backward_magnitude,
    doubles,
    forward_bound,
    magnitudes,
    product_bound,
    roundings,
)

PLENTY = gpu.SHARED_LIMIT[90]
GROUPS = ("alone", "tangents", "expanded", "inputs", "weights", "distinct", "rows")
NONLINEARITIES = ("tanh", "logistic", "relu")

# In which file of kernels/recurrence, what in the place of what.
Fault = tuple[str, str, str]


class Libraries(NamedTuple):
    """Kernels built for the CPU: those on tensor cores as in :class:`TensorLaunch`, all others."""

    others: Path
    block: Path | None = None
    cluster: Path | None = None
    step: Path | None = None

    def run(self, order: Order = "forward") -> Machine:
        found = (None if path is None else Emulator(path, order) for path in self[1:])
        return Machine(Emulator(self.others, order), *found)


class Machine(NamedTuple):
    """What launches the kernels of :class:`Libraries`."""

    others: Emulator
    block: Emulator | None
    cluster: Emulator | None
    step: Emulator | None

    @property
    def tensor(self) -> TensorLaunch:
        return TensorLaunch(*(None if e is None else e.launch for e in self[1:]))

    def options(self) -> dict[str, object]:
        return {"shared_limit": PLENTY, "tensor": self.tensor}

    def launches(self) -> list[tuple[str, int]]:
        """Of kernels on tensor cores: name and barriers of a block."""
        return [launch for e in self[1:] if e is not None for launch in e.launches]

    def ran(self) -> set[str]:
        return {name for name, _ in self.launches()}


def Case(size: cases.Size, group: str = "alone", steps: str = "all") -> cases.Case:
    return cases.Case(size, torch.float32, group=group, steps=steps, seed=5)


def check_forward(machine: Machine, case: cases.Case, nonlinearity: str = "tanh") -> None:
    want_h, want_s = reference.rnn_forward(
        case.x.double(), doubles(case.w), nonlinearity, case.steps
    )
    bound = forward_bound(case, want_h, nonlinearity, ON_TENSOR_CORES)
    w = magnitudes(case.w)
    at = reference._at(case.steps, want_h.abs() * (case.size.H + 4) * U + bound)
    bound_s = reference._times(at, w.W_yh.mT) + 2 * U * (want_s.abs() + w.b_y[:, None, None])
    for states in (True, False):
        h, s = gpu.rnn_forward(
            machine.others.launch, case.x, case.w, nonlinearity, case.steps, states=states,
            **machine.options(),
        )  # fmt: skip
        assert_within(s, want_s.expand_as(s), bound_s)
        if h is not None:
            assert_within(h, want_h.expand_as(h), bound)
    assert {name for name in machine.ran() if "forward" in name}


def check_product(
    machine: Machine, case: cases.Case, nonlinearity: str, structural: float, rank_one: bool
) -> None:
    h, factors = case.states(nonlinearity), (0.3, structural, 0.7)
    curvature = Curvature(case.c, rank_one, *factors)
    got = gpu.rnn_gauss_newton(
        machine.others.launch, case.forward_pass(h=h, nonlinearity=nonlinearity), case.v, curvature,
        **machine.options(),
    )  # fmt: skip
    wide = case.forward_pass(torch.float64, h, nonlinearity)
    want = reference.rnn_gauss_newton(wide, case.v.double(), curvature._replace(c=case.c.double()))
    bound = product_bound(case, h, rank_one, nonlinearity, factors, ON_TENSOR_CORES)
    assert_within(got, want.expand_as(got), bound)


def check_backward(machine: Machine, case: cases.Case, nonlinearity: str) -> None:
    h = case.states(nonlinearity)
    at = case.forward_pass(h=h, nonlinearity=nonlinearity)
    got = gpu.rnn_backward(machine.others.launch, at, case.gs, **machine.options())
    wide = case.forward_pass(torch.float64, h, nonlinearity)
    want = reference.rnn_backward(wide, case.gs.double())
    bound = backward_magnitude(case, h, case.gs, None, nonlinearity)
    assert_within(got, want.expand_as(got), roundings(case, ON_TENSOR_CORES) * U * bound)


def check_all(machine: Machine, case: cases.Case, nonlinearity: str) -> None:
    check_forward(machine, case, nonlinearity)
    check_backward(machine, case, nonlinearity)
    for structural, rank_one in ((0.0, False), (0.4, True)):
        check_product(machine, case, nonlinearity, structural, rank_one)


def check_same_bits(libraries: Libraries, case: cases.Case) -> None:
    """A group of three nets has the bits of each net alone, in every order of the threads."""
    states = case.states("tanh")

    def run(machine: Machine, part: slice) -> list[Tensor]:
        w = RnnWeights(*(p[part] for p in case.w))
        rest = machine.options()
        h, s = gpu.rnn_forward(machine.others.launch, case.x[part], w, "tanh", case.steps, **rest)
        assert h is not None
        at = ForwardPass(case.x[part], states[part], w, "tanh", case.steps)
        curvature = Curvature(case.c[part], True, 0.3, 0.4, 0.7)
        product = gpu.rnn_gauss_newton(machine.others.launch, at, case.v[part], curvature, **rest)
        return [h, s, product]

    together = [run(libraries.run(order), slice(0, 3)) for order in ORDERS]
    for g in range(3):
        alone = run(libraries.run(), slice(g, g + 1))
        for results in together:
            for whole, one in zip(results, alone, strict=True):
                assert torch.equal(whole[g], one[0])


def check_stop(libraries: Libraries, case: cases.Case) -> None:
    """A raised flag leaves outputs alone, and every buffer that a product keeps."""
    at = case.forward_pass(h=case.states("tanh"))
    machine, scratch, curvature = libraries.run(), Scratch(), Curvature(case.c)
    stop = torch.tensor([1], dtype=torch.int32)
    T, B, _, H, _ = case.size
    states, product = torch.full((1, T, B, H), 7.0), torch.full((1, case.shape.numel), 7.0)
    launch, rest = machine.others.launch, machine.options()
    # Every buffer is there afterwards.
    gpu.rnn_gauss_newton(launch, at, case.v, curvature, scratch=scratch, **rest)
    for buffer in scratch._kept.values():
        buffer.fill_(7.0)
    gpu.rnn_forward(launch, case.x, case.w, "tanh", None, out=states, stop=stop, **rest)
    gpu.rnn_gauss_newton(
        launch, at, case.v, curvature, scratch=scratch, out=product, stop=stop, **rest
    )
    for kept in (states, product, *scratch._kept.values()):
        assert bool((kept == 7.0).all())


def no_worse_than_float32(libraries: Libraries, H: int, T: int) -> bool:
    """Whether errors are at most those of torch's float32 products, or a fifth more."""
    machine, net = libraries.run(), quality.make("dense, gain 1.1", T, H=H)
    got = quality.errors(quality.on_tensor_cores(net, machine.tensor, machine.others.launch), net)
    allowed = quality.errors(quality.in_torch(net, torch.float32), net)
    return all(error <= 1.2 * allowed[name] for name, error in got.items())


# ---- planted faults


def planted(folder: Path, source: str, fault: Fault) -> Path:
    """A source of kernels/recurrence, in a copy of the kernels that has a fault."""
    file, what, instead = fault
    kernels, original = folder / "kernels", gpu_source("recurrence", source)
    (kernels / "recurrence").mkdir(parents=True)
    shutil.copytree(original.parents[1] / "gpu", kernels / "gpu")
    for path in original.parent.glob("gpu*.cu*"):
        shutil.copy(path, kernels / "recurrence")
    at = kernels / "recurrence" / file
    text = at.read_text()
    assert text.count(what) == 1, (file, what, text.count(what))
    at.write_text(text.replace(what, instead))
    return kernels / "recurrence" / source


def shows_fault(libraries: Libraries, check: Callable[[Machine], None]) -> bool:
    """Whether any order of the threads gives a wrong result."""
    for order in ORDERS:
        try:
            check(libraries.run(order))
        except (AssertionError, EmulationError):
            return True
    return False
