"""Sparse weights of a fixed fan-in: products, pattern-restricted gradient, scans through time.

``layout.py`` says how a matrix is kept, ``reference.py`` is the oracle; all forms are called
through ``hfcore.bindings.sparse`` only.
"""

from hfcore.kernels.sparse.layout import EllPattern, Rows

__all__ = ["EllPattern", "Rows"]
