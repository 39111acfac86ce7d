"""Modules that take keywords and return several things: the same numbers as of a wrapped one."""

from __future__ import annotations

import pickle
from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.autograd.calls import called
from hfcore.examples import language_model

Output = namedtuple("Output", ["hidden", "logits"])


class Attributes:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Net(nn.Module):
    """Returns its scores as ``form`` says."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.double()
        self.form = form

    def forward(self, x: Tensor, scale: Tensor) -> Any:
        hidden = torch.tanh(self.first(x)) * scale
        return self.form(hidden, self.second(hidden))


FORMS: dict[str, tuple[Any, Any]] = {
    "attribute": (lambda h, s: Attributes(s), "logits"),
    "key": (lambda h, s: {"hidden": h, "logits": s}, "logits"),
    "field": (Output, "logits"),
    "index": (lambda h, s: (h, s), 1),
    "last": (lambda h, s: [h, s], -1),
    "function": (lambda h, s: (h, {"s": s}), lambda o: o[1]["s"]),
    "tensor": (lambda h, s: s, None),
}


def batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(7, 3, generator=g, dtype=torch.float64)
    scale = torch.rand(7, 1, generator=g, dtype=torch.float64)
    return {"scale": scale, "x": x, "labels": torch.arange(7) % 2}


def inputs() -> dict[str, Tensor]:
    return {key: value for key, value in batch().items() if key != "labels"}


class Plain(nn.Module):
    """The same function of one tensor, ``[x, scale]``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(lambda h, s: s)

    def forward(self, both: Tensor) -> Any:
        return self.net(both[:, :3], both[:, 3:])


def plain_inputs() -> Tensor:
    return torch.cat([batch()["x"], batch()["scale"]], 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_products_are_those_of_a_module_that_returns_a_tensor(
    form: str, chunk_size: int | None
) -> None:
    make, select = FORMS[form]
    loss = nn.CrossEntropyLoss()
    G = hf.GaussNewton(
        Net(make), loss, inputs(), batch()["labels"], outputs=select, chunk_size=chunk_size
    )
    right = hf.GaussNewton(Plain(), loss, plain_inputs(), batch()["labels"])
    eye = torch.eye(G.shape[0], dtype=torch.float64)
    torch.testing.assert_close(G.matmat(eye), right.matmat(eye), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_steps_on_a_mapping_with_labels(form: str) -> None:
    make, select = FORMS[form]
    model, right = Net(make), Plain()
    opt = hf.HessianFree(model, nn.CrossEntropyLoss(), outputs=select)
    other = hf.HessianFree(right, nn.CrossEntropyLoss())
    for data in (batch(), [UserDict(batch())], hf.Batch(inputs(), batch()["labels"])):
        opt.step(data)
        other.step((plain_inputs(), batch()["labels"]))
    for p, q in zip(model.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    state = pickle.loads(pickle.dumps(opt.state_dict()))
    opt.load_state_dict(state)
    opt.step(batch())


def test_a_mapping_that_names_no_arguments_is_one_argument() -> None:
    class Whole(nn.Module):
        def forward(self, given: dict[str, Tensor]) -> Tensor:
            return given["x"] + given["scale"]

    torch.testing.assert_close(called(Whole(), inputs()), inputs()["x"] + inputs()["scale"])


@pytest.mark.parametrize(
    ("form", "select", "error", "message"),
    [
        ("key", None, TypeError, "returned dict, need one tensor; .* such as outputs='hidden'"),
        ("attribute", None, TypeError, "returned Attributes, .* such as outputs='logits'"),
        ("index", None, TypeError, "returned tuple, .* such as outputs=0"),
        ("key", "scores", ValueError, "outputs: the model returned dict, without 'scores'"),
        ("index", 2, ValueError, "outputs: the model returned tuple, without 2"),
        ("attribute", 0, ValueError, "outputs: the model returned Attributes, without 0"),
        ("function", 1, TypeError, "outputs: 1 gave dict, need one tensor"),
        ("key", 1.5, TypeError, "outputs: got float, need a key or attribute"),
        ("key", True, TypeError, "outputs: got bool, need a key or attribute"),
    ],
)
def test_what_is_no_output_is_named(
    form: str, select: Any, error: type[Exception], message: str
) -> None:
    def step() -> None:
        opt = hf.HessianFree(Net(FORMS[form][0]), nn.CrossEntropyLoss(), outputs=select)
        opt.step(batch())

    with pytest.raises(error, match=message):
        step()


def test_loss_of_the_language_model_is_its_own() -> None:
    """Ignored labels count neither here nor there."""
    torch.manual_seed(0)
    model = language_model.CausalModel()
    data = language_model.sequences(9, torch.Generator().manual_seed(2))
    own = model(**data).loss
    loss = hf.losses.SoftmaxCrossEntropy(ignore_index=language_model.IGNORED, mean="weights")
    stats = hf.HessianFree(model, loss, outputs="logits", cg_max_iter=2).step(data)
    assert stats.loss == pytest.approx(own.item(), rel=1e-5)
