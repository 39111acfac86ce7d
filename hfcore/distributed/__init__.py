"""Many processes train one net: sums over all of them, with the same bits on any number."""

from hfcore.distributed.objective import DistributedObjective
from hfcore.distributed.ranks import RankFailed, RankLost, Ranks
from hfcore.distributed.torchrun import started, started_group

__all__ = [
    "DistributedObjective",
    "RankFailed",
    "RankLost",
    "Ranks",
    "started",
    "started_group",
]
