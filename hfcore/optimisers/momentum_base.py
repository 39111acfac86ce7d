"""What SGD and both kinds of momentum have in common: flat memory and the update of a group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hfcore.arguments import called, optimiser_state
from hfcore.bindings.momentum import Step, momentum_update
from hfcore.distributed.group import Group, group_of
from hfcore.flat import listed
from hfcore.optimisers.averaging import Averaging
from hfcore.optimisers.flat_state import Layout, Piece, are_same
from hfcore.optimisers.momentum_closures import Closure, SummedClosure, UpdatingClosure
from hfcore.optimisers.momentum_options import options_of

Parameters = nn.Module | Iterable[Any]  # a module, or what torch's optimisers take

VELOCITY = "velocity"


class _Known:
    """The layout of a group, and the optimiser's state in which it was found."""

    def __init__(self, layout: Layout, state: dict[Tensor, dict[str, Any]]) -> None:
        self.layout = layout
        self._entries = list(state.values())
        self._own = [state[p] for p in layout.parameters]

    def holds(self, parameters: list[Tensor], state: dict[Tensor, dict[str, Any]]) -> bool:
        """Whether all lies as it lay.

        The state's entries are compared in their order: to look up tensors takes longer.
        """
        return are_same(list(state.values()), self._entries) and self.layout.holds(
            parameters, [entry.get(VELOCITY) for entry in self._own]
        )


