"""The examples under other people's training loops, where these are installed."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("package", "name", "options", "factor"),
    [
        ("ignite", "with_ignite", {}, 0.5),
        ("accelerate", "with_accelerate", {}, 0.5),
        ("lightning", "with_lightning", {}, 0.5),
        ("lightning", "with_lightning", {"automatic": True}, 0.8),
    ],
    ids=["ignite", "accelerate", "lightning-manual", "lightning-automatic"],
)
def test_losses_fall(
    package: str,
    name: str,
    options: dict[str, bool],
    factor: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip(package, reason=f"{package} comes with the extra frameworks")
    main = partial(import_module(f"hfcore.examples.{name}").main, **options)
    losses = main(4)
    assert len(losses) == 8
    assert losses[-1] < factor * losses[0]
    assert f"loss {losses[0]:.4f}" in capsys.readouterr().out


def test_loss_of_deepxde_falls(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DDE_BACKEND", "pytorch")
    pytest.importorskip("deepxde", reason="deepxde comes with the extra frameworks")
    losses = import_module("hfcore.examples.with_deepxde").main()
    assert losses[-1] < 0.2 * losses[0]
    assert f"loss {losses[0]:.4f}" in capsys.readouterr().out
