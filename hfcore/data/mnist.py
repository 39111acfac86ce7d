"""MNIST: 60,000 training and 10,000 test digits of 28×28, pixels divided by 255."""

from __future__ import annotations

import gzip
import struct
import zlib

import numpy as np
import torch
from torch import Tensor

from hfcore.data.dataset import Dataset
from hfcore.data.files import DataFile, DataFileError, Folder

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"

TRAIN = DataFile(
    "mnist",
    "train-images-idx3-ubyte.gz",
    9_912_422,
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    MIRROR + "train-images-idx3-ubyte.gz",
)
TEST = DataFile(
    "mnist",
    "t10k-images-idx3-ubyte.gz",
    1_648_877,
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    MIRROR + "t10k-images-idx3-ubyte.gz",
)

UNSIGNED_BYTE = 0x08


def mnist(folder: Folder = None) -> Dataset:
    """MNIST from ``folder``, else HFCORE_DATA, else downloaded; no validation part.

    Raises :class:`hfcore.data.DataFileError` saying what to put where.
    """
    return Dataset(
        name="mnist",
        train=_images(TRAIN, folder),
        test=_images(TEST, folder),
        validation=None,
        image_shape=(28, 28),
        code=30,
        facts="MNIST by LeCun, Cortes and Burges, pixels divided by 255.",
    )


def _images(file: DataFile, folder: Folder) -> Tensor:
    images = read_idx(file.read(folder), file.name)
    return torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / np.float32(255))


def read_idx(packed: bytes, name: str) -> np.ndarray:
    """The uint8 array ``[…]`` in a gzip-packed IDX file; ``name`` is for the message.

    Raises :class:`hfcore.data.DataFileError` for what is not gzip, not IDX of unsigned bytes, or
    shorter or longer than its header says.
    """
    try:
        data = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise DataFileError(f"{name}: not a whole gzip file ({error})") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != UNSIGNED_BYTE:
        raise DataFileError(
            f"{name}: begins with {data[:4].hex() or 'nothing'}, need the magic number "
            "000008.. of an IDX file of unsigned bytes"
        )
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise DataFileError(f"{name}: ends within its header, {len(data)} of {header} bytes")
    shape = struct.unpack(f">{data[3]}I", data[4:header])
    values = np.frombuffer(data, np.uint8, offset=header)
    expected = int(np.prod(shape, dtype=np.int64))
    if values.size != expected:
        raise DataFileError(
            f"{name}: holds {values.size} values, need {expected} for its shape {list(shape)}"
        )
    return values.reshape(shape)
