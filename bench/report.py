"""Print the benchmark table and keep it as JSON.

    python -P bench/report.py RUN.json ... [--out FILE] [--check]

RUN.json is what ``pytest bench --benchmark-json=RUN.json`` wrote; several runs of one machine make
one report, where a case that comes twice counts as measured last. The tables are Markdown. The same
numbers go to ``bench/results/<cpu>-<threads>-threads.json`` unless ``--out`` says otherwise.
With ``--check`` the exit status is 1 when a target line is missed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Bench = dict[str, Any]

RESULTS = Path(__file__).with_name("results")
OURS = "hfcore"
# Contention hurts those most who wait at a barrier in every step: ratios go wrong, not only times.
BUSY = 0.5
# Counts of work in a row, and their columns.
COUNTS = {"products": "products", "gradients": "gradients", "objective_evaluations": "evaluations"}


@dataclass(frozen=True)
class Target:
    """One line to reach: ``measure`` of the bench must be at least (or at most) ``bound``."""

    group: str
    case: str
    what: str
    measure: Callable[[Bench], float | None]
    bound: float
    at_least: bool = True

    def judge(self, bench: Bench) -> dict[str, Any] | None:
        """The line with its measured value, or None where a contestant was not there."""
        value = self.measure(bench)
        if value is None:
            return None
        met = value >= self.bound if self.at_least else value <= self.bound
        return {
            "case": self.case,
            "what": self.what,
            "bound": self.bound,
            "at_least": self.at_least,
            "measured": value,
            "met": met,
        }


def share(bench: Bench) -> float | None:
    """Our share of the sgemm rate."""
    value = _row(bench, OURS)["sgemm_share"]
    return None if value is None else float(value)


def speedup(*prefixes: str) -> Callable[[Bench], float | None]:
    """How many times faster we are than the best contestant whose name starts so.

    None unless every one of the prefixes is among the contestants.
    """

    def measure(bench: Bench) -> float | None:
        times = {row["name"]: row["min_ms"] for row in bench["rows"]}
        rivals = [name for name in times if name.startswith(prefixes)]
        if not all(any(name.startswith(prefix) for name in rivals) for prefix in prefixes):
            return None
        return float(min(times[name] for name in rivals) / times[OURS])

    return measure


def other_share(bench: Bench) -> float | None:
    """Share of an iteration that is no product, gradient or objective evaluation."""
    return float(_row(bench, OURS)["other_share"])


def product_share(bench: Bench) -> float | None:
    """Share of a solver's time that its products take."""
    return float(_row(bench, OURS)["product_share"])


def of_products(bench: Bench) -> float | None:
    """A solver's time as a multiple of its products' own."""
    return float(_row(bench, OURS)["of_products"])


def batch_making(bench: Bench) -> float | None:
    """Making the batches, as a share of the iteration that consumes them."""
    return float(bench["batch_making_share"])


