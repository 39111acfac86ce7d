"""Data sets: images, and sequences of natural origin.

Of Hinton & Salakhutdinov (2006), on which Martens 2010 and Sutskever et al. train; each a
:class:`Dataset` of images as rows:

    hf.data.mnist()     hand-written digits, from the four IDX files (the two of images are read)
    hf.data.faces()     made from the Olivetti faces by the documented recipe
    hf.data.curves()    regenerated: the original file is in no public place

For next-step prediction as in Martens & Sutskever (2011); each a :class:`SequenceSet` of pieces,
standing in for data that are in no public place:

    hf.data.piano_rolls()      four sets of piano-rolls, for the paper's MIDI data
    hf.data.spoken_digits()    speech features of spoken digits, for TIMIT
    hf.data.bouncing_balls()   films of any number and length, made by a simulator

Where files are looked for: ``files.py``.
"""

from __future__ import annotations

from hfcore.data.bouncing_balls import bouncing_balls
from hfcore.data.curves import curves
from hfcore.data.dataset import Dataset
from hfcore.data.faces import faces
from hfcore.data.files import DataFileError
from hfcore.data.mfcc import speech_features
from hfcore.data.mnist import mnist
from hfcore.data.piano_rolls import piano_rolls
from hfcore.data.sequences import SequenceSet
from hfcore.data.spoken_digits import spoken_digits
from hfcore.data.statistics import PUBLISHED, Statistics, pca_errors, statistics

__all__ = [
    "PUBLISHED",
    "DataFileError",
    "Dataset",
    "SequenceSet",
    "Statistics",
    "bouncing_balls",
    "curves",
    "faces",
    "mnist",
    "pca_errors",
    "piano_rolls",
    "speech_features",
    "spoken_digits",
    "statistics",
]
