"""Reconstruction: an autoencoder gives back the images of CURVES, MNIST or FACES.

The data sets of Hinton & Salakhutdinov (2006), with the losses of Martens (2010) and the measure
of Sutskever et al. (2013), tables 1 to 3, apart from what is numbered here.

1. A minibatch holds distinct images drawn at random from all of them; passes over the data are not
   kept. The papers do not say how theirs were drawn.
2. The test set is the training images, on which the paper's tables 1 to 3 report; a part of them
   is the first of a fixed permutation.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfcore.arguments import naming_options
from hfcore.batches import Batch
from hfcore.bindings.checks import check_choice, check_positive
from hfcore.bindings.threads import torch_on_one_thread
from hfcore.draws import check_draw, numpy_dtype
from hfcore.losses import LogisticCrossEntropy, Loss, SquaredError
from hfcore.problems.base import TEST_BATCH

PERMUTATION_SEED = 0


@dataclass(frozen=True)
class Images:
    """A data set of Hinton & Salakhutdinov (2006): sizes of their encoder, the loss at its outputs.

    The first size is the number of pixels.
    """

    encoder_sizes: tuple[int, ...]
    loss: Loss


DATASETS = {
    "curves": Images((784, 400, 200, 100, 50, 25, 6), LogisticCrossEntropy()),
    "mnist": Images((784, 1000, 500, 250, 30), LogisticCrossEntropy()),
    "faces": Images((625, 2000, 1000, 500, 30), SquaredError()),
}


class Reconstruction:
    """Images as rows ``[B,n]``, float, that are inputs and targets in one.

    The loss is the logistic cross-entropy, for FACES ½ squared error. The images are read or made
    when the first of them is asked for, once.

    Args:
        dataset: ``"curves"``, ``"mnist"`` or ``"faces"``.
        images: only the first so many training images; None for all.
        folder: where the files are, as for ``hf.data.mnist``; no part of :meth:`config`, so that a
            run may be continued elsewhere.

    Raises ValueError naming the option that is out of range, and where images are asked for
    :class:`hfcore.data.DataFileError` saying what to put where.
    """

    @naming_options
    def __init__(
        self,
        dataset: str,
        *,
        images: int | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.name = check_choice("dataset", dataset, tuple(DATASETS))
        if images is not None:
            check_positive(images=images)
        self.limit = images
        self.folder = folder
        self.encoder_sizes = DATASETS[dataset].encoder_sizes
        self.loss: Loss = DATASETS[dataset].loss
        self.input_size = self.output_size = self.encoder_sizes[0]
        self._tests: dict[tuple[int, torch.dtype], list[Batch]] = {}

    @cached_property
    def images(self) -> Tensor:
        """The training images, float32 ``[N,n]``."""
        images = _training_images(self.name, self.folder)
        if self.limit is None:
            return images
        if self.limit > len(images):
            raise ValueError(f"images: got {self.limit}, need at most {len(images)}")
        return images[: self.limit]

    def batch(
        self, size: int, generator: np.random.Generator, dtype: torch.dtype = torch.float32
    ) -> Batch:
        """``size`` distinct images, ``[size,n]``; both dtypes get the same draw."""
        check_draw(size, generator, dtype)
        cases = len(self.images)
        if size > cases:
            raise ValueError(f"size: got {size}, need at most the {cases} images")
        chosen = generator.choice(cases, size, replace=False, shuffle=False)
        with torch_on_one_thread():
            return _of(self.images.index_select(0, torch.from_numpy(chosen)).to(dtype))

    def all_cases(self, dtype: torch.dtype = torch.float32) -> Batch:
        """All training images, ``[N,n]``."""
        numpy_dtype(dtype)
        return _of(self.images.to(dtype))

    def test_set(self, size: int, dtype: torch.dtype = torch.float32) -> list[Batch]:
        """``size`` of the training images (all, if there are fewer), in batches of at most 1000."""
        check_positive(size=size)
        numpy_dtype(dtype)
        size = min(size, len(self.images))
        if (size, dtype) not in self._tests:
            order = np.random.default_rng(PERMUTATION_SEED).permutation(len(self.images))[:size]
            parts = torch.from_numpy(order).split(TEST_BATCH)
            self._tests[size, dtype] = [_of(self.images[part].to(dtype)) for part in parts]
        return self._tests[size, dtype]

    def errors(self, s: Tensor, batch: Batch) -> Tensor:
        """Squared error summed over the pixels of each image, float64 ``[B]``.

        The reconstruction is the logistic of the outputs ``s [B,n]`` where the loss is the
        logistic cross-entropy, else ``s`` itself. ``s [G,B,n]`` gives ``[G,B]``.
        """
        shape = list(batch.targets.shape)
        if list(s.shape[-2:]) != shape or s.ndim > 3:
            raise ValueError(f"s: got shape {list(s.shape)}, need {shape} like the images")
        y = self.loss.link(s)
        return (y - batch.targets).square_().sum(-1, dtype=torch.float64)

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        return {"name": self.name, "images": self.limit}

    def __repr__(self) -> str:
        return f"Reconstruction({self.name!r}, images={self.limit})"


def _of(images: Tensor) -> Batch:
    return Batch(images, images)


def _training_images(name: str, folder: str | os.PathLike[str] | None) -> Tensor:
    from hfcore import data

    if name == "curves":
        return data.curves(test=1).train  # the training images do not depend on the test images
    return (data.mnist if name == "mnist" else data.faces)(folder).train
