"""What a state_dict of hf.HessianFree holds beside torch's, and which ones are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hfcore.arguments import optimiser_state

# Of the first parameter: steps taken, the last CG iterate ``[N]``, s of the bounds of λ.
STATE = ("steps", "cg_last", "curvature_scale")
SHAPES, OPERATOR_STATE = "shapes", "preconditioner_state"
# Stands for a preconditioner that is an operator, which is not stored.
OPERATOR = "operator"


def packed(state_dict: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """torch's state_dict with the parameters' shapes and an operator preconditioner's own state.

    Each parameter's shape ``[…]`` is stored as a list of its lengths.
    """
    (group,) = state_dict["param_groups"]
    group[SHAPES] = [list(p.shape) for p in parameters]
    operator = group["preconditioner"]
    if operator is not None and not isinstance(operator, str):
        group["preconditioner"] = OPERATOR
        if hasattr(operator, "state_dict"):
            group[OPERATOR_STATE] = operator.state_dict()
    return state_dict


def unpacked(
    state_dict: Mapping[str, Any], parameters: Sequence[Tensor], operator: Any
) -> tuple[dict[str, Any], bool]:
    """(torch's part of a state, whether it is to keep ``operator``, whose state has been loaded).

    Raises ValueError for the state of another kind of optimiser or of another net: parameters of
    another number, shape ``[…]`` or dtype.
    """
    optimiser_state(state_dict)
    groups = state_dict["param_groups"]
    if len(groups) != 1 or "damping" not in groups[0]:
        raise ValueError("state_dict: has no option 'damping', need the state of a HessianFree")
    group = dict(groups[0])
    shapes, own = group.pop(SHAPES, None), [list(p.shape) for p in parameters]
    if len(group["params"]) != len(own):
        raise ValueError(f"state_dict: has {len(group['params'])} parameters, need {len(own)}")
    for i, (saved, shape) in enumerate(zip(own if shapes is None else shapes, own, strict=True)):
        if list(saved) != shape:
            raise ValueError(f"state_dict: parameter {i} has shape {list(saved)}, need {shape}")
    _check_state(state_dict["state"], parameters)
    own_state = group.pop(OPERATOR_STATE, None)
    keeps = group.get("preconditioner") == OPERATOR
    if keeps:
        if operator is None or isinstance(operator, str):
            raise ValueError(
                "preconditioner: the state is of a run with an operator, need it as preconditioner="
            )
        group["preconditioner"] = None
        if own_state is not None and hasattr(operator, "load_state_dict"):
            operator.load_state_dict(own_state)
    return {**state_dict, "param_groups": [group]}, keeps


def _check_state(state: Mapping[Any, Mapping[str, Any]], parameters: Sequence[Tensor]) -> None:
    for number, entry in state.items():
        unknown = sorted(set(entry) - set(STATE))
        if unknown:
            raise ValueError(
                f"state_dict: parameter {number} has {unknown}, need the state of a HessianFree"
            )
        last = entry.get("cg_last")
        if last is None:
            continue
        N, dtype = sum(p.numel() for p in parameters), parameters[0].dtype
        if list(last.shape) != [N] or last.dtype != dtype:
            raise ValueError(
                f"state_dict: cg_last is a {last.dtype} of shape {list(last.shape)}, need a "
                f"{dtype} of shape [{N}] like the model's parameters"
            )
