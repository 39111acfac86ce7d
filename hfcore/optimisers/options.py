"""The options of hf.HessianFree, as what each part of a step takes of them.

A parameter group holds them flat, by the names of the fields here, so that schedules, states and
run folders see plain numbers. :meth:`Options.of` checks them all. What each means:
:class:`hfcore.optimisers.hessian_free.HessianFree`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Self, get_type_hints

from hfcore.arguments import choice, count, flag, nonnegative, number, positive
from hfcore.objective import CURVATURE_KINDS, CurvatureKind
from hfcore.optimisers.backtracking import BACKTRACKING, GEOMETRIC, Backtracking, EvaluateEvery
from hfcore.optimisers.damping import DAMPING_RULES, RHO_CONVENTIONS, LevenbergMarquardt
from hfcore.optimisers.line_search import FixedStep, LineSearch, NoStep
from hfcore.optimisers.preconditioner import (
    EXPONENTS,
    DiagonalRule,
    DiagonalSource,
    check_preconditioner,
)
from hfcore.solvers.conjugate_gradient import StopRule
from hfcore.solvers.preconditioners import Preconditioner

Check = Callable[[str, Any], Any]

# Probes a case, each a pass back.
MOST_PROBES = 100_000
# Seeds of the probes: a generator's 64 bits hold one and the number of the step.
MAX_SEED = 2**31


def optional(check: Check) -> Check:
    """None, or what ``check`` allows."""
    return lambda name, value: None if value is None else check(name, value)


def unless(words: str | Iterable[str], check: Check) -> Check:
    """The word, or one of several, or what ``check`` allows."""
    known = (words,) if isinstance(words, str) else tuple(words)

    def either(name: str, value: Any) -> Any:
        if isinstance(value, str):
            if value not in known:
                need = " or ".join(map(repr, known))
                raise ValueError(f"{name}: got {value!r}, need a number or {need}")
            return value
        return check(name, value)

    return either


def one_of(choices: Any) -> Check:
    return partial(choice, choices=tuple(choices))


def _window(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name}: got {value!r}, need (low, high)")
    low, high = (number(name, end) for end in value)
    if not 0 < low < high:
        raise ValueError(f"{name}: got {value}, need 0 < low < high")
    return low, high


def _structural(name: str, value: Any) -> float | dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else nonnegative(name, value)


@dataclass(frozen=True)
class Checked:
    """A part of the options; every field is normalised by the check in its annotation."""

    def __post_init__(self) -> None:
        for name, check in _checks(type(self)).items():
            object.__setattr__(self, name, check(name, getattr(self, name)))

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> Self:
        """From the options of a parameter group."""
        return cls(**{name: group[name] for name in _checks(cls)})


_known: dict[type, dict[str, Check]] = {}


def _checks(part: type) -> dict[str, Check]:
    """The check of every field; looking them up takes longer than they do."""
    if part not in _known:
        hints = get_type_hints(part, include_extras=True)
        _known[part] = {name: hint.__metadata__[0] for name, hint in hints.items()}
    return _known[part]


@dataclass(frozen=True)
class Damping(Checked):
    """λ, μ, the scale of damping, and how λ or the trust radius follow ρ."""

    damping: Annotated[float | Literal["auto"], unless("auto", nonnegative)]
    damping_window: Annotated[tuple[float, float] | None, optional(_window)]
    scale_damping: Annotated[float | None, optional(nonnegative)]
    structural: Annotated[float | dict[str, Any], _structural]
    trust_radius: Annotated[float | None, optional(positive)]
    rho: Annotated[str, one_of(RHO_CONVENTIONS)]
    rho_low: Annotated[float, number]
    rho_high: Annotated[float, number]
    damping_up: Annotated[float, positive]
    damping_down: Annotated[float, positive]
    damping_failed: Annotated[float | None, optional(positive)]

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.rule  # refuses what does not go together
        if self.damping_window is not None and self.trust_radius is not None:
            raise ValueError(
                "damping_window: got one with a trust_radius, in which λ stays; need None"
            )

    @property
    def rule(self) -> LevenbergMarquardt:
        return LevenbergMarquardt(
            self.rho_low, self.rho_high, self.damping_up, self.damping_down, self.damping_failed
        )

    @property
    def mu(self) -> float:
        """μ; 1 where it is in the objective, with named submodules."""
        return 1.0 if isinstance(self.structural, dict) else self.structural

    @property
    def radius(self) -> float:
        """The trust radius, ∞ for none."""
        return math.inf if self.trust_radius is None else self.trust_radius


@dataclass(frozen=True)
class ConjugateGradient(Checked):
    """When CG stops, where it starts, and which of its iterates becomes the step."""

    cg_max_iter: Annotated[int, count]
    cg_tolerance: Annotated[float, nonnegative]
    cg_lookback: Annotated[int, count]
    cg_residual: Annotated[float | Literal["relative"], unless("relative", nonnegative)]
    cg_decay: Annotated[float, nonnegative]
    cg_restart: Annotated[bool, flag]
    cg_evaluate_every: Annotated[EvaluateEvery, unless(GEOMETRIC, count)]
    cg_backtracking: Annotated[Backtracking, one_of(BACKTRACKING)]
    cg_loss_increase_after: Annotated[int | None, optional(partial(count, least=0))]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cg_loss_increase_after is not None and self.cg_backtracking == "last":
            raise ValueError("cg_loss_increase_after: needs cg_backtracking 'best' or 'walk'")

    def stop(self, gradient_norm: float) -> StopRule:
        """The rule of a solve whose right-hand side has that norm.

        Relative is ‖r‖ < min(½, ‖g‖^½)·‖g‖, of standard HF (Martens 2010, section 4.4).
        """
        residual = self.cg_residual
        if isinstance(residual, str):
            residual = min(0.5, math.sqrt(gradient_norm)) * gradient_norm
        return StopRule(
            max_iterations=self.cg_max_iter,
            tolerance=self.cg_tolerance,
            lookback=self.cg_lookback,
            residual=residual,
        )


@dataclass(frozen=True)
class StepLength(Checked):
    """How far a step goes: the line search, or a fixed share of it."""

    lr: Annotated[float, nonnegative]
    step_size: Annotated[float | None, optional(positive)]
    line_search_decay: Annotated[float, number]
    line_search_armijo: Annotated[float, number]
    line_search_max: Annotated[int, count]

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.search  # refuses what does not go together

    @property
    def search(self) -> LineSearch | FixedStep | NoStep:
        search = LineSearch(
            self.line_search_decay, self.line_search_armijo, self.line_search_max, self.lr or 1.0
        )
        if self.lr == 0:
            return NoStep()
        return search if self.step_size is None else FixedStep(self.lr * self.step_size)


@dataclass(frozen=True)
class Preconditioning(Checked):
    """What CG is preconditioned with, and how diagonals are estimated."""

    preconditioner: Annotated[DiagonalSource | Preconditioner | None, check_preconditioner]
    preconditioner_exponent: Annotated[float | None, optional(nonnegative)]
    diagonal_probes: Annotated[int, partial(count, most=MOST_PROBES)]
    seed: Annotated[int, partial(count, least=0, most=MAX_SEED - 1)]

    @property
    def diagonal(self) -> DiagonalRule | None:
        """The rule of a diagonal preconditioner; None for another, and for none."""
        if not isinstance(self.preconditioner, str):
            return None
        exponent = self.preconditioner_exponent
        if exponent is None:
            exponent = EXPONENTS[self.preconditioner]
        return DiagonalRule(self.preconditioner, exponent, self.diagonal_probes)

    @property
    def operator(self) -> Preconditioner | None:
        """The preconditioner where it is an operator."""
        return None if isinstance(self.preconditioner, str) else self.preconditioner


@dataclass(frozen=True)
class Function(Checked):
    """Which curvature of which function."""

    curvature: Annotated[CurvatureKind, one_of(CURVATURE_KINDS)]
    l2: Annotated[float, nonnegative]


@dataclass(frozen=True)
class Options:
    """All options of a step, checked."""

    function: Function
    damping: Damping
    cg: ConjugateGradient
    step: StepLength
    preconditioning: Preconditioning

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> Options:
        """From a parameter group. Raises TypeError or ValueError naming the option."""
        return cls(
            Function.of(group),
            Damping.of(group),
            ConjugateGradient.of(group),
            StepLength.of(group),
            Preconditioning.of(group),
        )

    def flat(self) -> dict[str, Any]:
        """As a parameter group holds them."""
        parts = (self.function, self.damping, self.cg, self.step, self.preconditioning)
        return {name: getattr(part, name) for part in parts for name in _checks(type(part))}


def names() -> Iterator[str]:
    """Of all options."""
    for part in (Function, Damping, ConjugateGradient, StepLength, Preconditioning):
        yield from _checks(part)


def by_rule(damping_rule: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given``, where None stands for the convention's own value filled in."""
    rule = DAMPING_RULES[choice("damping_rule", damping_rule, DAMPING_RULES)]
    return {
        name: rule.get(name) if value is None and name in RULED else value
        for name, value in given.items()
    }


RULED = ("rho", "damping_up", "damping_down", "damping_failed")
