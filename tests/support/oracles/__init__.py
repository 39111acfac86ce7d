"""What tests compare with, in float64, sharing no code with the package's kernels and passes.

Nets and losses as formulas of torch (``rnn``, ``mlp``, ``losses``, ``modules``), and ``cases``:
random arguments of the ops, with their oracles where several folders of tests use them.
"""
