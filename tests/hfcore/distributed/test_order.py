"""The fixed order of sums: every shard once, and the same bits on any number of ranks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from hfcore.distributed.order import Order, TreeSums, shard_count

SIZES = (1, 2, 3, 4, 5, 7, 12, 13)


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 12, 24])
@pytest.mark.parametrize("size", SIZES)
def test_nodes_cover_every_shard_once(shards: int, size: int) -> None:
    order = Order(shards, size)
    owned = [i for rank in range(size) for i in order.owned(rank)]
    assert owned == list(range(shards))
    for rank in range(size):
        covered = [i for first, end in order.nodes(rank) for i in range(first, end)]
        assert covered == list(order.owned(rank))
        assert len(order.nodes(rank)) <= order.most_nodes


@pytest.mark.parametrize("cases", [1, 15, 16, 63, 64, 384, 767, 768, 1000, 5003, 60_000])
def test_edges_are_of_nearly_equal_shards_that_kernels_walk_whole(cases: int) -> None:
    shards = shard_count(cases)
    edges = Order(shards, 3).edges(cases)
    sizes = [b - a for a, b in pairwise(edges)]
    assert (edges[0], edges[-1]) == (0, cases)
    walk = 16 if cases >= 768 else 8 if cases >= 384 else 1
    assert all(edge % walk == 0 for edge in edges[:-1])
    assert max(sizes) - min(sizes) <= 2 * walk
    assert max(sizes) <= 1.25 * cases / shards + 1


@pytest.mark.parametrize(
    ("cases", "shards"), [(1, 1), (15, 1), (16, 2), (64, 4), (384, 12), (1000, 12), (60_000, 96)]
)
def test_shards_follow_the_cases_alone(cases: int, shards: int) -> None:
    assert shard_count(cases) == shards


@pytest.mark.parametrize("shards", [1, 4, 12, 24])
def test_bits_do_not_depend_on_who_sums(shards: int) -> None:
    """Sums of 2^±20 in float32, whose other orders have other bits."""
    g = torch.Generator().manual_seed(0)
    terms = torch.randn(shards, 37, generator=g) * 2.0 ** torch.randint(
        -20, 20, (shards, 37), generator=g
    )

    def leaf(i: int, out: torch.Tensor) -> None:
        out.copy_(terms[i])

    whole = torch.empty(37)
    TreeSums().below((0, shards), leaf, whole)
    for size in SIZES:
        order, tree, known = Order(shards, size), TreeSums(), {}
        for rank in range(size):
            for node in order.nodes(rank):
                known[node] = torch.empty(37)
                tree.below(node, leaf, known[node])
        assert torch.equal(tree.above((0, shards), known), whole), size
    exact = terms.double().sum(0)
    # Every addition rounds by eps of the largest partial sum.
    bound = shards * torch.finfo(torch.float32).eps * terms.abs().sum(0)
    assert bool(((whole - exact).abs() <= bound).all())
    if shards > 2:
        assert not torch.equal(terms.flip(0).cumsum(0)[-1], whole)
