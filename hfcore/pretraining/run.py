"""``pretrain``: a stack of machines, one trained on what the one below makes of the data.

Numbered notes say where this departs from Hinton & Salakhutdinov (2006) and their code.

1. Every epoch goes through the data in a new order, theirs through the same batches.
2. The data of the next machine are the hidden means of the trained one; theirs were collected
   during its last epoch.
3. Rate and 200 epochs of Gaussian visible units are those of their FACES net as remembered: the
   text of their supplement was not at hand. Here they hold for any first layer of such units, as
   0.001 does for every layer with linear hidden units.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hfcore.arguments import count, flag, naming_options, path
from hfcore.models.mlp import Autoencoder
from hfcore.pretraining.images import images_of
from hfcore.pretraining.rbm import RBM
from hfcore.pretraining.settings import PretrainingSettings, layer_settings
from hfcore.pretraining.stack import Line, Stack, unroll_
from hfcore.training.config import device_name, model_config
from hfcore.training.describe import describe_array
from hfcore.training.environment import describe_environment
from hfcore.training.run_folder import RunFolder


@dataclass(frozen=True)
class PretrainResult:
    """The trained machines, the first one's visible units being the data, and a line an epoch."""

    rbms: tuple[RBM, ...]
    lines: list[Line]
    """As in metrics.jsonl, see :func:`pretrain`."""
    reason: str
    """``"finished"``, or ``"interrupted"``: then the autoencoder is as it was."""
    seconds: float
    """Of all updates, without measurements and checkpoints."""
    run_dir: Path | None


@naming_options
def pretrain(
    autoencoder: Autoencoder,
    data: Any,
    *,
    visible: str = "bernoulli",
    epochs: int | Sequence[int] | None = None,
    learning_rate: float | Sequence[float] | None = None,
    batch_size: int = 100,
    initial_momentum: float = 0.5,
    momentum: float = 0.9,
    initial_epochs: int = 5,
    weight_cost: float = 2e-4,
    scale: float = 0.1,
    validation: Tensor | None = None,
    seed: int = 0,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int = 1,
    keep_checkpoints: int = 2,
    report: Callable[[Line], None] | None = None,
) -> PretrainResult:
    """Give an autoencoder the weights of a stack of Boltzmann machines trained by CD-1.

    One machine for each layer of the encoder: logistic layers are Bernoulli units, linear ones
    (the code) Gaussian units. The stack is then unrolled: the encoder gets the weights, the decoder
    their transposes, as parameters of its own (Hinton & Salakhutdinov 2006, whose constants are the
    defaults). What the autoencoder held before plays no part.

    >>> hf.pretrain(model, hf.data.curves())
    >>> hf.train(model, images, hf.NonlinearCG(model), loss=hf.losses.LogisticCrossEntropy())

    Args:
        autoencoder: its hidden layers logistic or linear.
        data: images ``[N,n]`` in its dtype (a NumPy array becomes it), an hf.data.Dataset, whose
            training and validation parts are taken, or a problem with a fixed set of cases.
        visible: units of the data: ``"bernoulli"`` for values in [0, 1], ``"gaussian"`` for real
            ones of a variance near 1.
        epochs: of every layer, or a list by layer; None: 50, and 200 of a first layer whose
            visible units are Gaussian.
        learning_rate: ε, likewise; None: 0.1, and 0.001 where a layer's visible or hidden units are
            Gaussian.
        batch_size: cases of an update; a rest smaller than it is left out of its epoch.
        initial_momentum, momentum, initial_epochs: μ in the first epochs of a layer and after.
        weight_cost: of ½‖W‖² beside the gradient, so that ε multiplies it; biases have none.
        scale: standard deviation of the first weights.
        validation: images ``[N_v,n]`` whose free energy is measured beside that of training ones:
            where the gap grows a machine overfits.
        seed: of weights, order and hidden states.
        run_dir: folder for config, metrics.jsonl, TensorBoard events and checkpoints; None writes
            nothing.
        resume: continue in ``run_dir`` from the last checkpoint, bit for bit.
        checkpoint_every, keep_checkpoints: epochs between checkpoints, and how many stay.
        report: is called with each new line.

    A line has ``iteration`` (epochs of all layers so far), ``layer`` and ``layer_epoch`` from 1,
    ``learning_rate``, ``momentum``, ``reconstruction_error`` (Σ of squares over the units of the
    layer below, averaged over the cases of the epoch), ``free_energy`` (mean of the first 1000
    training cases) and ``validation_free_energy``, ``largest_weight``, ``seconds`` and
    ``training_seconds``, those of updates up to here.

    Ctrl-C ends it after the epoch, with a checkpoint. Raises TypeError or ValueError naming the
    argument that is wrong, ValueError with layer, epoch and rate where weights diverge, and the
    errors of run folders that :func:`hfcore.train` raises.
    """
    if not isinstance(autoencoder, Autoencoder):
        raise TypeError(f"autoencoder: got {type(autoencoder).__name__}, need an hf.Autoencoder")
    if report is not None and not callable(report):
        raise TypeError(f"report: got {type(report).__name__}, need a function of a line")
    settings = PretrainingSettings(
        layer_settings(autoencoder, visible, epochs, learning_rate),
        batch_size,
        initial_momentum,
        momentum,
        initial_epochs,
        weight_cost,
        scale,
        seed,
    )
    like = autoencoder.matrices()[0]
    images, validation = images_of(data, validation, settings.layers[0].visible_units, like)
    every = count("checkpoint_every", checkpoint_every)
    keep = count("keep_checkpoints", keep_checkpoints)
    if flag("resume", resume) and run_dir is None:
        raise ValueError("resume: got True without run_dir, need the run folder to resume")
    stack = Stack(settings, images, validation, report)
    if run_dir is None:
        return _result(stack, autoencoder, stack.loop(every))
    config = {
        "model": model_config(autoencoder),
        "pretraining": settings.config(),
        "data": {
            "train": describe_array(images),
            "validation": None if validation is None else describe_array(validation),
        },
        "run": {"checkpoint_every": every},
        "environment": {**describe_environment(), "device": device_name(autoencoder)},
    }
    opened = RunFolder.resume if resume else RunFolder.create
    with opened(path("run_dir", run_dir), config, keep=keep) as stack.folder:
        return _result(stack, autoencoder, stack.loop(every))


def _result(stack: Stack, autoencoder: Autoencoder, reason: str) -> PretrainResult:
    """What came out, written into the autoencoder if it is whole, and into result.json."""
    if reason == "finished":
        unroll_(autoencoder, stack.rbms)
    folder, seconds = stack.folder, stack.at.seconds
    if folder is not None:
        folder.finish({"reason": reason, "epochs": stack.at.epoch, "seconds": seconds})
    where = None if folder is None else folder.path
    return PretrainResult(tuple(stack.rbms), stack.lines, reason, seconds, where)
