"""The CG updates in plain torch: any device, any floating dtype.

Signatures and shapes: ``ConjugateGradientForm``.
"""

from hfcore.kernels.conjugate_gradient.reference import cg_direction, cg_update, dot

__all__ = ["cg_direction", "cg_update", "dot"]
