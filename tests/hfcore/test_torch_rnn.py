"""nn.RNN with nn.Linear on the recurrence ops, in float64 against torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad

import hfcore as hf
from hfcore.nets.objective import FusedObjective
from hfcore.objective_factory import objective_for
from oracles.losses import LOSSES
from oracles.torch_recurrent import Net, Problem

KINDS = ("ggn", "hessian", "fisher")


def close(got: Tensor, want: Tensor, rtol: float = 1e-11) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * float(want.detach().abs().max()))


def eye(p: Problem) -> Tensor:
    return torch.eye(p.theta.numel(), dtype=torch.float64)


def fused(p: Problem, **options: Any) -> FusedObjective:
    objective = objective_for(p.model, p.loss, batch_dim=p.batch_dim, **options)
    assert isinstance(objective, FusedObjective)
    return objective


def curvature(p: Problem, kind: Any = "ggn", **options: Any) -> Any:
    objective = fused(p, **options)
    return objective.curvature(objective.prepare(p.batch), p.theta, kind)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_oracle_is_the_module(layers: int, last: bool, batch_first: bool) -> None:
    p = Problem("rnn", LOSSES[0], num_layers=layers, last=last, batch_first=batch_first)
    close(p.model(p.batch.inputs).detach(), p.own_targets(p.by_hand(p.theta)[1]))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize(("last", "mask"), [(False, "ragged"), (False, None), (True, "ragged")])
def test_every_kind_equals_its_dense_matrix(
    loss, layers: int, batch_first: bool, last: bool, mask: str | None
) -> None:
    options: dict[str, Any] = {"num_layers": layers, "batch_first": batch_first, "last": last}
    p = Problem("rnn", loss, mask=mask, out_first=batch_first, **options)
    held = 0.7 * eye(p) + 0.4 * sum(p.structural(l) for l in range(layers))
    for kind in KINDS:
        want = p.dense(kind) + held
        for memory, backend in (("cached", "cpu"), ("recompute", "cpu"), ("cached", "reference")):
            with hf.use_backend(backend):  # type: ignore[arg-type]
                got = curvature(p, kind, l2=0.2, memory=memory).products(eye(p), 0.5, 0.4)
            close(got, want)


OPTIONS: tuple[dict[str, Any], ...] = (
    {"bias": False},
    {"out_bias": False},
    {"nonlinearity": "relu"},
    {"bias": False, "out_bias": False, "num_layers": 3},
    {"nonlinearity": "relu", "num_layers": 2},
)
SHAPES = (1, 1, 1, 1, 1), (1, 3, 2, 5, 2), (2, 1, 1, 1, 3), (5, 3, 3, 2, 1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_options_and_shapes(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    p = Problem("rnn", LOSSES[1], **dict(zip("TBnHk", shape, strict=True)), **options)
    for kind in KINDS:
        close(curvature(p, kind).products(eye(p)), p.dense(kind), rtol=1e-10)
    close(curvature(p).diagonal(), p.dense("ggn").diagonal(), rtol=1e-10)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("normalize", ["sequences", "outputs"])
def test_loss_gradient_and_squares(normalize: Any, layers: int) -> None:
    p = Problem("rnn", LOSSES[2], T=5, B=7, num_layers=layers, batch_first=True)
    objective = fused(p, l2=0.3, normalize=normalize)
    data = objective.prepare(p.batch)
    share = 1.0 if normalize == "sequences" else p.x.shape[1] / int(p.mask.sum())
    value, gradient = objective.gradient(data, p.theta)
    want = share * float(p.mean_loss(p.theta)) + 0.15 * float(p.theta @ p.theta)
    assert value == pytest.approx(want, rel=1e-13)
    assert objective.loss(data, p.theta) == pytest.approx(want, rel=1e-13)
    close(gradient, share * grad(p.mean_loss)(p.theta) + 0.3 * p.theta)
    close(objective.squared_gradients(data, p.theta), ((share * p.case_gradients()) ** 2).mean(0))


def test_rows_of_a_group_are_products_and_stop_keeps_out() -> None:
    for layers in (1, 2):
        p = Problem("rnn", LOSSES[1], T=6, B=5, num_layers=layers)
        V = torch.randn(3, p.theta.numel(), generator=torch.Generator().manual_seed(3)).double()
        c = curvature(p)
        for row, want in zip(V, c.products(V, 0.2, 0.3), strict=True):
            close(c.product(row, damping=0.2, structural=0.3), want, rtol=1e-13)
        out = torch.full_like(V[0], 7.0)
        c.product(V[0], out=out, stop=torch.ones(1, dtype=torch.int32))
        assert bool((out == 7.0).all())


def test_weights_in_the_mask_and_several_batches() -> None:
    p = Problem("rnn", LOSSES[0], T=5, B=4, batch_first=True, mask="ragged")
    weights = p.batch.mask.double() * torch.linspace(0.5, 2, 4).double().unsqueeze(1)
    batch = p.batch._replace(mask=weights)
    cut = [hf.Batch(*(t[:1] for t in batch)), hf.Batch(*(t[1:] for t in batch))]
    objective = fused(p)
    modular = objective_for(p.model, p.loss, strategy="double_vjp")
    v = torch.linspace(-1, 1, p.theta.numel()).double()
    want = modular.curvature(modular.prepare(batch), p.theta).product(v)
    for data in (batch, cut):
        close(objective.curvature(objective.prepare(data), p.theta).product(v), want)


@pytest.mark.parametrize("layers", [1, 2])
def test_hessian_free_takes_the_steps_of_autograd(layers: int) -> None:
    """The module's own parameters move, and stay what they are."""
    ends, losses = [], []
    for strategy in ("auto", "double_vjp"):
        p = Problem("rnn", LOSSES[2], T=6, B=20, H=5, num_layers=layers, batch_first=True)
        names = [(name, id(q), q.shape) for name, q in p.model.named_parameters()]
        optimiser = hf.HessianFree(p.model, p.loss, damping=0.1, strategy=strategy)
        losses.append([optimiser.step(p.batch).loss for _ in range(3)])
        assert [(name, id(q), q.shape) for name, q in p.model.named_parameters()] == names
        ends.append(torch.cat([q.detach().flatten() for q in p.model.parameters()]))
    assert losses[0][-1] < 0.9 * losses[0][0]
    # Conjugate gradients magnify rounding from step to step.
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    close(*ends, rtol=1e-4)


