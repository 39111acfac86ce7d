"""Addition from several seeds: runs what is missing, then prints the table and writes it.

    python -P bench/seed_table.py               # everything (an hour or two on 2 cores)
    python -P bench/seed_table.py --print-only  # the table of the runs that are there

Each run is ``hf.train`` with the ``rnn2011`` preset in a folder of its own under --runs; a run that
was stopped resumes from its last checkpoint. Minibatches are gradients and curvature products per
1000 sequences (the paper's count, failure beyond 50,000); objective evaluations are counted apart.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch

import hfcore as hf

BENCH = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """One row: sequence length T, structural damping μ, seed of weights and data."""

    length: int
    structural: float
    seed: int

    @property
    def folder(self) -> str:
        return f"T{self.length}-mu{self.structural:g}-seed{self.seed}"


CASES = [
    *(Case(30, 0.03, seed) for seed in range(5)),
    *(Case(50, 0.03, seed) for seed in range(3)),
    *(Case(30, 0.0, seed) for seed in range(3)),
]


def train_case(case: Case, folder: Path, budget: float, threads: int) -> None:
    """Train one case to success or to the end of its budget, unless that is done already."""
    done = folder / "result.json"
    if done.exists():
        return
    torch.set_num_threads(threads)
    task = hf.problems.Addition(case.length)
    model = hf.RNN(task.input_size, 100, task.output_size)
    hf.init.sparse_(model, torch.Generator().manual_seed(case.seed))
    options = {**hf.presets.rnn2011, "structural": case.structural}
    result = hf.train(
        model,
        task,
        hf.HessianFree(model, task.loss, **options),
        minibatches=budget,
        seed=case.seed,
        run_dir=folder,
        resume=folder.exists(),
        checkpoint_every=10,
        progress=False,
    )
    if result.reason == "interrupted":
        raise SystemExit(130)
    record = {k: v for k, v in asdict(result).items() if k not in ("run_dir", "plots")}
    done.write_text(json.dumps({**asdict(case), **record, "threads": threads}) + "\n")


def number(value: Any) -> float:
    """metrics.jsonl writes numbers that are not finite as text."""
    return float(value)


def summarise(folder: Path) -> dict[str, Any]:
    """One row of the table from a finished run folder."""
    row: dict[str, Any] = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lambdas = [number(line["damping"]) for line in lines]
    rhos = [number(line["rho"]) for line in lines]
    finite = [r for r in rhos if r == r and abs(r) != float("inf")]
    row["damping_first"], row["damping_last"] = lambdas[0], lambdas[-1]
    row["damping_range"] = [min(lambdas), max(lambdas)]
    row["rho_median"] = statistics.median(finite) if finite else None
    row["rho_not_finite"] = len(rhos) - len(finite)
    row["cg_iterations_median"] = statistics.median(line["cg_iterations"] for line in lines)
    row["cg_stops"] = dict(Counter(line["cg_stop"] for line in lines).most_common())
    row["rejected"] = sum(not line["accepted"] for line in lines)
    return row


COLUMNS = (
    "T", "μ", "seed", "outcome", "minibatches", "objective evaluations", "HF steps", "wrong",
    "seconds", "λ first → last (range)", "median ρ", "ρ = −∞", "median CG", "why CG stopped",
    "rejected",
)  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    low, high = row["damping_range"]
    stops = ", ".join(f"{reason} {count}" for reason, count in row["cg_stops"].items())
    return [
        str(row["length"]),
        f"{row['structural']:g}",
        str(row["seed"]),
        "solved" if row["solved"] else f"not solved ({row['reason']})",
        f"{row['minibatches']:,.0f}",
        f"{row['objective_evaluations']:,.0f}",
        str(row["iterations"]),
        f"{100 * row['test_error']:.2f} %",
        f"{row['seconds']:.0f}",
        f"{row['damping_first']:.3g} → {row['damping_last']:.3g} ({low:.2g} … {high:.2g})",
        "–" if row["rho_median"] is None else f"{row['rho_median']:.2f}",
        str(row["rho_not_finite"]),
        f"{row['cg_iterations_median']:.0f}",
        stops,
        str(row["rejected"]),
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join(lines)


@click.command()
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/seed-table"))
@click.option("--out", type=click.Path(path_type=Path), default=BENCH / "results")
@click.option("--minibatches", default=50_000.0, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", help="Run only cases whose folder name contains this.")
@click.option("--print-only", is_flag=True)
def main(
    runs: Path, out: Path, minibatches: float, threads: int, only: str | None, print_only: bool
) -> None:
    """Train the cases that are missing and print the table."""
    for case in CASES:
        if not print_only and (only is None or only in case.folder):
            train_case(case, runs / case.folder, minibatches, threads)
            click.echo(f"{case.folder}: done", err=True)
    finished = [c for c in CASES if (runs / c.folder / "result.json").exists()]
    rows = [summarise(runs / c.folder) for c in finished]
    if rows:
        out.mkdir(parents=True, exist_ok=True)
        (out / "addition_seeds.json").write_text(json.dumps(rows, indent=1) + "\n")
        (out / "addition_seeds.md").write_text(markdown(rows) + "\n")
    click.echo(markdown(rows))


if __name__ == "__main__":
    main()
