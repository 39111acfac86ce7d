"""The implementations of the ops, a folder a family: what ``dispatch.choose`` chooses from.

A family's ``__init__`` has the one signature of its ops, as a protocol, and ``form``, which finds a
backend's module: ``reference.py``, ``cpu.py`` (the compiled module) or ``cuda.py``. They get
arguments that the family's ``bindings/X.py`` has checked, with ``out`` of the right shape; another
implementation is another module here and a line in ``form``. A module is imported when data first
asks for it, because Triton is where CUDA data is and nowhere else.
"""
