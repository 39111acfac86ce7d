"""What a loss is: a formula by output, and what follows from it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hfcore.arguments import naming_options
from hfcore.bindings.checks import check_choice
from hfcore.losses.formula import checked_values, gradient_of
from hfcore.losses.hessian import (
    DenseHessian,
    DiagonalHessian,
    FormulaHessian,
    OutputHessian,
    semidefinite,
)
from hfcore.probes import random_signs

Mean = Literal["cases", "weights", "elements", "sum"]
"""What a loss's sum over a batch is divided by: the cases, the weights of the classes that count,
the numbers that count, or nothing."""
StandIn = Literal["gauss_newton", "positive", "absolute"]
"""What stands for L'' where it is not positive semidefinite (Martens & Sutskever 2012, section
6.3): its Gauss-Newton part, its positive part, or its absolute value."""

MEANS = ("cases", "weights", "elements", "sum")
STAND_INS = ("gauss_newton", "positive", "absolute")

# Negative entries of a diagonal L'' up to this share of the largest are rounding.
ROUNDING = 64


class Loss(ABC):
    """A loss on outputs ``s [T,B,k]``, also ``[B,k]``, or with a leading group axis.

    ``mask [T,B]`` says what outputs count: bool, or weights ≥ 0 in s's dtype, None for all 1. An
    output of weight 0 never counts, whatever it and its target hold.

    A subclass brings :meth:`per_output`. Value, gradient and L'' then come from autograd; the
    attributes say what cannot be seen from a formula.

    Args:
        mean: what its mean is over, see :mod:`hfcore.losses`.
        stand_in: what takes the place of L'' in the Gauss-Newton matrix where the loss is not
            convex in s, since G = JᵀL''J is indefinite then (Martens & Sutskever 2012, section
            6.3). ``"positive"``: L'' without its negative eigenvalues; ``"absolute"``: with their
            absolute values; ``"gauss_newton"``: as :meth:`gauss_newton_diagonal` says. None:
            negative curvature is a ValueError. The exact Hessian has no stand-in.
    """

    # Admissible values of floating targets, which must be finite too, and how to say so.
    target_range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    target_need: ClassVar[str] = "finite values"
    # The same of predictions ŷ and their means.
    prediction_range: tuple[float, float] = (-math.inf, math.inf)
    prediction_need: str = "finite numbers"
    # What it applies to s itself, where that is "logistic", "softmax", "tanh" or "exp".
    nonlinearity: str = ""
    # Its name among the ops; "": it has no kernels.
    kind: ClassVar[str] = ""
    # Whether targets are class indices, one an output.
    takes_classes: ClassVar[bool] = False
    # Whether it is a sum over the k outputs, so that L'' is diagonal.
    separable: ClassVar[bool] = False
    # Whether it is convex in s for certain; False: L'' has to be looked at.
    convex: ClassVar[bool] = False
    # What the value is multiplied by in a mean.
    factor: float = 1.0
    mean: Mean = "cases"
    stand_in: StandIn | None = None

    @naming_options
    def __init__(self, *, mean: Mean = "cases", stand_in: StandIn | None = None) -> None:
        check_choice("mean", mean, MEANS)
        if stand_in is not None:
            check_choice("stand_in", stand_in, STAND_INS)
        self.mean = mean
        self.stand_in = stand_in

    # ---- what a subclass says

    @abstractmethod
    def per_output(self, s: Tensor, targets: Tensor) -> Tensor:
        """The loss of each output ``[…]`` of ``s […,k]``: differentiable torch ops.

        Class weights are in it, masks and sample weights are not. ``targets`` as the loss takes
        them, in s's dtype where they are floating.
        """

    def link(self, s: Tensor) -> Tensor:
        """Predictions ŷ ``[…,k]`` from outputs ``s […,k]``."""
        return s

    def best_constant(self, mean: Tensor, least: float = 1e-9) -> Tensor:
        """The outputs s ``[k]`` at which ŷ is the mean target ``mean [k]``.

        ``least`` takes the place of a mean that has no link, such as a frequency of 0.
        """
        return mean

    @property
    def likelihood(self) -> bool:
        """Whether it is a distribution's negative log-likelihood, up to a constant."""
        return False

    def gauss_newton_diagonal(self, s: Tensor, targets: Tensor) -> Tensor:
        """The diagonal ``[…,k]`` of what ``stand_in="gauss_newton"`` takes for L'' at ``s […,k]``.

        Raises ValueError where the loss has no such stand-in.
        """
        raise ValueError(f"stand_in: {self!r} has no 'gauss_newton', need 'positive' or 'absolute'")

    # ---- targets

    def check_targets(self, s_shape: torch.Size, targets: Tensor, dtype: torch.dtype) -> None:
        """Raise if ``targets`` cannot belong to outputs of shape ``[…,k]``."""
        if targets.shape != s_shape:
            raise ValueError(
                f"targets: got shape {list(targets.shape)}, need {list(s_shape)} like the outputs"
            )
        if targets.dtype != dtype:
            raise TypeError(f"targets: got {targets.dtype}, need {dtype} like the model")

    def check_output_count(self, k: int) -> None:
        """Raise ValueError where a model's k outputs are too few to be trained."""
        return

    @property
    def bounded(self) -> bool:
        """Whether finite targets may be out of range."""
        return self.target_range != (-math.inf, math.inf)

    def check_values(self, targets: Tensor, mask: Tensor | None = None) -> None:
        """Raise ValueError for a floating target that counts and is not admissible.

        ``targets […,k]``, or classes ``[…]``, which pass; ``mask […]``, None: every output counts.
        """
        if not targets.is_floating_point():
            return
        low, high = self.target_range
        bad = ~torch.isfinite(targets)
        if self.bounded:
            bad |= (targets < low) | (targets > high)
        if mask is not None:
            bad &= (mask != 0).reshape(mask.shape + (1,) * (targets.ndim - mask.ndim))
        if bool(bad.any()):
            raise ValueError(
                f"targets: an unmasked target is {targets[bad][0].item()}, need {self.target_need}"
            )

    def class_range(self, targets: Tensor) -> tuple[int, int]:
        """The least and the largest of the classes ``targets […]`` that count, int64."""
        least, largest = targets.aminmax()
        return int(least), int(largest)

    def check_range(self, low: float, high: float) -> None:
        """The same from the least and the largest of finite targets."""
        least, largest = self.target_range
        if low < least or high > largest:
            bad = low if low < least else high
            raise ValueError(f"targets: a target is {bad}, need {self.target_need}")

    def check_ops(self, outputs: int, targets: Tensor, mask: Tensor | None) -> None:
        """Raise ValueError for what ops find in grouped values and cannot look at in a graph.

        ``outputs`` is k; targets ``[G,T,B,k]``, or classes ``[G,T,B]``; ``mask [G,T,B]`` or None.
        """
        return

    def check_mean(self, name: str, mean: Tensor) -> None:
        """Raise ValueError naming ``name`` for what cannot be a mean of predictions ``[k]``."""
        low, high = self.prediction_range
        if not bool(mean.isfinite().all()) or not bool(((mean >= low) & (mean <= high)).all()):
            raise ValueError(f"{name}: got {mean.tolist()}, need {self.prediction_need}")

    # ---- means

    def counted(self, targets: Tensor, mask: Tensor | None, outputs: int, cases: int) -> float:
        """What a batch of ``cases`` with ``outputs`` = k counts in the mean of several.

        ``targets […,k]``, or classes ``[…]``; ``mask […]`` or None.
        """
        if self.mean in ("cases", "sum"):
            return float(cases)
        lead = targets.shape if self.takes_classes else targets.shape[:-1]
        weight = float(lead.numel()) if mask is None else float(mask.sum(dtype=torch.float64))
        if self.mean == "elements" and not self.takes_classes:
            return weight * outputs
        return weight

    def scale(self, counted: Iterable[float]) -> float:
        """What sums over all batches are multiplied by, from what each is :meth:`counted`.

        Raises ValueError where nothing counts.
        """
        total = 1.0 if self.mean == "sum" else sum(counted)
        if total == 0:
            raise ValueError("targets: no output counts, need at least one")
        return self.factor / total

    def mean_target(self, targets: Tensor, mask: Tensor | None, outputs: int) -> tuple[Tensor, int]:
        """Sum of the targets that count, float64 ``[k]``, and how many outputs they are of."""
        kept = targets if mask is None else targets[mask != 0]
        return kept.reshape(-1, outputs).double().sum(0), kept.numel() // outputs

    # ---- value and derivatives, on arrays with or without axes of group and time

    def value(
        self, s: Tensor, targets: Tensor, mask: Tensor | None = None, *, scale: float = 1.0
    ) -> float:
        """scale·Σ of the losses of ``s […,k]`` times their weights, accumulated in float64."""
        return float(self.values(*self.grouped(s, targets, mask), scale=scale).sum())

    def values(
        self, s: Tensor, targets: Tensor, mask: Tensor | None = None, *, scale: float = 1.0
    ) -> Tensor:
        """The same for each net of ``s [G,T,B,k]``: ``[G]`` float64."""
        with torch.no_grad():
            per = self._weighted_per_output(s.double(), _widened(targets), mask)
        return scale * per.sum((1, 2))

    def gradient(
        self,
        s: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        *,
        scale: float = 1.0,
        out: Tensor | None = None,
    ) -> Tensor:
        """scale·∂L/∂s ``[…,k]``, of s's shape and dtype, into ``out`` if it is given."""
        self.check_call(s, targets, mask)
        with torch.enable_grad():
            leaf = s.detach().requires_grad_()
            total = self._weighted_per_output(leaf, targets, mask).sum()
            g = gradient_of(self, total, leaf)
        # Not in place: of a sum over the outputs it is one number, seen k times.
        return torch.mul(g, scale, out=out)

    def hessian(
        self, s: Tensor, targets: Tensor, mask: Tensor | None = None, *, exact: bool = False
    ) -> OutputHessian:
        """The unscaled L'' at ``s […,k]``, or its stand-in; ``exact``: L'' whatever its signs.

        Raises ValueError for negative curvature without a stand-in.
        """
        self.check_call(s, targets, mask)
        if self.stand_in == "gauss_newton" and not exact:
            c = self.gauss_newton_diagonal(s.detach(), targets)
            return DiagonalHessian(weighted(c, _per_element(mask, c)))
        with torch.enable_grad():
            leaf = s.detach().requires_grad_()
            total = self._weighted_per_output(leaf, targets, mask).sum()
            g = gradient_of(self, total, leaf, again=True)
            formula = FormulaHessian(g, leaf)
            if self.separable:
                c = formula.apply(torch.ones_like(leaf))
                self._check_separable(formula, c)
                return DiagonalHessian(self._signed(c, exact))
        if exact or self.convex:
            return formula
        if self.stand_in is not None:
            return DenseHessian(semidefinite(formula.dense(), self.stand_in))
        self._refuse(formula.most_negative())
        return formula

    @property
    def net_kind(self) -> str | None:
        """Its name among the ops on whole nets; None: they do not know it."""
        return None

    @property
    def has_weights(self) -> bool:
        """Whether it weighs classes, elements or targets itself."""
        return False

    @property
    def means_cases(self) -> bool:
        """Whether its mean is the plain one over cases."""
        return self.mean == "cases" and self.factor == 1

    @property
    def is_recordable(self) -> bool:
        """Whether its sums, their scale among it, can be recorded as a CUDA graph."""
        return False

    def is_fused(self, mask: Tensor | None) -> bool:
        """Whether L'' is diag(c) or diag(c) − c cᵀ, as ops on whole nets take it.

        ``mask […]``; None: every output counts.
        """
        return self.separable

    def _signed(self, c: Tensor, exact: bool) -> Tensor:
        """A diagonal without negative entries."""
        if exact or self.convex:
            return c
        if self.stand_in == "absolute":
            return c.abs()
        if self.stand_in is None:
            least = float(c.min())
            size = float(c.abs().max())
            self._refuse(least if least < -ROUNDING * torch.finfo(c.dtype).eps * size else 0.0)
        return c.clamp_min(0)

    def _check_separable(self, formula: FormulaHessian, c: Tensor) -> None:
        """Raise ValueError where L'' is not the diagonal matrix of its row sums ``c […,k]``."""
        if c.shape[-1] < 2:
            return
        R = random_signs(c.shape, c, torch.Generator().manual_seed(0))
        off, size = float((formula.apply(R) - c * R).norm()), float(c.norm())
        if off > math.sqrt(torch.finfo(c.dtype).eps) * max(size, off):
            raise ValueError(
                f"loss: {self!r} says separable=True and is no sum over the outputs: a number of "
                "one moves the slope in another; need separable=False"
            )

    def _refuse(self, negative: float) -> None:
        if negative < 0:
            raise ValueError(
                f"loss: {self!r} is not convex in the outputs: L'' has negative curvature "
                f"({negative:.3g}) here; choose stand_in='positive', 'absolute' or one that it "
                "offers, or the exact Hessian"
            )

    def check_call(self, s: Tensor, targets: Tensor, mask: Tensor | None) -> None:
        """Raise TypeError or ValueError unless ``s [B,k]``, ``[T,B,k]`` or ``[G,T,B,k]``, targets
        and a mask ``s.shape[:-1]`` go together, naming the one that does not.
        """
        for name, value in (("s", s), ("targets", targets), ("mask", mask)):
            if not isinstance(value, Tensor) and not (name == "mask" and value is None):
                raise TypeError(f"{name}: got {type(value).__name__}, need a torch.Tensor")
        if not s.is_floating_point() or s.layout != torch.strided:
            raise TypeError(f"s: got {s.dtype} ({s.layout}), need a dense floating tensor")
        if not 1 <= s.ndim <= 4:
            raise ValueError(f"s: got shape {list(s.shape)}, need [T,B,k], [B,k] or [G,T,B,k]")
        if s.ndim == 4:  # a group may share targets and mask, and the ops look at their shapes
            return
        self.check_targets(s.shape, targets, s.dtype)
        if targets.device != s.device:
            raise ValueError(f"targets: is on {targets.device}, need {s.device} like the outputs")
        if mask is None:
            return
        if mask.shape != s.shape[:-1]:
            raise ValueError(f"mask: got shape {list(mask.shape)}, need {list(s.shape[:-1])}")
        if mask.device != s.device:
            raise ValueError(f"mask: is on {mask.device}, need {s.device} like s")
        if mask.dtype not in (torch.bool, s.dtype):
            raise TypeError(f"mask: got {mask.dtype}, need torch.bool or {s.dtype}")

    def grouped(
        self, s: Tensor, targets: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A checked call with the axes of group and time that the ops want, where ``s [B,k]`` or
        ``[T,B,k]`` has none: ``s [G,T,B,k]``, targets and mask with the same leading axes.
        """
        self.check_call(s, targets, mask)
        missing = (None,) * (4 - s.ndim)
        return s[missing], targets[missing], None if mask is None else mask[missing]

    def weighted_per_output(self, s: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
        """The loss of each output times its weight ``[…]``, differentiable; zero where masked."""
        return weighted(checked_values(self, self.per_output(s, targets), s), mask)

    def _weighted_per_output(self, s: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
        """The same with what is masked cut off before the formula sees it, NaN among it."""
        lead = torch.broadcast_shapes(
            s.shape[:1], targets.shape[:1], *(() if mask is None else (mask.shape[:1],))
        )
        if s.ndim == 4:  # a group axis that is shared
            s, targets = s.expand(*lead, *s.shape[1:]), targets.expand(*lead, *targets.shape[1:])
            mask = None if mask is None else mask.expand(*lead, *mask.shape[1:])
        if mask is not None:
            keep = mask != 0
            s = torch.where(keep.unsqueeze(-1), s, 0)
            targets = torch.where(_per_element(keep, targets), targets, 0)
        return self.weighted_per_output(s, targets, mask)

    def _options(self) -> dict[str, object]:
        """What is not at its default, for ``repr``."""
        options: dict[str, object] = {} if self.mean == "cases" else {"mean": self.mean}
        if self.factor != 1:
            options["factor"] = self.factor
        return options if self.stand_in is None else {**options, "stand_in": self.stand_in}

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._options().items())
        return f"{type(self).__name__}({options})"


def weighted(values: Tensor, mask: Tensor | None) -> Tensor:
    """``values […]`` times the weights ``mask […]``, zero where those are, even for a NaN."""
    if mask is None:
        return values
    if mask.dtype == torch.bool:
        return torch.where(mask, values, torch.zeros_like(values))
    return torch.where(mask != 0, values * mask, torch.zeros_like(values))


def _per_element(mask: Tensor | None, like: Tensor) -> Tensor:
    """A mask of outputs with the axes of ``like``."""
    if mask is None:
        return like.new_ones((), dtype=torch.bool)
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def _widened(targets: Tensor) -> Tensor:
    return targets.double() if targets.is_floating_point() else targets
