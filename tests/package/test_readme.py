"""The README's Python, block by block, each beside what it takes for granted and made small."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)

Names = dict[str, Any]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def sequences() -> Names:
    model, loss = hf.RNN(2, 8, 1), hf.losses.SquaredError()
    mask = torch.zeros(6, 10)
    mask[-1] = 1
    b = [hf.Batch(draw(6, 10, 2), draw(6, 10, 1), mask) for _ in range(3)]
    x, y, mask = b[0]
    opt = hf.HessianFree(model, loss, damping=1.0)
    return {"opt": opt, "x": x, "y": y, "mask": mask, "b0": b[0], "b1": b[1], "b2": b[2]}


def classes(count: int = 40) -> tuple[Tensor, Tensor]:
    x = draw(count, 4)
    return x, (x[:, 0] > 0).long()


def module() -> Names:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    x, y = classes()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=20)
    criterion = nn.CrossEntropyLoss()
    return {"cnn": model, "model": model, "loader": loader, "criterion": criterion}


def own_data() -> Names:
    names = module()
    names["build"] = lambda: module()["model"]
    names["opt"] = hf.HessianFree(names["model"], nn.CrossEntropyLoss(), damping=1.0)
    for suffix in ("", "_v", "_t"):
        names["x" + suffix], names["y" + suffix] = classes()
    return names


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.decoder = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        s: Tensor = self.decoder(self.encoder(x))
        return s


def operators() -> Names:
    model = EncoderDecoder()
    N = sum(p.numel() for p in model.parameters())
    loss, x, y = hf.losses.SquaredError(), draw(20, 4), draw(20, 3)
    names = {"model": model, "loss": loss, "x": x, "y": y, "v": draw(N), "V": draw(N, 2)}
    H = hf.Hessian(model, loss, x, y)
    G, F = hf.GaussNewton(model, loss, x, y, damping=0.1), hf.EmpiricalFisher(model, loss, x, y)
    return {**names, "G": G, "H": H, "F": F, "b": draw(N)}


def images() -> Names:
    return {"images": draw(25, 8).sigmoid()}


def momentum() -> Names:
    model, loss = nn.Linear(3, 2), nn.MSELoss()
    x, y = draw(5, 3), draw(5, 2)

    def closure() -> Tensor:
        model.zero_grad()
        value: Tensor = loss(model(x), y)
        value.backward()
        return value

    return {"model": model, "loss": loss, "x": x, "y": y, "closure": closure}


# How a block begins, what it takes for granted, and what is made smaller in it.
PREPARED: list[tuple[str, Callable[[], Names], dict[str, str]]] = [
    ("import torch, hfcore as hf", dict, {
        "length=30": "length=5", "opt, run_dir": "opt, minibatches=40, progress=False, run_dir",
    }),
    ("stats = opt.step((x, y, mask))", sequences, {}),
    ("opt = hf.HessianFree(cnn", module, {}),
    ("from hfcore.training import", own_data, {
        "iterations=200": "iterations=2", "run_dir=": "progress=False, run_dir=",
    }),
    ("G = hf.GaussNewton(model", operators, {"encoder.0": "encoder"}),
    ("d, info = G.solve(b", operators, {}),
    ("class Rosenbrock", dict, {}),
    ("model = hf.Autoencoder([784", images, {
        "[784, 400, 200, 100, 50, 25, 6]": "[8, 4, 2]", "iterations=200": "iterations=2",
        "images, run_dir": "images, epochs=2, run_dir", "size=1000": "size=10",
        "batches=": "progress=False, batches=",
    }),
    ("opt = hf.NAG(", momentum, {}),
    ("result = hf.sweep(", dict, {"10_000": "20", "seeds=4": "seeds=2, progress=False"}),
    ("with hf.distributed.started_group()", operators, {
        'run_dir="runs/mine"': "minibatches=1, progress=False",
    }),
]  # fmt: skip


def test_every_block_is_here() -> None:
    assert len(BLOCKS) == len(PREPARED)
    for block, (start, _, _) in zip(BLOCKS, PREPARED, strict=True):
        assert block.startswith(start)


@pytest.mark.parametrize("index", range(len(PREPARED)), ids=lambda i: PREPARED[i][0][:24])
def test_block_runs(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, prepare, smaller = PREPARED[index]
    code = BLOCKS[index]
    for text, other in smaller.items():
        assert text in code
        code = code.replace(text, other)
    if "to_curvlinops" in code:
        try:
            import curvlinops  # noqa: F401
        except ImportError:
            code = code.replace(", A.to_curvlinops()", "")
    torch.manual_seed(0)
    exec(code, {"torch": torch, "hf": hf, **prepare()})
