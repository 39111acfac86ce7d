"""The comparisons of ``hf.check_curvature``, in float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hfcore.autograd.choice import NotACurvature
from hfcore.autograd.data import BatchPart
from hfcore.autograd.double_vjp import DoubleVjp
from hfcore.autograd.loss_graph import LinearMap
from hfcore.autograd.losses import second_of
from hfcore.autograd.objective import ModuleObjective
from hfcore.checked_objective import CheckedObjective
from hfcore.curvature.hessian_fd import FiniteDifferenceHessian
from hfcore.objective import CurvatureKind
from hfcore.objective_factory import curvature_of
from hfcore.verify_report import Check

# The step of the finite differences (the author's own check of his 2010 code).
STEP = 1e-6
# Relative errors that a right implementation stays below in float64.
BY_DIFFERENCES = 1e-5
BY_ALGEBRA = 1e-9


class Checker:
    """The comparisons that need no outputs."""

    def __init__(self, objective: Any, data: Any, theta: Tensor, seed: int) -> None:
        """At parameters ``theta [N]``; ``seed`` is that of directions and coordinates."""
        self._objective = objective
        self._data = data
        self._theta = theta
        self._sizes = [len(theta)]
        self._generator = torch.Generator().manual_seed(seed)

    def run(self, coordinates: int, directions: int) -> list[Check]:
        where = self._coordinates(coordinates)
        V = [self._direction() for _ in range(directions)]
        first, second = (self._objective.loss(self._data, self._theta) for _ in range(2))
        return [
            Check("loss, evaluated twice", abs(first - second) / abs(first or 1.0), BY_ALGEBRA),
            Check("gradient: differences of the loss", self._gradient(where, V), BY_DIFFERENCES),
            *self._of_gauss_newton(where, V),
            *self._of_hessian(V),
        ]

    def _of_gauss_newton(self, where: list[int], V: list[Tensor]) -> list[Check]:
        G, refused = self._curvature("ggn")
        checks = [*self._of_outputs(G, where, V), *refused]
        if G is None:
            return checks
        products = [G.product(v) for v in V]
        return [
            *checks,
            Check("G symmetric: uᵀGv = vᵀGu", _asymmetry(V, products), BY_ALGEBRA),
            Check("G positive: −vᵀGv", _negativity(V, products), BY_ALGEBRA),
        ]

    def _of_outputs(self, G: Any, where: list[int], V: list[Tensor]) -> list[Check]:
        return []

    def _of_hessian(self, V: list[Tensor]) -> list[Check]:
        try:
            H, refused = self._curvature("hessian")
        except ValueError:  # how an objective of one's own says that it serves none
            if isinstance(self._objective, CheckedObjective):
                return []
            raise
        if H is None:
            return refused
        name = "H v: differences of the gradient"
        return [Check(name, self._hessian(H, V), BY_DIFFERENCES), *refused]

    def _curvature(self, kind: CurvatureKind) -> tuple[Any, list[Check]]:
        """The curvature that trains; where training refuses it, why, and its products all the same
        if they can be had (else None)."""
        try:
            return curvature_of(self._objective, self._data, self._theta, kind), []
        except NotACurvature as error:
            letter = "H" if kind == "hessian" else "G"
            check = Check(f"{letter} in training: {error.equation}", error.error, error.limit)
            return self._unchecked(kind), [check]

    def _unchecked(self, kind: CurvatureKind) -> Any:
        return None

    def _direction(self) -> Tensor:
        v = torch.randn(
            len(self._theta), generator=self._generator, dtype=torch.float64, device="cpu"
        )
        return v.to(self._theta.device)

    def _coordinates(self, each: int) -> list[int]:
        """Some of every parameter."""
        chosen, at = [], 0
        for size in self._sizes:
            picks = torch.randperm(size, generator=self._generator, device="cpu")[:each]
            chosen += [at + int(i) for i in picks]
            at += size
        return chosen

    def _unit(self, j: int) -> Tensor:
        e = torch.zeros_like(self._theta)
        e[j] = 1
        return e

    def _gradient(self, where: list[int], V: list[Tensor]) -> float:
        gradient = self._objective.gradient(self._data, self._theta)[1]
        got: list[float] = []
        want: list[float] = []
        for v in [*map(self._unit, where), *V]:
            ahead, behind = (
                self._objective.loss(self._data, self._theta + sign * STEP * v) for sign in (1, -1)
            )
            got.append(float(gradient @ v))
            want.append((ahead - behind) / (2 * STEP))
        return _relative(
            torch.tensor(got, dtype=torch.float64, device="cpu"),
            torch.tensor(want, dtype=torch.float64, device="cpu"),
        )

    def _hessian(self, exact: Any, V: list[Tensor]) -> float:
        differences = FiniteDifferenceHessian(self._objective, self._data, self._theta)
        got = torch.stack([exact.product(v) for v in V])
        return _relative(got, torch.stack([differences.product(v) for v in V]))


class ModelChecker(Checker):
    """With those of the outputs; ``net`` is the same model through plain autograd."""

    def __init__(
        self,
        objective: Any,
        data: Any,
        net: ModuleObjective,
        part: BatchPart,
        theta: Tensor,
        seed: int,
    ) -> None:
        """On ``part`` of the data at parameters ``theta [N]``; else as a :class:`Checker`."""
        super().__init__(objective, data, theta, seed)
        self._net = net
        self._part = part
        self._sizes = [p.numel() for p in net.parameters.tensors]

    def _of_outputs(self, G: Any, where: list[int], V: list[Tensor]) -> list[Check]:
        return [
            Check("L'' at the outputs: not zero", self._flatness(), BY_ALGEBRA),
            Check("J v: differences of the outputs", self._rop(V), BY_DIFFERENCES),
            Check("G e_j: JᵀL''J/n by differences", self._columns(G, where), BY_DIFFERENCES),
        ]

    def _unchecked(self, kind: CurvatureKind) -> Any:
        return self._net.curvature([self._part], self._theta, kind)

    def _outputs(self, theta: Tensor) -> Tensor:
        outputs = self._net.evaluate(self._part, self._net.parameters.readable(theta)).outputs
        assert outputs is not None
        return outputs.detach()

    def _output_difference(self, v: Tensor) -> Tensor:
        ahead, behind = (self._outputs(self._theta + sign * STEP * v) for sign in (1, -1))
        return (ahead - behind) / (2 * STEP)

    def _rop(self, V: list[Tensor]) -> float:
        (strategy, _), *_ = self._net.curvature([self._part], self._theta)._strategies
        assert isinstance(strategy, DoubleVjp)
        got = [strategy.push(self._net.parameters.split(v)) for v in V]
        return _relative(torch.stack(got), torch.stack([self._output_difference(v) for v in V]))

    def _second(self) -> LinearMap:
        """L'' of f at the outputs, by autograd through the loss; or the loss's stand-in for it."""
        loss, s = self._net.loss_function, self._outputs(self._theta)
        assert loss is not None
        ((_, share),) = self._net.pieces([self._part])
        if loss.has_stand_in:
            second = loss.second(s, self._part)
            return lambda R: share * second(R.clone())
        s.requires_grad_()
        with torch.enable_grad():
            return second_of(share * loss.mean(s, self._part), s)

    def _flatness(self) -> float:
        """1 where the loss is linear in the outputs, so that G is zero and right; else 0."""
        s = self._outputs(self._theta)
        R = torch.randn(s.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(s)
        return 0.0 if bool(self._second()(R).any()) else 1.0

    def _columns(self, G: Any, where: list[int]) -> float:
        """The rows and columns ``where`` of G, against JᵀL''J with J by differences."""
        second = self._second()
        J = [self._output_difference(self._unit(j)) for j in where]
        LJ = torch.stack([second(column).reshape(-1) for column in J])
        want = torch.stack([column.reshape(-1) for column in J]) @ LJ.T
        want += self._objective.l2 * torch.eye(len(where), dtype=want.dtype, device=want.device)
        got = torch.stack([G.product(self._unit(j))[where] for j in where])
        return _relative(got, want)


def _relative(got: Tensor, want: Tensor) -> float:
    size = float(want.norm())
    error = float((got.double() - want).norm())
    return error / size if size else error


def _asymmetry(V: list[Tensor], products: list[Tensor]) -> float:
    """The largest |uᵀGv − vᵀGu| against ‖u‖‖Gv‖."""
    errors = [
        abs(float(u @ Gv - v @ Gu)) / (float(u.norm() * Gv.norm()) or 1.0)
        for i, (u, Gu) in enumerate(zip(V, products, strict=True))
        for v, Gv in zip(V[:i], products[:i], strict=True)
    ]
    return math.nan if any(map(math.isnan, errors)) else max(errors, default=0.0)


def _negativity(V: list[Tensor], products: list[Tensor]) -> float:
    """The largest −vᵀGv against ‖v‖‖Gv‖, 0 where none is negative."""
    shares = [
        -float(v @ Gv) / (float(v.norm() * Gv.norm()) or 1.0)
        for v, Gv in zip(V, products, strict=True)
    ]
    return math.nan if any(map(math.isnan, shares)) else max(0.0, *shares)
