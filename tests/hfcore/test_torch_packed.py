"""Packed sequences in recognised modules, in float64 against every sequence alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import hfcore as hf
from hfcore.autograd.objective import ModuleObjective
from hfcore.nets.objective import FusedObjective
from hfcore.nets.recognition import ReadOut, recognised
from hfcore.objective_factory import objective_for
from oracles.torch_recurrent import MODULES

LENGTHS = torch.tensor([2, 4, 1, 4])  # not sorted
T, B, N, K = 4, 4, 2, 3


class Tagger(nn.Module):
    """Outputs of every step, padded, or of each sequence's last."""

    def __init__(self, kind: str, form: str, **options: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.rnn = MODULES[kind](N, 2, **options)
            self.out = nn.Linear(2, K)
        self.form = form
        self.double()

    def forward(self, x: Any) -> Tensor:
        if self.form == "last":
            states = self.rnn(x)[1]
            s: Tensor = self.out((states[0] if isinstance(states, tuple) else states)[-1])
            return s
        h, _ = pad_packed_sequence(self.rnn(x)[0], batch_first=self.form != "[T,B,k]")
        s = self.out(h)
        return s.transpose(1, 2) if self.form == "[B,k,T]" else s


class Problem:
    """Sequences, packed, and f(θ) and its curvature from each of them alone."""

    def __init__(self, kind: str, form: str, loss: Any, **options: Any) -> None:
        self.model, self.form, self.loss = Tagger(kind, form, **options), form, loss
        g = torch.Generator().manual_seed(1)
        self.x = torch.randn(T, B, N, generator=g, dtype=torch.float64)
        classes = isinstance(loss, nn.CrossEntropyLoss)
        lead = (B,) if form == "last" else (T, B)
        if classes:
            self.y = torch.randint(K, lead, generator=g)
        else:
            self.y = torch.randn(*lead, K, generator=g, dtype=torch.float64)
        self.packed = pack_padded_sequence(self.x, LENGTHS, enforce_sorted=False)
        self.theta = torch.cat([p.detach().flatten() for p in self.model.parameters()])

    @property
    def batch_dim(self) -> tuple[int, int] | int:
        if self.form == "last":
            return (0 if self.model.rnn.batch_first else 1, 0)
        return 1 if self.form == "[T,B,k]" else 0

    def own_axes(self, y: Tensor) -> Tensor:
        """Of targets or a mask ``[T,B,…]``."""
        if self.form in ("last", "[T,B,k]"):
            return y
        y = y.transpose(0, 1)
        return y.mT if self.form == "[B,k,T]" and y.ndim == 3 else y

    def alone(self, theta: Tensor) -> Tensor:
        """What counts of every sequence, one after the other, ``[·,k]``."""
        at, named = 0, {}
        for name, p in self.model.named_parameters():
            named[name] = theta[at : at + p.numel()].view(p.shape)
            at += p.numel()
        found = []
        for b, length in enumerate(LENGTHS.tolist()):
            one = self.x[:length, b : b + 1]
            one = one.transpose(0, 1) if self.model.rnn.batch_first else one
            h = functional_call(self.model.rnn, {n[4:]: p for n, p in named.items()
                                                 if n.startswith("rnn")}, (one,))[0]  # fmt: skip
            h = h.reshape(length, -1)
            h = h[-1:] if self.form == "last" else h
            found.append(h @ named["out.weight"].T + named["out.bias"])
        return torch.cat(found)

    def counted(self) -> Tensor:
        """The targets of what :meth:`alone` gives."""
        if self.form == "last":
            return self.y
        return torch.cat([self.y[:length, b] for b, length in enumerate(LENGTHS.tolist())])

    def f(self, s: Tensor) -> Tensor:
        if isinstance(self.loss, nn.Module):
            value: Tensor = self.loss(s, self.counted())
            return value
        return 0.5 * (s - self.counted()).square().sum() / B

    def gauss_newton(self) -> Tensor:
        J = jacobian(self.alone, self.theta).flatten(0, 1)
        s = self.alone(self.theta).detach()
        return J.T @ hessian(self.f, s).reshape(len(J), len(J)) @ J


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11 * float(want.abs().max()))


SQUARED = hf.losses.SquaredError()
CASES = [
    ("rnn", "last", SQUARED, {"num_layers": 2, "nonlinearity": "relu"}),
    ("lstm", "last", nn.CrossEntropyLoss(), {"batch_first": True}),
    ("gru", "[B,T,k]", SQUARED, {"bias": False}),
    ("rnn", "[T,B,k]", nn.MSELoss(), {"batch_first": True}),
    ("lstm", "[B,k,T]", nn.CrossEntropyLoss(label_smoothing=0.1), {"num_layers": 2}),
]


