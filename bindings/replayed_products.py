"""Products with one matrix again and again on CUDA: replayed once they have come up often enough.

A product of a small net takes the GPU less time than Python needs to start its kernels. A recording
takes as long as some tens of products, so the first ones are done as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from hfcore.bindings.graphs import Graphs, here, recordable, recording

# Products of one key before one is recorded, and keys whose recordings are kept.
BEFORE, MOST = 20, 4


class ReplayedProducts:
    """Products of one matrix by key: what a product depends on besides v, such as the damping."""

    def __init__(self) -> None:
        self._graphs = Graphs(MOST)
        self._done: Counter[Hashable] = Counter()

    def serve(self, v: Tensor) -> bool:
        """Whether products with vectors like ``v [m,N]`` may be replayed: one, and on CUDA."""
        return recordable(v.device) and len(v) == 1 and not recording(v)

    def __call__(
        self, key: Hashable, product: Callable[[Tensor, Tensor], object], v: Tensor, out: Tensor
    ) -> Tensor:
        """``product(v, out)`` of ``v, out [1,N]``, which waits for nothing; or its recording."""
        key = key, here(v.device)
        if self._done[key] < BEFORE:
            self._done[key] += 1
            product(v, out)
            return out
        place = self._graphs.put("v", v, v.device)

        def work() -> Tensor:
            result = torch.empty_like(place)
            product(place, result)
            return result

        return out.copy_(self._graphs.run(key, work, v.device))
