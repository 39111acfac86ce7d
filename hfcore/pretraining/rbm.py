"""Restricted Boltzmann machines (Smolensky 1986; Hinton & Salakhutdinov 2006).

The energy of visible units v ``[n]`` and hidden units h ``[m]`` is

    E(v, h) = U_v(v) + U_h(h) − hᵀ W v,

with U(x) = −bᵀx of Bernoulli units x ∈ {0, 1} and U(x) = ½‖x − b‖² of Gaussian ones of variance 1
(linear units with noise). Given the other layer, units are independent: their mean is the logistic
of z = W v + b_h (or Wᵀh + b_v) where they are Bernoulli, and z itself where they are Gaussian.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from hfcore.arguments import count, naming_options, nonnegative, placement
from hfcore.bindings.checks import check_choice, check_positive, check_tensor
from hfcore.bindings.contrastive import split_machine
from hfcore.bindings.dense import dense_backward, dense_forward

Units = Literal["bernoulli", "gaussian"]
UNITS: tuple[str, ...] = get_args(Units)
# φ of the units' mean, as the dense ops call it.
ACTIVATION = {"bernoulli": "logistic", "gaussian": "linear"}

# Bernoulli units whose states log_partition goes through, 2^units of them, and how many at a time.
MOST_ENUMERATED = 20
STATES_AT_ONCE = 1 << 14
# Cases of a pass that needs memory of their number.
ROWS = 4096


class RBM:
    """One machine: ``W [m,n]``, ``b_h [m]``, ``b_v [n]``, views of ``theta [1,N]`` in this order.

    W is drawn from N(0, scale²) in float64, from ``generator`` (None: torch's global one); biases
    are 0.

    Args:
        visible, hidden: n and m, at least 1.
        visible_units, hidden_units: ``"bernoulli"`` or ``"gaussian"``.
        scale: standard deviation of the first weights (Hinton & Salakhutdinov: 0.1).
        dtype, device: of the parameters; None means torch's default.

    Raises TypeError or ValueError naming the argument.
    """

    @naming_options
    def __init__(
        self,
        visible: int,
        hidden: int,
        *,
        visible_units: Units = "bernoulli",
        hidden_units: Units = "bernoulli",
        scale: float = 0.1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        n, m = count("visible", visible), count("hidden", hidden)
        check_choice("visible_units", visible_units, UNITS)
        check_choice("hidden_units", hidden_units, UNITS)
        placement(dtype, device, generator)
        scale = nonnegative("scale", scale)
        self.visible_units: Units = visible_units
        self.hidden_units: Units = hidden_units
        self.theta = torch.zeros(1, m * n + m + n, dtype=dtype, device=device)
        self.W, self.b_h, self.b_v = split_rbm(self.theta, n, m)
        if scale > 0:
            drawn_on = "cpu" if generator is None else generator.device
            draw = torch.empty(m, n, dtype=torch.float64, device=drawn_on)
            self.W.copy_(draw.normal_(0.0, scale, generator=generator))

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m): units of the visible and of the hidden layer."""
        m, n = self.W.shape
        return n, m

    def hidden_mean(self, v: Tensor) -> Tensor:
        """E[h | v] ``[B,m]`` for ``v [B,n]``."""
        self._check("v", v, self.shape[0])
        activation = ACTIVATION[self.hidden_units]
        return dense_forward(v[None], self.W[None], self.b_h[None], activation=activation)[0]

    def visible_mean(self, h: Tensor) -> Tensor:
        """E[v | h] ``[B,n]`` for ``h [B,m]``."""
        n, m = self.shape
        self._check("h", h, m)
        unused = h.new_zeros(1, len(h), n)  # a linear layer's derivative does not look at it
        z = dense_backward(h[None], self.W[None], unused, activation="linear")[0].add_(self.b_v)
        return z.sigmoid_() if self.visible_units == "bernoulli" else z

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = −log Σ_h exp(−E(v, h)) ``[B]`` for ``v [B,n]``; an integral over Gaussian h.

        p(v) = exp(−F(v)) / Z, so a difference of free energies is one of log-likelihoods.
        """
        self._check("v", v, self.shape[0])
        parts = v.split(ROWS)
        return torch.cat([self._own(part, "visible") - self._summed(part) for part in parts])

    def log_partition(self) -> float:
        """log Z = log Σ_{v,h} exp(−E(v, h)), by going through the states of one layer, in float64.

        Raises ValueError where no layer is of at most 20 Bernoulli units; Z of two Gaussian
        layers need not even be finite.
        """
        n, m = self.shape
        layers = {"hidden": (m, self.hidden_units), "visible": (n, self.visible_units)}
        fitting = {
            name: units
            for name, (units, kind) in layers.items()
            if kind == "bernoulli" and units <= MOST_ENUMERATED
        }
        if not fitting:
            shown = ", ".join(f"{units} {kind} {name}" for name, (units, kind) in layers.items())
            raise ValueError(
                f"log_partition: the machine has {shown} units, need a layer of at most "
                f"{MOST_ENUMERATED} bernoulli ones, whose states can be gone through"
            )
        layer = min(fitting, key=lambda name: fitting[name])
        units, wide = fitting[layer], self._in_float64()
        sums = []
        for states in torch.arange(2**units, device=self.theta.device).split(STATES_AT_ONCE):
            bits = torch.arange(units, device=states.device)
            x = states[:, None].bitwise_right_shift(bits).bitwise_and(1).double()
            if layer == "visible":
                sums.append((-wide.free_energy(x)).logsumexp(0))
            else:
                sums.append((wide._summed(x, "visible") - wide._own(x, "hidden")).logsumexp(0))
        return float(torch.stack(sums).logsumexp(0))

    def __repr__(self) -> str:
        n, m = self.shape
        return f"RBM({n}, {m}, {self.visible_units}, {self.hidden_units})"

    # ---- one layer given the other, or summed out

    def _own(self, x: Tensor, layer: str) -> Tensor:
        """U ``[B]`` of a layer's units ``x [B,·]``."""
        b, kind = (
            (self.b_v, self.visible_units) if layer == "visible" else (self.b_h, self.hidden_units)
        )
        return -(x @ b) if kind == "bernoulli" else 0.5 * (x - b).square().sum(1)

    def _summed(self, x: Tensor, layer: str = "hidden") -> Tensor:
        """log Σ exp(−U + …) ``[B]`` over the states of ``layer``, the other one being ``x [B,·]``.

        A Gaussian layer is integrated:
        ∫ exp(−½‖y − b‖² + aᵀy) dy = (2π)^(units/2) exp(½‖a‖² + aᵀb).
        """
        if layer == "hidden":
            a, b, kind = x @ self.W.T, self.b_h, self.hidden_units
        else:
            a, b, kind = x @ self.W, self.b_v, self.visible_units
        if kind == "bernoulli":
            return softplus(a + b).sum(1)
        return 0.5 * a.square().sum(1) + a @ b + 0.5 * len(b) * math.log(2 * math.pi)

    def _in_float64(self) -> RBM:
        n, m = self.shape
        wide = RBM(
            n, m, visible_units=self.visible_units, hidden_units=self.hidden_units, scale=0.0,
            dtype=torch.float64, device=self.theta.device,
        )  # fmt: skip
        wide.theta.copy_(self.theta)
        return wide

    def _check(self, name: str, x: Tensor, units: int) -> None:
        check_tensor(name, x, ["B", units], like=self.theta)
        check_positive(B=len(x))


def split_rbm(flat: Tensor, n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views (W ``[m,n]``, b_h ``[m]``, b_v ``[n]``) of ``flat [1,N]``."""
    W, b_h, b_v = split_machine(flat, n, m)
    return W[0], b_h[0], b_v[0]
