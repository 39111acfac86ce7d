"""``hfcore reproduce table1``, ``table2``, ``table3``: momentum on autoencoders, and the hybrid."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from interrupts import interrupted_sweeps
from torch import Tensor

import command_line
import hfcore as hf
from command_line import tables_of
from hfcore.cli.tables import number
from hfcore.data import Dataset, curves
from hfcore.experiments import hybrid as hybrid_module
from hfcore.experiments.commands import table1 as command_module
from hfcore.experiments.hybrid import PHASES, hybrid_training, shortened
from hfcore.experiments.momentum_autoencoders import DATASETS, same_runs
from hfcore.experiments.published import TABLE1, TABLE2, TABLE3
from hfcore.experiments.table1 import COLUMNS
from hfcore.experiments.table2 import BEST, check_tests
from hfcore.experiments.table3 import SCALES, scale_columns
from hfcore.experiments.tuning import Column, ColumnResult, Tuned, column_settings
from hfcore.minibatches import PhaseBatches
from hfcore.presets import AutoencoderPreset
from hfcore.problems import Reconstruction, reconstruction
from hfcore.schedules import Phase, Reciprocal
from hfcore.sweeps import AutoencoderStart, sweep
from hfcore.training import Limits

SMALL = ["--quiet", "--threads", "1", "--updates", "12", "--final-updates", "4"]
SMALL += ["--test-every", "4", "--batch-size", "7", "--rates", "0.01,0.001"]


def tiny_images(name: str, folder: object = None) -> Tensor:
    if name == "curves":
        return curves(40, 1, seed=1).train
    return torch.rand(30, 784, generator=torch.Generator().manual_seed(0))


def tiny_data(name: str, folder: object = None) -> Dataset:
    images = tiny_images(name)
    return Dataset(name, images, images[:10], None, (28, 28), 3, f"{name} made up.")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small nets and few images under the names of the data sets."""
    for name, published in list(hf.presets.autoencoders.items()):
        preset = AutoencoderPreset((784, 6, 3), published.loss, 3, published.optimiser)
        monkeypatch.setitem(hf.presets.autoencoders, name, preset)
        images = reconstruction.Images(preset.encoder_sizes, preset.loss)
        monkeypatch.setitem(reconstruction.DATASETS, name, images)
    monkeypatch.setattr(reconstruction, "_training_images", tiny_images)
    monkeypatch.setattr(command_module, "load", tiny_data)


invoke = partial(command_line.invoke, "reproduce")


