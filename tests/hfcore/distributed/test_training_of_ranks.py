"""hf.train on several processes: one stream of data, one folder, one end."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from command_line import invoke
from hfcore.training import read_metrics
from ranks import Failed, Server, cases


@pytest.mark.parametrize("optimizer", ["hf", "nag", "adam"])
def test_a_run_does_not_depend_on_the_number_of_ranks(ranks: Server, optimizer: str) -> None:
    alone = cases.trained(None, optimizer=optimizer, reduction="exact")
    for size in (2, 3, 4) if optimizer == "hf" else (3,):
        for one in ranks.run(size, "trained", optimizer=optimizer):
            assert not isinstance(one, Failed), one
            assert torch.equal(one["theta"], alone["theta"])
            assert one["error"] == alone["error"]
    plain = cases.trained(None, optimizer=optimizer)
    assert torch.allclose(plain["theta"], alone["theta"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_one_rank_ends_all_with_a_checkpoint(
    ranks: Server, number: int, tmp_path: Path
) -> None:
    """And any number of ranks takes the run up, to the same bits."""
    alone = cases.trained(None, optimizer="hf", reduction="exact")
    for one in ranks.run(
        2, "trained", optimizer="hf", run_dir=str(tmp_path / "run"), send=(1, int(number))
    ):
        assert not isinstance(one, Failed), one
        assert (one["reason"], one["iterations"]) == ("interrupted", 2)
    for one in ranks.run(3, "trained", optimizer="hf", run_dir=str(tmp_path / "run"), resume=True):
        assert not isinstance(one, Failed), one
        assert torch.equal(one["theta"], alone["theta"])
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]


def test_errors_of_the_folder_reach_all(ranks: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    first, second = ranks.run(2, "trained", optimizer="nag", run_dir=str(tmp_path))
    assert first.kind == "RunFolderError"
    assert "is neither empty nor a run folder" in first.message
    assert second.kind == "RankFailed"
    assert second.message == f"rank 0 failed: RunFolderError: {first.message}"
    first, second = ranks.run(2, "trained", optimizer="nag", seed_of_last=3)
    assert "data.seed: is 0 on rank 0 and 3 on rank 1" in first.message
    assert first.message == second.message


TRAIN = ["train", "addition", "--length", "4", "--hidden", "5", "--quiet", "--batch-size", "32"]
TRAIN += ["--gradient-batches", "2", "--test-size", "20", "--cg-max-iter", "3", "--seed", "1"]
TRAIN += ["--solved-below", "0", "--timeout", "20", "--run-dir"]


def test_the_command_as_torchrun_starts_it(ranks: Server, tmp_path: Path) -> None:
    """One of the processes speaks; those that are started again go on where the run was."""
    folder = tmp_path / "run"
    train = [*TRAIN, str(folder), "--iterations"]
    first, second = ranks.run(2, "command", arguments=[*train, "2"])
    assert first[0] == second[0] == 0, (first, second)
    assert first[1].count("run folder") == 1
    assert second[1] == ""
    again = ranks.run(3, "command", arguments=[*train, "4"], restarts=1, may_restart=True)
    assert [code for code, _ in again] == [0, 0, 0], again
    config = json.loads((folder / "config.json").read_text())
    assert config["optimizer"]["reduction"] == "exact"
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    alone = invoke(*TRAIN, tmp_path / "alone", "--iterations", "4", "--reduction", "exact")
    assert alone.exit_code == 0, alone.output
    other = read_metrics(tmp_path / "alone" / "metrics.jsonl")
    assert [line["loss_after"] for line in lines] == [line["loss_after"] for line in other]


def test_wrong_commands_end_all_processes_with_a_word(ranks: Server, tmp_path: Path) -> None:
    for code, said in ranks.run(2, "command", arguments=[*TRAIN, str(tmp_path / "no"), "--resume"]):
        assert code == 1
        assert "there is no run folder to resume" in said
    for code, said in ranks.run(2, "command", arguments=TRAIN[:-1], may_restart=True):
        assert code == 2
        assert "need one with torchrun's --max-restarts" in said


# Before there is a checkpoint, and in the middle of the third step.
KILLS = [(0, 9), (2, 60)]


@pytest.mark.parametrize(("rank", "at"), KILLS)
def test_a_killed_rank_ends_the_others_and_the_run_goes_on(
    ranks: Server, rank: int, at: int, tmp_path: Path
) -> None:
    killed_and_resumed(ranks, "hf", 3, (rank, at, 0.0), tmp_path / "run", after=2)


def killed_and_resumed(
    ranks: Server,
    optimizer: str,
    size: int,
    kill: tuple[int, int, float],
    folder: Path,
    after: int,
) -> None:
    """Kill a rank after one of its exchanges; resume on ``after`` ranks."""
    rank = kill[0]
    alone = cases.trained(None, optimizer=optimizer, reduction="exact")
    found = ranks.run(size, "trained", optimizer=optimizer, run_dir=str(folder), kill=kill)
    assert found[rank] == Failed("status", str(-signal.SIGKILL)), "was not killed"
    for other in found[:rank] + found[rank + 1 :]:
        if isinstance(other, Failed):
            assert other.kind == "RankLost", other
        else:  # a kill some time after an exchange may come after the last one
            assert kill[2], other
            assert torch.equal(other["theta"], alone["theta"])
    begun = (folder / "config.json").exists()
    for one in ranks.run(after, "trained", optimizer=optimizer, run_dir=str(folder), resume=begun):
        assert not isinstance(one, Failed), one
        assert torch.equal(one["theta"], alone["theta"])
        assert one["error"] == alone["error"]


@pytest.mark.slow
@pytest.mark.parametrize("draw", range(20))
def test_twenty_kills_at_random(ranks: Server, draw: int, tmp_path: Path) -> None:
    """Five of them are taken up by another number of ranks."""
    g = torch.Generator().manual_seed(draw)

    def drawn(n: int) -> int:
        return int(torch.randint(n, (1,), generator=g))

    size, optimizer = 2 + drawn(2), ("hf", "nag")[drawn(2)]
    kill = drawn(size), 3 + drawn(25 if optimizer == "nag" else 80), 0.002 * drawn(5)
    after = size if draw % 4 else 1 + (size + drawn(2)) % 4
    killed_and_resumed(ranks, optimizer, size, kill, tmp_path / "run", after)
