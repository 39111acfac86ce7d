"""The examples under other people's training loops, where these are installed."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("package", "name", "options", "steps"),
    [
        ("ignite", "with_ignite", {}, 8),
        ("accelerate", "with_accelerate", {}, 8),
        ("lightning", "with_lightning", {}, 8),
        ("lightning", "with_lightning", {"automatic": True}, 8),
    ],
    ids=["ignite", "accelerate", "lightning-manual", "lightning-automatic"],
)
def test_losses_fall(
    package: str,
    name: str,
    options: dict[str, bool],
    steps: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip(package, reason=f"{package} comes with the extra frameworks")
    main = partial(import_module(f"hfcore.examples.{name}").main, **options)
    losses = main(4)
    assert len(losses) == steps
    assert losses[-1] < 0.7 * losses[0]
    assert f"loss {losses[0]:.4f}" in capsys.readouterr().out
