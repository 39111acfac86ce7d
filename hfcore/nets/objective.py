"""The objective of every net with kernels of its own: mean loss over cases, + ½ l2 ‖θ‖²."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from hfcore.arguments import naming_options
from hfcore.batches import Batch, check_unambiguous, labelled
from hfcore.bindings.checks import check_choice
from hfcore.bindings.conjugate_gradient import dot
from hfcore.nets.curvature import FusedCurvature
from hfcore.nets.data import Data
from hfcore.nets.net import FusedNet, Into, Memory
from hfcore.objective import CurvatureKind
from hfcore.shares import Counts, Share, cut

Normalize = Literal["sequences", "outputs"]

# Data is cut into chunks of as many cases as have these bytes of activations, so that passes find
# them in the cache, but of no fewer than CHUNK_CASES: every chunk adds to a vector of N.
CHUNK_BYTES = 24 << 20
CHUNK_CASES = 1024


class FusedObjective:
    """Mean loss of a :class:`FusedNet` over cases, + ½ l2 ‖θ‖².

    Losses, gradients and products walk through the data in chunks and hold the activations of one
    (products those of all, where they are cached).

    Args:
        net: the net; one objective serves one thread at a time, as its buffers stay.
        l2: weight decay, biases included.
        normalize: ``"sequences"``: the loss's own mean, by default sums over a case's unmasked
            outputs, averaged over cases (Martens & Sutskever 2011); ``"outputs"``: averaged over
            unmasked outputs by their weights, as the original release does.
        memory: ``"cached"`` keeps a curvature's activations, ``"recompute"`` recomputes them in
            every product, ``"auto"`` caches up to ``CACHE_BYTES``; results are the same bits. None:
            as the net says.

    Raises ValueError naming the option.
    """

    supports_stop = True
    supports_structural: bool

    @naming_options
    def __init__(
        self,
        net: FusedNet,
        *,
        l2: float = 0.0,
        normalize: Normalize = "sequences",
        memory: Memory | None = None,
    ) -> None:
        check_choice("normalize", normalize, ("sequences", "outputs"))
        memory = net.memory if memory is None else memory
        check_choice("memory", memory, ("auto", "cached", "recompute"))
        if normalize == "outputs" and (net.loss.mean != "cases" or net.loss.has_weights):
            raise ValueError(
                f"normalize: 'outputs' counts no weights of {net.loss!r}, need 'sequences' and the "
                "loss's own mean='weights'"
            )
        self.net = net
        self.supports_structural = net.supports_structural
        self.l2 = l2
        self.normalize = normalize
        self.memory = memory

    def prepare(self, data: Batch | Sequence[Batch]) -> list[Data]:
        """Check batches; one batch, or a list whose mean (weighted by size) is the objective."""
        data = labelled(data)
        check_unambiguous("data", data)
        batches = [data] if isinstance(data, Batch) else list(data)
        if not batches:
            raise ValueError("data: got no batch, need at least one")
        return [self.net.check(Batch(*labelled(b))) for b in batches]

    def minibatches(self, data: list[Data]) -> int:
        return len(data)

    def damping_start(self, data: list[Data]) -> float:
        """λ₀ of Hessian-free optimisation on what :meth:`prepare` gave."""
        return self.net.damping_start(data[0])

    def counts(self, data: list[Data]) -> Counts:
        """What the data count; of a :class:`hfcore.shares.Share` what the whole counts."""
        if isinstance(data, Share):
            return data.whole
        return Counts(
            counted=sum(self.net.counted(part) for part in data),
            cases=sum(part.count for part in data),
            outputs=sum(part.outputs for part in data),
            batches=len(data),
        )

    def share(self, data: list[Data], start: int, end: int, whole: Counts) -> Share[Data]:
        """Cases ``start`` … ``end`` − 1 of the data, as a share of the ``whole``."""
        return Share(cut(data, start, end), whole)

    def scale(self, data: list[Data]) -> float:
        """What a sum over all cases and outputs is multiplied by."""
        counts = self.counts(data)
        if self.normalize == "sequences":
            return self.net.loss.scale([counts.counted])
        return 1.0 / counts.outputs

    def case_scale(self, data: list[Data]) -> float:
        """What the summed loss of one case is multiplied by: f is the mean of those over cases."""
        if self.normalize == "sequences" and self.net.loss.means_cases:
            return 1.0
        return self.scale(data) * self.counts(data).cases

    def regulariser(self, theta: Tensor) -> float:
        """½ l2 ‖θ‖² of ``theta [N]``."""
        return 0.5 * self.l2 * dot(theta, theta) if self.l2 else 0.0

    def chunks(self, data: list[Data], *, whole: bool = False) -> Iterator[Data]:
        """All cases, in pieces whose length depends on the sizes alone; or whole batches."""
        for part in data:
            size = part.count if whole else self.chunk_size(part)
            yield from part.chunks(size)

    def chunk_size(self, part: Data) -> int:
        """Cases that a pass with activations takes at once."""
        size = self.net.chunk_size(part)
        if size is None:
            size = max(CHUNK_CASES, CHUNK_BYTES // self.net.bytes_per_case(part))
        return size

    def loss(self, data: list[Data], theta: Tensor) -> float:
        net, scale = self.net, self.scale(data)
        total = sum(
            float(net.value(part, net.outputs(theta[None], part), scale))
            for part in self.chunks(data, whole=net.walks_cases)
        )
        return total + self.regulariser(theta)

    def gradient(self, data: list[Data], theta: Tensor) -> tuple[float, Tensor]:
        net, scale = self.net, self.scale(data)
        total, out = 0.0, torch.empty_like(theta)
        for i, part in enumerate(self.chunks(data)):
            at = net.forward(theta[None], part, fresh=False)
            total += float(net.value(part, at.s, scale))
            into = out if i == 0 else net.work.take("chunk", out, out.numel())
            net.gradient(at, Into(into[None], scale))
            if i:
                out += into
        if self.l2:
            out.add_(theta, alpha=self.l2)
        return total + self.regulariser(theta), out

    def squared_gradients(self, data: list[Data], theta: Tensor) -> Tensor:
        """Mean over cases of the squared gradient of each ``[N]``, without the L2 term.

        A case's gradient is summed over time before it is squared (for a net without time this is
        the empirical Fisher diagonal of Martens 2010, section 4.7).
        """
        net, scale = self.net, self.scale(data) * self.case_scale(data)
        out = torch.empty_like(theta)
        for i, part in enumerate(self.chunks(data)):
            at = net.forward(theta[None], part, fresh=False)
            into = out if i == 0 else net.work.take("chunk", out, out.numel())
            net.squares(at, net.slope(part, at.s), Into(into[None], scale))
            if i:
                out += into
        return out

    def curvature(
        self, data: list[Data], theta: Tensor, kind: CurvatureKind = "ggn"
    ) -> FusedCurvature:
        """The curvature at ``theta [N]``: ``"ggn"``, ``"hessian"`` (R-op) or ``"fisher"``.

        Raises ValueError for another kind.
        """
        return FusedCurvature(self, data, theta, kind)
