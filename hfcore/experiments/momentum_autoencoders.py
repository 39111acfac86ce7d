"""What tables 1 to 3 of Sutskever et al. (2013) share: autoencoders trained with momentum.

1. The objective is the mean over a batch of the loss of Martens (2010), summed over pixels:
   cross-entropy for CURVES and MNIST, ½ squared error for FACES, without weight decay as in the
   paper. The paper does not state the scale of its loss, on which the learning rates depend.
2. Errors are squared and summed over pixels, averaged over the training images, as in the paper.
3. μ follows eq. 5 up to μ_max, and is 0.9 in the last 1000 updates. Eq. 5 reaches 0.995 only after
   25,000 updates and 0.999 after 125,000: columns that a shorter run does not tell apart are the
   same run.
4. The paper trains for 750,000 updates with every ε of this list and reports the best. Here a tenth
   of the updates decides, unless told otherwise.
5. CURVES is regenerated and FACES made from the Olivetti faces, see :mod:`hfcore.data`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hfcore as hf
from hfcore.experiments.published import AUTOENCODER_UPDATES
from hfcore.experiments.tuning import Tuned

DATASETS = ("curves", "mnist", "faces")
RATES = hf.presets.momentum2013_grid["learning_rate"]
BATCH_SIZE: int = hf.presets.momentum2013["batch_size"]
UPDATES = 20_000
FINAL_UPDATES: int = hf.presets.momentum2013["final_updates"]


def problem_of(name: str, folder: Path | None, images: int | None) -> hf.problems.Reconstruction:
    """The problem of a data set, on its first ``images`` training images.

    Raises ValueError for an unknown name.
    """
    return hf.problems.Reconstruction(name, folder=folder, images=images)


def setting_text(settings: Mapping[str, Any]) -> str:
    """The units, the objective and the schedule, for the top of a table."""
    images = settings["images"]
    which = "the" if images is None else f"the first {images:,}"
    last = settings["updates"] - settings["final_updates"]
    reached = hf.schedules.Increasing(1 - 1e-12)(max(0, last - 1))
    return (
        "Errors: Σ over pixels of squared differences, averaged over "
        f"{which} training images, after the last update. Objective: mean over a batch of the "
        "cross-entropy summed over pixels (FACES: ½ squared error), without weight decay. "
        "μ: eq. 5 up to the column's, which comes to "
        f"{reached:.4g} here before the last {settings['final_updates']:,} updates, which have "
        f"0.9 at most. The paper trains for {AUTOENCODER_UPDATES:,} updates, here it is "
        f"{settings['updates']:,}. CURVES is regenerated, FACES made from the Olivetti faces."
    )


def same_runs(results: Mapping[str, Tuned], settings: Mapping[str, Any]) -> str:
    """A warning where eq. 5 has not reached μ_max of several columns; "" where it has."""
    last = settings["updates"] - settings["final_updates"]
    reached = hf.schedules.Increasing(1 - 1e-12)(max(0, last - 1))
    columns = [result.column for tuned in results.values() for result in tuned.columns]
    above = {c.name for c in columns if c.settings["momentum"] > reached}
    groups = [sorted(name for name in above if name.endswith(kind)) for kind in "NM"]
    texts = [" and ".join(group) for group in groups if len(group) > 1]
    if not texts:
        return ""
    return f"So short, eq. 5 does not tell these columns apart: {'; '.join(texts)}."
