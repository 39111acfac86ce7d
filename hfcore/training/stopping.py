"""Callbacks that look at a metric: early stopping, and the best model of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hfcore.arguments import flag, naming_options, nonnegative
from hfcore.bindings.checks import check_positive
from hfcore.training.callbacks import Callback, TrainState

METRIC = "validation_error"


class _Watching(Callback):
    """The least (with ``maximize`` the greatest) finite value of a column of metrics.jsonl."""

    reads_gradients = False

    def __init__(self, metric: str, *, maximize: bool, min_delta: float = 0.0) -> None:
        if not isinstance(metric, str):
            raise TypeError(f"metric: got {type(metric).__name__}, need the name of a column")
        self.metric = metric
        self.maximize = flag("maximize", maximize)
        self.min_delta = nonnegative("min_delta", min_delta)
        self.value: float | None = None
        """The best so far, None before the first."""
        self.iteration = 0
        """When it was the best."""

    def improves(self, state: TrainState) -> bool:
        """Whether this iteration is the best so far; it is then remembered.

        Raises ValueError where no line has the metric, naming those there are.
        """
        if self.metric not in state.metrics:
            known = sorted(k for k, v in state.metrics.items() if isinstance(v, int | float))
            raise ValueError(
                f"metric: no column is called {self.metric!r}, there are {', '.join(known)}"
                + (" (give validation=)" if self.metric == METRIC else "")
            )
        value = state.metrics[self.metric]
        if value is None or not math.isfinite(value):
            return False
        sign = -1.0 if self.maximize else 1.0
        if self.value is not None and not sign * value < sign * self.value - self.min_delta:
            return False
        self.value, self.iteration = float(value), state.iteration
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "value": self.value, "iteration": self.iteration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Of another metric it begins anew."""
        if state["metric"] == self.metric:
            self.value, self.iteration = state["value"], state["iteration"]


class EarlyStopping(_Watching):
    """Stops when a metric has not become better for ``patience`` iterations.

    >>> hf.train(model, (x, y), opt, validation=(x_v, y_v),
    ...          callbacks=[hf.training.EarlyStopping(5)])

    Args:
        patience: iterations since the best value, at least 1.
        metric: a column of metrics.jsonl; lines where it was not measured are passed over.
        maximize: greater is better.
        min_delta: what is less better than this does not count.

    The reason to stop is ``"early stopping"``. A resume may have another patience.
    """

    @naming_options
    def __init__(
        self,
        patience: int,
        metric: str = METRIC,
        *,
        maximize: bool = False,
        min_delta: float = 0.0,
    ) -> None:
        check_positive(patience=patience)
        super().__init__(metric, maximize=maximize, min_delta=min_delta)
        self.patience = patience

    def on_train_begin(self, state: TrainState) -> str | None:
        if self.metric in state.metrics:  # the untrained model was measured
            self.improves(state)
        return self._reason(state)

    def on_step(self, state: TrainState) -> str | None:
        self.improves(state)
        return self._reason(state)

    def _reason(self, state: TrainState) -> str | None:
        waited = state.iteration - self.iteration
        return "early stopping" if waited >= self.patience else None


class BestModel(_Watching):
    """Keeps the model of the iteration with the best metric, in memory and in the checkpoints.

    ``load_run(run_dir, checkpoint="best")`` gives it back.

    Args:
        metric, maximize: as for :class:`EarlyStopping`.
        restore: put it into the model when training ends; the last one is then in the last
            checkpoint alone.
    """

    @naming_options
    def __init__(
        self, metric: str = METRIC, *, maximize: bool = False, restore: bool = False
    ) -> None:
        super().__init__(metric, maximize=maximize)
        self.restore = flag("restore", restore)
        self.model: dict[str, Tensor] = {}
        """State of the best model, empty before the first measurement."""
        self.metrics: dict[str, Any] = {}
        """The line of its iteration."""

    def on_train_begin(self, state: TrainState) -> None:
        if self.metric in state.metrics:
            self.on_step(state)

    def on_step(self, state: TrainState) -> None:
        if self.improves(state):
            self.model = {k: v.detach().clone() for k, v in state.model.state_dict().items()}
            self.metrics = dict(state.metrics)

    def on_train_end(self, state: TrainState) -> None:
        if self.restore and self.model:
            with torch.no_grad():
                state.model.load_state_dict(self.model)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "model": self.model, "metrics": self.metrics}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if state["metric"] == self.metric:
            self.model, self.metrics = dict(state["model"]), dict(state["metrics"])
