"""Initialisations of nets, from an explicit ``torch.Generator``.

They serve models that name their weights (``matrices()``, ``biases()``, recurrent ones also
``input_matrices()``: :class:`hfcore.RNN`, :class:`hfcore.StackedRNN`, :class:`hfcore.MLP`) and any
module with ``torch.nn.Linear`` layers (whose other parameters stay as they are); ``esn_`` is for
:class:`hfcore.RNN` alone. Every draw is
made in float64, so one seed gives the same net in every dtype up to rounding.
"""

from hfcore.init.dense import gaussian_, glorot_
from hfcore.init.esn import esn_
from hfcore.init.sparse import sparse_
from hfcore.spectral import esn_recurrence

__all__ = ["esn_", "esn_recurrence", "gaussian_", "glorot_", "sparse_"]
