"""One factory: the objective that serves a model, fused where a fused one exists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from hfcore.arguments import naming_options_of
from hfcore.autograd.objective import ModuleObjective
from hfcore.curvature.hessian_fd import FiniteDifferenceHessian
from hfcore.losses import Loss
from hfcore.losses.checks import check_loss
from hfcore.nets import FusedNet, FusedObjective, net_of
from hfcore.nets.objective import Normalize
from hfcore.nets.registry import why_left_to_autograd
from hfcore.nets.rnn import StructuralDistance
from hfcore.objective import Curvature, CurvatureKind, Objective

Structural = float | Mapping[str, Any]


@naming_options_of(ModuleObjective, FusedObjective)
def objective_for(
    model: nn.Module | Iterable[nn.Parameter],
    loss: Loss | Callable[..., Tensor] | None = None,
    *,
    l2: float = 0.0,
    structural: Structural = 0.0,
    normalize: Normalize = "sequences",
    structural_distance: StructuralDistance = "matching",
    strategy: str = "auto",
    chunk_size: int | None = None,
    **options: Any,
) -> Objective:
    """The fused objective of a model that has a net in ``hf.nets`` with a loss of ``hf.losses``,
    :class:`hfcore.autograd.objective.ModuleObjective` for everything else.

    ``structural``: μ (RNN: of the hidden state, D'' = I for an LSTM or GRU; MLP: of every hidden
    layer; the product takes it, this only says that it is wanted) or a mapping
    ``{"submodule": D or (D, μ)}`` (MLP and modules).
    ``normalize`` and ``structural_distance`` speak to fused nets, ``strategy`` and ``chunk_size``
    to modules; ``options`` are the further keywords of the objective: ``memory`` of fused nets,
    those of the module.
    Fused are the exact classes alone, computing what their class says: a derived class, and a net
    with hooks, parametrizations or pruned weights, or with ``outputs``, goes through autograd, and
    the log says why. So are modules of one nn.RNN, nn.LSTM or nn.GRU read out by one nn.Linear, of
    any class, where their forward does nothing else and ``batch_dim`` says where their cases are;
    with options that speak to modules they go through autograd.
    Raises ValueError or TypeError for what the model cannot serve, with the reason.
    """
    if loss is not None:
        check_loss(loss)
    outputs = options.get("outputs")
    of_modules = _of_modules(strategy, chunk_size, structural) or "expected_products" in options
    batch_dim = None if of_modules else options.get("batch_dim", batch_dim_of(model))
    net = net_of(
        model,
        loss,
        outputs=outputs,
        batch_dim=batch_dim,
        structural=structural,
        structural_distance=structural_distance,
    )
    if net is not None:
        _check_axes(net, model, options)
        if chunk_size is not None:
            raise ValueError(
                "chunk_size: is for modules without a fused product, need memory='recompute'"
            )
        options.pop("outputs", None)
        return FusedObjective(net, l2=l2, normalize=normalize, **options)
    reason = why_left_to_autograd(model, loss, outputs, batch_dim)
    if reason is not None:
        _check_without_kernels(reason, normalize, options)
    if isinstance(structural, Mapping):
        options["structural"] = structural
    elif structural:
        because = "" if reason is None else f" ({reason})"
        raise ValueError(
            "structural: got a number; a module needs a mapping from submodule names, such as "
            f'{{"encoder.0": "tanh"}}{because}'
        )
    options.setdefault("batch_dim", batch_dim_of(model))
    objective = ModuleObjective(
        model, loss, l2=l2, strategy=strategy, chunk_size=chunk_size, **options
    )
    if reason is not None:
        objective.tell(f"{type(model).__name__} goes through autograd: {reason}")
    return objective


def _of_modules(strategy: str, chunk_size: int | None, structural: Structural) -> bool:
    """Whether options are those of autograd, which then serves torch's own modules."""
    return strategy != "auto" or chunk_size is not None or isinstance(structural, Mapping)


# For what hands its further keywords to objective_for.
naming_objective_options = naming_options_of(objective_for, ModuleObjective, FusedObjective)


def batch_dim_of(model: Any) -> int:
    """The axis along which a model counts its cases, where it says so, else 0."""
    axis = getattr(model, "batch_dim", 0)
    return axis if isinstance(axis, int) else 0


def _check_axes(net: FusedNet, model: Any, options: dict[str, Any]) -> None:
    """Take ``batch_dim`` out of the options; ValueError where a net has its cases elsewhere."""
    given = options.pop("batch_dim", None)
    axis = batch_dim_of(model)
    if given in (None, axis, (axis, axis)) or net.has_torch_axes:
        return
    raise ValueError(
        f"batch_dim: got {given!r}, need {axis}, where {type(model).__name__} has its cases"
    )


def _check_without_kernels(reason: str, normalize: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for what only a fused net serves."""
    if normalize != "sequences":
        raise ValueError(
            f"normalize: got {normalize!r}, need 'sequences' through autograd ({reason})"
        )
    if "memory" in options:
        raise ValueError(f"memory: belongs to a fused net; need chunk_size or nothing ({reason})")


def curvature_of(
    objective: Objective, data: Any, theta: Tensor, kind: CurvatureKind = "ggn"
) -> Curvature:
    """The curvature of any kind at ``theta [N]``.

    ``"hessian_fd"`` needs nothing but the objective's gradient. Raises ValueError for a kind that
    the objective does not serve.
    """
    if kind == "hessian_fd":
        return FiniteDifferenceHessian(objective, data, theta)
    if kind == "ggn":  # an objective of one's own may know no other
        return objective.curvature(data, theta)
    return objective.curvature(data, theta, kind)
