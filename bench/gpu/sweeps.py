"""Whole tables of Sutskever et al. (2013) on one GPU: their time, projected from some updates.

Table 5 is 448 runs: four problems, seven momenta, four learning rates, four seeds; 50,000 updates
each. A CURVES autoencoder of table 1 takes 750,000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hfcore.problems import Problem, create
from hfcore.sweeps import sweep

TABLE5_UPDATES, TABLE1_UPDATES = 50_000, 750_000
RATES = [1e-3, 1e-4, 1e-5, 1e-6]
TABLE5_GRID = [
    {"learning_rate": RATES, "method": ["sgd"]},
    {"learning_rate": RATES, "method": ["nag", "cm"], "momentum": [0.9, 0.98, 0.995]},
]
TABLE5 = {
    "addition": {"length": 80},
    "multiplication": {"length": 80},
    "memorization-5bit": {"length": 200, "scored": "recall"},
    "memorization-20bit": {"length": 80, "scored": "recall"},
}
WARM_UP = 20  # updates that compile the kernels


@dataclass(frozen=True)
class Projection:
    """Seconds of ``measured`` updates of all ``runs``, and what ``updates`` would take."""

    name: str
    runs: int
    measured: int
    seconds: float
    updates: int

    @property
    def projected(self) -> float:
        """Seconds of all updates, as if they all took as long."""
        return self.seconds * self.updates / self.measured

    def row(self) -> dict[str, Any]:
        return {**vars(self), "projected_seconds": self.projected}


def projections(measured: int, *, seeds: int = 4, device: str = "cuda") -> list[Projection]:
    """Every problem of table 5, one CURVES autoencoder: batches sent, then made on the device."""
    table1: dict[str, Any] = {
        "batch_size": 200, "schedule": "increasing", "updates": TABLE1_UPDATES
    }  # fmt: skip
    nag = [{"learning_rate": [0.01], "momentum": [0.99]}]
    found = []
    for on_device in (False, True):
        for name, options in TABLE5.items():
            problem, made = create(name, centre=True, **options), {"on_device": on_device}
            found.append(_project(problem, TABLE5_GRID, measured, seeds, device, **made))
        made = {"on_device": on_device, **table1}
        found.append(_project(create("curves"), nag, measured, 1, device, **made))
    return found


def _project(
    problem: Problem,
    grid: list[dict[str, Any]],
    measured: int,
    seeds: int,
    device: str,
    *,
    batch_size: int = 100,
    schedule: Any = "delayed",
    updates: int = TABLE5_UPDATES,
    on_device: bool = False,
) -> Projection:
    def seconds(count: int) -> tuple[float, int]:
        result = sweep(
            problem,
            grid,
            seeds=seeds,
            updates=count,
            batch_size=batch_size,
            schedule=schedule,
            test_every=count,
            test_size=100,
            device=device,
            on_device=on_device,
            progress=False,
        )
        if device != "cpu":
            torch.cuda.synchronize()
        return result.seconds, len(result.runs)

    seconds(min(WARM_UP, measured))
    took, runs = seconds(measured)
    name = f"{problem.name}, on_device" if on_device else problem.name
    return Projection(name, runs, measured, took, updates)


def projection_table(found: list[Projection]) -> str:
    """As Markdown."""
    lines = [
        "| sweep | runs | updates measured | seconds | updates in all | projected hours |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {p.name} | {p.runs} | {p.measured:,} | {p.seconds:.1f} | {p.updates:,} | "
        f"{p.projected / 3600:.2f} |"
        for p in found
    ]
    return "\n".join(lines) + "\n"
