"""Names and memory layout shared by every implementation of the recurrence ops."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

NONLINEARITIES = ("tanh", "logistic", "relu")


class RnnWeights(NamedTuple):
    """Parameters (or a tangent, or a gradient) of G recurrent nets, in the 2011 paper's names.

    Every tensor has a leading group axis of length G, or 1 to share it among the group:
    ``W_hx [G,H,n]``, ``W_hh [G,H,H]``, ``W_yh [G,k,H]``, ``b_h [G,H]``, ``b_init [G,H]``,
    ``b_y [G,k]``. A flat vector holds them in this order, each row-major.
    """

    W_hx: Tensor
    W_hh: Tensor
    W_yh: Tensor
    b_h: Tensor
    b_init: Tensor
    b_y: Tensor


class RnnShape(NamedTuple):
    """Inputs n, hidden units H, outputs k of one net."""

    n: int
    H: int
    k: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each parameter, in the order of :class:`RnnWeights`."""
        n, H, k = self
        return (H * n, H * H, k * H, H, H, k)

    @property
    def numel(self) -> int:
        """Parameters N of one net."""
        return sum(self.sizes)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each parameter, in the order of :class:`RnnWeights`."""
        n, H, k = self
        return ((H, n), (H, H), (k, H), (H,), (H,), (k,))


class ForwardPass(NamedTuple):
    """Where derivatives are taken: nets, their inputs, and the states that these gave.

    ``x [G,T,B,n]``; ``h [G,T,B,H]``, or None where whoever takes the derivatives makes the states
    again. Outputs are taken at ``steps``, int64 ``[T_out]`` that increase; None means all T.
    """

    x: Tensor
    h: Tensor | None
    w: RnnWeights
    nonlinearity: str
    steps: Tensor | None

    @property
    def states(self) -> Tensor:
        """h ``[G,T,B,H]``; ValueError where it is None."""
        if self.h is None:
            raise ValueError("h: got None, need the states of the forward pass")
        return self.h


class Curvature(NamedTuple):
    """The matrix scale·(Jᵀ L'' J + structural·J_tᵀ D'' J_t) + damping·I of a forward pass.

    J is the Jacobian of the outputs, L'' = diag(c) − [rank_one] c cᵀ at each of them, with
    ``c [G,T_out,B,k]``. J_t is that of the pre-activations t and D'' = e'(t): the structural
    damping of Martens & Sutskever (2011), whose weight may be a tensor ``[]`` beside ``c``, which
    is read when the product runs.
    """

    c: Tensor
    rank_one: bool = False
    scale: float = 1.0
    structural: float | Tensor = 0.0
    damping: float = 0.0

    @property
    def is_structural(self) -> bool:
        """Whether there is a structural term; that of a tensor always is."""
        return isinstance(self.structural, Tensor) or self.structural != 0


def split_flat(flat: Tensor, shape: RnnShape) -> RnnWeights:
    """Views of the flat vectors ``flat [G,N]`` as named parameters with a group axis."""
    group = flat.shape[0]
    parts = flat.split(shape.sizes, dim=1)
    return RnnWeights(*(p.view(group, *s) for p, s in zip(parts, shape.shapes, strict=True)))
