"""A curvature matrix of a model at its present parameters, as a linear operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hfcore.arguments import nonnegative
from hfcore.batches import Batch
from hfcore.bindings.checks import check_tensor
from hfcore.checked_objective import checked_objective
from hfcore.curvature.guarded import GuardedCurvature
from hfcore.curvature.linear_operator import OperatorAtParameters
from hfcore.distributed.agreement import check_checksums, checksum
from hfcore.distributed.group import group_of
from hfcore.distributed.objective import distributed
from hfcore.distributed.ranks import unwrapped
from hfcore.flat import FlatParameters, each_listed
from hfcore.losses import Loss
from hfcore.nets.objective import Normalize
from hfcore.nets.rnn import StructuralDistance
from hfcore.objective import CurvatureKind, Objective
from hfcore.objective_factory import curvature_of, naming_objective_options, objective_for

# Options of the objectives of this package where nobody sets them.
UNSET: dict[str, Any] = {
    "normalize": "sequences",
    "structural_distance": "matching",
    "strategy": "auto",
}

# What all ranks of a group must have the same, by what differs.
NEED = {
    "parameters": "the same net on every rank",
    "data": "the same data on every rank, or cases='own'",
    "v": "the same vector on every rank; random ones from generators of one seed",
}

AnyLoss = Loss | Callable[..., Tensor] | None
AnyModel = nn.Module | Iterable[nn.Parameter]


def check_alone(**options: Any) -> None:
    """Raise TypeError for an option that is the business of an objective that was given.

    None, and what an option is where nobody sets it, are nothing.
    """
    for name, value in options.items():
        unset = value is None or value == UNSET.get(name, UNSET)
        if name == "structural" and not isinstance(value, Mapping):
            continue  # μ, which products take
        if not unset:
            raise TypeError(f"{name}: got {value!r} beside an objective, which has its own")


class CurvatureOperator(OperatorAtParameters):
    """A = B + damping·(I + structural·G_S) at fixed parameters, symmetric ``[N,N]``.

    B is a curvature of the mean loss (with the objective's L2, if any). Vectors are flat, in the
    order of ``model.parameters()``; activations are cached once, so that an operator outlives later
    changes of the parameters and stays at the old ones. The subclasses say what B is, their
    ``kind``; ``loss`` is the objective there. Arguments: :class:`hfcore.GaussNewton`.
    """

    kind: CurvatureKind

    @naming_objective_options
    def __init__(
        self,
        model: AnyModel | None = None,
        loss: AnyLoss = None,
        inputs: Any = None,
        targets: Any = None,
        *,
        mask: Tensor | None = None,
        objective: Any = None,
        theta: Tensor | None = None,
        damping: float = 0.0,
        structural: float | Mapping[str, Any] = 0.0,
        normalize: Normalize = "sequences",
        structural_distance: StructuralDistance = "matching",
        process_group: Any = None,
        cases: Literal["shared", "own"] = "shared",
        reduction: Literal["exact", "fast"] | None = None,
        local: bool = False,
        **options: Any,
    ) -> None:
        self._group = group_of(
            f"hf.{type(self).__name__}",
            process_group,
            reduction,
            cases=cases,
            local=local,
            model=model,
        )
        model = unwrapped(model)
        options |= {"normalize": normalize, "structural_distance": structural_distance}
        self.damping = nonnegative("damping", damping)
        self.structural = structural
        # With named submodules every μ is in the objective.
        self._mu = 1.0
        if not isinstance(structural, Mapping):
            self._mu = self.structural = nonnegative("structural", structural)
        if "l2" in options:
            options["l2"] = nonnegative("l2", options["l2"])
        if model is not None and not isinstance(model, nn.Module):
            if isinstance(model, Tensor) or not isinstance(model, Iterable):
                raise TypeError(
                    f"model: got {type(model).__name__}, need a torch.nn.Module or parameters"
                )
            model = each_listed("model", model)
        self._objective: Objective
        self._is_own = objective is not None
        if objective is not None:
            check_alone(loss=loss, structural=structural, **options)
            self._objective = checked_objective(objective)
            if self._mu and not self._objective.supports_structural:
                raise ValueError(
                    f"structural: got {self._mu}, but the objective takes none; need 0"
                )
        elif model is None:
            raise TypeError("model: got None, need a model and its loss, or objective= and theta=")
        else:
            self._objective = objective_for(model, loss, structural=structural, **options)
        self._objective = distributed(self._objective, self._group)
        theta = flat_parameters(model, theta)
        if inputs is None and objective is None:
            raise TypeError("inputs: got None, need a batch of inputs, batches or a closure")
        given = operator_data(inputs, targets, mask, any_data=objective is not None)
        self._data = self._prepared(given, theta)
        curvature = curvature_of(self._objective, self._data, theta, self.kind)
        self._curvature = GuardedCurvature(curvature, self._objective, given)
        self._theta = theta
        self.parameter_slices = None if model is None else FlatParameters(model).slices()
        self.loss: float = curvature.loss
        if objective is not None and not math.isfinite(self.loss):
            raise ValueError(f"objective.loss: gave {self.loss}, need a finite number")

    def _prepared(self, given: Any, theta: Tensor) -> Any:
        """The data; in a group an error is one on every rank, and what all must have the same is
        compared."""
        if self._group is None or not self._group.several:
            return self._objective.prepare(given)
        ranks = self._group.ranks
        data = ranks.together(lambda: self._objective.prepare(given))
        named = {"parameters": checksum(theta)}
        if self._group.cases == "shared" and not callable(given):
            named["data"] = checksum(given)
        check_checksums(ranks, named, NEED)
        return data

    def _check_vectors(self, v: Tensor) -> None:
        """A product takes one vector: ``v […]`` of every rank."""
        if self._group is not None and self._group.several:
            check_checksums(self._group.ranks, {"v": checksum(v)}, NEED)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, N) for N parameters."""
        return (self._theta.numel(), self._theta.numel())

    @property
    def strategy(self) -> str:
        """How products are computed: ``"fused"``, or a strategy of ``autograd/strategies.py``."""
        return getattr(self._curvature, "strategy", "fused")

    @property
    def identity_part(self) -> float:  # type: ignore[override]
        """damping + l2, both of which are multiples of I."""
        return self.damping + self._objective.l2

    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        self._check_vectors(v)
        return self._curvature.product(
            v, damping=self.damping, structural=self.damping * self._mu, out=out
        )

    def _products(self, V: Tensor) -> Tensor:
        self._check_vectors(V)
        return self._curvature.products(V, self.damping, self.damping * self._mu)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, "
            f"damping={self.damping}, structural={self.structural})"
        )


