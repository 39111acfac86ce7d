"""What every data set is: images as rows, split as in the papers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """Images as rows of float32 ``[N, rows·columns]``, in [0,1] unless ``facts`` says otherwise."""

    name: str
    train: Tensor
    test: Tensor
    validation: Tensor | None
    image_shape: tuple[int, int]
    code: int
    """Units of the code layer in the published autoencoder of this data."""
    facts: str
    """One sentence: where the images are from, or that they are regenerated and how."""
    regenerated: bool = False
    """The images are not those of the papers but made anew to their statistics."""

    def __post_init__(self) -> None:
        pixels = self.image_shape[0] * self.image_shape[1]
        parts = {"train": self.train, "test": self.test, "validation": self.validation}
        for part, images in parts.items():
            if images is not None and (images.ndim != 2 or images.shape[1] != pixels):
                raise ValueError(f"{part}: got shape {list(images.shape)}, need [N, {pixels}]")
