"""What is published about the data sets, and the same figures of the ones here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hfcore.data.dataset import Dataset

ROWS = 10_000  # rows held in float64 at a time


@dataclass(frozen=True)
class Statistics:
    """Sums over pixels, averaged over images; None where unpublished or without meaning."""

    components: int
    pca_error: float | None
    """Squared error on the test part of that many principal components of the training part."""
    mean_error: float | None
    """Squared error of the mean training image on the training part."""
    mean_cross_entropy: float | None
    """Cross-entropy of the mean training image as prediction of the training part."""
    cross_entropy_floor: float | None
    """Entropy of the training pixels: no prediction has a lower cross-entropy."""


PUBLISHED: dict[str, Statistics] = {
    "curves": Statistics(18, 5.90, 16.9, 125.0, 54.2),
    "mnist": Statistics(30, 13.87, None, None, None),
    "faces": Statistics(30, 135.0, None, None, None),
}
"""What is published of the data sets by their names, None where nothing is. PCA's error is that of
Hinton & Salakhutdinov (2006), figure 2; the others were read off the original training logs."""


def statistics(dataset: Dataset, components: int | None = None) -> Statistics:
    """The figures of ``dataset`` in float64; ``components`` of PCA as published unless given.

    Cross-entropies are None where pixels are outside [0,1]. Raises ValueError for more components
    than pixels.
    """
    if components is None:
        components = PUBLISHED[dataset.name].components
    train = dataset.train
    low, high = train.aminmax()
    probabilities = bool(low >= 0) and bool(high <= 1)
    return Statistics(
        components,
        pca_error=pca_errors(dataset, components)[1],
        mean_error=pca_errors(dataset, 0)[0],
        mean_cross_entropy=float(_entropy(_mean(train))) if probabilities else None,
        cross_entropy_floor=float(_average(train, _entropy)) if probabilities else None,
    )


def pca_errors(dataset: Dataset, components: int) -> tuple[float, float]:
    """Squared error on training and test part of principal components of the training part.

    None of them is the mean image. Raises ValueError for more components than pixels.
    """
    pixels = dataset.train.shape[1]
    if not 0 <= components <= pixels:
        raise ValueError(f"components: got {components}, need 0 to {pixels}, the number of pixels")
    mean = _mean(dataset.train)
    basis = mean.new_zeros(pixels, 0)
    if components > 0:
        covariance = _average(dataset.train, lambda x: (x - mean).T @ (x - mean) / len(x))
        basis = torch.linalg.eigh(covariance).eigenvectors[:, pixels - components :]

    def error(x: Tensor) -> Tensor:
        centred = x - mean
        return (centred - centred @ basis @ basis.T).square().sum(1).mean()

    return float(_average(dataset.train, error)), float(_average(dataset.test, error))


def _mean(images: Tensor) -> Tensor:
    return _average(images, lambda x: x.mean(0))


def _average(images: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Average over rows of a ``measure`` that averages over those it is given."""
    parts = images.split(ROWS)
    weighted = [measure(part.double()) * (len(part) / len(images)) for part in parts]
    return torch.stack(weighted).sum(0)


def _entropy(p: Tensor) -> Tensor:
    """Entropy in nats of independent bits ``p [..., pixels]``, averaged over rows."""
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).sum(-1).mean()
