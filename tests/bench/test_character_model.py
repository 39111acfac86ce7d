"""The bench of the character model, with a net of a few units."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from bench.character_model import ADAM, HF, Run, Sizes, Text, run, tables

SIZES = Sizes(hidden=4, length=5, sequences=6, gradient_batches=2, cg_max_iter=3,
              adam_sequences=2, test_sequences=7, test_every=2, steps=2)  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 9)
    return path


def test_a_batch_is_characters_and_the_next_ones(path: Path) -> None:
    text = Text(path)
    assert text.symbols == len(set(path.read_text()))
    x, y, _ = text.batch(text.train, 3, 5, torch.Generator().manual_seed(0))
    assert x.shape == (5, 3, text.symbols)
    assert y.shape == (5, 3)
    assert torch.equal(x.argmax(-1)[1:], y[:-1])


@pytest.mark.slow
def test_both_run_and_are_shown(path: Path) -> None:
    newton = run(HF, path, SIZES, None)
    seconds = newton["lines"][-1]["seconds"]
    adam = run(ADAM, path, SIZES, seconds)
    assert [line.get("products") is not None for line in newton["lines"]] == [False, True, True]
    assert newton["lines"][0]["bits"] == adam["lines"][0]["bits"]  # one start, one test
    assert adam["lines"][-1]["seconds"] >= seconds > adam["lines"][-2]["seconds"]
    costs = Run(ADAM, path, SIZES).costs(1)
    assert set(costs) == {"gradient", "product", "update"}
    results = {"sizes": asdict(SIZES), "machine": "A CPU", "costs": costs, HF: newton, ADAM: adam}
    text = tables(results)
    assert text.startswith(f"{newton['parameters']:,} parameters; A CPU")
    rows = [line for line in text.splitlines() if line.startswith(("| 0 |", "| 1 |", "| 2 |"))]
    assert [row.split(" | ")[1] for row in rows] == [
        str(line.get("products", 0)) for line in newton["lines"]
    ]
