"""Random layers, every dense op on them, and torch.func on the same layer in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hfcore.bindings.dense import dense_backward, dense_forward, dense_gradient, dense_rforward
from oracles.mlp import ACTIVATIONS

# B, n, m: ones, primes, 12 rows and 16 lanes of a tile ± 1, a chunk of cases, blocks of 256 in the
# depth of the products, of 192 rows and 400 columns in the gradient.
SHAPES = (
    (1, 1, 1),
    (2, 3, 1),
    (13, 7, 5),
    (12, 16, 32),
    (11, 15, 31),
    (25, 17, 33),
    (97, 2, 65),
    (259, 33, 17),
    (5, 257, 24),
    (96, 401, 193),
)


SHAPE_IDS = [f"B{B}-n{n}-m{m}" for B, n, m in SHAPES]


# Lengths of the group axis: cached activations and weights, tangents and errors.
GROUPS = {"alone": (1, 1), "tangents": (1, 3), "nets": (3, 3), "one tangent": (3, 1)}


Shape = tuple[int, int, int]


class Case:
    """A layer of n inputs and m outputs between activations ``below`` and ``e``.

    W, V, v_b and the gradient's buffers are views into flat vectors, off every alignment.
    """

    def __init__(
        self, shape: Shape, dtype: torch.dtype, e: str = "tanh", group: str = "alone"
    ) -> None:
        self.shape, self.dtype, self.e, self.device = shape, dtype, e, "cpu"
        self.B, self.n, self.m = B, n, m = shape
        nets, tangents = GROUPS[group]
        self.G = max(nets, tangents)
        self.draw = torch.Generator().manual_seed(sum(shape))
        self.z = self.normal(nets, B, n)
        self.a = ACTIVATIONS[e](self.z)
        self.W, self.b = self.layer(nets)
        self.V, self.v_b = self.layer(tangents)
        self.Ra, self.add = self.normal(tangents, B, n), self.normal(tangents, B, n)
        self.delta = self.normal(tangents, B, m)
        self.y = ACTIVATIONS[e](self.a.double() @ self.W.double().mT + self.b.double()[:, None])
        self.y = self.y.to(dtype)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.draw, dtype=torch.float64).to(self.dtype)

    def layer(self, G: int) -> tuple[Tensor, Tensor]:
        """Weights and biases of G layers, cut from ``[G,N]`` from its second element on."""
        flat = self.normal(G, self.m * (self.n + 1) + 3) / math.sqrt(self.n)
        size = self.m * self.n
        return flat[:, 1 : 1 + size].view(G, self.m, self.n), flat[:, 1 + size : 1 + size + self.m]

    def poisoned(self, *size: int) -> Tensor:
        return torch.full((self.G, *size), math.nan, dtype=self.dtype, device=self.device)

    def buffers(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """A poisoned ``[G,N]`` and two parts of its rows for gW and gb."""
        size = self.m * self.n
        flat = self.poisoned(self.m * (self.n + 1) + 3)
        parts = flat[:, 1 : 1 + size].view(self.G, self.m, self.n), flat[:, -2 - self.m : -2]
        return flat, parts

    def whole(self, t: Tensor) -> Tensor:
        """In float64 on the whole group."""
        return t.double().expand(self.G, *t.shape[1:]).clone()


def all_results(case: Case) -> dict[str, Tensor]:
    """Every op in every form, by the backend in force."""
    a, W, y, e, delta = case.a, case.W, case.y, case.e, case.delta
    B, n, m = case.shape
    rforward = {"activation": e, "out": case.poisoned(B, m)}
    found = {
        "y": dense_forward(a, W, case.b, activation=e),
        "Ry": dense_rforward(a, case.Ra, W, case.V, case.v_b, y, **rforward),
        "first Ry": dense_rforward(a, None, W, case.V, case.v_b, y, activation=e),
        "below": dense_backward(delta, W, a, activation=e, out=case.poisoned(B, n)),
        "below + add": dense_backward(delta, W, a, activation=e, add=case.add),
    }
    for squared in (False, True):
        flat, parts = case.buffers()
        gW, gb = dense_gradient(delta, a, scale=0.3, squared=squared, out=parts)
        assert gW is parts[0]
        assert gb is parts[1]
        around = torch.cat([flat[:, :1], flat[:, -2:]], 1)
        assert bool(around.isnan().all()), "wrote outside of its buffers"
        found[f"gW {squared}"], found[f"gb {squared}"] = gW, gb
    return found


def oracle(case: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """In float64 by torch.func: each result, and Σ|terms| of its sums for the bound."""
    activate = ACTIVATIONS[case.e]
    z, a, W, b, V, v_b, Ra, add, delta = (
        case.whole(t)
        for t in (
            case.z, case.a, case.W, case.b, case.V, case.v_b, case.Ra, case.add, case.delta
        )
    )  # fmt: skip

    def layer(a: Tensor, W: Tensor, b: Tensor) -> Tensor:
        return activate(a @ W.mT + b.unsqueeze(1))

    def products(a: Tensor, W: Tensor, b: Tensor) -> Tensor:
        return a.abs() @ W.abs().mT + b.abs().unsqueeze(1)

    primals, moved = (a, W, b), torch.zeros_like(Ra)
    y, Ry = torch.func.jvp(layer, primals, (Ra, V, v_b))
    first = torch.func.jvp(layer, primals, (moved, V, v_b))[1]
    (below,) = torch.func.vjp(lambda z: activate(z) @ W.mT, z)[1](delta)
    pre_activation = torch.func.vjp(lambda W, b: a @ W.mT + b.unsqueeze(1), W, b)[1]
    gW, gb = pre_activation(delta)
    sums, squares = delta.abs().mT @ a.abs(), delta.square().mT @ a.square()
    # |φ'| ≤ 1, and φ' of a rounded y is off by at most 2 eps: Rz itself must enter the bound.
    tangent = products(a, V, v_b)
    errors = delta.abs() @ W.abs()
    return {
        "y": (y, products(*primals) + y.abs()),
        "Ry": (Ry, tangent + Ra.abs() @ W.abs().mT),
        "first Ry": (first, tangent),
        "below": (below, errors),
        "below + add": (below + add, errors + add.abs()),
        "gW False": (0.3 * gW, 0.3 * sums),
        "gb False": (0.3 * gb, 0.3 * delta.abs().sum(1)),
        "gW True": (0.3 * squares, 0.3 * squares),
        "gb True": (0.3 * delta.square().sum(1), 0.3 * delta.square().sum(1)),
    }


def check_all(case: Case) -> None:
    """Errors of a sum of K terms grow like √K roundings of Σ|terms|; a few more around it."""
    K = max(case.B, 2 * case.n, case.m)
    eps = torch.finfo(case.dtype).eps
    want = oracle(case)
    for name, got in all_results(case).items():
        exact, terms = want[name]
        exact, terms = exact[: got.shape[0]], terms[: got.shape[0]]
        assert got.shape == exact.shape, name
        assert got.dtype == case.dtype, name
        excess = (got.double() - exact).abs() - (8 + 2 * math.sqrt(K)) * eps * terms
        worst = int(excess.argmax())
        assert not bool((excess > 0).any() | excess.isnan().any()), (
            f"{name}, element {worst}: got {got.flatten()[worst]}, want {exact.flatten()[worst]}"
        )


def check_nan(e: str, dtype: torch.dtype) -> None:
    """A NaN reaches what it touches and nothing else."""
    case = Case((14, 5, 19), dtype, e)
    clean = all_results(case)
    case.a = case.a.clone()
    case.a[0, 3, 2] = math.nan
    found = all_results(case)
    row = torch.zeros(1, 14, 1, dtype=torch.bool)
    row[0, 3] = True
    touched = {
        "y": row.expand(1, 14, 19),
        "Ry": row.expand(1, 14, 19),
        "first Ry": row.expand(1, 14, 19),
        "gW False": (torch.arange(5) == 2).expand(1, 19, 5),
        "gW True": (torch.arange(5) == 2).expand(1, 19, 5),
    }
    if e not in ("linear", "relu"):  # whose derivatives are 1 and (NaN > 0) = 0
        touched["below"] = touched["below + add"] = row & (torch.arange(5) == 2)
    for name, got in found.items():
        wrong = touched.get(name, torch.zeros_like(got, dtype=torch.bool))
        if e == "relu" and name in ("below", "below + add"):
            continue
        if e == "relu" and name in ("Ry", "first Ry"):
            wrong = wrong & got.isnan()  # 0·NaN where the unit is off is NaN too
        assert torch.equal(got.isnan(), wrong), name
        assert torch.equal(got[~wrong], clean[name][~wrong]), name


def check_saturated(dtype: torch.dtype) -> None:
    """Saturated units stay finite."""
    a = torch.tensor([[[-1e30], [-80.0], [0.0], [80.0], [1e30]]], dtype=dtype)
    W, b = torch.ones(1, 1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    for e, low, high in (("logistic", 0.0, 1.0), ("tanh", -1.0, 1.0)):
        y = dense_forward(a, W, b, activation=e)
        assert float(y[0, 0, 0]) == low
        assert float(y[0, 4, 0]) == high
        Ry = dense_rforward(a, None, W, torch.zeros_like(W), b + 1, y, activation=e)
        assert Ry.flatten()[[0, 4]].tolist() == [0.0, 0.0]


def check_relu_at_zero(dtype: torch.dtype) -> None:
    """relu is off at zero."""
    y = torch.tensor([[[0.0, -0.0, 1e-30, 2.0]]], dtype=dtype)
    eye = torch.eye(4, dtype=dtype).unsqueeze(0)
    delta = torch.full((1, 1, 4), 3.0, dtype=dtype)
    assert dense_backward(delta, eye, y, activation="relu").flatten().tolist() == [0, 0, 3, 3]
