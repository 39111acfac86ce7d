"""Training and test errors of the three autoencoders beside Martens (2010), table 2.

Numbered notes say where the runs depart from the paper.

1. PT+NCG has no weight decay but in the starred runs, a choice: what was at hand of the papers
   names none for it.
2. The seconds of what starts from a pre-trained net contain those of the pre-training, once in
   each of its columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import hfcore as hf
from hfcore.cli.tables import markdown, number
from hfcore.experiments.experiment import Experiment, Method
from hfcore.experiments.plots import plot_seconds
from hfcore.experiments.published import (
    MARTENS2010_COLUMNS,
    MARTENS2010_TABLE2,
    PUBLISHED,
)
from hfcore.experiments.report import result_json, write_results
from hfcore.experiments.training import Trained

MEAN = "mean image"


def table2_report(
    experiment: Experiment, results: Mapping[Method, Trained], folder: Path
) -> tuple[str, list[Path]]:
    """The table as markdown, and the paths of table, numbers and plot written to ``folder``."""
    dataset = experiment.dataset
    references = {
        MEAN: hf.data.pca_errors(dataset, 0),
        f"PCA-{dataset.code}": hf.data.pca_errors(dataset, dataset.code),
    }
    text = table2_table(experiment, results, references)
    name = f"table2_{row_of(experiment).replace('*', '-starred')}"
    data = {
        "data": dataset.facts,
        "l2": experiment.weight_decay,
        "l2_of": "connection weights" if experiment.weights_alone else "all parameters",
        "seed": experiment.seed,
        "references": {key: {"train": a, "test": b} for key, (a, b) in references.items()},
        "published": {
            **vars(PUBLISHED[dataset.name]),
            "table 2": MARTENS2010_TABLE2.numbers[row_of(experiment)],
        },
        "methods": {
            str(method): {"pretraining_seconds": result.before, **result_json(result)}
            for method, result in results.items()
        },
    }
    written = write_results(folder, name, text, data)
    plot = folder / f"{name}.png"
    levels = {key: train for key, (train, _) in references.items()}
    plot_seconds({m.column: r for m, r in results.items()}, levels, plot, dataset.facts)
    return text, [*written, plot]


def table2_table(
    experiment: Experiment,
    results: Mapping[Method, Trained],
    references: Mapping[str, tuple[float, float]],
) -> str:
    """Errors of the predictors in ``references``, of the papers, and of the runs."""
    dataset = experiment.dataset
    published = PUBLISHED[dataset.name]
    rows = [_row(name, *errors) for name, errors in references.items()]
    rows.append(_row("Hinton & Salakhutdinov (2006)", None, published.autoencoder_test_error))
    table2, source = MARTENS2010_TABLE2, MARTENS2010_TABLE2.source
    for column in MARTENS2010_COLUMNS:
        errors = [table2.get(row_of(experiment), f"{column}/{part}") for part in ("train", "test")]
        if any(error is not None for error in errors):
            rows.append(_row(f"{column}, published ({source})", *errors))
    errors = [published.train_error, published.test_error]
    rows.append(_row(f"RAND+HF, published ({published.source})", *errors))
    for method, result in results.items():
        final = result.final
        rows.append(
            [
                f"{method.column}, here ({result.reason})",
                number(final["train_error"]),
                number(final["test_error"]),
                str(final["iteration"]),
                number(result.before + final["training_seconds"]),
            ]
        )
    return "\n\n".join(
        [
            f"{dataset.facts} Errors: Σ over pixels of squared differences, averaged over images. "
            f"{_weight_decay(experiment)} Iterations: Hessian-free steps, or passes over the "
            "data. Seconds: of training, and of the pre-training before it (PT).",
            *_first_lines(experiment, results),
            markdown(["", "train error", "test error", "iterations", "seconds"], rows),
        ]
    )


def row_of(experiment: Experiment) -> str:
    """The row of the published table: the data set, starred with its larger weight decay."""
    return experiment.dataset.name + ("*" if experiment.weights_alone else "")


def _row(name: str, train: float | None, test: float | None) -> list[str]:
    return [name, number(train), number(test), "–", "–"]


def _weight_decay(experiment: Experiment) -> str:
    if experiment.weights_alone:
        return f"L2: {experiment.weight_decay:g}, of the connection weights alone."
    return f"L2: {experiment.weight_decay:g}; of NCG none."


def _first_lines(experiment: Experiment, results: Mapping[Method, Trained]) -> list[str]:
    """Where the runs began: of the random start beside the published one."""
    published, found = PUBLISHED[experiment.dataset.name], []
    random = [r.lines[0] for m, r in results.items() if not m.pretrained]
    pretrained = [r.lines[0] for m, r in results.items() if m.pretrained]
    if random:
        found.append(
            f"Before training: loss {number(random[0]['train_loss'])} "
            f"(published, another draw: {number(published.initial_loss)}), "
            f"error {number(random[0]['train_error'])} ({number(published.initial_error)})."
        )
    if pretrained:
        found.append(
            f"After pre-training: loss {number(pretrained[0]['train_loss'])}, error "
            f"{number(pretrained[0]['train_error'])}."
        )
    return found
