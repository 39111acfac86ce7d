"""Initialisations: fan-in, spread, determinism, and the errors they raise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from unset_nets import net, seeded

import hfcore as hf

INITS: list[Callable[..., None]] = [hf.init.sparse_, hf.init.gaussian_, hf.init.glorot_]


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


def stack(sizes: list[int], activations: list[str]) -> hf.MLP:
    """An MLP full of NaN."""
    model = hf.MLP(sizes, activations, dtype=torch.float64)
    for p in model.parameters():
        torch.nn.init.constant_(p, float("nan"))
    return model


def test_sparse_of_a_feed_forward_net() -> None:
    """Martens 2010: 15 incoming weights from N(0, 1), all where there are fewer; biases 0."""
    model = stack([300, 200, 6, 300], ["logistic", "linear", "linear"])
    hf.init.sparse_(model, seeded())
    for layer in model.layers:
        W = layer.weight.detach()
        assert bool(((W != 0).sum(1) == min(15, W.shape[1])).all())
        kept = W[W != 0]
        assert float(kept.std()) == pytest.approx(1, rel=5 / (2 * kept.numel()) ** 0.5)
        assert not bool(layer.bias.any())


def test_replacement_repeats_indices() -> None:
    """15 draws of n columns leave n·(1 − (1 − 1/n)^15) of them on average."""
    model = stack([40, 2000, 1], ["logistic", "linear"])
    hf.init.sparse_(model, seeded(), replacement=True)
    count = (model.layers[0].weight != 0).sum(1).double()
    assert int(count.max()) <= 15
    assert float(count.mean()) == pytest.approx(40 * (1 - (1 - 1 / 40) ** 15), rel=0.01)
    kept = model.layers[0].weight[model.layers[0].weight != 0].detach()
    assert float(kept.std()) == pytest.approx(1, rel=5 / (2 * kept.numel()) ** 0.5)


def test_tanh_units_halve_and_shift() -> None:
    logistic = stack([30, 20, 20, 30], ["logistic", "logistic", "linear"])
    tanh = stack([30, 20, 20, 30], ["tanh", "tanh", "linear"])
    hf.init.sparse_(logistic, seeded())
    hf.init.sparse_(tanh, seeded())
    for a, b, factor, bias in zip(
        logistic.layers, tanh.layers, (0.5, 0.25, 0.5), (0.5, 0.5, 0.0), strict=True
    ):
        assert torch.equal(b.weight, factor * a.weight)
        assert bool((b.bias == bias).all())


@pytest.mark.parametrize("activations", [None, ["tanh", ""]])
def test_a_sequential_is_initialised_like_an_mlp(activations: list[str] | None) -> None:
    linear = torch.nn.Linear
    model = torch.nn.Sequential(linear(9, 5), torch.nn.Tanh(), linear(5, 2, bias=False)).double()
    same = stack([9, 5, 2], ["tanh", "linear"])
    hf.init.sparse_(model, seeded(), activations=activations)
    hf.init.sparse_(same, seeded())
    assert torch.equal(model[0].weight, same.layers[0].weight)
    assert torch.equal(model[2].weight, same.layers[1].weight)
    assert bool((model[0].bias == 0.5).all())


def test_glorot_spreads() -> None:
    model = stack([100, 300, 20], ["relu", "linear"])
    hf.init.glorot_(model, seeded(), scale=1.5)
    for W in (layer.weight.detach() for layer in model.layers):
        bound = 1.5 * (6 / sum(W.shape)) ** 0.5
        assert bound * (1 - 10 / W.numel()) <= float(W.abs().max()) <= bound
        assert float(W.std()) == pytest.approx(bound / 3**0.5, rel=5 / W.numel() ** 0.5)
    assert not any(bool(layer.bias.any()) for layer in model.layers)


def test_options_of_the_other_kind_of_net_are_refused() -> None:
    with pytest.raises(ValueError, match=r"input_scale, sparse_inputs: are for an hf.RNN"):
        hf.init.sparse_(stack([2, 2], ["linear"]), seeded(), input_scale=0.25)
    with pytest.raises(ValueError, match=r"activations: got some for an hf.RNN"):
        hf.init.sparse_(net(1, 1, 1), seeded(), activations=["tanh"])
    model = stack([2, 2, 2], ["tanh", "linear"])
    with pytest.raises(ValueError, match=r"activations: got \['tanh'\], need 2 names"):
        hf.init.sparse_(model, seeded(), activations=["tanh"])


@pytest.mark.parametrize("init", INITS, ids=lambda f: f.__name__)
def test_bad_arguments_are_named(init: Callable[..., None]) -> None:
    with pytest.raises(TypeError, match=r"model: Tanh has no torch.nn.Linear, need an hf.RNN"):
        init(torch.nn.Tanh(), seeded())
    with pytest.raises(TypeError, match=r"model: got int, need a torch.nn.Module"):
        init(3, seeded())
    with pytest.raises(TypeError, match=r"generator: got int, need a torch.Generator"):
        init(net(1, 1, 1), 0)
    with pytest.raises(ValueError, match=r"scale: got -1.0, need a finite number"):
        init(net(1, 1, 1), seeded(), scale=-1.0)


def test_a_fan_in_below_one_is_named() -> None:
    with pytest.raises(ValueError, match="fan_in: got 0, need an int of at least 1"):
        hf.init.sparse_(net(1, 1, 1), seeded(), fan_in=0)