@pytest.mark.parametrize(("kind", "form", "loss", "options"), CASES)
def test_curvature_is_that_of_every_sequence_alone(
    kind: str, form: str, loss: Any, options: dict[str, Any]
) -> None:
    p = Problem(kind, form, loss, **options)
    objective = objective_for(p.model, loss, batch_dim=p.batch_dim)
    assert isinstance(objective, FusedObjective)
    eye = torch.eye(len(p.theta), dtype=torch.float64)
    within = torch.arange(T).unsqueeze(1) < LENGTHS
    masked = hf.Batch(p.packed, p.own_axes(p.y), None if form == "last" else p.own_axes(within))
    batches = [masked]
    if form != "last":  # packed targets say the same
        y = pack_padded_sequence(p.y, LENGTHS, enforce_sorted=False)
        batches.append(hf.Batch(p.packed, y))  # type: ignore[arg-type]
    for batch in batches:
        data = objective.prepare(batch)
        value, gradient = objective.gradient(data, p.theta)
        assert value == pytest.approx(float(p.f(p.alone(p.theta))), rel=1e-12)
        close(gradient, jacobian(lambda theta: p.f(p.alone(theta)), p.theta))
        close(objective.curvature(data, p.theta).products(eye), p.gauss_newton())
    modular = ModuleObjective(p.model, loss, batch_dim=p.batch_dim, strategy="double_vjp")
    of_autograd = modular.prepare(masked)
    assert modular.gradient(of_autograd, p.theta)[0] == pytest.approx(value, rel=1e-12)
    close(modular.curvature(of_autograd, p.theta).product(eye[0]), p.gauss_newton()[0])


def test_autograd_cuts_packed_sequences_between_cases() -> None:
    p = Problem("gru", "last", SQUARED)
    whole, cut = (
        ModuleObjective(p.model, SQUARED, batch_dim=(1, 0), chunk_size=size) for size in (None, 3)
    )
    batch = hf.Batch(p.packed, p.y)
    want = whole.gradient(whole.prepare(batch), p.theta)
    got = cut.gradient(cut.prepare(batch), p.theta)
    assert got[0] == pytest.approx(want[0], rel=1e-12)
    close(got[1], want[1])


def test_forms_of_packed_sequences_are_recognised() -> None:
    for form, packed, final in (("last", False, True), ("[T,B,k]", True, False),
                                ("[B,T,k]", True, False), ("[B,k,T]", True, False)):  # fmt: skip
        read = recognised(Tagger("lstm", form))
        assert isinstance(read, ReadOut)
        assert (read.packed, read.final, read.classes_second) == (packed, final, form == "[B,k,T]")
        assert read.batch_dim == ((1, 0) if final else (1, 1) if form == "[T,B,k]" else (0, 0))

    class Scaled(Tagger):
        def forward(self, x: Any) -> Tensor:
            return 2 * super().forward(x)

    assert isinstance(recognised(Scaled("rnn", "[B,T,k]")), str)


def test_ignored_classes_may_stand_where_sequences_have_ended() -> None:
    loss = nn.CrossEntropyLoss()
    p = Problem("rnn", "[B,k,T]", loss)
    y = torch.where(torch.arange(T).unsqueeze(1) < LENGTHS, p.y, -100)
    optimiser = hf.HessianFree(p.model, loss)
    stats = optimiser.step((p.packed, p.own_axes(y)))
    assert stats.loss == pytest.approx(float(p.f(p.alone(p.theta))), rel=1e-12)
    assert stats.loss_after < stats.loss


def test_bad_batches_are_named() -> None:
    p, last = Problem("rnn", "[T,B,k]", SQUARED), Problem("rnn", "last", SQUARED)
    plain = nn.Sequential(nn.RNN(N, 2), First(), nn.Linear(2, K)).double()
    other = pack_padded_sequence(p.y, LENGTHS.flip(0), enforce_sorted=False)
    targets = pack_padded_sequence(p.y, LENGTHS, enforce_sorted=False)
    every = torch.ones(T, B, dtype=torch.bool)
    for model, dim, batch, error, message in (
        (p.model, 1, (p.x, p.y), TypeError, "inputs: got Tensor, need a PackedSequence"),
        (plain, 1, (p.packed, p.y), TypeError, "a PackedSequence, which the module's forward does"),
        (p.model, 1, (p.packed, p.y), ValueError, "counts step 1 of sequence 2, whose length is 1"),
        (p.model, 1, (p.packed, p.y, every), ValueError, "mask: counts step 1 of sequence 2"),
        (
            p.model,
            1,
            (p.packed, other),
            ValueError,
            "targets: are packed from sequences of lengths",
        ),
        (p.model, 1, (p.packed, targets, every), ValueError, "need None beside packed targets"),
        (last.model, (1, 0), (p.packed, targets), TypeError, "need one target for each sequence"),
        (
            last.model,
            (1, 0),
            (p.x, targets),
            TypeError,
            "targets: got a PackedSequence, need inputs",
        ),
    ):
        objective = objective_for(model, SQUARED, batch_dim=dim)
        assert isinstance(objective, FusedObjective)
        with pytest.raises(error, match=message):
            objective.prepare(hf.Batch(*batch))  # type: ignore[arg-type]


class First(nn.Module):
    def forward(self, both: tuple[Tensor, Any]) -> Tensor | PackedSequence:
        return both[0]