class MomentumOptimizer(torch.optim.Optimizer):
    """What the three have in common: options, flat memory, the update of a group.

    ``state_dict`` holds one ``velocity`` a parameter, in its shape and dtype.
    """

    def __init__(
        self,
        params: Parameters,
        defaults: dict[str, Any],
        *,
        process_group: Any,
        reduction: str | None,
        local: bool,
    ) -> None:
        what = f"hf.{type(self).__name__}"
        group = group_of(what, process_group, reduction, local=local, model=params)
        self._averaging = Averaging(what, group, local=local)
        if isinstance(params, nn.Module):
            params = [p for p in params.parameters() if p.requires_grad]
        else:
            params = listed("params", params)
        self._forget()
        super().__init__(params, defaults)
        self._averaging.begin(self.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_averaging": self._averaging}

    @property
    def group(self) -> Group | None:
        """The processes that train together, None for this one alone."""
        return self._averaging.group

    def _forget(self) -> None:
        """Drop what belongs to neither the options nor the state."""
        self._known: dict[int, _Known] = {}  # by the identity of the group

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's optimisers; the velocities are copies, which ``state_dict`` does not share.

        Raises ValueError for the state of another kind of optimiser or of another net: velocities
        of other shapes or dtypes than the parameters.
        """
        self._check_state(state_dict)
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state[VELOCITY] = state[VELOCITY].clone()

    def _check_state(self, state_dict: dict[str, Any]) -> None:
        optimiser_state(state_dict)
        own = [p for group in self.param_groups for p in group["params"]]
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        if len(saved) != len(own):
            raise ValueError(f"state_dict: has {len(saved)} parameters, need {len(own)}")
        for number, p in zip(saved, own, strict=True):
            state = state_dict["state"].get(number)
            if state is None:
                continue
            if VELOCITY not in state:
                raise ValueError(
                    f"state_dict: parameter {number} has {sorted(state)}, need {VELOCITY!r}"
                )
            velocity = state[VELOCITY]
            if velocity.shape != p.shape or velocity.dtype != p.dtype:
                raise ValueError(
                    f"state_dict: the velocity of parameter {number} is {velocity.dtype} "
                    f"{list(velocity.shape)}, need {p.dtype} {list(p.shape)} like the parameter"
                )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Another group with options of its own; ValueError or TypeError for wrong ones."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            options_of(group)
            for i, p in enumerate(group["params"]):
                if not p.is_floating_point():
                    raise TypeError(
                        f"params[{i}]: got {p.dtype}, need a real floating point parameter"
                    )
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._forget()

    def _layout(self, group: dict[str, Any]) -> Layout:
        """Where the group's parameters and velocities lie, the velocities made where missing."""
        parameters = [p for p in group["params"] if p.requires_grad or p.grad is not None]
        known = self._known.get(id(group))
        if known is not None and known.holds(parameters, self.state):
            return known.layout
        layout = Layout(parameters, [self.state[p].get(VELOCITY) for p in parameters])
        for p, velocity in zip(parameters, layout.velocities, strict=True):
            self.state[p][VELOCITY] = velocity
        self._known[id(group)] = _Known(layout, self.state)
        return layout

    def _update(self, group: dict[str, Any], momentum: float, looked: Layout | None) -> None:
        """One update of all parameters of the group that have a gradient.

        ``looked`` has the points θ + μv where the gradients were taken; None: they are of θ.
        """
        lr, _, weight_decay = options_of(group)
        for i, p in enumerate(group["params"]):
            if p.grad is not None and p.grad.layout != torch.strided:
                raise TypeError(
                    f"params[{i}]: has a gradient of layout {p.grad.layout}, need a dense one"
                )
        layout, l2 = self._layout(group), weight_decay or None
        found = layout.some([p for p in layout.parameters if p.grad is not None])
        points: dict[Tensor, Tensor] | None = None
        if l2 is not None and looked is not None and found is not looked.pieces:
            points = looked.points()
        for piece in found:
            point = None
            if l2 is not None and looked is not None:
                point = piece.point if points is None else _gather(piece, points)
            momentum_update(
                piece.theta,
                piece.velocity,
                piece.gradient(),
                learning_rate=lr,
                momentum=momentum,
                l2=l2,
                ahead=point,
            )
            piece.wrote()

    def _stepped_at_theta(self, closure: Closure | None, weight: float) -> Tensor | None:
        """The loss of a step whose gradient is taken at θ."""
        loss = self._updated_by(closure, ahead=False)
        if loss is not None:
            return loss
        if closure is not None:
            # Before the first gradient: some of torch's products have other bits in other places.
            for group in self.param_groups:
                self._layout(group)
            with torch.enable_grad():
                loss = called("closure", closure)
        loss = self._averaged(closure, loss, weight)
        with torch.no_grad():
            for group in self.param_groups:
                self._update(group, options_of(group).momentum, None)
        return loss

    def _averaged(
        self, closure: Closure | None, loss: Tensor | None, weight: float
    ) -> Tensor | None:
        """The loss; both it and the gradients are those of all processes afterwards."""
        if not self._averaging.several or isinstance(closure, SummedClosure):
            return loss
        return self._averaging.average(self.param_groups, loss, weight)

    def _updated_by(self, closure: Closure | None, *, ahead: bool) -> Tensor | None:
        """The loss of an update that the closure did itself; None: it did nothing.

        ``ahead``: the gradient is that of θ + μv.
        """
        if not isinstance(closure, UpdatingClosure):
            if closure is not None and not callable(closure):
                raise TypeError(f"step: got {type(closure).__name__}, need a closure or nothing")
            return None
        piece = self._whole_piece(closure)
        if piece is None:
            return None
        lr, momentum, weight_decay = options_of(self.param_groups[0])
        step = Step(lr, momentum, momentum if ahead else 0.0, weight_decay or None)
        loss = closure.update(piece.theta, piece.velocity, step)
        piece.wrote()
        return loss

    def is_served_by(self, closure: UpdatingClosure) -> bool:
        """Whether a step leaves the whole update to this closure."""
        return self._whole_piece(closure) is not None

    def _whole_piece(self, closure: UpdatingClosure) -> Piece | None:
        """The parameters, where they are those of the closure in one piece of memory."""
        if len(self.param_groups) > 1 or self._averaging.several:
            return None
        pieces = self._layout(self.param_groups[0]).pieces
        if len(pieces) != 1 or pieces[0].copied:
            return None
        return pieces[0] if are_same(pieces[0].parameters, closure.parameters) else None


def _gather(piece: Piece, points: dict[Tensor, Tensor]) -> Tensor:
    """The points of a piece's parameters, ``[1,N]``; θ of one that was frozen at the lookahead."""
    parts = [points.get(p, p.detach()).reshape(-1).to(piece.theta) for p in piece.parameters]
    return torch.cat(parts).unsqueeze(0)