# Of hf.problems; the report needs no hfcore.
SEQUENCES = (
    "addition",
    "multiplication",
    "xor",
    "temporal-order-2bit",
    "temporal-order-3bit",
    "random-permutation",
    "memorization-5bit",
    "memorization-20bit",
)
PRODUCT, ITERATION = "Gauss-Newton product", "Hessian-free iteration"
ANY_MODULE = "Gauss-Newton product of any module"
RECURRENT_MODULE = "Gauss-Newton product of a recurrent module"
AUTOENCODER, CURVES = "Autoencoder Gauss-Newton product", "CURVES-B5000"
AUTOENCODER_ITERATION = "Autoencoder Hessian-free iteration"
NAG_UPDATE = "NAG update"
AUTOENCODER_UPDATE, SWEEP_UPDATE = "Autoencoder NAG update", "NAG update of a sweep"
ADDITION = "B1000-T100-H100-n2-k1-last"
SOLVE, EIGENPAIRS = "Linear solve", "Ten eigenpairs"
PRETRAINING, NCG = "RBM pre-training epoch", "Nonlinear CG step"
LSTM = "LSTM gradient"
TARGETS = [
    Target(PRODUCT, ADDITION, "share of the sgemm rate (8 H² B T flops)", share, 0.80),
    Target(PRODUCT, ADDITION, "× torch.func cached", speedup("torch.func cached"), 1.5),
    Target(PRODUCT, ADDITION, "× curvlinops", speedup("curvlinops"), 5.0),
    Target(PRODUCT, ADDITION, "× BackPACK", speedup("BackPACK"), 40.0),
    Target(
        PRODUCT,
        "B100-T80-H100-n2-k1-last",
        "× the best of JAX and torch.func",
        speedup("JAX", "torch.func"),
        2.0,
    ),
    Target(PRODUCT, "B100-T30-H300-n225-k225-all", "share of the sgemm rate", share, 0.80),
    Target(PRODUCT, "B100-T30-H300-n225-k225-last", "× the best of JAX", speedup("JAX"), 1.15),
    Target(PRODUCT, "B100-T20-H1024-n64-k64-all", "× torch by hand", speedup("torch by hand"), 1.0),
    Target(AUTOENCODER, CURVES, "share of the sgemm rate", share, 0.85),
    Target(AUTOENCODER, CURVES, "× torch.func cached", speedup("torch.func cached"), 1.0),
    Target(AUTOENCODER, CURVES, "× torch.func jvp + vjp", speedup("torch.func jvp"), 1.4),
    Target(AUTOENCODER, CURVES, "× curvlinops", speedup("curvlinops"), 1.6),
    Target(
        AUTOENCODER_ITERATION,
        f"{CURVES}-logistic",
        "× PyTorchHessianFree",
        speedup("PyTorchHessianFree"),
        1.3,
    ),
    Target(NAG_UPDATE, "B100-T80-H100-n2-k1-last", "× torch.nn.RNN", speedup("torch.nn.RNN"), 2.5),
    Target(NAG_UPDATE, "B100-T80-H100-n2-k1-last", "× JAX jit", speedup("JAX"), 2.0),
    *(
        Target(op, "B256-N10000-K15", "× torch.sparse CSR", speedup("torch.sparse CSR"), 3.0)
        for op in ("ell_matmul", "ell_matmul_t", "ell_gradient")
    ),
    Target(AUTOENCODER_UPDATE, "CURVES-B200", "share of the sgemm rate", share, 0.60),
    Target(AUTOENCODER_UPDATE, "CURVES-B200", "× torch eager", speedup("torch eager"), 1.3),
    Target(
        SWEEP_UPDATE,
        "16-nets-B100-T80-H100-n2-k1-last",
        "× one net after the other",
        speedup("hfcore one net"),
        1.0,
    ),
    Target(
        SWEEP_UPDATE,
        "16-nets-B100-T80-H100-n2-k1-last",
        "× torch.func.vmap",
        speedup("torch.func.vmap"),
        4.0,
    ),
    *(
        Target(SOLVE, f"{ADDITION}-{kind}", "share of the time in products", product_share, 0.95)
        for kind in ("cg-m1", "cg-m4", "minres-m1", "minres-m4")
    ),
    *(
        Target(
            EIGENPAIRS,
            f"transformer-N27712-{kind}",
            "time, in that of its products",
            of_products,
            1.5,
            at_least=False,
        )
        for kind in ("GaussNewton", "Hessian")
    ),
    Target(PRETRAINING, "N20000-B100-784-400", "share of the sgemm rate", share, 0.60),
    Target(
        NCG,
        "CURVES-B1000-3-searches",
        "time of a step that is not gradients",
        other_share,
        0.05,
        at_least=False,
    ),
    # four fifths of what the wide net of the line above has to reach
    Target(PRODUCT, "B200-T200-H300-n88-k88-all", "share of the sgemm rate", share, 0.64),
    *(
        Target(LSTM, case, "× torch.nn.LSTM", speedup("torch.nn.LSTM"), 1 / 1.5)
        for case in ("balls-B100-T30-300-cells", "rolls-B100-T200-300-cells")
    ),
    *(
        Target(ITERATION, f"{name}-B200-H300-structural", what, measure, bound, at_least=False)
        for name in ("balls-T30", "rolls-T200")
        for what, measure, bound in (
            ("time of an iteration that is not work", other_share, 0.10),
            ("time of making its batches", batch_making, 0.05),
        )
    ),
    Target(RECURRENT_MODULE, "nn.RNN-T80-B100-H100", "× hf.RNN", speedup("hf.RNN"), 1 / 1.05),
    *(
        Target(
            RECURRENT_MODULE,
            f"nn.{kind}-T80-B100-H100",
            "× the best of torch.func and curvlinops",
            speedup("torch.func", "curvlinops"),
            4.0,
        )
        for kind in ("LSTM", "GRU")
    ),
    *(
        Target(
            ANY_MODULE,
            case,
            "× the best of torch.func and curvlinops",
            speedup("torch.func", "curvlinops"),
            1.5,
        )
        for case in ("CNN-B64", "transformer-T64-B8")
    ),
    Target(ANY_MODULE, "loop-RNN-T100-B100", "× curvlinops", speedup("curvlinops"), 3.0),
    *(
        Target(ITERATION, f"addition-T50-B1000-H100-{kind}", what, measure, 0.05, at_least=False)
        for kind in ("plain", "structural")
        for what, measure in (
            ("time of an iteration that is not work", other_share),
            ("time of making its batches", batch_making),
        )
    ),
    *(
        Target(
            "Making batches",
            f"{name}-T50-B1000",
            "× faster than the step",
            speedup("the step"),
            20.0,
        )
        for name in SEQUENCES
    ),
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="run", help="JSON written by pytest --benchmark-json"
    )
    parser.add_argument("--out", type=Path, help="where the results go")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    results = condense([json.loads(run.read_text()) for run in arguments.runs])
    print("\n".join(render(results)))
    out = arguments.out or RESULTS / f"{_slug(results['machine'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nWritten to {out}")
    missed = [line for line in results["targets"] if not line["met"]]
    return 1 if arguments.check and missed else 0


