"""hf.Jacobian against torch.func's dense Jacobians."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dense_operator import Dense, generator, normal, with_spectrum
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import hfcore as hf
from hfcore.curvature.jacobian import _FusedPasses


class Pair(nn.Module):
    """Takes two tensors in a tuple and uses one weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        a, b = inputs
        return torch.tanh(self.first(a)) * self.first(b)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


def make(name: str) -> tuple[nn.Module, object]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "rnn":
            model = hf.RNN(2, 5, 3, dtype=torch.float64, generator=generator(1))
            return model, normal(4, 3, 2)
        if name == "rnn-T1":
            model = hf.RNN(2, 5, 1, dtype=torch.float64, generator=generator(1))
            return model, normal(1, 1, 2)
        if name == "rnn-entries":
            model = hf.RNN(
                2, 9, 3, sparse=True, fan_in=2, dtype=torch.float64, generator=generator(1)
            )
            return model, normal(4, 3, 2)
        if name == "rnn-relu":
            model = hf.RNN(2, 5, 3, nonlinearity="relu", dtype=torch.float64)
            return model, normal(4, 3, 2)
        if name == "stacked":
            model = hf.StackedRNN(2, (4, 3), 2, dtype=torch.float64, generator=generator(1))
            return model, normal(4, 3, 2)
        if name == "mlp":
            model = hf.MLP((4, 5, 3), ("logistic", "linear"), dtype=torch.float64)
            return model, normal(7, 4)
        if name == "pair":
            return Pair().double(), (normal(5, 3), normal(5, 3, seed=1))
        if name == "conv":
            layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
            return nn.Sequential(*layers).double(), normal(3, 1, 4, 4)
        if name == "lstm":
            return _First(nn.LSTM(2, 3)).double(), normal(5, 2, 2)
        if name == "attention":
            return Attention().double(), normal(3, 5, 4)
        linear = nn.Linear(3, 2).double()
        linear.bias.requires_grad_(False)
        return linear, normal(1, 3)


