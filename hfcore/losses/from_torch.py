"""torch's own losses as losses of this package, with the analytic L'' and torch's own mean."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from hfcore.losses.base import Loss, Mean
from hfcore.losses.cross_entropy import LogisticCrossEntropy, SoftmaxCrossEntropy
from hfcore.losses.regression import HuberLoss, PoissonNLL, SquaredError

NO_CURVATURE = "is linear in what it takes, so that L'' = 0 and the Gauss-Newton matrix is zero; "
OTHERS = {
    nn.NLLLoss: "give nn.CrossEntropyLoss the outputs before the log-softmax",
    nn.KLDivLoss: "give a cross-entropy the outputs before the log-softmax",
    nn.L1Loss: "take nn.HuberLoss, which is quadratic near zero",
}


def from_torch(module: nn.Module) -> Loss:
    """The loss of ``nn.CrossEntropyLoss`` (weight, ignore_index, label_smoothing),
    ``BCEWithLogitsLoss`` (weight, pos_weight), ``MSELoss``, ``HuberLoss``, ``SmoothL1Loss`` or
    ``PoissonNLLLoss`` on outputs ``[…,k]``, its reduction as the mean.

    ``reduction="mean"`` is torch's own: the weighted mean over outputs of a cross-entropy, the mean
    over all numbers of the others. ``"sum"`` makes the objective a sum (``mean="sum"``), so that λ
    and learning rates scale with the batch.

    Raises ValueError for a loss of these kinds that is not served, with the reason, and TypeError
    for anything else.
    """
    for kind, remedy in OTHERS.items():
        if type(module) is kind:
            raise ValueError(f"loss: {kind.__name__} {NO_CURVATURE}{remedy}")
    convert = CONVERSIONS.get(type(module))
    if convert is None:
        raise TypeError(
            f"loss: got {type(module).__name__}, need one of "
            f"{', '.join(kind.__name__ for kind in CONVERSIONS)}"
        )
    if module.reduction not in ("mean", "sum"):
        raise ValueError(
            f"loss: {type(module).__name__} has reduction={module.reduction!r}, need 'mean' or "
            "'sum'"
        )
    return convert(module)


def converted(loss: object) -> Loss | None:
    """The same of a loss that is served, None for everything else."""
    if type(loss) not in CONVERSIONS:
        return None
    try:
        return from_torch(loss)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # an option that is not served
        return None


def _mean(module: nn.Module, mean: Mean) -> Mean:
    return mean if module.reduction == "mean" else "sum"


def _softmax(module: nn.Module) -> Loss:
    return SoftmaxCrossEntropy(
        weight=module.weight,  # type: ignore[arg-type]
        ignore_index=int(module.ignore_index),  # type: ignore[arg-type]
        label_smoothing=float(module.label_smoothing),  # type: ignore[arg-type]
        mean=_mean(module, "weights"),
    )


def _logistic(module: nn.Module) -> Loss:
    return LogisticCrossEntropy(
        weight=module.weight,  # type: ignore[arg-type]
        pos_weight=module.pos_weight,  # type: ignore[arg-type]
        mean=_mean(module, "elements"),
    )


def _squared(module: nn.Module) -> Loss:
    loss = SquaredError(mean=_mean(module, "elements"))
    loss.factor = 2.0  # (s − y)² and not its half
    return loss


def _huber(module: nn.Module) -> Loss:
    return HuberLoss(float(module.delta), mean=_mean(module, "elements"))  # type: ignore[arg-type]


def _smooth_l1(module: nn.Module) -> Loss:
    """Huber's loss over its delta."""
    beta = float(module.beta)  # type: ignore[arg-type]
    if beta == 0:
        raise ValueError(f"loss: SmoothL1Loss with beta=0 {NO_CURVATURE}take a beta above 0")
    loss = HuberLoss(beta, mean=_mean(module, "elements"))
    loss.factor = 1.0 / beta
    return loss


def _poisson(module: nn.Module) -> Loss:
    if not module.log_input or module.full:
        raise ValueError(
            "loss: PoissonNLLLoss is served with log_input=True (outputs are logarithms of rates) "
            "and full=False"
        )
    return PoissonNLL(mean=_mean(module, "elements"))


CONVERSIONS: dict[type[nn.Module], Callable[[nn.Module], Loss]] = {
    nn.CrossEntropyLoss: _softmax,
    nn.BCEWithLogitsLoss: _logistic,
    nn.MSELoss: _squared,
    nn.HuberLoss: _huber,
    nn.SmoothL1Loss: _smooth_l1,
    nn.PoissonNLLLoss: _poisson,
}
