"""Solves on a device whose recorded iterations serve later steps, too.

A recorded iteration of CG reads the workspace of its solve, λ, the preconditioner's diagonal and
the pass that products go through. All of them are written, step after step, where the first step
had them; what a recording cannot see change is in its key. A step of other sizes, data of another
layout, another thread or stream is recorded anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from itertools import count

import torch
from torch import Tensor

from hfcore.bindings.device_conjugate_gradient import KeptSolves
from hfcore.bindings.graphs import here
from hfcore.nets.curvature import Fixed, FusedCurvature
from hfcore.objective import Curvature
from hfcore.optimisers.image import Image, Layout, NoImage, layout_of

# Curvatures of which a copy is kept, and bytes up to which one is: beyond, a solve takes far longer
# than recording it.
MOST_KEPT, MOST_BYTES = 2, 64 << 20

_numbers = count()


class LastingProduct:
    """(B + λD + λμ G_S) v of a curvature whose copy, ``image``, stays; v is like ``like [N]``.

    ``key`` says which launches on which memory it is.
    """

    def __init__(self, curvature: FusedCurvature, image: Image[Fixed], like: Tensor) -> None:
        self._curvature = curvature.at(image.value)
        self.image = image
        self._weights = {shape: like.new_empty(shape) for shape in (1, len(like))}
        self._number = next(_numbers)
        self._weight, self._mu = self._weights[1], like.new_empty(())
        self._structural: float | Tensor = 0.0

    def set_damping(
        self, damping: float, structural: float | None, l2: float, scale: Tensor | None
    ) -> None:
        """λ, λμ, None: no structural damping, and D ``[N]``, None: D = I."""
        self._structural = 0.0 if structural is None else self._mu.fill_(structural)
        if scale is None:
            self._weight = self._weights[1].fill_(damping + l2)
        else:
            self._weight = torch.mul(scale, damping, out=self._weights[len(scale)]).add_(l2)

    @property
    def key(self) -> Hashable:
        """No two products have the same number, and what is in the same place is no part of it."""
        return self._number, len(self._weight), isinstance(self._structural, Tensor)

    def __call__(self, v: Tensor, out: Tensor, stop: Tensor) -> Tensor:
        """The product ``[N]`` in ``out``."""
        self._curvature.weighted_product(v, self._weight, self._structural, out, stop)
        return out


class LastingSolves:
    """Workspaces and copies of curvatures of an optimiser's solves.

    At most ``MOST_KEPT`` copies of ``MOST_BYTES``, each with the buffers of its products, which are
    what they are within a step; and the workspaces of :class:`KeptSolves`.
    """

    def __init__(self) -> None:
        self.workspaces = KeptSolves()
        self._products: OrderedDict[Hashable, LastingProduct] = OrderedDict()

    def product(
        self,
        curvature: Curvature,
        l2: float,
        *,
        damping: float,
        structural: float | None,
        scale: Tensor | None,
    ) -> LastingProduct | None:
        """A v of a step's solve; None where it is too large, or reads what cannot be copied.

        λ; λμ, None: no structural damping; D ``[N]`` (``scale``), None: D = I; ``l2`` is that of
        the curvature.
        """
        if type(curvature) is not FusedCurvature:
            return None
        fixed = curvature.fixed()
        if fixed is None:
            return None
        try:
            layout = layout_of(fixed)
        except NoImage:
            return None
        if layout.nbytes > MOST_BYTES:
            return None
        product = self._at(curvature, fixed, layout)
        product.set_damping(damping, structural, l2, scale)
        return product

    def _at(self, curvature: FusedCurvature, fixed: Fixed, layout: Layout) -> LastingProduct:
        """The product of this layout, at the present values."""
        key = here(fixed.theta.device), curvature.net, layout.key
        known = self._products.pop(key, None)
        if known is None or not known.image.is_intact:
            known = LastingProduct(curvature, Image(fixed, layout), fixed.theta)
        else:
            known.image.take(layout)
        self._products[key] = known
        while len(self._products) > MOST_KEPT:
            self._products.popitem(last=False)
        return known
