"""Models that own fused curvature."""

from hfcore.models.rnn import RNN

__all__ = ["RNN"]