def flat_parameters(model: AnyModel | None, theta: Tensor | None) -> Tensor:
    """θ ``[N]``, checked: the given one (a copy), or what the model holds."""
    held = None if model is None else FlatParameters(model)
    if theta is None:
        if held is None:
            raise TypeError("theta: got None, need the flat parameters, or model= that holds them")
        theta = held.read()
    else:
        check_tensor("theta", theta, ["N" if held is None else held.numel])
        if not theta.is_floating_point():
            raise TypeError(f"theta: got {theta.dtype}, need a real floating point vector")
        if held is not None:
            check_tensor("theta", theta, [held.numel], like=held.tensors[0])
        theta = theta.detach().clone(memory_format=torch.contiguous_format)
    if held is not None:
        bad = held.first_bad(theta)
        if bad is not None:
            raise ValueError(f"model: parameter {bad} holds NaN or Inf, need finite values")
    elif not bool(torch.isfinite(theta).all()):
        raise ValueError("theta: holds NaN or Inf, need finite values")
    return theta


def operator_data(inputs: Any, targets: Any, mask: Tensor | None, *, any_data: bool) -> Any:
    """Inputs with targets as one :class:`hfcore.Batch`, inputs alone as they are.

    ``mask […]`` goes with the targets; alone the inputs are a list of batches, or a closure, or
    what an objective of one's own takes. Raises ValueError for a mask without targets.
    """
    if targets is not None or (isinstance(inputs, Tensor) and not any_data):
        return Batch(inputs, targets, mask)
    if mask is not None:
        raise ValueError("mask: belongs to inputs and targets; a batch or a closure has its own")
    return inputs
