"""One factory: the objective that serves a model, fused where a fused one exists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from hfcore.autograd.objective import ModuleObjective
from hfcore.curvature.hessian_fd import FiniteDifferenceHessian
from hfcore.losses import Loss
from hfcore.nets import FusedObjective, net_of
from hfcore.nets.objective import Normalize
from hfcore.nets.rnn import StructuralDistance
from hfcore.objective import Curvature, CurvatureKind, Objective

Structural = float | Mapping[str, Any]


def objective_for(
    model: nn.Module | Iterable[nn.Parameter],
    loss: Loss | Callable[..., Tensor] | None = None,
    *,
    l2: float = 0.0,
    structural: Structural = 0.0,
    normalize: Normalize = "sequences",
    structural_distance: StructuralDistance = "matching",
    **options: Any,
) -> Objective:
    """The fused objective of a model that has a net in ``hf.nets`` with a loss of ``hf.losses``,
    :class:`hfcore.autograd.objective.ModuleObjective` for everything else.

    ``structural``: μ (RNN: of the hidden state; MLP: of every hidden layer; the product takes it,
    this only says that it is wanted) or a mapping ``{"submodule": D or (D, μ)}`` (MLP and modules).
    ``normalize`` and ``structural_distance`` speak to fused nets, those that have them; ``options``
    are the further keywords of the objective: ``memory`` of fused nets, those of the module.
    Raises ValueError or TypeError for what the model cannot serve, with the reason.
    """
    net = net_of(model, loss, structural=structural, structural_distance=structural_distance)
    if net is not None:
        return FusedObjective(net, l2=l2, normalize=normalize, **options)
    if isinstance(structural, Mapping):
        options["structural"] = structural
    elif structural:
        raise ValueError(
            "structural: got a number; a module needs a mapping from submodule names, such as "
            '{"encoder.0": "tanh"}'
        )
    options.setdefault("batch_dim", batch_dim_of(model))
    return ModuleObjective(model, loss, l2=l2, **options)


def batch_dim_of(model: Any) -> int:
    """The axis along which a model counts its cases, where it says so, else 0."""
    axis = getattr(model, "batch_dim", 0)
    return axis if isinstance(axis, int) else 0


def curvature_of(
    objective: Objective, data: Any, theta: Tensor, kind: CurvatureKind = "ggn"
) -> Curvature:
    """The curvature of any kind; ``"hessian_fd"`` needs nothing but the objective's gradient."""
    if kind == "hessian_fd":
        return FiniteDifferenceHessian(objective, data, theta)
    if kind == "ggn":  # an objective of one's own may know no other
        return objective.curvature(data, theta)
    return objective.curvature(data, theta, kind)