def condense(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What is kept of pytest-benchmark's files: the machine, every row, and the target lines.

    Raises ValueError when the runs are not of one machine and one set of versions.
    """
    machine = runs[0]["machine_info"]["hfcore"]
    if any(run["machine_info"]["hfcore"] != machine for run in runs):
        raise ValueError("runs: got several machines or versions, need one")
    benches: list[Bench] = [
        {"test": entry["name"], "group": entry["group"], **entry["extra_info"]}
        for run in runs
        for entry in run["benchmarks"]
        if entry["extra_info"]
    ]
    found = {(bench["group"], bench["case"]): bench for bench in benches}
    judged = [t.judge(found[t.group, t.case]) for t in TARGETS if (t.group, t.case) in found]
    commits = [run.get("commit_info", {}) for run in runs]
    loads = [run["machine_info"].get("load_before") for run in runs]
    return {
        "date": runs[0]["datetime"],
        "commit": commits[0].get("id"),
        "dirty": any(commit.get("dirty") or commit != commits[0] for commit in commits),
        "machine": machine,
        "load_before": max((load for load in loads if load is not None), default=None),
        "benchmarks": list(found.values()),
        "targets": [line for line in judged if line is not None],
    }


def render(results: dict[str, Any]) -> Iterator[str]:
    """The report, line by line."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    yield f"{machine['cpu']}, {machine['torch_threads']} threads, {machine['isa']}; {versions}"
    yield _sgemm_line(results["benchmarks"])
    load = results["load_before"]
    if load is not None and load > BUSY:
        yield f"The machine was busy (load {load:.1f} before the run): compare nothing with this."
    groups = dict.fromkeys(bench["group"] for bench in results["benchmarks"])
    for group in groups:
        members = [bench for bench in results["benchmarks"] if bench["group"] == group]
        yield f"\n## {group}\n"
        if "memory" in members[0]:
            yield from _memory_table(members)
        else:
            yield from _time_table(members)
            for bench in members:
                yield from _notes(bench)
    if results["targets"]:
        yield "\n## Targets\n"
        yield from _target_table(results["targets"])


def _sgemm_line(benches: list[Bench]) -> str:
    """The best rate of each BLAS over the whole run."""
    best: dict[str, float] = {}
    for bench in benches:
        for library, rate in bench.get("sgemm_gflops_by_library", {}).items():
            best[library] = max(rate, best.get(library, 0.0))
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in best.items())
    peak = max((bench.get("fma_gflops") or 0.0 for bench in benches), default=0.0)
    return f"sgemm GFLOP/s: {rates}" + (f"; multiply-adds in registers: {peak:.0f}" if peak else "")


