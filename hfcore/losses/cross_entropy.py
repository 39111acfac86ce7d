"""Cross-entropies behind their matching links, with the weights that torch's own have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from hfcore.arguments import MOST, count, naming_options, number
from hfcore.bindings import loss as ops
from hfcore.losses.base import Mean, weighted
from hfcore.losses.kernel_loss import KernelLoss
from hfcore.losses.weights import FixedWeights

Weights = Sequence[float] | Tensor | None


class LogisticCrossEntropy(KernelLoss):
    """−Σ y log σ(s) + (1−y) log(1−σ(s)) with targets in [0,1] of s's shape.

    Args:
        weight: of each of the k outputs, ``[k]`` ≥ 0, as in ``nn.BCEWithLogitsLoss``.
        pos_weight: of the first term, ``[k]`` ≥ 0.
        mean: see :mod:`hfcore.losses`; torch's own is ``"elements"``, which counts no weights.
    """

    kind = "logistic"
    nonlinearity = "logistic"
    separable = True
    target_range = (0.0, 1.0)
    target_need = "values in [0,1]"
    prediction_range = (0.0, 1.0)
    prediction_need = "frequencies in [0, 1]"

    @naming_options
    def __init__(
        self, *, weight: Weights = None, pos_weight: Weights = None, mean: Mean = "cases"
    ) -> None:
        super().__init__(mean=mean)
        self.weight = None if weight is None else FixedWeights("weight", weight)
        self.pos_weight = None if pos_weight is None else FixedWeights("pos_weight", pos_weight)

    @property
    def has_weights(self) -> bool:
        return self.weight is not None or self.pos_weight is not None

    @property
    def likelihood(self) -> bool:
        return not self.has_weights

    def check_targets(self, s_shape: torch.Size, targets: Tensor, dtype: torch.dtype) -> None:
        super().check_targets(s_shape, targets, dtype)
        for weight in (self.weight, self.pos_weight):
            if weight is not None:
                weight.check_length(s_shape[-1], all_alike=True)

    def link(self, s: Tensor) -> Tensor:
        return torch.sigmoid(s)

    def best_constant(self, mean: Tensor, least: float = 1e-9) -> Tensor:
        """The logit of the mean ȳ ``[k]``; for ``pos_weight`` p that of p ȳ / (p ȳ + 1 − ȳ)."""
        if self.pos_weight is not None:
            positive = mean * self.pos_weight.at(mean.device, mean.dtype)
            mean = positive / (positive + 1 - mean)
        return torch.logit(mean.clamp(least, 1 - least))

    def per_output(self, s: Tensor, targets: Tensor) -> Tensor:
        weight, pos_weight = (
            None if w is None else w.at(s.device, s.dtype) for w in (self.weight, self.pos_weight)
        )
        per = binary_cross_entropy_with_logits(
            s, targets, reduction="none", weight=weight, pos_weight=pos_weight
        )
        return per.sum(-1)

    def prepared(
        self, s: Tensor, targets: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """With weights each number is an output of its own, k = 1: weight A = w (1 + (p − 1) y)
        and target p y / (1 + (p − 1) y)."""
        if not self.has_weights:
            return s, targets, mask
        y, dtype = targets, s.dtype
        a = torch.ones_like(y, dtype=dtype)
        if mask is not None:  # what is masked may hold anything
            a = a * mask.unsqueeze(-1)
            y = torch.where(mask.unsqueeze(-1) != 0, y, 0)
        if self.pos_weight is not None:
            p = self.pos_weight.at(y.device, y.dtype)
            share = 1 + (p - 1) * y
            a = a * share
            y = torch.where(share == 0, 0, p * y / torch.where(share == 0, 1, share))
        if self.weight is not None:
            a = a * self.weight.at(y.device, y.dtype)
        y = y.expand(a.shape)
        return s.flatten(2).unsqueeze(-1), y.flatten(2).unsqueeze(-1), a.flatten(2)

    def _options(self) -> dict[str, object]:
        return {**_given(weight=self.weight, pos_weight=self.pos_weight), **super()._options()}


class SoftmaxCrossEntropy(KernelLoss):
    """−log softmax(s)[y] with int64 classes ``targets [T,B]``.

    Args:
        weight: of each of the k classes, ``[k]`` ≥ 0: an output counts what its class does.
        ignore_index: the class of outputs that do not count; None: every class counts.
        label_smoothing: ε; the target is (1 − ε) of the class and ε/k of every class, each with
            its own weight, as in ``nn.CrossEntropyLoss``.
        mean: see :mod:`hfcore.losses`; torch's own is ``"weights"``.
    """

    kind = "softmax"
    nonlinearity = "softmax"
    takes_classes = True
    prediction_range = (0.0, 1.0)
    prediction_need = "frequencies in [0, 1]"

    @naming_options
    def __init__(
        self,
        *,
        weight: Weights = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        mean: Mean = "cases",
    ) -> None:
        super().__init__(mean=mean)
        if not 0.0 <= number("label_smoothing", label_smoothing) <= 1.0:
            raise ValueError(f"label_smoothing: got {label_smoothing}, need a number in [0, 1]")
        self.weight = None if weight is None else FixedWeights("weight", weight)
        self.ignore_index = (
            None if ignore_index is None else count("ignore_index", ignore_index, -MOST)
        )
        self.label_smoothing = float(label_smoothing)

    @property
    def has_weights(self) -> bool:
        return self.weight is not None or self.ignore_index is not None or self.label_smoothing > 0

    @property
    def likelihood(self) -> bool:
        return self.weight is None and self.label_smoothing == 0

    def check_targets(self, s_shape: torch.Size, targets: Tensor, dtype: torch.dtype) -> None:
        if targets.shape != s_shape[:-1]:
            raise ValueError(
                f"targets: got shape {list(targets.shape)}, need classes of shape "
                f"{list(s_shape[:-1])}"
            )
        if targets.dtype != torch.int64:
            raise TypeError(f"targets: got {targets.dtype}, need torch.int64 class indices")
        if self.weight is not None:
            self.weight.check_length(s_shape[-1])

    def check_output_count(self, k: int) -> None:
        if k < 2:
            raise ValueError(
                f"outputs: got {k} for a softmax, whose cross-entropy is then constant; need at "
                "least 2, or hf.losses.LogisticCrossEntropy (nn.BCEWithLogitsLoss) for one"
            )

    def class_range(self, targets: Tensor) -> tuple[int, int]:
        return super().class_range(self._counting(targets, None)[0])

    def link(self, s: Tensor) -> Tensor:
        return torch.softmax(s, -1)

    def best_constant(self, mean: Tensor, least: float = 1e-9) -> Tensor:
        """The logarithms of the class frequencies ``[k]``, by their weights."""
        if self.weight is not None:
            mean = mean * self.weight.at(mean.device, mean.dtype)
        if self.label_smoothing:
            share = self.label_smoothing * (
                1 if self.weight is None else self.weight.at(mean.device, mean.dtype)
            )
            mean = (1 - self.label_smoothing) * mean + share / mean.shape[-1]
        return mean.clamp_min(least).log()

    def mean_target(self, targets: Tensor, mask: Tensor | None, outputs: int) -> tuple[Tensor, int]:
        kept = targets if mask is None else targets[mask != 0]
        if self.ignore_index is not None:
            kept = kept[kept != self.ignore_index]
        return torch.bincount(kept.reshape(-1), minlength=outputs).double(), kept.numel()

    def counted(self, targets: Tensor, mask: Tensor | None, outputs: int, cases: int) -> float:
        """With the mean ``"weights"`` an output counts the weight of its class ``targets […]``."""
        if self.mean in ("cases", "sum"):
            return float(cases)
        classes, keep = self._counting(targets, mask)
        if self.weight is None or self.mean == "elements":
            return super().counted(classes, keep, outputs, cases)
        weights = self._of_classes(classes, torch.float64)
        return float((weights if keep is None else weights * keep).sum())

    def per_output(self, s: Tensor, targets: Tensor) -> Tensor:
        classes, keep = self._counting(targets, None)
        lse = torch.logsumexp(s, -1)
        per = lse - s.gather(-1, classes.unsqueeze(-1)).squeeze(-1)
        if self.weight is not None:
            per = per * self._of_classes(classes, s.dtype)
        if self.label_smoothing:
            # Σ_j w_j (lse − s_j) / k, the loss where every class is as likely
            uniform = ((lse.unsqueeze(-1) - s) * self._weights(s)).mean(-1)
            per = (1 - self.label_smoothing) * per + self.label_smoothing * uniform
        return per if keep is None else torch.where(keep, per, torch.zeros_like(per))

    def prepared(
        self, s: Tensor, targets: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """An output weighs (1 − ε) w_y + ε w̄; what smoothing adds is linear in s, see below."""
        classes, keep = self._counting(targets, mask)
        if self.weight is None:
            return s, classes, keep
        weights = (1 - self.label_smoothing) * self._of_classes(classes, s.dtype)
        if self.label_smoothing:
            weights = weights + self.label_smoothing * self._weights(s).mean()
        return s, classes, weights if keep is None else weights * keep

    def check_ops(self, outputs: int, targets: Tensor, mask: Tensor | None) -> None:
        ops.check_values(self.kind, outputs, *self._counting(targets, mask))

    def is_fused(self, mask: Tensor | None) -> bool:
        return self.weight is None and (mask is None or mask.dtype == torch.bool)

    def values(
        self, s: Tensor, targets: Tensor, mask: Tensor | None = None, *, scale: float = 1.0
    ) -> Tensor:
        values = super().values(s, targets, mask, scale=scale)
        if not self.label_smoothing:
            return values
        classes, keep = self._counting(targets, mask)
        G, wide = len(values), s.double()
        index = _lookup(classes, s.shape[-1]).expand(G, *classes.shape[1:]).unsqueeze(-1)
        w = self._weights(wide)
        at_class = wide.expand(G, *s.shape[1:]).gather(-1, index).squeeze(-1)
        linear = self.label_smoothing * (w.mean() * at_class - (wide * w).mean(-1))
        return values + scale * weighted(linear, keep).sum((1, 2))

    def _linear_gradient(self, like: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor | None:
        if not self.label_smoothing:
            return None
        classes, keep = self._counting(targets, mask)
        w = self._weights(like)
        k = len(w)
        linear = (-self.label_smoothing / k * w).expand(*classes.shape, k).clone()
        at_class = (self.label_smoothing * w.mean()).expand(*classes.shape, 1)
        linear.scatter_add_(-1, _lookup(classes, k).unsqueeze(-1), at_class)
        return weighted(linear, None if keep is None else keep.unsqueeze(-1))

    def _counting(self, targets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Classes, 0 where they are ignored, and the mask without those."""
        if self.ignore_index is None:
            return targets, mask
        keep = targets != self.ignore_index
        classes = torch.where(keep, targets, 0)
        return classes, keep if mask is None else keep * mask

    def _of_classes(self, classes: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight of each output's class."""
        assert self.weight is not None
        weight = self.weight.at(classes.device, dtype)
        return weight[_lookup(classes, len(weight))]

    def _weights(self, s: Tensor) -> Tensor:
        """The weights of the k classes of s, in its dtype."""
        return s.new_ones(s.shape[-1]) if self.weight is None else self.weight.at(s.device, s.dtype)

    def _options(self) -> dict[str, object]:
        smoothing = self.label_smoothing or None
        options = _given(
            weight=self.weight, ignore_index=self.ignore_index, label_smoothing=smoothing
        )
        return {**options, **super()._options()}


def _lookup(classes: Tensor, k: int) -> Tensor:
    """Classes as an index of k: the ops refuse others where they count."""
    return classes.clamp(0, k - 1)


def _given(**options: object) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}
