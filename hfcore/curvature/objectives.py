"""One factory: the objective that serves a model, fused where a fused one exists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from hfcore.autograd.objective import ModuleObjective
from hfcore.curvature.hessian_fd import FiniteDifferenceHessian
from hfcore.curvature.mlp import MlpObjective
from hfcore.curvature.rnn import Normalize, RnnObjective, StructuralDistance
from hfcore.curvature.rnn_sparse import SparseRnnObjective
from hfcore.losses import Loss
from hfcore.models.mlp import MLP, Autoencoder
from hfcore.models.rnn import RNN
from hfcore.nets.unaltered import why_not_fused
from hfcore.objective import Curvature, CurvatureKind, Objective

# Sequences of hf.RNN are counted along its second axis.
RNN_BATCH_DIM = 1

# Classes with kernels, exactly these.
FUSED = (RNN, MLP, Autoencoder)

Structural = float | Mapping[str, Any]


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
    **module_options: Any,
) -> Objective:
    """The fused objective of an :class:`hfcore.RNN` or :class:`hfcore.MLP` with a loss of
    ``hf.losses``, :class:`hfcore.autograd.objective.ModuleObjective` for everything else.

    ``structural``: μ (RNN: of the hidden state; MLP: of every hidden layer; the product takes it,
    this only says that it is wanted) or a mapping ``{"submodule": D or (D, μ)}`` (MLP and modules).
    ``normalize`` and ``structural_distance`` speak to the RNN, ``strategy`` and ``chunk_size`` to
    modules; ``module_options`` are the further keywords of the objective: ``memory`` of RNN and
    MLP, those of the module.
    Fused are the exact classes alone, computing what their class says: a derived class, and a net
    with hooks, parametrizations or pruned weights, goes through autograd, and the log says why.
    Raises ValueError or TypeError for what the model cannot serve, with the reason.
    """
    reason = why_left_to_autograd(model, loss)
    fused = isinstance(model, RNN | MLP) and isinstance(loss, Loss) and reason is None
    if fused and chunk_size is not None:
        raise ValueError(
            "chunk_size: is for modules without a fused product, need memory='recompute'"
        )
    if reason is not None:
        _check_without_kernels(reason, normalize, module_options)
    elif isinstance(model, RNN) and isinstance(loss, Loss):
        if isinstance(structural, Mapping):
            raise ValueError(
                "structural: got a mapping; the hidden state of an hf.RNN is damped by a number μ"
            )
        if not all(p.requires_grad for p in model.parameters()):
            raise ValueError(
                "model: some parameters of the RNN are frozen; the fused path trains all six"
            )
        return (SparseRnnObjective if model.sparse else RnnObjective)(
            model,
            loss,
            l2=l2,
            normalize=normalize,
            structural_distance=structural_distance,
            **module_options,
        )
    elif isinstance(model, MLP) and isinstance(loss, Loss):
        return MlpObjective(model, loss, l2=l2, structural=structural, **module_options)
    if isinstance(structural, Mapping):
        module_options["structural"] = structural
    elif structural:
        because = "" if reason is None else f" ({reason})"
        raise ValueError(
            "structural: got a number; a module needs a mapping from submodule names, such as "
            f'{{"encoder.0": "tanh"}}{because}'
        )
    if isinstance(model, RNN):
        module_options.setdefault("batch_dim", RNN_BATCH_DIM)
    objective = ModuleObjective(
        model, loss, l2=l2, strategy=strategy, chunk_size=chunk_size, **module_options
    )
    if reason is not None:
        objective.tell(f"{type(model).__name__} goes through autograd: {reason}")
    return objective


def why_left_to_autograd(model: object, loss: object) -> str | None:
    """Why a net of a fused class, or of one derived from it, is served by autograd with this loss.

    None: it is fused, or there is nothing to fuse.
    """
    if not (isinstance(model, RNN | MLP) and isinstance(loss, Loss)):
        return None
    if type(model) not in FUSED:
        names = " or ".join(f"hf.{c.__name__}" for c in FUSED if isinstance(model, c))
        return f"{type(model).__name__} is derived from {names}, and may compute otherwise"
    if loss.net_kind is None:
        return f"{loss!r} is not one of the losses that its passes know"
    return why_not_fused(model)


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
    """The curvature of any kind; ``"hessian_fd"`` needs nothing but the objective's gradient."""
    if kind == "hessian_fd":
        return FiniteDifferenceHessian(objective, data, theta)
    if kind == "ggn":  # an objective of one's own may know no other
        return objective.curvature(data, theta)
    return objective.curvature(data, theta, kind)
