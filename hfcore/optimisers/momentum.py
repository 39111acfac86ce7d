"""Gradient descent with classical and Nesterov's momentum (Sutskever et al. 2013, eqs. 1-4).

Numbered notes say where this departs from the paper.

1. The L2 term joins the gradient where that is taken: at θ, for NAG at θ + μv.
2. μ of an update of NAG is the one with which its lookahead point was made, so a schedule may step
   in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from hfcore.arguments import called, naming_options
from hfcore.optimisers.flat_state import Layout
from hfcore.optimisers.momentum_base import MomentumOptimizer, Parameters
from hfcore.optimisers.momentum_closures import Closure
from hfcore.optimisers.momentum_options import options_of
from hfcore.optimisers.watched_step import watched_step


class LookaheadError(RuntimeError):
    """A step of :class:`NAG` without a gradient at θ + μv, or a lookahead within another."""


class SGD(MomentumOptimizer):
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
        return self._stepped_at_theta(closure, weight)


class ClassicalMomentum(MomentumOptimizer):
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
        return self._stepped_at_theta(closure, weight)


class NAG(MomentumOptimizer):
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
        Raises :class:`LookaheadError` where it is entered within itself.
        """
        if self._inside:
            raise LookaheadError("lookahead: is entered within itself, need it closed first")
        self._looked = []
        looked = []
        for group in self.param_groups:
            looked.append((options_of(group).momentum, self._layout(group)))
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
        the gradients computed inside the last :meth:`lookahead`, each once. Raises
        :class:`LookaheadError` where there was none since the last step, and inside of one.
        """
        if self._inside:
            raise LookaheadError("step: was called inside lookahead(), need it after the context")
        loss = self._updated_by(closure, ahead=True)
        if loss is not None:
            self._looked = []
            return loss
        if closure is not None:
            with self.lookahead(), torch.enable_grad():
                loss = called("closure", closure)
        if not self._looked:
            raise LookaheadError(
                "step: the gradient of NAG is taken at θ + μv, need a closure, or a gradient "
                "computed inside `with opt.lookahead():` since the last step"
            )
        loss = self._averaged(closure, loss, weight)
        with torch.no_grad():
            for group, (momentum, layout) in zip(self.param_groups, self._looked, strict=True):
                self._update(group, momentum, layout)
        self._looked = []
        return loss
