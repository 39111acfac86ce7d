"""Dense ops on the layers of the CURVES autoencoder and in a whole product; BLAS by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.interleave import Effort
from bench.test_ops import Call, race
from hfcore.bindings import dense, loss

B = 5000
ENCODER = (784, 400, 200, 100, 50, 25, 6)
SIZES = (*ENCODER, *ENCODER[-2::-1])
# The code layer and the outputs (before the logistic of the loss) are linear.
ACTIVATIONS = (*["logistic"] * 5, "linear", *["logistic"] * 5, "linear")
LAYERS = ((784, 400), (200, 100), (25, 6))


class Layer:
    """A logistic layer on B cases, its tangents and errors, and buffers for what comes out."""

    def __init__(self, n: int, m: int) -> None:
        draw = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(1, *size, generator=draw)

        self.a, self.Ra, self.delta = (
            torch.rand(1, B, n, generator=draw),
            normal(B, n),
            normal(B, m),
        )
        self.W, self.V, self.b = normal(m, n) / n**0.5, normal(m, n) / n**0.5, normal(m)
        self.y = dense.dense_forward(self.a, self.W, self.b, activation="logistic")
        self.above, self.below, self.slope = (torch.empty_like(t) for t in (self.y, self.a, self.y))
        self.g = torch.empty_like(self.W), torch.empty_like(self.b)


def calls_of(layer: Layer) -> dict[str, tuple[int, Call, Call]]:
    """Each op: its matrix products, ours, and the same by torch's BLAS without temporaries."""
    a, Ra, W, V, b, y, delta = (
        layer.a, layer.Ra, layer.W, layer.V, layer.b, layer.y, layer.delta
    )  # fmt: skip
    above, below, e = layer.above, layer.below, "logistic"
    at, bt, slope_below = above[0], below[0], torch.empty_like(layer.a)

    def forward() -> Tensor:
        return torch.addmm(b[0], a[0], W[0].T, out=at).sigmoid_()

    def rforward() -> Tensor:
        torch.addmm(b[0], a[0], V[0].T, out=at).addmm_(Ra[0], W[0].T)
        torch.mul(y, y, out=layer.slope).neg_().add_(y)
        return at.mul_(layer.slope[0])

    def backward() -> Tensor:
        torch.mm(delta[0], W[0], out=bt)
        torch.mul(a, a, out=slope_below).neg_().add_(a)
        return bt.mul_(slope_below[0])

    def gradient() -> Tensor:
        torch.sum(delta[0], 0, out=layer.g[1][0])
        return torch.mm(delta[0].T, a[0], out=layer.g[0][0])

    return {
        "dense_forward": (
            1, lambda: dense.dense_forward(a, W, b, activation=e, out=above), forward
        ),
        "dense_rforward": (
            2, lambda: dense.dense_rforward(a, Ra, W, V, b, y, activation=e, out=above), rforward
        ),
        "dense_backward": (
            1, lambda: dense.dense_backward(delta, W, a, activation=e, out=below), backward
        ),
        "dense_gradient": (1, lambda: dense.dense_gradient(delta, a, out=layer.g)[0], gradient),
    }  # fmt: skip


@pytest.mark.parametrize(("n", "m"), LAYERS, ids=lambda size: str(size))
@pytest.mark.parametrize(
    "op", ["dense_forward", "dense_rforward", "dense_backward", "dense_gradient"]
)
def test_dense(benchmark: BenchmarkFixture, effort: Effort, op: str, n: int, m: int) -> None:
    products, ours, by_hand = calls_of(Layer(n, m))[op]
    ours_result, theirs = ours(), by_hand()
    assert isinstance(ours_result, Tensor)
    assert isinstance(theirs, Tensor)
    torch.testing.assert_close(ours_result[0], theirs, rtol=1e-3, atol=1e-3)
    race(
        benchmark,
        effort,
        op,
        f"B{B}-n{n}-m{m}-logistic",
        ours,
        {"torch by hand": by_hand},
        flops=2.0 * products * B * n * m,
    )


class Curves:
    """The CURVES autoencoder: one Gauss-Newton product from cached activations, by dense ops."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.shapes = [(m, n) for n, m in pairwise(SIZES)]
        count = sum(m * n + m for m, n in self.shapes)
        self.parameters = self.split(0.05 * torch.randn(count, generator=draw))
        self.v = self.split(torch.randn(count, generator=draw))
        self.flat = torch.empty(count)
        self.g = self.split(self.flat)
        self.a = [torch.rand(1, B, SIZES[0], generator=draw)]
        for (W, b), e in zip(self.parameters, ACTIVATIONS, strict=True):
            self.a.append(dense.dense_forward(self.a[-1], W, b, activation=e))
        self.c = loss.loss_curvature("logistic", self.a[-1].unsqueeze(1), None, None)
        self.R = [torch.empty_like(a) for a in self.a]
        self.delta = [torch.empty_like(a) for a in self.a]

    def split(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        parts = flat.split([size for m, n in self.shapes for size in (m * n, m)])
        return [
            (W.view(1, m, n), b.view(1, m))
            for (m, n), W, b in zip(self.shapes, parts[::2], parts[1::2], strict=True)
        ]

    @property
    def flops(self) -> float:
        """8 a weight and case; the inputs have no tangent and need no error: 4 in the first."""
        weights = sum(m * n for m, n in self.shapes)
        return (8.0 * weights - 4.0 * SIZES[0] * SIZES[1]) * B

    def product(self) -> Tensor:
        for layer, ((W, _), (V, v_b)) in enumerate(zip(self.parameters, self.v, strict=True)):
            dense.dense_rforward(
                self.a[layer], self.R[layer] if layer else None, W, V, v_b, self.a[layer + 1],
                activation=ACTIVATIONS[layer], out=self.R[layer + 1],
            )  # fmt: skip
        s, gs = self.R[-1].unsqueeze(1), self.delta[-1].unsqueeze(1)
        loss.loss_hessian_product(self.c, s, scale=1 / B, out=gs)
        for layer in reversed(range(len(self.shapes))):
            dense.dense_gradient(self.delta[layer + 1], self.a[layer], out=self.g[layer])
            if layer:
                dense.dense_backward(
                    self.delta[layer + 1], self.parameters[layer][0], self.a[layer],
                    activation=ACTIVATIONS[layer - 1], out=self.delta[layer],
                )  # fmt: skip
        return self.flat


def test_curves_product(benchmark: BenchmarkFixture, effort: Effort) -> None:
    curves = Curves()
    race(
        benchmark,
        effort,
        "Gauss-Newton product by dense ops",
        f"CURVES-B{B}",
        curves.product,
        flops=curves.flops,
    )
