"""Losses, computed from the outputs s of a model before their nonlinearity.

A loss is one class: it knows its link (s ↦ predictions ŷ), the targets it takes, its value as a
torch formula, the best constant output and L''. One with kernels of its own is a
:class:`~hfcore.losses.kernel_loss.KernelLoss`; any other needs :meth:`Loss.per_output` alone.

What the mean is over: every loss here is a sum over a case's outputs, averaged over cases
(``mean="cases"``). ``mean="weights"`` divides by the sum of the weights of outputs (masks, sample
and class weights), as torch's weighted cross-entropy does; ``"elements"`` by the number of numbers
that are predicted, as ``nn.MSELoss`` does; ``"sum"`` by nothing.
"""

from hfcore.losses.base import Loss, Mean, StandIn
from hfcore.losses.cross_entropy import LogisticCrossEntropy, SoftmaxCrossEntropy
from hfcore.losses.from_torch import from_torch
from hfcore.losses.hessian import OutputHessian
from hfcore.losses.regression import HuberLoss, LinkedSquaredError, PoissonNLL, SquaredError

NAMED: dict[str, type[Loss]] = {
    "squared": SquaredError,
    "logistic": LogisticCrossEntropy,
    "softmax": SoftmaxCrossEntropy,
    "huber": HuberLoss,
    "poisson": PoissonNLL,
}
"""Losses by a short name, as commands take them: squared, logistic, softmax, huber, poisson."""

__all__ = [
    "NAMED",
    "HuberLoss",
    "LinkedSquaredError",
    "LogisticCrossEntropy",
    "Loss",
    "Mean",
    "OutputHessian",
    "PoissonNLL",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "StandIn",
    "from_torch",
]
