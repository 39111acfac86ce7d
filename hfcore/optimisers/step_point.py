"""What a Hessian-free step knows at its θ."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from hfcore.objective import Curvature, Objective
from hfcore.optimisers.lasting_solves import LastingSolves
from hfcore.optimisers.options import Options
from hfcore.optimisers.roles import Roles
from hfcore.optimisers.statistics import Ledger


@dataclass(frozen=True)
class StepPoint:
    """θ ``[N]`` with the gradient ``[N]`` and the curvature there, and the ``ledger`` of the step.

    ``diagonal [N]`` belongs to a diagonal preconditioner, ``scale [N]`` is D of scale-sensitive
    damping, None: D = I. ``curvature_scale`` and ``lasting`` are of the steps
    before.
    """

    objective: Objective
    roles: Roles
    theta: Tensor
    gradient: Tensor
    curvature: Curvature
    options: Options
    ledger: Ledger
    diagonal: Tensor | None = None
    scale: Tensor | None = None
    curvature_scale: float | None = None
    lasting: LastingSolves = field(default_factory=LastingSolves)

    def say(self, message: str) -> None:
        """What the step is to report."""
        self.ledger.messages.append(message)