def _time_table(benches: list[Bench]) -> Iterator[str]:
    columns = [
        "case",
        "contestant",
        "min ms",
        "median ms",
        "of hfcore",
        "GFLOP/s",
        "sgemm",
        "of sgemm",
    ]
    has_bytes = any(bench.get("bytes") for bench in benches)
    has_peak = any("fma_share" in row for bench in benches for row in bench["rows"])
    counts = [
        (key, head)
        for key, head in COUNTS.items()
        if any(key in row for bench in benches for row in bench["rows"])
    ]
    columns += ["of FMA peak"] if has_peak else []
    columns += ["GB/s"] if has_bytes else []
    columns += [head for _, head in counts]
    columns += ["one-off s", "rounds"]
    rows = []
    for bench in benches:
        ours = bench["rows"][0]["min_ms"]
        for i, row in enumerate(bench["rows"]):
            cells = [
                bench["case"] if i == 0 else "",
                row["name"],
                _number(row["min_ms"]),
                _number(row["median_ms"]),
                f"{row['min_ms'] / ours:.2f}",
                _number(row.get("gflops")),
                f"{bench['sgemm_gflops']:.0f}" if i == 0 else "",
                _percent(row.get("sgemm_share")),
            ]
            cells += [_percent(row.get("fma_share"))] if has_peak else []
            cells += [_number(row.get("gbytes_per_second"))] if has_bytes else []
            cells += [str(row.get(key, "")) for key, _ in counts]
            cells += [_number(row["setup_seconds"] or None), str(row["rounds"])]
            rows.append(cells)
    yield from _table(columns, rows)


def _notes(bench: Bench) -> Iterator[str]:
    """What a bench has to say beside its rows."""
    if bench.get("absent"):
        yield f"\n{bench['case']}, not installed: {', '.join(bench['absent'])}."
    if "fit" in bench:
        fit = bench["fit"]
        worst = _percent(fit["worst_relative_error"])
        yield (
            f"\n{bench['case']}: {fit['intercept_ms']:.3f} ms + {fit['us_per_unit']:.2f} µs·"
            f"{fit['axis']}, R² {fit['r2']:.5f}, worst error {worst}."
        )
    if "batch_making_share" in bench:
        ours = bench["rows"][0]
        phases = ", ".join(
            f"{phase} {1e3 * seconds:.1f}" for phase, seconds in ours["seconds"].items()
        )
        yield (
            f"\n{bench['case']}: not products, gradients or evaluations "
            f"{_percent(ours['other_share'])}; making the batches "
            f"{_percent(bench['batch_making_share'])}. Phases in ms: {phases}."
        )


def _memory_table(benches: list[Bench]) -> Iterator[str]:
    columns = ["case", "contestant", "one-off peak MB", "kept MB", "product's peak above it MB"]
    rows = []
    for bench in benches:
        for i, row in enumerate(bench["memory"]):
            rows.append(
                [
                    bench["case"] if i == 0 else "",
                    row["name"],
                    _number(row["setup_peak_mb"]),
                    _number(row["setup_kept_mb"]),
                    _number(row["product_peak_mb"]),
                ]
            )
    yield from _table(columns, rows)
    for bench in benches:
        yield (
            f"\n{bench['case']}: inputs and states alone are {bench['activations_mb']:.1f} MB, the "
            f"result {bench['memory'][0]['result_mb']:.2f} MB."
        )


def _target_table(lines: list[dict[str, Any]]) -> Iterator[str]:
    rows = [
        [
            line["case"],
            line["what"],
            f"{'≥' if line['at_least'] else '≤'} {line['bound']:g}",
            f"{line['measured']:.3g}",
            "met" if line["met"] else "MISSED",
        ]
        for line in lines
    ]
    yield from _table(["case", "what", "to reach", "measured", ""], rows)


def _table(columns: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A Markdown table, padded so that it reads in a terminal too."""
    widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]

    def line(cells: list[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    yield line(columns)
    yield line(["-" * width for width in widths])
    yield from map(line, rows)


def _row(bench: Bench, name: str) -> dict[str, Any]:
    return next(row for row in bench["rows"] if row["name"] == name)


def _number(value: float | None) -> str:
    """Three significant digits without an exponent; blank for None."""
    if value is None:
        return ""
    for bound, digits in ((100, 0), (10, 1), (1, 2), (0.1, 3)):
        if abs(value) >= bound:
            return f"{value:.{digits}f}"
    return f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _slug(machine: dict[str, Any]) -> str:
    cpu = re.sub(r"[^a-z0-9]+", "-", machine["cpu"].lower()).strip("-")
    return f"{cpu}-{machine['torch_threads']}-threads"


if __name__ == "__main__":
    sys.exit(main())