class _First(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


FUSED = ("rnn", "rnn-T1", "rnn-relu", "rnn-entries", "stacked", "mlp")
NAMES = (*FUSED, "pair", "conv", "lstm", "attention", "frozen")


def oracle(model: nn.Module, inputs: object) -> Tensor:
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            parts = jacrev(lambda p: functional_call(model, p, (inputs,)).reshape(-1))(named)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
    return torch.cat([part.reshape(len(part), -1) for part in parts.values()], 1)


@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_dense_jacobian(name: str) -> None:
    model, inputs = make(name)
    want = oracle(model, inputs)
    M, N = want.shape
    J = hf.Jacobian(model, inputs)
    with torch.no_grad():
        outputs = model(inputs)
    assert isinstance(J._passes, _FusedPasses) == (name in FUSED)
    assert J.shape == (M, N)
    assert J.mT.shape == (N, M)
    torch.testing.assert_close(J.outputs, outputs, rtol=1e-12, atol=1e-12)
    eps = 1e-13 * (1 + float(want.norm()))
    torch.testing.assert_close(J @ torch.eye(N).double(), want, rtol=0, atol=eps)
    torch.testing.assert_close(J.mT @ torch.eye(M).double(), want.mT, rtol=0, atol=eps)
    assert J.mT.mT is J
    assert J.T is J.mT
    v, u = normal(N), normal(M, seed=1)
    for A, w in ((J, v), (J.mT, u)):
        out = torch.full((A.shape[0],), math.nan).double()
        assert A.matvec(w, out=out) is out
        assert torch.equal(out, A @ w)
    torch.testing.assert_close(J.products(v[None])[0], want @ v, rtol=0, atol=10 * eps)
    back = J.to_scipy().rmatvec(u.numpy())
    np.testing.assert_allclose(back, (want.mT @ u).numpy(), atol=10 * eps)


@pytest.mark.parametrize("name", ["rnn", "mlp", "pair"])
def test_normal_equations_are_an_operator_like_any(name: str) -> None:
    model, inputs = make(name)
    want = oracle(model, inputs)
    M, N = want.shape
    J = hf.Jacobian(model, inputs)
    G = J.mT @ J
    assert G.symmetric
    dense = want.mT @ want
    A = G.shifted(0.1)
    b = normal(N)
    x, info = A.solve(b, 1e-10)
    assert info.converged
    full = dense + 0.1 * torch.eye(N).double()
    torch.testing.assert_close(x, torch.linalg.solve(full, b), rtol=1e-7, atol=1e-8)
    values = torch.linalg.eigvalsh(dense).flip(0)[:2]
    torch.testing.assert_close(G.eigsh(2).values, values, rtol=1e-9, atol=1e-9)
    # The kernel J Jᵀ has the same, and its weighted form is a Gauss-Newton matrix.
    torch.testing.assert_close((J @ J.mT).eigsh(2).values, values, rtol=1e-9, atol=1e-9)
    D = Dense(with_spectrum(torch.linspace(0.5, 2, M)))
    weighted = J.mT @ D @ J
    assert weighted.symmetric
    torch.testing.assert_close(
        weighted @ b, want.mT @ (D.matrix @ (want @ b)), rtol=1e-10, atol=1e-10
    )
    first = next(iter(dict(model.named_parameters())))
    n = next(model.parameters()).numel()
    torch.testing.assert_close(
        G.block(first) @ torch.eye(n).double(), dense[:n, :n], rtol=1e-10, atol=1e-10
    )


def test_the_gauss_newton_matrix_of_a_squared_error() -> None:
    for name, cases in (("rnn", 3), ("mlp", 7)):
        model, x = make(name)
        J = hf.Jacobian(model, x)
        y = torch.zeros_like(J.outputs)
        G = hf.GaussNewton(model, hf.losses.SquaredError(), x, y)
        v = normal(J.shape[1])
        torch.testing.assert_close(((J.mT @ J) / cases) @ v, G @ v, rtol=1e-11, atol=1e-12)


def test_an_altered_or_frozen_net_goes_through_autograd() -> None:
    model, x = make("rnn")
    fused = hf.Jacobian(model, x)
    hook = model.register_forward_hook(lambda m, inputs, s: 2 * s)
    doubled = hf.Jacobian(model, x)
    hook.remove()
    assert not isinstance(doubled._passes, _FusedPasses)
    v, u = normal(fused.shape[1]), normal(fused.shape[0])
    torch.testing.assert_close(doubled @ v, 2 * (fused @ v), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(doubled.mT @ u, 2 * (fused.mT @ u), rtol=1e-12, atol=1e-12)
    model.W_hx.requires_grad_(False)
    rest = hf.Jacobian(model, x)
    n = model.W_hx.numel()
    assert rest.shape == (fused.shape[0], fused.shape[1] - n)
    torch.testing.assert_close(rest.mT @ u, (fused.mT @ u)[n:], rtol=1e-12, atol=1e-12)


class Returning(nn.Module):
    """Takes keywords; what it returns holds the outputs in several ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(3, 2).double(), nn.Linear(4, 2).double()

    def forward(self, a: Tensor, b: Tensor) -> object:
        s = torch.tanh(self.first(a)) * self.second(b)
        if self.kind == "attribute":
            return SimpleNamespace(logits=s, size=3)
        return {"logits": s, "extra": 2 * s} if self.kind == "key" else (a, s)


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [("key", "logits"), ("attribute", "logits"), ("index", 1), ("key", lambda o: o["logits"])],
)
def test_outputs_are_chosen_and_a_mapping_is_keywords(kind: str, outputs: object) -> None:
    model = Returning(kind)
    a, b = normal(5, 3), normal(5, 4, seed=1)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = model.first, model.second

        def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
            return torch.tanh(self.first(inputs[0])) * self.second(inputs[1])

    want = oracle(Plain(), (a, b))
    J = hf.Jacobian(model, {"a": a, "b": b}, outputs=outputs)
    M, N = want.shape
    assert J.shape == (M, N)
    torch.testing.assert_close(J @ torch.eye(N).double(), want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(J.mT @ torch.eye(M).double(), want.mT, rtol=1e-12, atol=1e-13)


def test_of_a_net_with_kernels_its_only_outputs_may_be_chosen() -> None:
    model, x = make("mlp")
    J = hf.Jacobian(model, x, outputs=lambda s: s[..., :1])
    assert not isinstance(J._passes, _FusedPasses)
    rows = oracle(model, x).view(7, 3, -1)[:, 0]
    torch.testing.assert_close(J @ torch.eye(rows.shape[1]).double(), rows, rtol=1e-12, atol=1e-13)


def test_it_stays_where_it_was_built() -> None:
    for name in ("rnn", "mlp", "conv"):
        model, inputs = make(name)
        J = hf.Jacobian(model, inputs)
        v, u = normal(J.shape[1]), normal(J.shape[0])
        before, back = J @ v, J.mT @ u
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(2)
        assert torch.equal(J @ v, before)
        assert torch.equal(J.mT @ u, back)
        assert all(p.grad is None for p in model.parameters())


def test_float32_and_no_grad() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = normal(5, 3, dtype=torch.float32)
    with torch.no_grad():
        J = hf.Jacobian(model, x)
        got = J @ torch.eye(J.shape[1])
    torch.testing.assert_close(got, oracle(model, x), rtol=1e-5, atol=1e-6)


class _Once(torch.autograd.Function):
    """Its backward forgets that what it returns depends on the gradient it was given."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g.detach()


class _Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        s = self.linear(x)
        return torch.stack([_Once.apply(s), s])


def test_bad_arguments_are_named() -> None:
    model, x = make("mlp")
    bad = nn.Linear(4, 2).double()
    with torch.no_grad():
        bad.bias[0] = math.inf
    frozen = nn.Linear(4, 2).double().requires_grad_(False)

    class Tuple(nn.Linear):
        def forward(self, x):
            return (super().forward(x),)

    class Constant(nn.Linear):
        def forward(self, x):
            return x

    for call, error, message in (
        (lambda: hf.Jacobian(lambda x: x, x), TypeError, "model: got function, need a torch.nn"),
        (lambda: hf.Jacobian(bad, x), ValueError, "parameter bias holds NaN or Inf"),
        (lambda: hf.Jacobian(frozen, x), ValueError, "model: has no trainable parameters"),
        (lambda: hf.Jacobian(model, 3), TypeError, "inputs: got int, need a tensor"),
        (lambda: hf.Jacobian(model, x * math.nan), ValueError, "inputs: holds NaN or Inf"),
        (lambda: hf.Jacobian(Tuple(4, 2).double(), x), TypeError, "the model returned tuple"),
        (lambda: hf.Jacobian(Constant(4, 2).double(), x), ValueError, "do not depend on its"),
        (lambda: hf.Jacobian(_Broken(), normal(2, 3)), ValueError, "cannot be differentiated"),
        (lambda: hf.Jacobian(nn.Dropout(0.5), x), ValueError, "model: has no trainable"),
        (
            lambda: hf.Jacobian(nn.Sequential(nn.Linear(4, 2).double(), nn.Dropout(0.5)), x),
            ValueError,
            "Dropout '1' draws a new mask",
        ),
        (
            lambda: hf.Jacobian(nn.Linear(3, 2).double(), x),
            ValueError,
            "inputs: the model raised RuntimeError: mat1",
        ),
        (lambda: hf.Jacobian(model, x) @ normal(3), ValueError, r"v: got shape \[3\], need \[43\]"),
        (lambda: hf.Jacobian(model, x).solve(normal(21)), ValueError, "solve: the operator's"),
        (lambda: hf.Jacobian(model, x, outputs=1.5), TypeError, "outputs: got float, need a key"),
        (lambda: hf.Jacobian(model, x, outputs="s"), ValueError, "outputs: the model returned Ten"),
        (lambda: hf.Jacobian(model, x, local=2), TypeError, "local: got int, need True or False"),
        (lambda: hf.Jacobian(model, x).eigsh(1), ValueError, "need a square one"),
    ):
        with pytest.raises(error, match=message):
            call()
