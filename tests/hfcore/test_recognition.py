"""Which modules are nn.RNN and nn.Linear, and why others that look like it are not."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, prune

import hfcore as hf
from hfcore.autograd.objective import ModuleObjective
from hfcore.nets.objective import FusedObjective
from hfcore.nets.recognition import ReadOut, recognised
from hfcore.nets.registry import net_of, served_by
from hfcore.objective_factory import objective_for

LOSS = hf.losses.SquaredError()


class Written(nn.Module):
    """A module whose forward is the function it is given."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], n: int = 2, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.RNN(n, 3, **options)
        self.out = nn.Linear(3, 2)
        self.drop, self.same, self.scale = nn.Dropout(0.5), nn.Identity(), 1.0
        self.written = forward

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


def plain(m: Any, x: Tensor) -> Tensor:
    return m.out(m.rnn(x)[0])


class States(nn.Module):
    def forward(self, both: Any) -> Tensor:
        return both[0]


def sequential(**options: Any) -> nn.Module:
    return nn.Sequential(nn.RNN(2, 3, **options), States(), nn.Linear(3, 2))


# ------------------------------------------------------------------------------ recognised

EVERY_STEP = {
    "plain": plain,
    "two lines": lambda m, x: m.out(m.same(m.rnn(x)[0])),
    "dropout": lambda m, x: m.drop(m.out(m.drop(m.rnn(m.drop(x))[0]))),
}
LAST_STEP = {
    "h[-1]": lambda m, x: m.out(m.rnn(x)[0][-1]),
    "s[-1]": lambda m, x: m.out(m.rnn(x)[0])[-1],
    "h_n[-1]": lambda m, x: m.out(m.rnn(x)[1][-1]),
    "h_n[0]": lambda m, x: m.out(m.rnn(x)[1][0]),
    "h_n.squeeze(0)": lambda m, x: m.out(m.rnn(x)[1].squeeze(0)),
}
LAST_STEP_BATCH_FIRST = {
    "h[:, -1]": lambda m, x: m.out(m.rnn(x)[0][:, -1]),
    "h[:, -1, :]": lambda m, x: m.out(m.rnn(x)[0][:, -1, :]),
    "s[:, -1]": lambda m, x: m.out(m.rnn(x)[0])[:, -1],
    "dropout": lambda m, x: m.out(m.drop(m.rnn(x)[0][:, -1])),
    "h_n[-1]": lambda m, x: m.out(m.rnn(x)[1][-1]),
}
FORMS = [
    *((name, f, False, False) for name, f in EVERY_STEP.items()),
    *((name, f, True, False) for name, f in EVERY_STEP.items()),
    *((name, f, False, True) for name, f in LAST_STEP.items()),
    *((name, f, True, True) for name, f in LAST_STEP_BATCH_FIRST.items()),
]


SECOND = {
    "permute": lambda m, x: plain(m, x).permute(0, 2, 1),
    "transpose": lambda m, x: plain(m, x).transpose(1, 2),
    "of torch": lambda m, x: torch.transpose(plain(m, x), -1, -2),
    "mT": lambda m, x: plain(m, x).mT,
}
TIME_FIRST = {
    "permute": lambda m, x: plain(m, x).permute(1, 2, 0),
    "of torch": lambda m, x: torch.permute(plain(m, x), (1, 2, 0)),
}


@pytest.mark.parametrize(
    ("forward", "batch_first"),
    [*((f, True) for f in SECOND.values()), *((f, False) for f in TIME_FIRST.values())],
)
def test_classes_along_axis_1_are_recognised(forward: Any, batch_first: bool) -> None:
    read = recognised(Written(forward, batch_first=batch_first).eval())
    assert isinstance(read, ReadOut)
    assert read.classes_second
    assert read.batch_dim == (0 if batch_first else 1, 0)


@pytest.mark.parametrize(("name", "forward", "batch_first", "last"), FORMS)
def test_forms_are_recognised(name: str, forward: Any, batch_first: bool, last: bool) -> None:
    model = Written(forward, batch_first=batch_first).eval().double()
    read = recognised(model)
    assert isinstance(read, ReadOut)
    assert (read.last_only, read.batch_first) == (last, batch_first)
    assert read.batch_dim == ((0, 0) if batch_first else (1, 0) if last else (1, 1))
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    y = torch.randn_like(model(x))
    fused = hf.GaussNewton(model, LOSS, x, y, batch_dim=read.batch_dim)
    plain = hf.GaussNewton(model, LOSS, x, y, batch_dim=read.batch_dim, strategy="double_vjp")
    v = torch.randn(fused.shape[0], dtype=torch.float64)
    torch.testing.assert_close(fused @ v, plain @ v, rtol=1e-11, atol=1e-12)
    assert fused.loss == pytest.approx(plain.loss, rel=1e-12)


