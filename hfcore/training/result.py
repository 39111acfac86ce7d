"""How a run ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. A resumed run counts from its very beginning."""

    solved: bool
    reason: str
    """Why it stopped: ``"solved"``; the ``"budget"`` of minibatches, ``"iterations"`` or
    ``"seconds"`` spent; ``"interrupted"`` by SIGINT or SIGTERM; ``"diverged"`` to a loss that is
    not finite; ``"converged"`` where Hessian-free steps find no way down; ``"early stopping"``;
    ``"phases"`` all done; ``"callback"``, or what the callback called its reason."""
    iterations: int
    minibatches: float
    """Gradients and curvature products per 1000 sequences (the paper's cost)."""
    objective_evaluations: float
    """Objective evaluations per 1000 sequences, not contained in ``minibatches``."""
    seconds: float
    """Wall-clock time of the training loop: data, steps, tests and checkpoints."""
    test_error: float
    """Share of wrong test cases; for data without right and wrong, the mean error. NaN where there
    is no test part."""
    run_dir: Path | None
    plots: tuple[Path, ...]
    validation_error: float | None = None
    """The same of the validation part, None where there is none."""

    def to_json(self) -> dict[str, Any]:
        """JSON-able; plots by their names in the run folder's ``plots``."""
        plain = {k: v for k, v in asdict(self).items() if k != "run_dir"}
        return {**plain, "plots": [path.name for path in self.plots]}

    @classmethod
    def from_json(cls, stored: dict[str, Any], run_dir: Path) -> Self:
        """The result that :meth:`to_json` gave. Raises KeyError, TypeError or ValueError for
        other things."""
        plots = tuple(run_dir / "plots" / name for name in stored["plots"])
        error = float(stored["test_error"])  # "nan" is a text in JSON
        return cls(**{**stored, "test_error": error, "plots": plots, "run_dir": run_dir})
