"""The figures of the README and of the site are those of the committed results."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
README, BENCHMARKS, FOUND = (
    ROOT / "README.md",
    ROOT / "docs" / "benchmarks.md",
    ROOT / "docs" / "results.md",
)
WIDE = "B100-T30-H300-n225-k225"
# The rows of "On a processor", and the README's, as the benches call them.
NETS = {
    "1000 sequences of 100 steps, 100 units, one output at the end": "B1000-T100-H100-n2-k1-last",
    "100 sequences of 80 steps, 100 units, one output at the end": "B100-T80-H100-n2-k1-last",
    "100 sequences of 30 steps, 300 units, 225 outputs in every step": f"{WIDE}-all",
    "100 sequences of 30 steps, 300 units, 225 outputs at the end": f"{WIDE}-last",
    "100 sequences of 20 steps, 1024 units, 64 outputs in every step": "B100-T20-H1024-n64-k64-all",
    "1000 x 100": "B1000-T100-H100-n2-k1-last",
    "100 x 80": "B100-T80-H100-n2-k1-last",
}
PROBLEMS_2011 = "| {}: minibatches by seed |"
DAMPINGS = {"structural": "Structural damping", "tikhonov": "Tikhonov's damping alone"}


def results(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def table(path: Path, start: str) -> list[dict[str, str]]:
    """The rows of the one table whose first line begins so, by their column."""
    lines = path.read_text().splitlines()
    (first,) = (i for i, line in enumerate(lines) if line.startswith(start))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    header, _, *body = rows
    return [dict(zip(header, row, strict=True)) for row in body]


def shown(cell: str) -> float:
    return float(re.sub(r"[,%\s]", "", cell).replace("−", "-"))


def assert_rounded(cell: str, value: float) -> None:
    """``cell`` is ``value`` to the digits that it has."""
    digits = len(cell.partition(".")[2].strip(" %")) if "." in cell else 0
    assert shown(cell) == pytest.approx(value, abs=0.5001 * 10.0**-digits), (cell, value)


AMD, AMD_AVX2 = "amd-epyc-2-threads.json", "amd-epyc-2-threads-avx2.json"
ANY_MODULE = "Gauss-Newton product of any module"
RECURRENT_MODULE = "Gauss-Newton product of a recurrent module"
MODULES = {
    "CNN, B = 64": (ANY_MODULE, "CNN-B64"),
    "CNN, B = 512": (ANY_MODULE, "CNN-B512"),
    "transformer, two layers of 128, 8 sequences of 64": (ANY_MODULE, "transformer-T64-B8"),
    "RNN as a Python loop, T = 100, B = 100": (ANY_MODULE, "loop-RNN-T100-B100"),
    "`nn.RNN`, T = 80, B = 100, 100 units": (RECURRENT_MODULE, "nn.RNN-T80-B100-H100"),
    "`nn.LSTM`, the same": (RECURRENT_MODULE, "nn.LSTM-T80-B100-H100"),
    "`nn.GRU`, the same": (RECURRENT_MODULE, "nn.GRU-T80-B100-H100"),
}
PRODUCT = "Gauss-Newton product"
JOBS = {
    f"{PRODUCT}, B = 1000, T = 100, 100 units": (PRODUCT, "B1000-T100-H100-n2-k1-last"),
    f"{PRODUCT}, B = 100, T = 80, 100 units": (PRODUCT, "B100-T80-H100-n2-k1-last"),
    "NAG update of an RNN, B = 100, T = 80, 100 units": ("NAG update", "B100-T80-H100-n2-k1-last"),
    "NAG update of the CURVES autoencoder, B = 200": ("Autoencoder NAG update", "CURVES-B200"),
}


def benches(name: str) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """The rows of every bench by group and case, and by contestant; of a quiet machine."""
    found = results(name)
    assert found["load_before"] <= 0.5
    return {
        (bench["group"], bench["case"]): {row["name"]: row for row in bench["rows"]}
        for bench in found["benchmarks"]
        if "rows" in bench
    }


def products() -> dict[str, dict[str, Any]]:
    """The rows of every Gauss-Newton product on a processor, by net and contestant."""
    found = results("amd-epyc-2-threads.json")["benchmarks"]
    return {
        bench["case"]: {row["name"]: row for row in bench["rows"]}
        for bench in found
        if bench["group"] == "Gauss-Newton product"
    }


@pytest.mark.parametrize(
    ("path", "start"),
    [(README, "| sequences x steps |"), (BENCHMARKS, "| Gauss-Newton product, ms |")],
)
def test_products(path: Path, start: str) -> None:
    measured = products()
    columns = {"JAX": "JAX cached linearize"}
    rows = table(path, start)
    assert rows
    for row in rows:
        net, *cells = row.items()
        times = measured[NETS[net[1]]]
        for column, cell in cells:
            name = columns.get(column, column)
            if cell == "–":
                assert name.partition(" cached")[0] not in times
            elif column == "of sgemm":
                assert_rounded(cell, 100 * times["hfcore"]["sgemm_share"])
            else:
                name = "torch.func cached linearize + vjp" if name == "torch.func" else name
                assert_rounded(cell, times[name]["min_ms"])


def test_products_of_modules() -> None:
    measured = benches(AMD)
    rows = table(BENCHMARKS, "| Any torch module, product, ms")
    assert [next(iter(row.values())) for row in rows] == list(MODULES)
    names = {"torch.func cached": "torch.func cached linearize + vjp"}
    for row in rows:
        what, *cells = row.items()
        for column, cell in cells:
            found = measured[MODULES[what[1]]][names.get(column, column)]
            assert_rounded(cell, found["min_ms"])


def test_instruction_sets_of_one_processor() -> None:
    wide, narrow = benches(AMD), benches(AMD_AVX2)
    lines = BENCHMARKS.read_text().splitlines()
    first = next(i for i, s in enumerate(lines) if s.startswith("| AVX-512 and AVX2 on one"))
    for line, (what, bench) in zip(lines[first + 2 :], JOBS.items(), strict=False):
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        assert name == what
        ours, theirs = (
            wide[bench]["hfcore"],
            [
                row["min_ms"]
                for peer, row in wide[bench].items()
                if peer.startswith("torch") and "torch.func" not in peer
            ],
        )
        less = narrow[bench]["hfcore"]
        wanted = [
            ours["min_ms"], 100 * ours["sgemm_share"], 100 * ours["fma_share"], min(theirs),
            less["min_ms"], 100 * less["sgemm_share"], 100 * less["fma_share"],
        ]  # fmt: skip
        for cell, value in zip(cells, wanted, strict=True):
            assert_rounded(cell, value)


def test_how_many_times_as_fast_as_torch() -> None:
    ratios = [
        times["torch by hand"]["min_ms"] / times["hfcore"]["min_ms"]
        for case, times in products().items()
        if "H1024" not in case
    ]
    text = " ".join(README.read_text().split())
    said = re.search(r"of 100 to 300 units is ([\d.]+) to ([\d.]+) times as fast", text)
    assert said is not None
    assert_rounded(said[1], min(ratios))
    assert_rounded(said[2], max(ratios))
    assert "torch.func, curvlinops and BackPACK are slower." in README.read_text()
    for times in products().values():
        by_hand = times["torch by hand"]["min_ms"]
        slower = [n for n in times if n.startswith(("torch.func", "curvlinops", "BackPACK"))]
        assert all(times[name]["min_ms"] > by_hand for name in slower)


def seeds(length: int, structural: bool) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = results("addition_seeds.json")
    return [r for r in runs if r["length"] == length and bool(r["structural"]) == structural]


def spread(values: Sequence[float]) -> str:
    least, most = min(values), max(values)
    return f"{least:,.0f}" if least == most else f"{least:,.0f} to {most:,.0f}"


def test_seeds_of_the_results() -> None:
    rows = table(FOUND, "| T | structural damping μ |")
    runs = results("addition_seeds.json")
    assert len(rows) == len(runs)
    for row, run in zip(rows, runs, strict=True):
        assert float(row["structural damping μ"]) == run["structural"]
        assert (row["outcome"] == "solved") == run["solved"]
        for column, key in (
            ("T", "length"),
            ("seed", "seed"),
            ("minibatches", "minibatches"),
            ("objective evaluations", "objective_evaluations"),
            ("HF steps", "iterations"),
        ):
            assert shown(row[column]) == pytest.approx(run[key], abs=0.5), (row, column)
        assert_rounded(row["wrong"], 100 * run["test_error"])


def test_what_to_expect_in_time() -> None:
    text = (ROOT / "docs" / "what-to-expect.md").read_text()
    for length in (30, 50):
        seconds = spread([run["seconds"] for run in seeds(length, True)])
        (line,) = (
            line
            for line in text.splitlines()
            if f"over {length} steps, 100 units, solved" in line and "H200" not in line
        )
        assert f"| {seconds} s |" in line


def test_ten_million_parameters() -> None:
    text = (ROOT / "docs" / "what-to-expect.md").read_text()
    _, costs, progress = (RESULTS / "character_model.md").read_text().split("\n\n")
    assert f"\n\n{costs}\n\n{progress.strip()}\n\n" in text
    found = results("character_model.json")
    sizes, newton = found["sizes"], found["Hessian-free"]
    assert f"An LSTM of {sizes['hidden']:,} units" in text
    assert f"has {newton['parameters'] / 1e6:.1f} million parameters" in text
    cases = sizes["sequences"] * sizes["length"]
    gradient = sizes["gradient_batches"] * cases
    assert f"gradient on {gradient:,} characters, products on {cases:,}" in text
    assert f"and at most {sizes['cg_max_iter']} iterations of CG" in text


TABLE_1 = {
    row["task"]: row for row in table(FOUND, "| task | mean frame |")
}  # of Martens & Sutskever (2011)


@pytest.mark.parametrize("task", TABLE_1)
def test_sequences_of_natural_origin(task: str) -> None:
    found = results(f"table1_2011_{task.strip('`')}.json")
    sign = -1 if task == "`midi`" else 1  # log-likelihoods, of which errors are the negatives
    assert_rounded(TABLE_1[task]["mean frame"], sign * found["constant_error"])
    for column, key, published in (
        ("RNN + HF", "rnn-hf", "RNN+HF"),
        ("LSTM + GD", "lstm", "LSTM+GD"),
    ):
        run = found["columns"][key]
        lines = {line["iteration"]: line for line in run["iterations"]}
        ours, theirs = TABLE_1[task][column].split(" (")
        assert_rounded(ours, sign * lines[run["counts"]]["test_error"])
        assert float(theirs.strip(")").replace("−", "-")) == found["published"][published]
        seen = 1000 * run["iterations"][-1]["minibatches"]
        assert shown(TABLE_1[task][f"{column}, sequences seen"]) == round(seen)


STARTS = "| minibatches until solved, seed 0 |"
VARIANTS = {
    "sparse start": ("sparse", "none"),
    "echo-state start": ("esn", "none"),
    "sparse start, Fisher preconditioner": ("sparse", "fisher"),
}


def test_starts_and_preconditioners_of_recurrent_nets() -> None:
    runs = {
        (run["problem"], run["length"], run["start"], run["preconditioner"]): run
        for name in ("fig3.json", "fig3_starts.json")
        for run in results(name)["runs"]
        if (run["seed"], run["damping"]) == (0, "structural")
    }
    cells = 0
    for row in table(FOUND, STARTS):
        code = re.search(r"`(.*)`", row[STARTS.strip("| ")])
        assert code is not None
        for column, variant in VARIANTS.items():
            run = runs.get((code[1], int(row["T"]), *variant))
            if run is None:
                assert row[column] == "–"
                continue
            text = f"{run['minibatches']:,}"
            assert row[column] == (text if run["solved"] else f"({text})")
            cells += 1
    assert cells >= len(results("fig3_starts.json")["runs"]) > 0


def test_the_deep_autoencoder() -> None:
    log = results("curves_log.json")
    errors = {line["iteration"]: line["train_error"] for line in log["iterations"]}
    published = log["published"]["train_error"]
    ours, theirs = table(README, "| iteration | 1 |")
    for iteration in ("1", "10", "40", "75", "100"):
        assert ours[iteration] == f"{errors[int(iteration)]:.4g}"
        assert float(theirs[iteration]) == published[iteration]
    for row in table(FOUND, "| iteration | train error |"):
        assert row["train error"] == f"{errors[int(row['iteration'])]:.4g}"
        if row["published"] != "–":
            assert float(row["published"]) == published[row["iteration"]]


def test_the_problems_of_the_readme() -> None:
    runs = [
        run
        for run in results("fig3.json")["runs"]
        if (run["length"], run["damping"]) == (30, "structural")
    ]
    seeds_of = Counter(run["problem"] for run in runs)
    assert (len(seeds_of), set(seeds_of.values())) == (8, {3})
    assert all(run["test_error"] < 0.01 for run in runs)
    needed = spread([run["minibatches"] for run in runs])
    said = f"all are solved at T = 30, with three seeds each, in {needed} minibatches"
    assert said in " ".join(README.read_text().split())


@pytest.mark.parametrize("damping", DAMPINGS)
def test_the_problems_of_2011(damping: str) -> None:
    runs = [
        run
        for run in results("fig3.json")["runs"]
        if (run["damping"], run["start"], run["preconditioner"]) == (damping, "sparse", "none")
    ]
    rows = table(FOUND, PROBLEMS_2011.format(DAMPINGS[damping]))
    shown_runs = 0
    for row in rows:
        name, *cells = row.items()
        code = re.search(r"`(.*)`", name[1])
        assert code is not None
        for length, cell in cells:
            found = {
                run["seed"]: run
                for run in runs
                if (run["problem"], f"T = {run['length']}") == (code[1], length)
            }
            shown_runs += len(found)
            assert cell == by_seed(found)
    assert shown_runs == len(runs) > 0


def by_seed(runs: Mapping[int, dict[str, Any]]) -> str:
    """Minibatches of seeds 0, 1 and so on; those of a run that is not solved are in brackets."""
    assert sorted(runs) == list(range(len(runs)))
    said = [f"{runs[seed]['minibatches']:,.0f}" for seed in sorted(runs)]
    return (
        " · ".join(text if runs[seed]["solved"] else f"({text})" for seed, text in enumerate(said))
        or "–"
    )


@pytest.mark.parametrize(
    ("start", "name"),
    [
        ("| addition, T = 10, 50 units |", "ablation_add-10.json"),
        ("| CURVES, 2,000 images |", "ablation_curves-2000.json"),
        ("| CURVES, 2,000 images, NAG", "ablation_momentum-2000.json"),
    ],
)
def test_ablations(start: str, name: str) -> None:
    runs = {run["variant"]: run for runs in results(name)["ablations"].values() for run in runs}
    rows = table(FOUND, start)
    assert len(rows) == len(runs)
    for row in rows:
        what, *cells = row.values()
        code = re.search(r"`(.*)`", what)
        assert code is not None
        run = runs[code[1]]
        assert cells == [
            f"{run['errors'][-1]:.3g}",
            f"{run['work'][-1]:,.0f}",
            "–" if run["cg"] is None else f"{run['cg']:,}",
        ]
