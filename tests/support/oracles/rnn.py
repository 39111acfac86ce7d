"""hf.RNN written out step by step, and its derivatives by torch.func, all in float64."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, vmap

import hfcore as hf
from hfcore.losses import Loss
from oracles import losses

ACTIVATIONS = {"tanh": torch.tanh, "logistic": torch.sigmoid, "relu": torch.relu}
NAMES = ("W_hx", "W_hh", "W_yh", "b_h", "b_init", "b_y")


def shapes(n: int, H: int, k: int) -> tuple[tuple[int, ...], ...]:
    """Of the parameters, in the order of ``NAMES``, which is that of the flat θ."""
    return (H, n), (H, H), (k, H), (H,), (H,), (k,)


def split(theta: Tensor, n: int, H: int, k: int) -> dict[str, Tensor]:
    """The parameters by name from θ ``[N]``."""
    wanted = shapes(n, H, k)
    parts = theta.split([torch.Size(shape).numel() for shape in wanted])
    return {m: p.view(s) for m, p, s in zip(NAMES, parts, wanted, strict=True)}


def rnn(w: Mapping[str, Tensor], x: Tensor, nonlinearity: str = "tanh") -> tuple[Tensor, Tensor]:
    """(pre-activations t ``[T,B,H]``, outputs s ``[T,B,k]``) of ``x [T,B,n]``.

    The net of Martens & Sutskever (2011): t = W_hx x + b_h + W_hh h_before, h = e(t),
    s = W_yh h + b_y; at the first step b_init stands for W_hh h_before.
    """
    back, pre, outputs = w["b_init"].expand(x.shape[1], -1), [], []
    for x_t in x:
        pre.append(x_t @ w["W_hx"].T + w["b_h"] + back)
        h = ACTIVATIONS[nonlinearity](pre[-1])
        back = h @ w["W_hh"].T
        outputs.append(h @ w["W_yh"].T + w["b_y"])
    return torch.stack(pre), torch.stack(outputs)


def slope(t: Tensor, nonlinearity: str) -> Tensor:
    """e'(t) from the pre-activation, by formula; 0 at the kink of relu."""
    if nonlinearity == "tanh":
        return torch.cosh(t) ** -2
    if nonlinearity == "logistic":
        return torch.sigmoid(t) * torch.sigmoid(-t)
    return (t > 0).to(t.dtype)


def flat(model: torch.nn.Module) -> Tensor:
    """The parameters as one detached vector ``[N]``."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def net(theta: Tensor, model: hf.RNN, x: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`rnn` with the sizes of ``model`` and the parameters θ ``[N]``."""
    sizes = model.input_size, model.hidden_size, model.output_size
    return rnn(split(theta, *sizes), x, model.nonlinearity)


def moved(model: torch.nn.Module, g: torch.Generator) -> None:
    """Adds 0.2 normal to every parameter, so that no bias is zero."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g, dtype=p.dtype))


def steps_of_loss(kind: str, T: int, B: int, g: torch.Generator) -> Tensor:
    """Mask ``[T,B]`` of "all" steps, the "last", or a "ragged" one, never empty."""
    mask = torch.ones(T, B, dtype=torch.bool)
    if kind == "last":
        mask[:-1] = False
    elif kind == "ragged":
        mask = torch.rand(T, B, generator=g) < 0.5
        mask[T // 2] = True
    return mask


class Problem:
    """A small net, its data, and its derivatives by brute force."""

    def __init__(
        self, loss: Loss, nonlinearity: str = "tanh", *, T: int = 4, B: int = 3, n: int = 2,
        H: int = 4, k: int = 2, mask: str = "all",
    ) -> None:  # fmt: skip
        g = torch.Generator().manual_seed(T * 100 + B)
        self.loss = loss
        self.model = hf.RNN(n, H, k, nonlinearity=nonlinearity, dtype=torch.float64, generator=g)
        moved(self.model, g)
        self.theta = flat(self.model)
        self.x = torch.randn(T, B, n, generator=g, dtype=torch.float64)
        self.y = losses.targets(loss.kind, (T, B), k, g)
        self.mask = steps_of_loss(mask, T, B, g)

    @property
    def batch(self) -> hf.Batch:
        return hf.Batch(self.x, self.y, self.mask)

    def net(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(t ``[T,B,H]``, s ``[T,B,k]``) for ``x [T,B,n]``."""
        return net(theta, self.model, x)

    def sum_loss(self, s: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return (losses.per_output(self.loss.kind, s, y) * mask).sum()

    def case_gradients(self) -> Tensor:
        """``[B,N]``, of each sequence's summed loss."""
        return torch.stack(
            [
                grad(
                    lambda p, b=b: self.sum_loss(
                        self.net(p, self.x[:, b : b + 1])[1],
                        self.y[:, b : b + 1],
                        self.mask[:, b : b + 1],
                    )
                )(self.theta)
                for b in range(self.x.shape[1])
            ]
        )

    def dense(self, kind: str) -> Tensor:
        """The curvature matrix ``[N,N]``."""
        B = self.x.shape[1]
        if kind == "fisher":
            g = self.case_gradients()
            return g.T @ g / B
        if kind == "hessian":
            return hessian(lambda p: self.sum_loss(self.net(p, self.x)[1], self.y, self.mask) / B)(
                self.theta
            )
        s = self.net(self.theta, self.x)[1]
        J = jacrev(lambda p: self.net(p, self.x)[1])(self.theta).flatten(0, 1)
        L = vmap(hessian(self.sum_loss))(
            s.flatten(0, 1), self.y.flatten(0, 1), self.mask.double().flatten()
        )
        return torch.einsum("oin,oij,ojm->nm", J, L, J) / B

    def structural(self) -> Tensor:
        """mean J_tᵀ e'(t) J_t, the structural damping of the same paper."""
        t = self.net(self.theta, self.x)[0]
        J = jacrev(lambda p: self.net(p, self.x)[0])(self.theta).flatten(0, 2)
        D = slope(t, self.model.nonlinearity).flatten()
        return J.T @ (D.unsqueeze(1) * J) / self.x.shape[1]
