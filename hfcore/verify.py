"""Curvature checked against finite differences, as Martens & Sutskever (2012) advise a newcomer.

J by central differences of the outputs before their nonlinearity, JᵀL''J/n compared with the
products G eⱼ of the implementation; everything in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hfcore.arguments import count
from hfcore.autograd.objective import ModuleObjective
from hfcore.batches import Batch
from hfcore.checked_objective import checked_objective
from hfcore.curvature.operator import check_alone, flat_parameters, operator_data
from hfcore.losses import Loss
from hfcore.objective_factory import (
    batch_dim_of,
    naming_objective_options,
    objective_for,
)
from hfcore.verify_checks import Checker, ModelChecker
from hfcore.verify_report import CurvatureReport


@naming_objective_options
def check_curvature(
    model: nn.Module | None = None,
    loss: Loss | Callable[..., Tensor] | None = None,
    inputs: Any = None,
    targets: Any = None,
    *,
    objective: Any = None,
    theta: Tensor | None = None,
    mask: Tensor | None = None,
    coordinates: int = 2,
    directions: int = 3,
    seed: int = 0,
    l2: float = 0.0,
    structural: float | Mapping[str, Any] = 0.0,
    **options: Any,
) -> CurvatureReport:
    """Check gradient, R-op, Gauss-Newton and Hessian products of a model on a batch.

    A float64 copy of the model is checked, by the implementation that trains it (fused for hf.RNN
    and hf.MLP). ``coordinates`` of every parameter and ``directions`` random vectors are compared;
    ``options`` go to the objective, as in :class:`hfcore.GaussNewton`. Products that training
    refuses are reported, with those of plain autograd in their place. A kink (ReLU, max) nearer
    than 1e-6 to a preactivation shows as an error of the finite differences.

    An :class:`hfcore.Objective` of one's own, with ``theta [N]`` or a model that holds the
    parameters, is checked in float64 as far as it can be without the model's outputs: its gradient,
    that products are symmetric and positive, and the Hessian where it serves one. Data as in
    :class:`hfcore.GaussNewton`.
    """
    count("coordinates", coordinates)
    count("directions", directions)
    count("seed", seed, least=0)
    if objective is not None:
        check_alone(loss=loss, structural=structural, l2=l2 or None, **options)
        at = flat_parameters(model, theta).double()
        own = checked_objective(objective)
        wide_data = map(_double, (inputs, targets, mask))
        data = own.prepare(operator_data(*wide_data, any_data=True))
        return CurvatureReport(Checker(own, data, at, seed).run(coordinates, directions))
    if model is None or loss is None:
        raise TypeError("model, loss: got None, need both, or objective=")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, need a torch.nn.Module")
    wide = copy.deepcopy(model).double()
    options = {"l2": l2, "structural": structural, **options}
    objective = objective_for(wide, loss, **options)
    batch = Batch(_double(inputs), _double(targets), _double(mask))
    data = objective.prepare(batch)
    net = ModuleObjective(
        wide,
        loss,
        l2=objective.l2,
        batch_dim=options.get("batch_dim", batch_dim_of(model)),
        strategy="double_vjp",
        outputs=options.get("outputs"),
    )
    net.refuses = False  # what training refuses is compared, too
    (part,) = net.prepare([batch])  # type: ignore[misc]
    checker = ModelChecker(objective, data, net, part, flat_parameters(wide, theta), seed)
    return CurvatureReport(checker.run(coordinates, directions))


def _double(value: Any) -> Any:
    return tree_map(
        lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, value
    )
