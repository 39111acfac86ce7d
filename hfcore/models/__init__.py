"""Models as torch modules; their fused passes are in ``hfcore/nets``."""

from hfcore.models.rnn import RNN

__all__ = ["RNN"]