def test_sequences_of_modules_and_copies_are_recognised() -> None:
    model = sequential(num_layers=2)
    for other in (model, copy.deepcopy(model), nn.Sequential(model)):
        assert isinstance(recognised(other), ReadOut)
    compiled = nn.Module()
    compiled._orig_mod = model  # as torch.compile wraps it
    assert recognised(compiled).model is model


def test_parameters_that_were_moved_are_no_matter() -> None:
    """torch's module looks at weights that lie elsewhere than at its last call."""
    model = Written(plain).eval()
    recognised(model)
    for p in model.parameters():
        p.data = p.data.clone()
    model.scale = 2.0  # so that it is looked at again
    assert isinstance(recognised(model), ReadOut)


def test_the_trace_leaves_no_mark() -> None:
    model = Written(lambda m, x: m.out(m.rnn(x)[0] + 0 * torch.rand(())))
    state = torch.get_rng_state()
    assert isinstance(recognised(model), str)
    assert bool((torch.get_rng_state() == state).all())
    model = Written(plain).eval()
    with torch.no_grad():
        assert isinstance(recognised(model), ReadOut)
    assert all(p.grad is None for p in model.parameters())


# ------------------------------------------------------------------------------- look-alikes


class Derived(nn.RNN):
    def forward(self, *args: Any) -> Any:
        h, last = super().forward(*args)
        return h / 2, last


class HalvedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def without_gradient(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = m.rnn(x)[0]
    return m.out(h)


def by_length(m: Any, x: Tensor) -> Tensor:
    return plain(m, x) if x.shape[0] < 100 else 2 * plain(m, x)


def raising(m: Any, x: Tensor) -> Tensor:
    raise KeyError("no such thing")


FORWARDS = {
    "scaled": (lambda m, x: 2 * plain(m, x), "its forward calls torch.Tensor.mul"),
    "activation": (lambda m, x: m.out(torch.relu(m.rnn(x)[0])), "calls torch.relu"),
    "residual": (lambda m, x: plain(m, x) + x, "calls torch.Tensor.add"),
    "of the inputs": (lambda m, x: plain(m, x.flip(0)), "calls torch.Tensor.flip"),
    "detached": (lambda m, x: m.out(m.rnn(x)[0].detach()), "calls torch.Tensor.detach"),
    "without gradient": (without_gradient, "calls "),
    "by length": (by_length, "calls torch.Tensor.shape"),
    "first step": (lambda m, x: m.out(m.rnn(x)[0][0]), "calls torch.Tensor.__getitem__"),
    "twice": (lambda m, x: m.out(m.rnn(x, m.rnn(x)[1])[0]), "calls "),
    "start": (lambda m, x: m.out(m.rnn(x, torch.ones(1, 3, 3))[0]), "calls torch.ones"),
    "states": (lambda m, x: m.rnn(x)[0], "its forward returns something else"),
    "two outputs": (lambda m, x: (plain(m, x), x), "returns something else than one tensor"),
    "raises": (raising, "its forward raised KeyError for a tensor of inputs: 'no such thing'"),
    "tied weights": (
        lambda m, x: nn.functional.linear(m.rnn(x)[0], m.out.weight, -m.out.bias),
        "calls torch.Tensor.neg",
    ),
    "other weights": (
        lambda m, x: nn.functional.linear(m.rnn(x)[0], m.rnn.weight_hh_l0[:2], m.out.bias),
        "calls torch.Tensor.__getitem__",
    ),
    "dropout": (lambda m, x: m.drop(plain(m, x)), "Dropout 'drop' drops units in train mode"),
}


def look_alike(name: str) -> nn.Module:
    if name in FORWARDS:
        model = Written(FORWARDS[name][0])
        return model if name == "dropout" else model.eval()
    model = Written(plain).eval()
    if name == "subclass":
        model.rnn = Derived(2, 3)
    elif name == "linear":
        model.out = HalvedLinear(3, 2)
    elif name == "bidirectional":
        model.rnn = nn.RNN(2, 3, bidirectional=True)
        model.out = nn.Linear(6, 2)
    elif name == "dropout between":
        model.rnn = nn.RNN(2, 3, num_layers=2, dropout=0.2)
    elif name == "hook":
        model.rnn.register_forward_hook(lambda m, a, s: (s[0] / 2, s[1]))
    elif name == "pre-hook":
        model.register_forward_pre_hook(lambda m, a: (a[0] / 2,))
    elif name == "gradient hook":
        model.out.weight.register_hook(lambda g: g / 2)
    elif name == "own forward":
        model.forward = lambda x: plain(model, x) / 2
    elif name == "pruned":
        prune.l1_unstructured(model.out, "weight", 0.5)
    elif name == "pruned recurrence":
        prune.l1_unstructured(model.rnn, "weight_hh_l0", 0.5)
    elif name == "parametrized":
        parametrizations.orthogonal(model.out, "weight")
    elif name == "parametrized recurrence":
        parametrizations.orthogonal(model.rnn, "weight_hh_l0")
    elif name == "buffer":
        model.register_buffer("mean", torch.zeros(2))
    elif name == "frozen":
        model.out.bias.requires_grad_(False)
    elif name == "half":
        model.bfloat16()
    elif name == "tied":
        model.rnn.bias_hh_l0 = model.rnn.bias_ih_l0
    return model


ALTERED = {
    "subclass": "Derived 'rnn' is derived from nn.RNN, and may compute otherwise",
    "linear": "HalvedLinear 'out' is derived from nn.Linear",
    "bidirectional": "RNN 'rnn' is bidirectional",
    "dropout between": "RNN 'rnn' drops units in train mode; call .eval()",
    "hook": "RNN 'rnn' has a forward hook",
    "pre-hook": "it has a forward pre-hook",
    "gradient hook": "has a hook on the gradient of weight",
    "own forward": "it has a forward of its own",
    "pruned": "Linear 'out' has a forward pre-hook",
    "pruned recurrence": "RNN 'rnn' has a forward pre-hook",
    "parametrized": "ParametrizedLinear 'out' is derived from nn.Linear",
    "parametrized recurrence": "ParametrizedRNN 'rnn' is derived from nn.RNN",
    "buffer": "it holds the buffer 'mean'",
    "frozen": "its parameter out.bias is frozen",
    "half": "its parameter rnn.weight_ih_l0 is torch.bfloat16, need torch.float32 or",
    "tied": "some of its parameters are tied",
}


@pytest.mark.parametrize("name", [*FORWARDS, *ALTERED])
def test_a_look_alike_goes_through_autograd_and_is_told(name: str, caplog: Any) -> None:
    reason = FORWARDS[name][1] if name in FORWARDS else ALTERED[name]
    model = look_alike(name)
    found = recognised(model)
    assert isinstance(found, str)
    assert reason in found
    assert net_of(model, LOSS, batch_dim=1) is None
    with caplog.at_level(logging.WARNING, logger="hfcore"):
        assert isinstance(objective_for(model, LOSS, batch_dim=1), ModuleObjective)
    assert f"{type(model).__name__} goes through autograd: {found}" in caplog.text
    assert served_by(model, LOSS) == ("autograd", found)


def test_what_is_far_from_it_is_left_alone(caplog: Any) -> None:
    """Other modules are nobody's look-alikes, and nothing is logged."""
    far = Written(plain)
    far.more = nn.Linear(2, 2)
    scaled = Written(plain)
    scaled.gain = nn.Parameter(torch.ones(()))
    for model in (far, scaled, nn.Linear(2, 2), nn.Sequential(nn.RNN(2, 3)), nn.Module()):
        assert recognised(model) is None
    with caplog.at_level(logging.INFO, logger="hfcore"):
        objective_for(far, LOSS)
    assert not caplog.records
    assert served_by(far, LOSS) == ("autograd", "no net of hf.nets is made for Written")


def test_options_of_modules_and_other_axes_go_through_autograd(caplog: Any) -> None:
    model = Written(plain).eval()
    for options in (
        {"strategy": "double_vjp"}, {"chunk_size": 2}, {"expected_products": 3},
        {"structural": {"rnn": "identity"}},
    ):  # fmt: skip
        assert isinstance(objective_for(model, LOSS, batch_dim=1, **options), ModuleObjective)
    assert not caplog.records
    for options in ({}, {"batch_dim": 0}, {"batch_dim": (1, 0)}):
        assert isinstance(objective_for(model, LOSS, **options), ModuleObjective)
        assert "need batch_dim=1" in caplog.text
        caplog.clear()
    objective_for(model, LOSS, batch_dim=1, outputs=0)
    assert "outputs=0 chooses among what it returns" in caplog.text
    assert isinstance(objective_for(model, LOSS, batch_dim=1), FusedObjective)
    assert isinstance(objective_for(model, nn.MSELoss(), batch_dim=1), FusedObjective)
    assert isinstance(objective_for(model, lambda s, y: s.sum(), batch_dim=1), ModuleObjective)
    with pytest.raises(ValueError, match=r"structural: got a number; .*is bidirectional"):
        objective_for(look_alike("bidirectional"), LOSS, batch_dim=1, structural=0.1)


def test_info_says_what_serves_them() -> None:
    name, why = served_by(sequential(batch_first=True), LOSS)
    assert name == "TorchRnnNet"
    assert why == (
        "nn.RNN '0', read at every step by nn.Linear '2', with a loss of hf.losses and batch_dim=0"
    )
    name, why = served_by(sequential(), nn.MSELoss())
    assert name == "TorchRnnNet"
    assert "with nn.MSELoss and batch_dim=1" in why
    assert served_by(sequential(), nn.L1Loss())[0] == "autograd"


# ------------------------------------------------------------------------------- alterations


@pytest.mark.parametrize(
    "alter",
    [
        lambda m: m.train(),
        lambda m: m.rnn.register_forward_hook(lambda *a: None),
        lambda m: setattr(m, "written", lambda m, x: 2 * plain(m, x)),
        lambda m: setattr(m, "out", nn.Linear(3, 2)),
        lambda m: m.out.bias.requires_grad_(False),
        lambda m: setattr(m, "scale", 3.0),
    ],
    ids=["train", "hook", "forward", "layer", "frozen", "attribute"],
)
def test_an_alteration_after_the_build_is_seen(alter: Callable[[Any], Any]) -> None:
    model = Written(lambda m, x: m.drop(plain(m, x)) if m.scale == 1.0 else plain(m, x) * m.scale)
    model.eval()
    x, y = torch.zeros(4, 5, 2), torch.ones(4, 5, 2)
    optimiser = hf.HessianFree(model, LOSS, batch_dim=1)
    optimiser.step(hf.Batch(x, y))
    alter(model)
    with pytest.raises(ValueError, match="model: "):
        optimiser.step(hf.Batch(x, y))


DOUBLED = False


class ReadsAGlobal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.RNN(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        s: Tensor = self.out(self.rnn(x)[0])
        return 2 * s if DOUBLED else s


@pytest.mark.parametrize("where", ["global", "closure"])
def test_what_a_forward_names_outside_is_looked_at(where: str, monkeypatch: Any) -> None:
    doubled = False

    class ReadsAClosure(ReadsAGlobal):
        def forward(self, x: Tensor) -> Tensor:
            s: Tensor = self.out(self.rnn(x)[0])
            return 2 * s if doubled else s

    model = ReadsAGlobal() if where == "global" else ReadsAClosure()
    x, y = torch.zeros(4, 5, 2), torch.ones(4, 5, 2)
    optimiser = hf.HessianFree(model, LOSS, batch_dim=1)
    optimiser.step(hf.Batch(x, y))
    assert isinstance(recognised(model), ReadOut)
    doubled = True
    monkeypatch.setitem(globals(), "DOUBLED", True)
    assert not isinstance(recognised(model), ReadOut)
    with pytest.raises(ValueError, match="model: "):
        optimiser.step(hf.Batch(x, y))


def test_a_counter_in_the_forward_alters_nothing() -> None:
    def counted(m: Any, x: Tensor) -> Tensor:
        m.scale += 1
        return plain(m, x)

    model = Written(counted).eval()
    optimiser = hf.HessianFree(model, LOSS, batch_dim=1)
    for _ in range(2):
        model(torch.zeros(1, 1, 2))
        optimiser.step(hf.Batch(torch.zeros(4, 5, 2), torch.ones(4, 5, 2)))


def test_hooks_of_all_modules_are_seen() -> None:
    model = Written(plain).eval()
    assert isinstance(recognised(model), ReadOut)
    handle = torch_module.register_module_forward_hook(lambda m, a, s: None)
    try:
        assert "registered for all modules" in str(recognised(model))
    finally:
        handle.remove()
    assert isinstance(recognised(model), ReadOut)
