"""Gradient descent with classical and Nesterov's momentum (Sutskever et al. 2013, eqs. 1-4).

Numbered notes say where this departs from the paper.

1. The L2 term joins the gradient where that is taken: at θ, for NAG at θ + μv.
2. μ of an update of NAG is the one with which its lookahead point was made, so a schedule may step
   in between.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hfcore.arguments import called, naming_options
from hfcore.bindings.momentum import Step, momentum_update
from hfcore.distributed.group import Group, group_of
from hfcore.flat import listed
from hfcore.optimisers.averaging import Averaging
from hfcore.optimisers.flat_state import Layout, Piece, are_same
from hfcore.optimisers.watched_step import watched_step

Parameters = nn.Module | Iterable[Any]  # a module, or what torch's optimisers take
Closure = Callable[[], Tensor]

VELOCITY = "velocity"


class UpdatingClosure(ABC):
    """A closure that can take the whole step itself, where the parameters lie as it needs them.

    It is asked to only for the parameters ``[…]`` it names, in that order, in one piece of memory.
    """

    parameters: Sequence[Tensor]

    @abstractmethod
    def __call__(self) -> Tensor:
        """Leave gradients in the parameters; gives the loss, a scalar ``[]``."""

    @abstractmethod
    def update(self, theta: Tensor, velocity: Tensor, step: Step) -> Tensor:
        """One update of ``[1,N]`` in place, as ``momentum_update``; gives the loss."""


class SummedClosure(ABC):
    """A closure whose gradients and loss are already those of all processes."""

    @abstractmethod
    def __call__(self) -> Tensor:
        """Leave gradients in the parameters; gives the loss, a scalar ``[]``."""


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


class _Momentum(torch.optim.Optimizer):
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
            _options(group)
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
        lr, _, weight_decay = _options(group)
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
        several = self._averaging.several
        if not isinstance(closure, UpdatingClosure) or len(self.param_groups) > 1 or several:
            if closure is not None and not callable(closure):
                raise TypeError(f"step: got {type(closure).__name__}, need a closure or nothing")
            return None
        (group,) = self.param_groups
        lr, momentum, weight_decay = _options(group)
        layout = self._layout(group)
        if len(layout.pieces) != 1 or layout.pieces[0].copied:
            return None
        (piece,) = layout.pieces
        if not are_same(piece.parameters, closure.parameters):
            return None
        step = Step(lr, momentum, momentum if ahead else 0.0, weight_decay or None)
        loss = closure.update(piece.theta, piece.velocity, step)
        piece.wrote()
        return loss


class SGD(_Momentum):
    """Plain gradient descent, θ ← θ − ε (∇f(θ) + l2 θ).

    Args:
        params: a module, or parameters or groups of them as torch's optimisers take them; real
            floating point of any precision. float32 and float64 run on compiled kernels.
        lr: ε, at least 0; 0 moves nothing, as warm-up schedules begin.
        weight_decay: l2, the weight of ½‖θ‖², at least 0.
        process_group: of torch.distributed: gradients and losses of its processes are averaged
            before every update, by the ``weight`` of each. The first one's parameters are sent to
            all when the optimiser is made, and compared at every step.
        reduction: ``"exact"``, in a fixed order, or ``"fast"``, by one all-reduce; None: exact on
            gloo, fast on NCCL.
        local: True: a net of this process alone, while torch.distributed runs in several.

    Raises TypeError or ValueError naming the option; :meth:`step` TypeError for a sparse gradient.
    """

    @naming_options
    def __init__(
        self,
        params: Parameters,
        lr: float,
        *,
        weight_decay: float = 0.0,
        process_group: Any = None,
        reduction: Literal["exact", "fast"] | None = None,
        local: bool = False,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "weight_decay": weight_decay},
            process_group=process_group,
            reduction=reduction,
            local=local,
        )

    @watched_step
    def step(  # type: ignore[override]
        self, closure: Closure | None = None, *, weight: float = 1.0
    ) -> Tensor | None:
        """One update; with a closure that leaves gradients at θ, and gives its loss ``[]``.

        ``weight`` is what this process counts in the mean over a process_group, such as its number
        of cases: 0 where it has none.
        """
        return _plain_step(self, closure, weight)


class ClassicalMomentum(_Momentum):
    """Classical momentum: v ← μv − ε∇f(θ), θ ← θ + v (Sutskever et al. 2013, eqs. 1-2).

    ``torch.optim.SGD(momentum=μ)`` keeps −v/ε: the same path while ε is constant.

    Args: as :class:`SGD`, and ``momentum``, μ in [0, 1). Give a schedule of μ to
    :class:`hfcore.schedules.OptionSchedule`.
    """

    @naming_options
    def __init__(
        self,
        params: Parameters,
        lr: float,
        momentum: float = 0.9,
        *,
        weight_decay: float = 0.0,
        process_group: Any = None,
        reduction: Literal["exact", "fast"] | None = None,
        local: bool = False,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay},
            process_group=process_group,
            reduction=reduction,
            local=local,
        )

    @watched_step
    def step(  # type: ignore[override]
        self, closure: Closure | None = None, *, weight: float = 1.0
    ) -> Tensor | None:
        """One update; with a closure that leaves gradients at θ, and gives its loss ``[]``.

        ``weight``: as in :meth:`SGD.step`.
        """
        return _plain_step(self, closure, weight)


class NAG(_Momentum):
    """Nesterov's accelerated gradient (Sutskever et al. 2013, eqs. 3-4).

    v ← μv − ε∇f(θ + μv), θ ← θ + v. Between steps the parameters are θ. The gradient is taken at
    θ + μv, so either :meth:`step` gets a closure, or it is computed inside :meth:`lookahead`:

    >>> opt.step(closure)

    >>> with opt.lookahead():
    ...     opt.zero_grad(); loss(model(x), y).backward()
    >>> opt.step()

    ``torch.optim.SGD(nesterov=True)`` holds θ + μv as its parameters at all times and −v/ε as its
    momentum buffer: the same path, seen from there, while ε and μ are constant.

    Args: as :class:`ClassicalMomentum`.
    """

    _looked: list[tuple[float, Layout]]  # μ and θ + μv of each group at the last lookahead, or none
    _inside: bool

    @naming_options
    def __init__(
        self,
        params: Parameters,
        lr: float,
        momentum: float = 0.9,
        *,
        weight_decay: float = 0.0,
        process_group: Any = None,
        reduction: Literal["exact", "fast"] | None = None,
        local: bool = False,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay},
            process_group=process_group,
            reduction=reduction,
            local=local,
        )

    def _forget(self) -> None:
        super()._forget()
        self._looked, self._inside = [], False

    @contextmanager
    def lookahead(self) -> Iterator[None]:
        """The parameters are θ + μv inside, and θ again after, to the bit, whatever happens.

        Storage is swapped, so what is written to a parameter inside is lost. A gradient of a loss
        of inside must be computed inside: after, autograd refuses with its in-place error.
        Raises RuntimeError where it is entered within itself.
        """
        if self._inside:
            raise RuntimeError("lookahead: is entered within itself, need it closed first")
        self._looked = []
        looked = []
        for group in self.param_groups:
            looked.append((_options(group).momentum, self._layout(group)))
        pieces = [(piece, mu) for mu, layout in looked for piece in layout.pieces]
        swaps = [(piece, piece.own, piece.look_ahead(mu)) for piece, mu in pieces]
        self._inside = True
        try:
            for piece, _, points in swaps:
                piece.hold(points)
            yield
            self._looked = looked
        finally:
            for piece, own, _ in swaps:
                piece.hold(own)
            self._inside = False

    @watched_step
    def step(  # type: ignore[override]
        self, closure: Closure | None = None, *, weight: float = 1.0
    ) -> Tensor | None:
        """One update; with a closure that leaves gradients, called at θ + μv, and gives its loss.

        The loss is a scalar ``[]``; ``weight``: as in :meth:`SGD.step`. Without a closure it takes
        the gradients computed inside the last :meth:`lookahead`, each once. Raises RuntimeError
        where there was none since the last step, and inside of one.
        """
        if self._inside:
            raise RuntimeError("step: was called inside lookahead(), need it after the context")
        loss = self._updated_by(closure, ahead=True)
        if loss is not None:
            self._looked = []
            return loss
        if closure is not None:
            with self.lookahead(), torch.enable_grad():
                loss = called(closure)
        if not self._looked:
            raise RuntimeError(
                "step: the gradient of NAG is taken at θ + μv, need a closure, or a gradient "
                "computed inside `with opt.lookahead():` since the last step"
            )
        loss = self._averaged(closure, loss, weight)
        with torch.no_grad():
            for group, (momentum, layout) in zip(self.param_groups, self._looked, strict=True):
                self._update(group, momentum, layout)
        self._looked = []
        return loss


def _plain_step(optimizer: _Momentum, closure: Closure | None, weight: float) -> Tensor | None:
    """A step whose gradient is taken at θ."""
    loss = optimizer._updated_by(closure, ahead=False)
    if loss is not None:
        return loss
    if closure is not None:
        # Before the first gradient: some of torch's products have other bits in other places.
        for group in optimizer.param_groups:
            optimizer._layout(group)
        with torch.enable_grad():
            loss = called(closure)
    loss = optimizer._averaged(closure, loss, weight)
    with torch.no_grad():
        for group in optimizer.param_groups:
            optimizer._update(group, _options(group).momentum, None)
    return loss


def _gather(piece: Piece, points: dict[Tensor, Tensor]) -> Tensor:
    """The points of a piece's parameters, ``[1,N]``; θ of one that was frozen at the lookahead."""
    parts = [points.get(p, p.detach()).reshape(-1).to(piece.theta) for p in piece.parameters]
    return torch.cat(parts).unsqueeze(0)


class _Options(NamedTuple):
    """The options of a group as numbers: ε, μ (0 where there is none) and l2."""

    lr: float
    momentum: float
    weight_decay: float


def _options(group: dict[str, Any]) -> _Options:
    """The group's options, checked.

    Any real number serves: NumPy's and tensors of one element too, as schedulers leave them. Raises
    TypeError or ValueError that names the option which is wrong.
    """
    lr, momentum, l2 = (_number(name, group.get(name, 0.0)) for name in _Options._fields)
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr: got {lr}, need a finite number of at least 0")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: got {momentum}, need 0 ≤ momentum < 1")
    if not (math.isfinite(l2) and l2 >= 0):
        raise ValueError(f"weight_decay: got {l2}, need a finite number of at least 0")
    return _Options(lr, momentum, l2)


def _number(name: str, value: object) -> float:
    if type(value) is float:
        return value
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {type(value).__name__}, need a float")
    return float(value)