def test_first_order_training_has_the_losses_of_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    import hfcore.training.gradients as gradients

    served = []
    plain = gradients.grouped_gradient

    def watched(*args: Any) -> Any:
        served.append(plain(*args))
        return served[-1]

    monkeypatch.setattr(gradients, "grouped_gradient", watched)
    ends = []
    for fuses in (True, False):
        p = Problem("rnn", LOSSES[0], T=6, B=24, H=5, batch_first=True, mask=None)
        if not fuses:
            p.model.forward = lambda x, plain=p.model.forward: plain(x)
        optimiser = hf.NAG(p.model, lr=0.05, momentum=0.9)
        data, options = (p.batch.inputs, p.batch.targets), {"loss": p.loss, "batch_size": 8}
        hf.train(p.model, data, optimiser, minibatches=0.024, progress=False, **options)
        ends.append(torch.cat([q.detach().flatten() for q in p.model.parameters()]))
    assert [s is not None for s in served] == [True, False]
    close(*ends, rtol=1e-9)


def test_bad_batches_are_named() -> None:
    model, last = Net("rnn", 2, 3, 2, batch_first=True), Net("rnn", 2, 3, 2, last=True)
    x, y, classes = torch.zeros(4, 5, 2), torch.zeros(4, 5, 2), torch.zeros(5, dtype=torch.int64)
    squared, softmax = LOSSES[0], LOSSES[2]
    none = torch.zeros(5, dtype=torch.bool)
    whole: tuple[Any, ...] = (
        ((x[..., :1], y), ValueError, r"inputs: got shape \[4, 5, 1\], need \[B,T,2\]"),
        ((x, y[:3]), ValueError, r"targets: got shape \[3, 5, 2\], need \[4, 5, 2\]"),
        ((x, y, none[:4]), ValueError, r"mask: got shape \[4\], need \[4,5\]"),
        ((x.double(), y), TypeError, "inputs: got torch.float64, need torch.float32"),
        ((x, None), TypeError, "targets: got NoneType"),
        ((x[:0], y[:0]), ValueError, "need at least one of its sequences"),
        ((x * float("nan"), y), ValueError, "inputs: holds NaN or Inf"),
    )
    ends: tuple[Any, ...] = (
        ((x, classes[:4]), ValueError, r"targets: got shape \[4\], need classes of shape \[5\]"),
        ((x, classes, none), ValueError, "masks every"),
        ((x[:0], classes), ValueError, "need at least one of its time steps"),
    )
    for net, dim, loss, batch, error, message in (
        *((model, 0, squared, *case) for case in whole),
        *((last, (1, 0), softmax, *case) for case in ends),
    ):
        objective = objective_for(net, loss, batch_dim=dim)
        assert isinstance(objective, FusedObjective)
        with pytest.raises(error, match=message):
            objective.prepare(hf.Batch(*batch))
