"""Training in phases (Sutskever et al. 2013, appendix A.6) as a policy of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hfcore.arguments import naming_options
from hfcore.batches import Batches
from hfcore.cases import Cases
from hfcore.minibatches import PhaseBatches
from hfcore.schedules import Phases
from hfcore.training.callbacks import Callback, TrainState
from hfcore.training.describe import describe


class Phased(Callback):
    """The batches of phases, whose options it sets: policy and callback in one.

    >>> opt = hf.HessianFree(model, loss, **hf.presets.hybrid2013)
    >>> phases = hf.schedules.Phases(opt, hf.presets.hybrid2013_mnist)
    >>> hf.train(model, (images, images), opt, batches=hf.training.Phased(phases))

    Every line of metrics.jsonl names its ``phase``. The run stops with the reason ``"phases"`` when
    all are done, or without ``stop`` goes on in the last.
    """

    reads_gradients = False

    @naming_options
    def __init__(self, phases: Phases, *, seed: int = 0, stop: bool = True) -> None:
        self.phases = phases
        self.stop = stop
        self._batches = PhaseBatches(seed=seed)

    def on(self, cases: Cases) -> Phased:
        """The same on these cases; the phases are shared."""
        new = Phased(self.phases, seed=self._batches.seed, stop=self.stop)
        new._batches = self._batches.on(cases)
        return new

    def __call__(self, step: int) -> Batches:
        """The batches of the present phase."""
        return self._batches(self.phases.present, self.phases.t)

    def on_train_begin(self, state: TrainState) -> str | None:
        return self._reason()

    def measure(self, state: TrainState) -> Mapping[str, Any]:
        return {"phase": self.phases.present.name}

    def on_step(self, state: TrainState) -> str | None:
        self.phases.advance(state.metrics["cg_iterations"])
        return self._reason()

    def _reason(self) -> str | None:
        return "phases" if self.stop and self.phases.done else None

    def state_dict(self) -> dict[str, Any]:
        return self.phases.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.phases.load_state_dict(state)

    def config(self) -> Any:
        return {
            **self._batches.config(),
            "phases": [describe(vars(phase)) for phase in self.phases.phases],
        }
