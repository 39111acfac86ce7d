"""The plot of the ablations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hfcore.experiments.ablation import Outcome
from hfcore.experiments.plots import panels, save_figure


def plot_ablations(found: Mapping[str, Sequence[Outcome]], path: Path) -> None:
    """Errors of the variants against the work until then, one panel a comparison."""
    figure, axes = panels(len(found), "")
    for ax, (title, outcomes) in zip(axes, found.items(), strict=True):
        ax.set_title(title, fontsize=9)
        for outcome in outcomes:
            ax.plot(outcome.work, outcome.errors, linewidth=1.0, label=outcome.variant)
        ax.set_yscale("log")
        ax.set_ylabel("error")
        ax.legend(fontsize="small")
    axes[-1].set_xlabel("minibatches of 1000 cases, or updates of momentum")
    save_figure(figure, path)
