"""The data sets of Hinton & Salakhutdinov (2006), on which Martens 2010 and Sutskever et al. train.

    hf.data.mnist()     hand-written digits, from the four IDX files (the two of images are read)
    hf.data.faces()     made from the Olivetti faces by the documented recipe
    hf.data.curves()    regenerated: the original file is in no public place

Each gives a :class:`Dataset` of images as rows. Where files are looked for: ``files.py``.
"""

from __future__ import annotations

from hfcore.data.curves import curves
from hfcore.data.dataset import Dataset
from hfcore.data.faces import faces
from hfcore.data.files import DataFileError
from hfcore.data.mnist import mnist
from hfcore.data.statistics import PUBLISHED, Statistics, pca_errors, statistics

__all__ = [
    "PUBLISHED",
    "DataFileError",
    "Dataset",
    "Statistics",
    "curves",
    "faces",
    "mnist",
    "pca_errors",
    "statistics",
]
