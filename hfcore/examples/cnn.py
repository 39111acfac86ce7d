"""A convolutional net on minibatches of a DataLoader, by Hessian-free optimisation.

Any module goes in, with a loss of torch or of ``hf.losses``; each minibatch serves gradient,
curvature and line search of its step (the hybrid of Sutskever et al. 2013, appendix A.6).

    python -m hfcore.examples.cnn
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hfcore as hf

SIZE, CLASSES = 10, 3


def bars(count: int, generator: torch.Generator) -> TensorDataset:
    """Noisy images ``[1,SIZE,SIZE]`` of one bar: across (0), upright (1) or diagonal (2)."""
    x = 0.5 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    y = torch.randint(CLASSES, (count,), generator=generator)
    at = torch.randint(2, SIZE - 2, (count,), generator=generator)
    for image, kind, where in zip(x, y.tolist(), at.tolist(), strict=True):
        if kind == 0:
            image[0, where] += 1
        elif kind == 1:
            image[0, :, where] += 1
        else:
            image[0].diagonal(where - SIZE // 2).add_(1)
    return TensorDataset(x, y)


def make_model() -> nn.Module:
    """Two convolutions; normalisation over channels, since BatchNorm would mix the cases."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.GroupNorm(2, 6),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(72, CLASSES),
    )


def main(epochs: int = 4) -> list[float]:
    """Train; returns the loss at the start of every step."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(bars(600, generator), batch_size=200, shuffle=True, generator=generator)
    model = make_model()
    opt = hf.HessianFree(model, nn.CrossEntropyLoss(), damping=1.0, cg_max_iter=20)
    losses: list[float] = []
    for epoch in range(epochs):
        for x, y in loader:
            stats = opt.step((x, y))
            losses.append(stats.loss)
        print(f"epoch {epoch}: loss {stats.loss:.4f}, λ {stats.damping:.3g}")
    test_x, test_y = bars(500, generator).tensors
    print(f"test accuracy: {accuracy(model, test_x, test_y):.1%}")
    return losses


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the images ``x [B,1,SIZE,SIZE]`` classified as ``y [B]``."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


if __name__ == "__main__":
    main()
