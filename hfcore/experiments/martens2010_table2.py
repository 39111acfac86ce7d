"""Training and test errors of the three autoencoders beside Martens (2010), table 2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import hfcore as hf
from hfcore.cli.tables import markdown, number
from hfcore.experiments.experiment import Experiment
from hfcore.experiments.plots import plot_seconds
from hfcore.experiments.published import PUBLISHED
from hfcore.experiments.report import result_json, write_results
from hfcore.experiments.training import Trained

MEAN = "mean image"


def table2_report(
    experiment: Experiment, results: Mapping[str, Trained], folder: Path
) -> tuple[str, list[Path]]:
    """The table as markdown, and the paths of table, numbers and plot written to ``folder``."""
    dataset = experiment.dataset
    references = {
        MEAN: hf.data.pca_errors(dataset, 0),
        f"PCA-{dataset.code}": hf.data.pca_errors(dataset, dataset.code),
    }
    text = table2_table(experiment, results, references)
    name = f"table2_{dataset.name}"
    data = {
        "data": dataset.facts,
        "l2": experiment.weight_decay,
        "seed": experiment.seed,
        "references": {key: {"train": a, "test": b} for key, (a, b) in references.items()},
        "published": vars(PUBLISHED[dataset.name]),
        "methods": {key: result_json(result) for key, result in results.items()},
    }
    written = write_results(folder, name, text, data)
    plot = folder / f"{name}.png"
    levels = {key: train for key, (train, _) in references.items()}
    plot_seconds(results, levels, plot, dataset.facts)
    return text, [*written, plot]


def table2_table(
    experiment: Experiment,
    results: Mapping[str, Trained],
    references: Mapping[str, tuple[float, float]],
) -> str:
    """Errors of the predictors in ``references``, of the papers, and of the runs."""
    dataset = experiment.dataset
    published = PUBLISHED[dataset.name]
    rows = [[name, number(a), number(b), "–", "–"] for name, (a, b) in references.items()]
    rows.append(
        [
            "Hinton & Salakhutdinov (2006)",
            "–",
            number(published.autoencoder_test_error),
            "–",
            "–",
        ]
    )
    rows.append(
        [
            f"RAND+HF, published ({published.source})",
            number(published.train_error),
            number(published.test_error),
            "–",
            "–",
        ]
    )
    for name, result in results.items():
        final = result.final
        rows.append(
            [
                f"{name}, here ({result.reason})",
                number(final["train_error"]),
                number(final["test_error"]),
                str(final["iteration"]),
                number(final["training_seconds"]),
            ]
        )
    first = next(iter(results.values())).lines[0]
    return "\n\n".join(
        [
            f"{dataset.facts} Errors: Σ over pixels of squared differences, averaged over images. "
            f"L2: {experiment.weight_decay:g}. Iterations: Hessian-free steps, or passes over the "
            "data.",
            f"Before training: loss {number(first['train_loss'])} "
            f"(published, another draw: {number(published.initial_loss)}), "
            f"error {number(first['train_error'])} ({number(published.initial_error)}).",
            markdown(["", "train error", "test error", "iterations", "seconds"], rows),
        ]
    )
