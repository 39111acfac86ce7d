"""Initialisations: fan-in, spread, determinism, and the errors they raise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import hfcore as hf

INITS: list[Callable[..., None]] = [hf.init.sparse_, hf.init.gaussian_]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(n: int, H: int, k: int, dtype: torch.dtype = torch.float64) -> hf.RNN:
    """A net full of NaN, so that whatever an initialisation forgets is seen."""
    model = hf.RNN(n, H, k, dtype=dtype)
    for p in model.parameters():
        torch.nn.init.constant_(p, float("nan"))
    return model


@pytest.mark.parametrize(
    ("n", "H", "k"),
    [(2, 100, 1), (7, 15, 3), (1, 3, 2), (40, 33, 17)],
    ids=lambda size: str(size),
)
@pytest.mark.parametrize("fan_in", [1, 15], ids=lambda f: f"fan{f}")
def test_every_unit_has_its_fan_in(n: int, H: int, k: int, fan_in: int) -> None:
    model = net(n, H, k)
    hf.init.sparse_(model, seeded(), fan_in=fan_in, sparse_inputs=True)
    for w in (model.W_hx, model.W_hh, model.W_yh):
        assert bool(((w != 0).sum(1) == min(fan_in, w.shape[1])).all())
    hf.init.sparse_(model, seeded(), fan_in=fan_in)
    assert bool((model.W_hx != 0).all())
    for b in (model.b_h, model.b_init, model.b_y):
        assert not bool(b.any())


def test_sparse_spreads() -> None:
    model = net(200, 400, 100)
    hf.init.sparse_(model, seeded(1), fan_in=15, input_scale=0.25, scale=1.2)
    for w, scale in ((model.W_hx, 0.25), (model.W_hh, 1.0), (model.W_yh, 1.0)):
        kept = w[w != 0].detach()
        # the sample deviation of m normals is known to 1/sqrt(2 m)
        assert float(kept.std()) == pytest.approx(
            1.2 * scale / 15**0.5, rel=5 / (2 * kept.numel()) ** 0.5
        )
    used = (model.W_hh != 0).sum(0).double()  # columns are picked evenly: Binomial(400, 15/400)
    assert float(used.mean()) == 15
    assert float(used.std()) == pytest.approx((15 * (1 - 15 / 400)) ** 0.5, rel=0.2)


def test_gaussian_spreads() -> None:
    model = net(50, 300, 200)
    hf.init.gaussian_(model, seeded(2), scale=0.7)
    for w in (model.W_hx, model.W_hh, model.W_yh):
        assert float(w.detach().std()) == pytest.approx(
            0.7 / w.shape[1] ** 0.5, rel=5 / (2 * w.numel()) ** 0.5
        )
    for b in (model.b_h, model.b_init, model.b_y):
        assert not bool(b.any())


@pytest.mark.parametrize("init", INITS, ids=lambda f: f.__name__)
def test_one_seed_one_net_in_both_dtypes(init: Callable[..., None]) -> None:
    single, double, other = net(3, 20, 2, torch.float32), net(3, 20, 2), net(3, 20, 2)
    init(single, seeded(3))
    init(double, seeded(3))
    init(other, seeded(4))
    assert not torch.equal(double.W_hh, other.W_hh)
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.float())


@pytest.mark.parametrize("init", INITS, ids=lambda f: f.__name__)
def test_bad_arguments_are_named(init: Callable[..., None]) -> None:
    with pytest.raises(TypeError, match=r"model: Linear has no W_hx, need an hfcore.RNN"):
        init(torch.nn.Linear(2, 2), seeded())
    with pytest.raises(TypeError, match=r"generator: got int, need a torch.Generator"):
        init(net(1, 1, 1), 0)
    with pytest.raises(ValueError, match=r"scale: got -1.0, need a finite number"):
        init(net(1, 1, 1), seeded(), scale=-1.0)


def test_a_fan_in_below_one_is_named() -> None:
    with pytest.raises(ValueError, match="fan_in: got 0, need an int of at least 1"):
        hf.init.sparse_(net(1, 1, 1), seeded(), fan_in=0)
