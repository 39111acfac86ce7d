"""What newcomers write at first, and what they are told."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hfcore as hf

X, CLASSES = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def net(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))


def trained(model: nn.Module, data: Any, loss: Any, **options: Any) -> hf.TrainResult:
    opt = hf.HessianFree(model, loss, damping=1.0)
    stop = hf.training.Limits(iterations=1)
    return hf.train(model, data, opt, **{"stop": stop, "progress": False, **options})


@pytest.mark.parametrize(
    ("targets", "outputs", "need"),
    [
        (X[:, 0], 1, "[12, 1] like the outputs"),  # torch would compare each case with each
        (X[:, :1, None], 1, "[12, 1] like the outputs"),
    ],
)
def test_targets_that_torch_would_lay_across_the_cases(
    targets: Tensor, outputs: int, need: str
) -> None:
    got = f"targets: got shape {list(targets.shape)}, need {need}"
    with pytest.raises(ValueError, match=f"^{re.escape(got)}$"):
        hf.HessianFree(net(outputs), nn.MSELoss()).step((X, targets))


def test_targets_are_broadcast_along_an_axis_of_their_own() -> None:
    """As torch does: one target for three outputs of a case."""
    model = net(3)
    with pytest.warns(UserWarning, match="different to the input size"):
        stats = hf.HessianFree(model, nn.MSELoss()).step((X, X[:, :1]))
    assert np.isfinite(stats.loss)


@pytest.mark.parametrize(
    ("targets", "got"),
    [
        (CLASSES[:, None], "[12, 1] of torch.int64"),
        (nn.functional.one_hot(CLASSES), "[12, 3] of torch.int64"),
        (CLASSES.float(), "[12] of torch.float32"),
    ],
)
def test_classes_of_another_form(targets: Tensor, got: str) -> None:
    said = f"targets: got shape {got}, need [12] of int64 classes, or [12, 3] of floating shares"
    with pytest.raises(ValueError, match=f"^{re.escape(said)} of each$"):
        hf.HessianFree(net(3), nn.CrossEntropyLoss()).step((X, targets))


def test_a_test_part_of_another_width_names_the_inputs() -> None:
    said = r"inputs: the model does not take \[12, 2\] torch.float32: mat1 and mat2"
    with pytest.raises(ValueError, match=said):
        trained(net(3), (X, CLASSES), nn.CrossEntropyLoss(), test=(X[:, :2], CLASSES))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("iterations", "it is stop=hf.training.Limits(iterations=…)"),
        ("epochs", "it is stop=hf.training.Limits(iterations=…), with hf.minibatches.Epochs"),
        ("lr", "it is an option of the optimiser"),
        ("patience", "it is callbacks=[hf.training.EarlyStopping(…)]"),
    ],
)
def test_options_in_other_words(option: str, said: str) -> None:
    with pytest.raises(TypeError, match=f"^{option}: unknown option; {re.escape(said)}"):
        trained(net(3), (X, CLASSES), nn.CrossEntropyLoss(), **{option: 3})


def test_series_of_numbers_have_an_axis_of_features() -> None:
    series = [(np.zeros((T, 1), np.float32), np.zeros(T, np.float32)) for T in (3, 5)]
    said = r"data\[1\]: y: got steps of shape \[5\] and .*; a number in every step is \[T_i, 1\]$"
    with pytest.raises(ValueError, match=said):
        trained(hf.RNN(1, 3, 1), series, hf.losses.SquaredError())


OPTIMISERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "HessianFree": lambda model: hf.HessianFree(model, nn.MSELoss()),
    "NAG": lambda model: hf.NAG(model, lr=0.1),
    "NonlinearCG": hf.NonlinearCG,
    "LeastSquares": hf.LeastSquares,
    "NaturalGradient": lambda model: hf.NaturalGradient(model, "normal"),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_checkpoint_is_no_state(name: str) -> None:
    """The dict around it is given, or nothing that is one."""
    opt = OPTIMISERS[name](net(1))
    said = "state_dict: has no 'state' and no 'param_groups', need what an optimiser's state_dict()"
    with pytest.raises(ValueError, match=re.escape(said)):
        opt.load_state_dict({"optimizer": opt.state_dict()})
    with pytest.raises(TypeError, match=r"^state_dict: got list, need a dict$"):
        opt.load_state_dict([])  # type: ignore[arg-type]


def test_a_loss_is_no_residual() -> None:
    model = net(1)
    with pytest.raises(ValueError, match=r"^closure: returned one number, need the residuals"):
        hf.LeastSquares(model).step(lambda: (model(X) - X[:, :1]).square().mean())
    before = hf.LeastSquares(model).step(lambda: {"one": (model(X) - X[:, :1]).mean()})
    assert before >= 0


def test_columns_of_a_callback_are_a_dict() -> None:
    class Log(hf.Callback):
        def measure(self, state: hf.TrainState) -> Any:
            return 3

    said = r"^Log\.measure: gave int, need a dict of columns by name$"
    with pytest.raises(TypeError, match=said):
        trained(net(3), (X, CLASSES), nn.CrossEntropyLoss(), callbacks=[Log()])
