"""Recurrent trust region policy optimisation.

A pole on a cart is balanced by a policy that sees positions and no velocities, so that it has to
remember. The surrogate loss is minimised by ``hf.NaturalGradient`` within a radius of divergence
(Schulman et al. 2015), beside the policy gradient by Adam on the same batches. All carts of a batch
are simulated at once; an episode ends when the pole falls, and after 150 steps.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import hfcore as hf


class Policy(nn.Module):
    """Logits ``[T,B,2]`` of the two pushes, from what was seen so far, ``[T,B,2]``."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(2, hidden), nn.Linear(hidden, 2)

    def forward(self, seen: Tensor) -> Tensor:
        return self.head(self.gru(seen)[0])


def dynamics(s: Tensor, push: Tensor) -> Tensor:
    """The cart-pole of Barto, Sutton & Anderson (1983), a step of 0.02 s; ``s [B,4]``."""
    x, v, angle, turn = s.unbind(1)
    sin, cos = angle.sin(), angle.cos()
    force = (20.0 * push - 10.0 + 0.05 * turn**2 * sin) / 1.1
    spin = (9.8 * sin - cos * force) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    pull = force - 0.05 * spin * cos / 1.1
    return torch.stack([x + 0.02 * v, v + 0.02 * pull, angle + 0.02 * turn, turn + 0.02 * spin], 1)


@torch.no_grad()
def episodes(policy: Policy, carts: int, longest: int, generator: torch.Generator) -> tuple:
    """What was seen ``[T,B,2]``, actions ``[T,B]``, and whether a pole was still up ``[T,B]``."""
    s = 0.1 * torch.rand(carts, 4, generator=generator) - 0.05
    up, hidden, record = torch.ones(carts, dtype=torch.bool), None, []
    for _ in range(longest):
        seen = s[:, [0, 2]] * torch.tensor([1.0, 10.0])
        h, hidden = policy.gru(seen.unsqueeze(0), hidden)
        chance = policy.head(h[0]).softmax(1)[:, 1]
        action = (torch.rand(carts, generator=generator) < chance).float()
        record.append((seen, action.long(), up))
        s = dynamics(s, action)
        up = up & (s[:, 0].abs() < 2.4) & (s[:, 2].abs() < 12 * math.pi / 180)
    return tuple(torch.stack(part) for part in zip(*record, strict=True))


def advantages(up: Tensor) -> Tensor:
    """Discounted returns ``[T,B]`` less their mean at each step, in units of their deviation."""
    R = torch.zeros(len(up) + 1, up.shape[1])
    for t in reversed(range(len(up))):
        R[t] = up[t] * (1 + 0.98 * R[t + 1])
    centred = R[:-1] - R[:-1].sum(1, keepdim=True) / up.sum(1, keepdim=True).clamp(min=1)
    return centred / centred[up].std().clamp(min=1e-6)


def surrogate(policy: Policy, seen: Tensor, action: Tensor, up: Tensor) -> Callable[[], tuple]:
    """A closure: −mean(ratio of probabilities · advantage), and the logits."""
    weight, old = advantages(up)[up], None

    def closure() -> tuple[Tensor, Tensor]:
        nonlocal old
        logits = policy(seen)[up]
        new = logits.log_softmax(1).gather(1, action[up][:, None])[:, 0]
        old = new.detach() if old is None else old
        return -((new - old).exp() * weight).mean(), logits

    return closure


def train(name: str, updates: int, carts: int, longest: int) -> tuple[list[float], list[float]]:
    """Seconds and mean steps of balance before each update."""
    torch.manual_seed(0)
    policy, generator = Policy(16), torch.Generator().manual_seed(0)
    if name == "NaturalGradient":
        opt = hf.NaturalGradient(policy, "categorical", max_kl=0.01, damping=0.01, cg_max_iter=8)
    else:
        opt = torch.optim.Adam(policy.parameters(), lr=1e-2)
    times, lengths, began = [], [], time.perf_counter()
    for _ in range(updates):
        seen, action, up = episodes(policy, carts, longest, generator)
        lengths.append(float(up.sum(0).float().mean()))
        times.append(time.perf_counter() - began)
        closure = surrogate(policy, seen, action, up)
        opt.zero_grad()
        if name == "Adam":
            closure()[0].backward()
        opt.step(*([] if name == "Adam" else [closure]))
    return times, lengths


def main(out: Path, quick: bool = False) -> None:
    updates, carts, longest = (2, 4, 10) if quick else (25, 24, 150)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    ax = figure.add_subplot(xlabel=f"updates, each on {carts} episodes", ylabel="steps of balance")
    for name in ("NaturalGradient", "Adam"):
        times, lengths = train(name, updates, carts, longest)
        ax.plot(lengths, label=name)
        print(f"{name}: {lengths[-1]:.0f} steps after {updates} updates, {times[-1]:.1f} s")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    figure.savefig(out / "recurrent_trpo.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    main(**vars(parser.parse_args()))
