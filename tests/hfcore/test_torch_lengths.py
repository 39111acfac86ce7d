"""Recurrent modules whose forward takes padded sequences and their lengths, against autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import hfcore as hf
from hfcore.autograd.objective import ModuleObjective
from hfcore.nets.objective import FusedObjective
from hfcore.nets.recognition import ReadOut, recognised
from hfcore.objective_factory import objective_for
from oracles.modules import relative_error
from oracles.torch_recurrent import MODULES

T, B, N, K = 6, 4, 2, 3
LENGTHS = torch.tensor([2, 5, 1, 4])  # not sorted, and below T
SQUARED = hf.losses.SquaredError()


class Taking(nn.Module):
    """Its forward is the function it is given."""

    def __init__(self, written: Callable[..., Any], kind: str = "rnn", **options: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.rnn = MODULES[kind](N, 3, **options)
            self.out = nn.Linear(3, K)
        self.drop = nn.Dropout(0.5)
        self.written = written
        self.double().eval()

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        return self.written(self, x, lengths)


def packed(m: Any, x: Tensor, lengths: Tensor, **options: Any) -> Any:
    options = {"batch_first": m.rnn.batch_first, "enforce_sorted": False, **options}
    return m.rnn(pack_padded_sequence(x, lengths, **options))


def tagged(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    h, _ = pad_packed_sequence(packed(m, x, lengths.cpu())[0], batch_first=m.rnn.batch_first)
    return m.out(h)


def tagged_to_the_end(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    states, _ = packed(m, x, lengths)
    h, _ = pad_packed_sequence(states, batch_first=True, total_length=x.size(1))
    return m.out(m.drop(h)).transpose(1, 2)


def final(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    _, (h, _) = packed(m, x, lengths)
    return m.out(h[-1])


def indexed(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    h, _ = m.rnn(x)
    return m.out(h[torch.arange(h.size(0), device=x.device), lengths - 1])


def indexed_time_first(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    h, _ = m.rnn(x)
    return m.out(h)[lengths - 1, torch.arange(len(lengths))]


def gathered(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    h, _ = m.rnn(x)
    at = (lengths - 1).view(-1, 1).expand(len(lengths), h.size(2)).unsqueeze(1)
    return m.out(h.gather(1, at).squeeze(1))


def gathered_of_packed(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    h, _ = pad_packed_sequence(packed(m, x, lengths)[0], batch_first=True)
    at = (lengths - 1).view(-1, 1, 1).expand(-1, 1, h.shape[-1])
    return m.out(h.gather(1, at).squeeze(1))


def sorted_final(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    _, h = m.rnn(pack_padded_sequence(x, lengths, batch_first=True))
    return m.out(h.squeeze(0))


FIRST = {"batch_first": True}
CROSS = nn.CrossEntropyLoss()
CASES = {
    "tagged": (tagged, "rnn", SQUARED, {"num_layers": 2}),
    "tagged, cases first": (tagged, "gru", SQUARED, FIRST),
    "to the end": (tagged_to_the_end, "lstm", CROSS, FIRST),
    "final": (final, "lstm", CROSS, {}),
    "indexed": (indexed, "rnn", CROSS, FIRST),
    "indexed, time first": (indexed_time_first, "rnn", SQUARED, {"nonlinearity": "relu"}),
    "gathered": (gathered, "gru", SQUARED, FIRST),
    "gathered of packed": (gathered_of_packed, "rnn", nn.MSELoss(), FIRST),
    "sorted": (sorted_final, "rnn", CROSS, FIRST),
}


def batch(model: Taking, read: ReadOut, loss: Any, lengths: Tensor) -> Any:
    """Random sequences with targets for every output that counts."""
    g = torch.Generator().manual_seed(2)
    x = torch.randn(T, B, N, generator=g, dtype=torch.float64)
    x = x.transpose(0, 1) if read.batch_first else x
    inputs = {"x": x, "lengths": lengths}
    s = model(**inputs).detach()
    mask = None
    if not read.last_only:
        steps = s.shape[2 if read.classes_second else 1 if read.batch_first else 0]
        mask = torch.arange(steps).unsqueeze(1) < lengths
        mask = mask.T if read.batch_first else mask
    if loss is CROSS:
        shape = (B,) if mask is None else mask.shape
        return hf.Batch(inputs, torch.randint(K, shape, generator=g), mask)  # type: ignore[arg-type]
    y = torch.randn(s.shape, generator=g, dtype=torch.float64)
    return hf.Batch(inputs, y, mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_autograd(name: str) -> None:
    written, kind, loss, options = CASES[name]
    model = Taking(written, kind, **options)
    read = recognised(model)
    assert isinstance(read, ReadOut), read
    lengths = LENGTHS.sort(descending=True).values if name == "sorted" else LENGTHS
    data = batch(model, read, loss, lengths)
    results = []
    fused = objective_for(model, loss, batch_dim=read.batch_dim)
    assert isinstance(fused, FusedObjective)
    plain = ModuleObjective(model, loss, batch_dim=read.batch_dim, strategy="double_vjp")
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    V = torch.randn(3, len(theta), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for objective in (fused, plain):
        prepared = objective.prepare(data)
        value, gradient = objective.gradient(prepared, theta)
        products = objective.curvature(prepared, theta).products(V)
        results.append((value, gradient, products))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    assert relative_error(results[0][1], results[1][1]) <= 1e-11
    assert relative_error(results[0][2], results[1][2]) <= 1e-11


class Optional(Taking):
    """Reads the last step, or that of each sequence."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Any:
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.out(self.rnn(x)[1][-1])


