"""The ESN start: table 4 of Sutskever et al. 2013, dense and by rows, and its errors."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from unset_nets import net, seeded

import hfcore as hf
from hfcore import spectral
from hfcore.init import esn_recurrence


def radius(W: torch.Tensor) -> float:
    return float(np.abs(np.linalg.eigvals(W.detach().double().numpy())).max())


@pytest.mark.parametrize("H", [1, 2, 14, 15, 16, 100, 211], ids=lambda H: f"H{H}")
@pytest.mark.parametrize("fan_in", [1, 3, 15], ids=lambda f: f"fan{f}")
def test_every_unit_has_its_fan_in_and_the_net_its_radius(H: int, fan_in: int) -> None:
    model = net(3, H, 2)
    hf.init.esn_(model, seeded(H), fan_in=fan_in)
    assert bool(((model.W_hh != 0).sum(1) == min(fan_in, H)).all())
    # Eigenvalues of a matrix of norm < 20 from a backward stable method, ill-conditioned ones
    # included: the root of the rounding error.
    assert radius(model.W_hh) == pytest.approx(1.1, rel=1e-7)
    assert bool((model.W_hx != 0).all())
    assert bool((model.W_yh != 0).all())
    for b in (model.b_h, model.b_init, model.b_y):
        assert not bool(b.any())


def test_spreads() -> None:
    model = net(200, 400, 100)
    hf.init.esn_(model, seeded(1), input_scale=0.3, output_scale=0.7, spectral_radius=0.9)
    for w, scale in ((model.W_hx, 0.3), (model.W_yh, 0.7)):
        # the sample deviation of m normals is known to 1/sqrt(2 m)
        assert float(w.detach().std()) == pytest.approx(scale, rel=5 / (2 * w.numel()) ** 0.5)
    assert radius(model.W_hh) == pytest.approx(0.9, rel=1e-7)
    kept = model.W_hh[model.W_hh != 0].detach()
    assert float(kept.mean().abs()) < 5 * float(kept.std()) / kept.numel() ** 0.5


def test_defaults_are_those_of_addition() -> None:
    given, default = net(2, 50, 1), net(2, 50, 1)
    hf.init.esn_(default, seeded())
    hf.init.esn_(given, seeded(), fan_in=15, input_scale=0.001, output_scale=0.1)
    for a, b in zip(given.parameters(), default.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("H", [4, 20, 130], ids=lambda H: f"H{H}")
def test_columns_are_distinct_and_sorted(H: int) -> None:
    index, value = esn_recurrence(H, 15, 1.1, seeded(H))
    F = min(15, H)
    assert index.shape == value.shape == (H, F)
    assert index.dtype == torch.int32
    assert value.dtype == torch.float64
    assert bool((index.diff(dim=1) > 0).all())
    assert int(index.min()) >= 0
    assert int(index.max()) < H


@pytest.mark.parametrize(("H", "F"), [(5, 2), (6, 5), (7, 3)])
def test_every_set_of_columns_is_equally_likely(H: int, F: int) -> None:
    """Each draw has H rows; the pair of the first two columns kept tells sets apart enough."""
    drawn = torch.cat([spectral._fan_in_rows(H, F, seeded(seed))[0] for seed in range(3000)])
    sets = (drawn * H ** torch.arange(F)).sum(1)
    _, counts = sets.unique(return_counts=True)
    expected = len(drawn) / len(counts)
    assert len(counts) == len(list(torch.combinations(torch.arange(H), F)))
    assert float((counts - expected).abs().max()) < 5 * expected**0.5


def test_dense_and_sparse_nets_of_one_seed_are_equal() -> None:
    model = net(2, 60, 1)
    hf.init.esn_(model, seeded(5), fan_in=7, spectral_radius=1.3)
    rows = esn_recurrence(60, 7, 1.3, seeded(5))
    dense = torch.zeros(60, 60, dtype=torch.float64)
    for i in range(60):
        for column, value in zip(*(part[i].tolist() for part in rows), strict=True):
            dense[i, column] = value
    assert torch.equal(model.W_hh.detach(), dense)


def test_one_seed_one_net_in_both_dtypes() -> None:
    single, double, other = net(3, 20, 2, torch.float32), net(3, 20, 2), net(3, 20, 2)
    hf.init.esn_(single, seeded(3))
    hf.init.esn_(double, seeded(3))
    hf.init.esn_(other, seeded(4))
    assert not torch.equal(double.W_hh, other.W_hh)
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.float())


def test_a_radius_of_zero_is_granted() -> None:
    model = net(1, 9, 1)
    hf.init.esn_(model, seeded(), spectral_radius=0.0)
    assert not bool(model.W_hh.any())


@pytest.mark.parametrize(
    ("loss", "mean", "bias"),
    [
        (None, 0.25, [0.25, 0.25, 0.25]),
        (hf.losses.SquaredError(), [0.5, -2.0, 0.0], [0.5, -2.0, 0.0]),
        (hf.losses.LogisticCrossEntropy(), [0.5, 0.2, 0.9], [0.0, np.log(0.25), np.log(9.0)]),
        (hf.losses.SoftmaxCrossEntropy(), [0.5, 0.5, 0.0], [*np.log([0.5, 0.5, 1e-5])]),
    ],
    ids=["none", "squared", "logistic", "softmax"],
)
def test_output_biases_answer_the_mean_target(
    loss: hf.losses.Loss | None, mean: float | list[float], bias: list[float]
) -> None:
    model = net(2, 5, 3)
    hf.init.esn_(
        model,
        seeded(),
        mean_target=mean if isinstance(mean, float) else torch.tensor(mean, dtype=torch.float64),
        loss=loss,
    )
    torch.testing.assert_close(
        model.b_y.detach(), torch.tensor(bias, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", sorted(hf.problems.SEQUENCES))
@pytest.mark.parametrize("centre", [False, True], ids=["plain", "centred"])
def test_the_preset_starts_at_the_mean(name: str, centre: bool) -> None:
    """With hidden units at rest the loss has no gradient at the output biases, on average."""
    problem = hf.problems.create(name, length=10, centre=centre)
    model = net(problem.input_size, 30, problem.output_size)
    hf.init.esn_(model, seeded(), **hf.presets.esn2013(problem))
    scale = 0.001 if name in ("addition", "multiplication", "xor") else 0.1
    assert float(model.W_hx.detach().std()) == pytest.approx(scale, rel=0.3)
    cases = 20_000 if problem.input_size < 10 else 2_000
    batch = problem.batch(cases, np.random.default_rng(0), torch.float64)
    s = model.b_y.detach().expand(*batch.inputs.shape[:2], -1).contiguous()
    gradient = problem.loss.gradient(s, batch.targets, batch.mask, scale=1 / cases)
    assert float(gradient.sum((0, 1)).abs().max()) < 5 * 3 / cases**0.5


Drawn = tuple[torch.Tensor, torch.Tensor]


class Draws:
    """A stand-in for the draw: nilpotent the first times, a fixed matrix then."""

    def __init__(self, nilpotent: int) -> None:
        self.left = nilpotent

    def __call__(self, H: int, F: int, generator: torch.Generator) -> Drawn:
        self.left -= 1
        column = 1 if self.left >= 0 else 0  # the row of zeros has its value in column 1
        value = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
        return torch.tensor([[column], [0]], dtype=torch.int32), value


def test_a_nilpotent_draw_is_drawn_again_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spectral, "_fan_in_rows", Draws(2))
    with caplog.at_level(logging.WARNING, "hfcore.spectral"):
        _, value = esn_recurrence(2, 1, 1.1, seeded())
    assert value.tolist() == [[1.1], [0.0]]
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "esn_recurrence: the draw is nilpotent (spectral radius 0)"
    ] * 2


def test_nilpotent_draws_without_end_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "_fan_in_rows", Draws(10**9))
    with pytest.raises(ValueError, match=r"10 draws of 2 units with fan-in 1 were all nilpotent"):
        esn_recurrence(2, 1, 1.1, seeded())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fan_in": 0}, ValueError, "fan_in"),
        ({"fan_in": 1.0}, TypeError, "fan_in: got 1.0, need an int"),
        ({"spectral_radius": -0.1}, ValueError, "spectral_radius: got -0.1, need a finite"),
        ({"spectral_radius": float("nan")}, ValueError, "spectral_radius: got nan"),
        ({"input_scale": float("inf")}, ValueError, "input_scale: got inf"),
        ({"output_scale": -1.0}, ValueError, "output_scale: got -1.0"),
        ({"mean_target": torch.zeros(3)}, ValueError, r"mean_target: got shape \[3\], need a numb"),
        ({"mean_target": float("nan")}, ValueError, r"mean_target: got nan, need finite"),
        (
            {"mean_target": 1.5, "loss": hf.losses.SoftmaxCrossEntropy()},
            ValueError,
            r"mean_target: got 1.5, need frequencies in \[0, 1\]",
        ),
    ],
)
def test_bad_arguments_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        hf.init.esn_(net(2, 4, 2), seeded(), **options)


def test_other_models_and_generators_are_refused() -> None:
    with pytest.raises(TypeError, match=r"model: got MLP, need an hf.RNN"):
        hf.init.esn_(hf.MLP([2, 2], ["linear"]), seeded())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"generator: got int, need a torch.Generator"):
        hf.init.esn_(net(1, 1, 1), 0)  # type: ignore[arg-type]
