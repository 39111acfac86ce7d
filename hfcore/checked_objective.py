"""An objective of somebody else's behind the whole interface: defaults filled in, results checked.

Every error names the method and says what it gave and what is needed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor

from hfcore.objective import DAMPING_START, Curvature, CurvatureKind, Objective, ProductTerms

REQUIRED = ("loss", "gradient", "curvature")
# Of a product that is asked for nothing more.
NO_TERMS: ProductTerms = {"damping": 0.0, "structural": 0.0, "out": None, "stop": None}


def checked_objective(objective: Any) -> CheckedObjective:
    """``objective`` as a :class:`CheckedObjective`.

    Raises TypeError where it is a class or lacks one of the required methods.
    """
    if isinstance(objective, CheckedObjective):
        return objective
    name = type(objective).__name__
    if isinstance(objective, type):
        raise TypeError(f"objective: got the class {objective.__name__}, need an instance of it")
    for method in REQUIRED:
        if not callable(getattr(objective, method, None)):
            raise TypeError(f"objective: {name} has no method {method}, need hf.Objective's")
    return CheckedObjective(objective)


class CheckedObjective:
    """The whole of :class:`hfcore.Objective`, on one that may lack what has a default."""

    def __init__(self, objective: Any) -> None:
        self.given = objective
        self.supports_structural = bool(getattr(objective, "supports_structural", False))
        self.supports_stop = bool(getattr(objective, "supports_stop", False))
        self.serves_kinds = takes(objective.curvature, "kind")

    @property
    def l2(self) -> float:
        return float(getattr(self.given, "l2", 0.0))

    @l2.setter
    def l2(self, value: float) -> None:
        if value == self.l2:
            return
        if not hasattr(self.given, "l2"):
            name = type(self.given).__name__
            raise ValueError(f"l2: got {value}, but the objective {name} has no l2; need 0")
        self.given.l2 = value

    def prepare(self, data: Any) -> Any:
        return self.given.prepare(data) if has(self.given, "prepare", Objective) else data

    def minibatches(self, data: Any) -> int:
        if not has(self.given, "minibatches", Objective):
            return 1
        return int(self.given.minibatches(data))

    def damping_start(self, data: Any) -> float:
        if not has(self.given, "damping_start", Objective):
            return DAMPING_START
        value = number("damping_start", self.given.damping_start(data))
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"objective.damping_start: gave {value}, need a finite number, not negative"
            )
        return value

    def loss(self, data: Any, theta: Tensor) -> float:
        with reading("loss", theta):
            return number("loss", self.given.loss(data, theta))

    def gradient(self, data: Any, theta: Tensor) -> tuple[float, Tensor]:
        with reading("gradient", theta):
            result = self.given.gradient(data, theta)
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise TypeError(
                f"objective.gradient: gave {type(result).__name__}, need (loss, gradient)"
            )
        return number("gradient", result[0]), vector("gradient", result[1], theta)

    def squared_gradients(self, data: Any, theta: Tensor) -> Tensor:
        if not has(self.given, "squared_gradients", Objective):
            name = type(self.given).__name__
            raise ValueError(
                f"preconditioner: 'fisher' needs the objective's squared_gradients, which {name} "
                "does not have"
            )
        with reading("squared_gradients", theta):
            return vector("squared_gradients", self.given.squared_gradients(data, theta), theta)

    def curvature(self, data: Any, theta: Tensor, kind: CurvatureKind = "ggn") -> CheckedCurvature:
        if kind != "ggn" and not self.serves_kinds:
            name = type(self.given).__name__
            raise ValueError(
                f"curvature: got {kind!r}, but the curvature of {name} takes no kind; need 'ggn' "
                "or 'hessian_fd'"
            )
        kinds = {"kind": kind} if self.serves_kinds else {}
        with reading("curvature", theta):
            given = self.given.curvature(data, theta, **kinds)
        if not callable(getattr(given, "product", None)):
            raise TypeError(
                f"objective.curvature: gave {type(given).__name__}, which has no method product"
            )
        return CheckedCurvature(given, theta, lambda at: self.loss(data, at))


class CheckedCurvature(Curvature):
    """The whole of :class:`hfcore.objective.Curvature`, on one that may know products alone.

    ``theta [N]`` is where it was asked for; ``loss_at`` gives the objective at a ``[N]``.
    """

    def __init__(self, curvature: Any, theta: Tensor, loss_at: Callable[[Tensor], float]) -> None:
        self.given = curvature
        self._like = theta
        self._takes = {name: takes(curvature.product, name) for name in NO_TERMS}
        loss = getattr(curvature, "loss", None)
        self.loss = loss_at(theta) if loss is None else number("curvature.loss", loss)
        self.has_diagonal = has(curvature, "diagonal", Curvature)

    def product(self, v: Tensor, **terms: Unpack[ProductTerms]) -> Tensor:
        given = {**NO_TERMS, **terms}
        taken = {name: value for name, value in given.items() if self._takes[name]}
        result = self.given.product(v, **taken)
        out, damping = terms.get("out"), terms.get("damping", 0.0)
        if result is not out:
            result = vector("curvature.product", result, v)
        if damping and not self._takes["damping"]:
            result = result.add(v, alpha=damping)
        if terms.get("structural") and not self._takes["structural"]:
            raise ValueError("structural: the objective's products do not take it, need 0")
        return result if out is None or result is out else out.copy_(result)

    def products(self, V: Tensor, damping: float = 0.0, structural: float = 0.0) -> Tensor:
        if has(self.given, "products", Curvature):
            result = self.given.products(V, damping, structural)
            return vector("curvature.products", result, V)
        return super().products(V, damping, structural)

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        if not self.has_diagonal:
            name = type(self.given).__name__
            raise ValueError(
                f"diagonal: {name} has none, which preconditioners 'ggn_diagonal' and 'jacobi' "
                "and scale_damping need"
            )
        return vector("curvature.diagonal", self.given.diagonal(probes, generator), self._like)


def has(value: Any, method: str, base: type) -> bool:
    """Whether a method is there and is not the default of ``base``."""
    found = getattr(value, method, None)
    return callable(found) and getattr(found, "__func__", found) is not getattr(base, method)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of that name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without one
        return True
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


class reading:
    """Around a method that must leave ``theta [N]`` as it is: ValueError where it wrote to it."""

    def __init__(self, method: str, theta: Tensor) -> None:
        self._method, self._theta = method, theta

    def __enter__(self) -> None:
        self._version = _version(self._theta)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and _version(self._theta) != self._version:
            raise ValueError(f"objective.{self._method}: wrote to theta, need it left as it is")


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def number(method: str, value: Any) -> float:
    """A real number or a tensor of one element, as a float."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise ValueError(
                f"objective.{method}: gave a {value.dtype} of shape {list(value.shape)} as loss, "
                "need one real number"
            )
        return float(value.detach())
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"objective.{method}: gave {type(value).__name__} as loss, need a number"
        ) from error


def vector(method: str, value: Any, like: Tensor) -> Tensor:
    """``value`` as a dense tensor ``[N]`` or ``[m,N]`` like ``like``, without autograd.

    Raises TypeError or ValueError naming the method where shape, dtype or device are others.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"objective.{method}: gave {type(value).__name__}, need a torch.Tensor")
    if value.shape != like.shape:
        raise ValueError(
            f"objective.{method}: gave shape {list(value.shape)}, need {list(like.shape)}"
        )
    if value.dtype != like.dtype:
        raise TypeError(f"objective.{method}: gave {value.dtype}, need {like.dtype} like theta")
    if value.device != like.device:
        raise ValueError(
            f"objective.{method}: gave a tensor on {value.device}, need {like.device} like theta"
        )
    return value.detach().contiguous()