def numbers_of(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


# ---- table 3


def test_scales_stand_beside_the_published_ones(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = invoke("table3", *SMALL, "--scales", "0.25,1", "--images", "25", "--run-dir", folder)
    assert result.exit_code == 0, result.output
    table, details = tables_of(result.output)
    assert table[0] == ["", "0.25", "1"]
    assert table[2] == ["curves, published", "16", "0.074"]
    columns = numbers_of(folder, "table3")["problems"]["curves"]["columns"]
    assert table[3] == ["curves, here", *(number(columns[k]["error"]) for k in ("0.25", "1"))]
    assert [row[3] for row in details[2:]] == ["2", "2"]
    assert "the first 25 training images" in result.output
    config = json.loads((folder / "curves" / "seeds" / "config.json").read_text())
    assert config["training"]["weight_decay"] == 0.0
    assert config["training"]["schedule"] == "increasing"
    assert config["training"]["final_updates"] == 4
    assert config["training"]["test_size"] == 25
    for column in columns.values():  # the runs of the table are those of hf.sweep
        alone = sweep(
            Reconstruction("curves", images=25),
            {"learning_rate": [column["chosen"]], "method": ["nag"], "momentum": [0.999],
             "scale": [column["runs"][0]["scale"]]},
            updates=12, batch_size=7, schedule="increasing", final_updates=4,
            test_every=4, test_size=25, start=AutoencoderStart((784, 6, 3)), progress=False,
        )  # fmt: skip
        assert alone.rows()[0]["error"] == column["error"]


def test_the_columns_of_table_3() -> None:
    columns = scale_columns(SCALES, 0.9, {"4": (1.0,), "curves": (2.0,)})
    assert [c.name for c in columns] == list(TABLE3.numbers["curves"])
    assert [c.rates for c in columns] == [(2.0,)] * 4 + [(1.0,)]
    assert columns[-1].settings == {"method": "nag", "momentum": 0.9, "scale": 4.0}


# ---- table 2


def test_before_and_after_come_from_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["table2", *SMALL, "--datasets", "mnist,faces", "--seeds", "2"]
    result = invoke(*arguments, "--run-dir", folder)
    assert result.exit_code == 0, result.output
    table = tables_of(result.output)[0]
    found = numbers_of(folder, "table2")
    for row, name in zip(table[2:], ("mnist", "faces"), strict=True):
        here = found["before_and_after"][name]
        assert row[:2] == [name, BEST[name]]
        assert row[2:4] == [number(TABLE2.get(name, k)) for k in ("before", "after")]
        assert row[4:] == [number(here["before"]), number(here["after"])]
        assert here["before"] != here["after"]
        lines = (folder / name / "seeds" / "history.csv").read_text().splitlines()
        header = lines[0].split(",")
        before = [dict(zip(header, x.split(","), strict=True)) for x in lines[1:]]
        errors = [float(x["error"]) for x in before if x["update"] == "8"]
        assert here["before"] == pytest.approx(sum(errors) / 2)
    assert invoke(*arguments, "--run-dir", folder, "--resume").output == result.output


def test_a_table_is_extended(tmp_path: Path) -> None:
    """Resumed with more updates, it is the table that has so many from the beginning."""
    arguments = ["table2", *SMALL, "--datasets", "mnist", "--search-updates"]
    longer = ["20", "--updates", "28"]
    whole = invoke(*arguments, *longer, "--run-dir", tmp_path / "whole")
    assert invoke(*arguments, "8", "--run-dir", tmp_path / "run").exit_code == 0
    extended = invoke(*arguments, *longer, "--run-dir", tmp_path / "run", "--resume")
    assert extended.exit_code == 0, extended.output
    assert tables_of(extended.output) == tables_of(whole.output)


def test_table_2_needs_a_test_where_the_last_phase_begins(tmp_path: Path) -> None:
    result = invoke("table2", *SMALL, "--test-every", "5", "--run-dir", tmp_path / "run")
    assert result.exit_code == 1
    assert "test_every: got 5 with 12 updates, the last 4 of them at 0.9" in result.output
    assert not (tmp_path / "run").exists()
    for wrong in ((10, 0, 5), (10, 10, 5)):
        with pytest.raises(ValueError, match="test_every"):
            check_tests(*wrong)
    check_tests(20_000, 1000, 1000)


# ---- table 1


def test_columns_and_hybrid_beside_the_published_ones(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["table1", *SMALL, "--datasets", "curves,faces", "--columns", "0,0.99N"]
    result = invoke(*arguments, "--hf-updates", "5", "--run-dir", folder)
    assert result.exit_code == 0, result.output
    table = tables_of(result.output)[0]
    assert table[0] == ["", "0", "0.99N", "HF†", "SGDc", "HF*"]
    assert table[2] == ["curves, published", "0.48", "0.096", "0.058", "0.16", "0.11"]
    assert table[4] == ["faces, published", "36.4", "8.5", "7.5", "–", "12"]
    found = numbers_of(folder, "table1")
    for row, name in ((table[3], "curves"), (table[5], "faces")):
        columns = found["problems"][name]["columns"]
        last = found["hybrid"][name]["iterations"][-1]
        assert last["iteration"] == 5
        expected = [columns["0"]["error"], columns["0.99N"]["error"], last["train_error"]]
        assert row[1:4] == [number(x) for x in expected]
        assert row[4:] == ["–", "–"]
        assert f"HF† of {name}: 5 HF updates" in result.output
    assert invoke(*arguments, "--hf-updates", "5", "--run-dir", folder, "--resume").output == (
        result.output
    )


def test_stopped_and_resumed_the_table_is_the_same(tmp_path: Path) -> None:
    arguments = ["table1", *SMALL, "--datasets", "curves,mnist", "--columns", "0.9M"]
    whole = invoke(*arguments, "--run-dir", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    with interrupted_sweeps(9):
        stopped = invoke(*arguments, "--run-dir", tmp_path / "run")
    assert stopped.exit_code == 130, stopped.output
    assert "Not finished: curves" in stopped.output
    resumed = invoke(*arguments, "--run-dir", tmp_path / "run", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert tables_of(resumed.output) == tables_of(whole.output)


def test_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    result = invoke("table1", "--datasets", "mnist", "--folder", tmp_path, "--run-dir",
                    tmp_path / "run")  # fmt: skip
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path / 'train-images-idx3-ubyte.gz'}: is not")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1", "--datasets", "svhn"], "got 'svhn', need curves, mnist, faces"),
        (["table1", "--columns", "0.9X"], "column: got '0.9X'"),
        (["table1", "--rates", "0.5N=1"], "need a problem, a column or problem/column"),
        (["table1", "--hf-updates", "-1"], "Invalid value for '--hf-updates'"),
        (["table2", "--datasets", "mnist,mnist"], "need different names"),
        (["table3", "--scales", "0,1"], "need positive numbers"),
        (["table3", "--scales", "a"], "got 'a', need numbers"),
        (["table3", "--momentum", "1"], "Invalid value for '--momentum'"),
        (["table3", "--resume"], "--resume needs --run-dir"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_bad_options(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_published_tables_are_complete() -> None:
    assert tuple(TABLE1.numbers) == DATASETS
    for row in TABLE1.numbers.values():
        assert tuple(row) == (*COLUMNS, "SGDc", "HF†", "HF*")
    for name, row in TABLE2.numbers.items():
        assert row["after"] == TABLE1.get(name, BEST[name])
    assert TABLE3.get("curves", "1") == TABLE1.get("curves", "0.999N")


def test_columns_that_a_short_run_does_not_tell_apart() -> None:
    def table(*names: str) -> dict[str, Tuned]:
        columns = [Column(name, column_settings(name), (0.1,)) for name in names]
        return {"curves": Tuned([ColumnResult(c, 0.1, [], []) for c in columns], None, None, True)}

    short = {"updates": 20_000, "final_updates": 1000}  # eq. 5 comes to 0.9934
    text = same_runs(table("0.99N", "0.995N", "0.999N", "0.995M", "0"), short)
    assert text.endswith(": 0.995N and 0.999N.")
    assert same_runs(table("0.995N", "0.999N"), {**short, "updates": 200_000}) == ""
    assert same_runs(table("0.995N", "0.999M"), short) == ""


# ---- the hybrid


@pytest.mark.parametrize("name", sorted(PHASES))
def test_shortened_phases_keep_their_proportions_and_step_sizes(name: str) -> None:
    phases = PHASES[name]
    updates = [p.cg_total / p.options["cg_max_iter"] for p in phases]
    assert [p.cg_total for p in shortened(phases, 10**9)] == [p.cg_total for p in phases]
    short = shortened(phases, round(sum(updates) / 100))
    t = 0
    for long, cut, count in zip(phases, short, updates, strict=True):
        assert cut.cg_total == pytest.approx(long.cg_total / 100, abs=long.options["cg_max_iter"])
        step = long.options["step_size"], cut.options["step_size"]
        if isinstance(step[0], Reciprocal):
            for at in (t, t + count / 2, t + count - 100):
                assert step[1](at / 100) == pytest.approx(step[0](at), rel=0.05)
        else:
            assert step[0] == step[1]
        t += count
    assert all(p.cg_total >= p.options["cg_max_iter"] for p in shortened(phases, 1))


def test_the_hybrid_goes_through_its_phases_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"cg_max_iter": 3, "cg_decay": 0.9, "l2": 1e-5}
    phases = (
        Phase("small", {**options, "step_size": 1.0}, 1 / 4, 1 / 4, cg_total=6),
        Phase("fall", {**options, "step_size": Reciprocal(1, 0)}, 1 / 4, 1 / 4, cg_total=6),
        Phase("all", {**options, "step_size": 0.5, "l2": 0.0}, cg_total=6),
    )
    monkeypatch.setitem(hybrid_module.PHASES, "curves", phases)
    data = tiny_data("curves")
    torch.manual_seed(0)  # the state of torch's generator is part of a checkpoint
    whole = hybrid_training(data, 6, seed=2)(tmp_path / "whole", Limits(iterations=6))
    assert [line["phase"] for line in whole.lines[1:]] == ["small"] * 2 + ["fall"] * 2 + ["all"] * 2
    assert [line["alpha"] for line in whole.lines[3:]] == [0.5, 1 / 3, 0.5, 0.5]
    torch.manual_seed(0)
    hybrid_training(data, 6, seed=2)(tmp_path / "run", Limits(iterations=3))
    resumed = hybrid_training(data, 6, seed=2)(tmp_path / "run", Limits(iterations=6), resume=True)
    assert resumed.reason == "iterations"
    end = [
        f / "checkpoints" / "00000006.safetensors" for f in (tmp_path / "whole", tmp_path / "run")
    ]
    a, b = (safetensors.torch.load_file(path) for path in end)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)

    # The same by hand.
    model = hf.Autoencoder([784, 6, 3])
    hf.init.sparse_(model, torch.Generator().manual_seed(2), replacement=True)
    opt = hf.HessianFree(model, hf.losses.LogisticCrossEntropy(), **hf.presets.hybrid2013)
    run = hf.schedules.Phases(opt, phases)
    batches = PhaseBatches(data.train, data.train, seed=2)
    while not run.done:
        run.step(opt.step(batches(run.present, run.t)))
    assert all(torch.equal(p, a[f"model/{name}"]) for name, p in model.state_dict().items())
