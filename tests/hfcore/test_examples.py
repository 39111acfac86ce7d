"""The examples run, and their losses fall."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import which

import pytest
import torch
from python_process import python_output

import hfcore as hf
from hfcore.examples import cnn, compiled, language_model, lstm, poisson, transformer


@pytest.mark.parametrize(
    ("main", "amount", "factor"),
    [
        (cnn.main, 4, 0.5),
        (lstm.main, 13, 0.2),
        (transformer.main, 7, 0.2),
        (language_model.main, 5, 0.3),
        (poisson.main, 5, 0.1),
        (compiled.main, 6, 0.5),
    ],
    ids=["cnn", "lstm", "transformer", "language_model", "poisson", "compiled"],
)
def test_losses_fall(main: Callable[[int], list[float]], amount, factor, capsys) -> None:
    losses = main(amount)
    assert losses[-1] < factor * losses[0]
    printed = capsys.readouterr().out
    assert f"loss {losses[0]:.4f}" in printed or f"loss {losses[2]:.4f}" in printed


@pytest.mark.slow  # half a minute of compiling
@pytest.mark.skipif(which("g++") is None, reason="torch.compile's default needs a C++ compiler")
def test_the_compiled_example_trains_as_the_eager_one_with_the_default_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    losses = compiled.main(3, "inductor")
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(compiled.main(3, "eager"), rel=1e-3)


def test_examples_run_as_modules() -> None:
    said = python_output("-m", "hfcore.examples.cnn", OMP_NUM_THREADS="1")
    assert "epoch 3: loss" in said
    assert "test accuracy" in said


def test_state_dict_of_an_optimiser_on_a_module_comes_back_bitwise() -> None:
    """Two steps, saved, and two more: the same bits as four in one go."""
    x, y = cnn.bars(60, torch.Generator().manual_seed(0)).tensors

    def start() -> tuple[torch.nn.Module, hf.HessianFree]:
        torch.manual_seed(0)
        model = cnn.make_model()
        opt = hf.HessianFree(
            model, torch.nn.CrossEntropyLoss(), damping=1.0, cg_max_iter=8, strategy="trace"
        )
        return model, opt

    model, opt = start()
    for _ in range(4):
        opt.step((x, y))
    other, resumed = start()
    for _ in range(2):
        resumed.step((x, y))
    saved = (other.state_dict(), resumed.state_dict())
    other, resumed = start()
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for _ in range(2):
        resumed.step((x, y))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