def test_lengths_may_be_left_out() -> None:
    model = Optional(final, batch_first=True)
    read = recognised(model)
    assert isinstance(read, ReadOut)
    assert read.arguments is None
    both = read.of_inputs({"x": 0, "lengths": 0})
    assert both.arguments == ("x", "lengths")
    data = batch(model, both, SQUARED, LENGTHS)
    fused = objective_for(model, SQUARED, batch_dim=0)
    assert isinstance(fused, FusedObjective)
    plain = ModuleObjective(model, SQUARED, strategy="double_vjp")
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    V = torch.randn(2, len(theta), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for given in (data, hf.Batch(data.inputs["x"], data.targets)):  # packed, and whole
        got, want = (
            objective.curvature(objective.prepare(given), theta).products(V)
            for objective in (fused, plain)
        )
        assert relative_error(got, want) <= 1e-11
    with pytest.raises(TypeError, match="inputs: got a mapping of x, need a torch"):
        fused.prepare(hf.Batch({"x": data.inputs["x"]}, data.targets))


def test_lengths_that_may_be_left_out_and_do_otherwise_are_not_taken() -> None:
    class Clamped(Optional):
        def forward(self, x: Tensor, lengths: Tensor | None = None) -> Any:
            return super().forward(x, None if lengths is None else lengths.clamp(max=2))

    class EveryStep(Optional):
        def forward(self, x: Tensor, lengths: Tensor | None = None) -> Any:
            return super().forward(x, lengths) if lengths is not None else tagged_whole(self, x)

    for kind in (Clamped, EveryStep):
        read = recognised(kind(final, batch_first=True))
        assert isinstance(read, ReadOut)
        assert read.also is None


def tagged_whole(m: Any, x: Tensor) -> Tensor:
    return m.out(m.rnn(x)[0])


def mean_of_steps(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    h, _ = m.rnn(x)
    keep = torch.arange(x.size(1)) < lengths.unsqueeze(1)
    return m.out((h * keep.unsqueeze(2)).sum(1) / lengths.unsqueeze(1))


UNLIKE = {
    "mean of steps": mean_of_steps,
    "step before the last": lambda m, x, l: m.out(m.rnn(x)[0][torch.arange(len(x)), l - 2]),
    "clamped": lambda m, x, l: m.out(m.rnn(x)[0][torch.arange(len(x)), l.clamp(max=2) - 1]),
    "longest only": lambda m, x, l: m.out(packed(m, x, l.clamp(max=2))[1][-1]),
    "scaled": lambda m, x, l: 2 * tagged(m, x, l),
    "branch": lambda m, x, l: final(m, x, l) if l[0] > 100 else m.out(packed(m, x, l)[1][-1]),
    "start": lambda m, x, l: m.out(m.rnn(x, torch.ones(1, len(x), 3).to(x))[0])[:, -1],
    "padded with ones": lambda m, x, l: m.out(
        pad_packed_sequence(packed(m, x, l)[0], batch_first=True, padding_value=1.0)[0]
    ),
    "all of them": lambda m, x, l: m.out(m.rnn(x)[0]),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_does_otherwise_with_lengths_goes_through_autograd(name: str, caplog: Any) -> None:
    model = Taking(UNLIKE[name], batch_first=True)
    found = recognised(model)
    assert isinstance(found, str)
    assert "does otherwise with x and lengths" in found
    assert isinstance(objective_for(model, SQUARED, batch_dim=0), ModuleObjective)
    assert found in caplog.text


def test_a_forward_of_other_arguments_is_none_of_these() -> None:
    class Three(Taking):
        def forward(self, x: Tensor, lengths: Tensor, start: Tensor) -> Any:  # type: ignore[override]
            return final(self, x, lengths)

    class Raising(Taking):
        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            raise KeyError("neither")

    assert "its forward raised TypeError" in str(recognised(Three(final)))
    assert "raised KeyError for sequences and lengths: 'neither'" in str(recognised(Raising(final)))


def test_bad_batches_are_named() -> None:
    x, y = torch.zeros(B, T, N, dtype=torch.float64), torch.zeros(B, K, dtype=torch.float64)
    every = torch.zeros(B, 5, K, dtype=torch.float64)
    falling = torch.tensor([5, 4, 2, 1])
    for written, inputs, targets, error, message in (
        (indexed, x, y, TypeError, "inputs: got Tensor, need a mapping with 'x' and 'lengths'"),
        (indexed, {"x": x}, y, TypeError, "inputs: got ['x'], need a mapping"),
        (indexed, {"x": x, "lengths": LENGTHS.int()}, y, TypeError, "inputs['lengths']: got torch"),
        (indexed, {"x": x, "lengths": LENGTHS[1:]}, y, ValueError, "inputs['lengths']: got shape"),
        (indexed, {"x": x, "lengths": LENGTHS - 1}, y, ValueError, "got the length 0, need 1 to 6"),
        (indexed, {"x": x, "lengths": LENGTHS + 2}, y, ValueError, "got the length 7, need 1 to 6"),
        (sorted_final, {"x": x, "lengths": LENGTHS}, y, ValueError, "need decreasing order"),
        (tagged, {"x": x, "lengths": falling}, every, ValueError, "mask: "),
    ):
        model = Taking(written, batch_first=True)
        objective = objective_for(model, SQUARED, batch_dim=0)
        assert isinstance(objective, FusedObjective)
        if message == "mask: ":
            mask = torch.ones(B, 5, dtype=torch.bool)
            given = hf.Batch(inputs, targets, mask)  # type: ignore[arg-type]
        else:
            given = hf.Batch(inputs, targets)  # type: ignore[arg-type]
        with pytest.raises(error) as raised:
            objective.prepare(given)
        assert message in str(raised.value)


def test_an_optimiser_takes_such_batches() -> None:
    model = Taking(final, "lstm", batch_first=True)
    read = recognised(model)
    assert isinstance(read, ReadOut)
    data = batch(model, read, CROSS, LENGTHS)
    optimiser = hf.HessianFree(model, CROSS, batch_dim=0)
    for step in (data, {**data.inputs, "labels": data.targets}):
        stats = optimiser.step(step)
        assert stats.loss_after < stats.loss
