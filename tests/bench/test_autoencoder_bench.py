"""The autoencoder's bench on a few cases, where everyone computes the same; and the report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["reference backend", "torch.func jvp + vjp"])
def test_products_agree(name: str) -> None:
    from bench import autoencoder

    load = autoencoder.make(cases=7)
    ours = autoencoder.make_hfcore(load).product()
    peer = autoencoder.PEERS[name](load)
    torch.testing.assert_close(peer.flat(peer.product()), ours, rtol=1e-4, atol=1e-5)


def test_plain_torch_is_the_same_net() -> None:
    from bench import autoencoder

    load = autoencoder.make(cases=7)
    torch.testing.assert_close(autoencoder.plain_torch(load)(load.x), load.model(load.x))


def test_iterations_repeat() -> None:
    from bench import autoencoder
    from bench.test_autoencoder import CG_ITERATIONS, Iteration

    iteration = Iteration(autoencoder.make(cases=20), "squared")
    after = []
    for _ in range(2):
        assert iteration() == CG_ITERATIONS + 1
        after.append(next(iteration.model.parameters()).detach().clone())
    assert torch.equal(*after)
    assert not torch.equal(next(iteration.start.load.model.parameters()), after[0])
    assert iteration.start.cg_last.any()


def test_weights_by_input() -> None:
    from bench.hessian_free_peers import _weights_by_input

    W1, b1 = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([7.0, 8.0])
    W2, b2 = torch.tensor([[9.0, 10.0]]), torch.tensor([11.0])
    flat = _weights_by_input([W1, b1, W2, b2], (3, 2, 1))
    assert flat.tolist() == [1, 4, 2, 5, 3, 6, 7, 8, 9, 10, 11]


def test_namesakes_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.hessian_free_peers import _package

    for who in ("ONE", "TWO"):
        folder = tmp_path / who / "hessianfree"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("from hessianfree.who import WHO\n")
        (folder / "who.py").write_text(f"WHO = {who!r}\n")
        monkeypatch.setenv(f"HFCORE_{who}", str(tmp_path / who))
    before = list(sys.path)
    assert _package("HFCORE_ONE", "hessianfree").WHO == "ONE"
    assert _package("HFCORE_TWO", "hessianfree.who").WHO == "TWO"
    assert "hessianfree" not in sys.modules
    assert sys.path == before
    with pytest.raises(ImportError, match="HFCORE_THREE is not set"):
        _package("HFCORE_THREE", "hessianfree")


def test_targets_name_cases_that_exist() -> None:
    from bench import autoencoder, cases, report, test_gauss_newton, test_modules

    assert autoencoder.CASES == 5000
    names = {
        report.PRODUCT: {case.name for case in test_gauss_newton.NAMES},
        report.ANY_MODULE: set(test_modules.CASES),
        report.AUTOENCODER: {report.CURVES},
        report.AUTOENCODER_ITERATION: {f"{report.CURVES}-logistic"},
    }
    assert cases.ADDITION.name == report.ADDITION
    for target in report.TARGETS:
        if target.group in names:
            assert target.case in names[target.group]


def made_up_run(group: str, case: str, load: float, cpu: str = "A CPU") -> dict[str, Any]:
    """What pytest-benchmark writes of one bench: ours at 10 ms, curvlinops at 25, torch at 30."""
    rows = [
        {"name": "hfcore", "min_ms": 10.0, "median_ms": 11.0, "setup_seconds": 0.0, "rounds": 3},
        {"name": "curvlinops", "min_ms": 25.0, "median_ms": 26.0, "setup_seconds": 1, "rounds": 3},
        {"name": "torch.func", "min_ms": 30.0, "median_ms": 31.0, "setup_seconds": 1, "rounds": 3},
    ]
    rows[0]["products"] = 21
    extra = {"case": case, "sgemm_gflops": 200.0, "rows": rows}
    return {
        "datetime": "2026-01-01",
        "commit_info": {"id": "abc", "dirty": False},
        "machine_info": {
            "hfcore": {"cpu": cpu, "torch_threads": 2, "isa": None, "versions": {"torch": "2"}},
            "load_before": load,
        },
        "benchmarks": [{"name": "test", "group": group, "extra_info": extra}],
    }


def test_report_of_several_runs() -> None:
    from bench import report

    runs = [
        made_up_run(report.ANY_MODULE, "CNN-B64", 0.1),
        made_up_run(report.ANY_MODULE, "loop-RNN-T100-B100", 0.3),
    ]
    results = report.condense(runs)
    assert [(t["case"], t["measured"], t["met"]) for t in results["targets"]] == [
        ("CNN-B64", 2.5, True),
        ("loop-RNN-T100-B100", 2.5, False),
    ]
    assert (results["load_before"], results["commit"], results["dirty"]) == (0.3, "abc", False)
    text = "\n".join(report.render(results))
    assert "| products | one-off s |" in text
    assert "evaluations" not in text
    assert "MISSED" in text
    assert len(report.condense([runs[0], runs[0]])["benchmarks"]) == 1
    with pytest.raises(ValueError, match="several machines"):
        report.condense([runs[0], made_up_run("group", "case", 0.1, cpu="Another")])
