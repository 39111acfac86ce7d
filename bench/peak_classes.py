"""Peak memory of a Gauss-Newton product with many classes, in a process of its own.

    python -P bench/peak_classes.py CONTESTANT ROWS CLASSES

Prints the line of ``peak.py``: here the logits ``[ROWS,CLASSES]`` are most of what is held.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parent.parent))

import hfcore as hf
from bench.peak import measure

Product = Callable[[], Tensor]


def small_net(classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, classes))


def make_hfcore(model: nn.Module, x: Tensor, y: Tensor) -> Product:
    op = hf.GaussNewton(model, nn.CrossEntropyLoss(), x, y)
    v = torch.ones(op.shape[0])
    return lambda: op @ v


def make_curvlinops(model: nn.Module, x: Tensor, y: Tensor) -> Product:
    from curvlinops import GGNLinearOperator

    parameters = list(model.parameters())
    options = {"check_deterministic": False}
    op = GGNLinearOperator(model, nn.CrossEntropyLoss(), parameters, [(x, y)], **options)
    v = torch.ones(op.shape[0])
    return lambda: op @ v


CONTESTANTS = {"hfcore": make_hfcore, "curvlinops": make_curvlinops}


def load(rows: int, classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return small_net(classes), torch.randn(rows, 16), torch.randint(classes, (rows,))


def main(name: str, rows: int, classes: int) -> None:
    make = CONTESTANTS[name]
    make(*load(4, 5))()  # libraries load and threads start on a net that leaves nothing behind
    product, setup_peak, setup_kept = measure(lambda: make(*load(rows, classes)))
    result, peak, _ = measure(product)
    figures = {
        "setup_peak_mb": setup_peak,
        "setup_kept_mb": setup_kept,
        "product_peak_mb": peak,
        "result_mb": 4e-6 * result.numel(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
