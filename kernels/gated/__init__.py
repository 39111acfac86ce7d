"""LSTM and GRU layers: forward pass, R-op and backpropagation through time.

``reference.py`` is the oracle, ``cpu.cpp`` the compiled CPU form, ``gpu.cu`` with ``gpu.py`` that
for CUDA; all are called through ``hfcore.bindings.gated`` only.
"""

from hfcore.kernels.gated.layout import BLOCKS, CELLS, GatedStates, GatedWeights, Rows, rows_of

__all__ = ["BLOCKS", "CELLS", "GatedStates", "GatedWeights", "Rows", "rows_of"]
