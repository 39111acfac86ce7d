"""``train``: one loop for Hessian-free and first-order optimisers, resumable to the bit."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from hfcore.arguments import flag, naming_options_of, path
from hfcore.autograd.calls import Select
from hfcore.distributed.ranks import Ranks
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.training import setup, several
from hfcore.training.callbacks import Callback, CallbackStates
from hfcore.training.config import Settings, default_every, limits_of, run_config
from hfcore.training.limits import Limits
from hfcore.training.metrics import Metric
from hfcore.training.result import TrainResult
from hfcore.training.run import Run
from hfcore.training.run_folder import RunFolder
from hfcore.training.steps import make_stepper

# What is asked for in other words, or belongs to something that is given.
ELSEWHERE = {
    "iterations": "stop=hf.training.Limits(iterations=…)",
    "steps": "stop=hf.training.Limits(iterations=…)",
    "epochs": "stop=hf.training.Limits(iterations=…), with hf.minibatches.Epochs batches",
    "seconds": "stop=hf.training.Limits(seconds=…)",
    "lr": "an option of the optimiser",
    "learning_rate": "an option of the optimiser",
    "damping": "an option of the optimiser",
    "device": "model.to(device): data follow",
    "patience": "callbacks=[hf.training.EarlyStopping(…)]",
}


@naming_options_of(elsewhere=ELSEWHERE)
def train(
    model: torch.nn.Module,
    data: Any,
    optimizer: torch.optim.Optimizer,
    *,
    batches: Any = None,
    stop: Limits | None = None,
    callbacks: Sequence[Callback] = (),
    loss: Any = None,
    metric: Metric | None = None,
    validation: Any = None,
    test: Any = None,
    minibatches: float | None = None,
    batch_size: int | None = None,
    gradient_batches: int | None = None,
    batch_dim: int | None = None,
    outputs: Select | None = None,
    test_size: int = setup.TEST_SIZE,
    solved_below: float = 0.01,
    test_every: int | None = None,
    test_untrained: bool = False,
    seed: int = 0,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    keep_checkpoints: int = 2,
    progress: bool = True,
    notes: Mapping[str, Any] | None = None,
    process_group: Any = None,
    reduction: Literal["exact", "fast"] | None = None,
    local: bool = False,
) -> TrainResult:
    """Train ``model`` on ``data`` until a limit is met, the problem solved, or a callback stops it.

    With :class:`hfcore.HessianFree` an iteration is one step, with any other torch optimiser one
    update, on the batches of a policy. Work is counted in minibatches of 1000 sequences, one for
    each gradient or curvature product over them (Martens & Sutskever 2011, figure 3); objective
    evaluations are counted apart.

    >>> hf.train(model, hf.problems.Addition(30), opt)
    >>> hf.train(model, (x, y), opt, validation=(x_v, y_v), stop=hf.training.Limits(iterations=50),
    ...          callbacks=[hf.training.EarlyStopping(5), hf.training.BestModel()])

    Args:
        model: maps inputs to outputs before their nonlinearity; an hf.RNN ``[T,B,n]`` to
            ``[T,B,k]``, an hf.MLP ``[B,n]`` to ``[B,k]``.
        data: a problem of hf.problems; ``(x, y)`` or ``(x, y, mask)`` of tensors in the model's
            dtype, or of NumPy arrays, whose floats become it; a list of sequences ``(x_i [T_i,n],
            y_i [T_i,k])`` of any lengths, with classes int64 ``[T_i]`` or one target for the
            sequence as y_i, and perhaps a mask_i ``[T_i]``: they are padded and masked; an
            hf.data.Dataset, images that are inputs and targets; a torch DataLoader of batches
            (inputs, targets[, mask]); or a torch Dataset with a length, which is read into memory.
        batches: a policy of :mod:`hfcore.minibatches`, :class:`hfcore.training.Phased`, or a
            function from the number of the iteration to hf.Batches. None: of a problem
            ``gradient_batches`` fresh batches of ``batch_size``, of a DataLoader that many of its
            own; of cases at hand FullGradient with curvature batches of ``batch_size`` for
            Hessian-free, else SmallBatches of ``batch_size``.
        stop: limits of iterations, minibatches and seconds; None: 50,000 minibatches.
        callbacks: see :class:`hfcore.Callback`; their states are in the checkpoints.
        loss: a loss of hf.losses or a function (outputs, targets) → mean loss; None: the problem's,
            or the one that HessianFree was made with.
        metric: the measure of error: a function (outputs, targets), or with a parameter ``mask``,
            → a value of each case ``[B]``, or the mean, a number. None: what the problem calls
            wrong or its errors; else the loss.
        validation, test: further parts in any of the forms of ``data`` but a problem; None: those
            of an hf.data.Dataset; a problem draws its test cases.
        minibatches: the same as ``Limits(minibatches=…)``.
        batch_size, gradient_batches: see ``batches``; by default 1000 (at most all cases) and 10;
            a first-order update takes one batch.
        batch_dim: axis of the cases in inputs and targets, or a pair of axes; None: what
            HessianFree was made with, or the model's own (1 for hf.RNN), else 0.
        outputs: which of the things that the model returns loss and metric take: a key or attribute
            (``"logits"``), an index, or a function of what it returned; None: what HessianFree was
            made with, else the model returns them.
        test_size: cases of a problem's fixed test set, drawn in batches of 1000 where it has no
            test set of its own.
        solved_below: the problem is solved when the share of wrong test cases is below this;
            without meaning for data that call no case wrong.
        test_every, checkpoint_every: in iterations; by default 1 for Hessian-free, 100 otherwise.
        test_untrained: also test before the first iteration, and log it as iteration 0.
        seed: of the training and the test data (two independent streams).
        run_dir: folder for config, metrics, TensorBoard events, plots and checkpoints; None
            writes nothing.
        resume: continue the run in ``run_dir`` from its last checkpoint, bit for bit. The
            arguments must be those it was begun with, apart from ``stop``, ``minibatches``,
            ``solved_below``, ``test_every``, ``checkpoint_every``, ``keep_checkpoints``,
            ``progress``, and callbacks that do not determine the run.
        keep_checkpoints: the last so many stay in ``run_dir``.
        progress: show progress on stderr.
        notes: further settings to keep in config.json; a resume compares them too.
        process_group: of torch.distributed: its processes make the same call and train one net,
            drawing the same batches and taking each its share of the cases. The first of them
            writes the run folder, which the others need not see, and shows progress. None: that of
            the optimiser.
        reduction, local: as in :class:`hfcore.HessianFree`; the reduction of a first-order
            optimiser's gradients.

    SIGINT, SIGTERM, SIGUSR1 or SIGUSR2, to any of the processes, ends training after the current
    step with a checkpoint. A second one ends a Hessian-free step between two iterations of CG, with
    a checkpoint of the last whole iteration, and acts at once elsewhere, as does a third; under
    torchrun, which kills 30 seconds later, the first one does so. Raises TypeError or ValueError
    naming the argument that is wrong, :class:`RunFolderError` for a folder that cannot be used or
    written, :class:`CheckpointError` if no checkpoint is good, :class:`ConfigMismatchError` if the
    folder belongs to another config, and :class:`hfcore.distributed.RankLost` where another process
    has ended.
    """
    setup.check_kinds(model, optimizer, run_dir, notes)
    if next(model.parameters(), None) is None:
        raise ValueError("model: has no parameters, nothing to train")
    every = default_every(optimizer)
    settings = Settings(
        limits=limits_of(stop, minibatches),
        test_size=test_size,
        solved_below=solved_below,
        test_every=every if test_every is None else test_every,
        checkpoint_every=every if checkpoint_every is None else checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        seed=seed,
    )
    flag("test_untrained", test_untrained)
    flag("progress", progress)
    if flag("resume", resume) and run_dir is None:
        raise ValueError("resume: got True without run_dir, need the run folder to resume")
    group = several.group_of_run(model, optimizer, process_group, reduction, local=local)
    ranks = Ranks() if group is None else group.ranks
    parts = setup.data_of(
        model, optimizer, data, validation=validation, test=test, batch_dim=batch_dim
    )
    minimised = setup.loss_of(loss, parts.problem, optimizer)
    outputs = setup.outputs_of(outputs, optimizer)
    policy = setup.policy_of(
        model,
        parts,
        optimizer,
        batches,
        batch_size=batch_size,
        gradient_batches=gradient_batches,
        seed=seed,
    )
    hooks = setup.hooks_of(policy, callbacks)
    stepper = make_stepper(
        model,
        minimised,
        optimizer,
        setup.counter(parts, policy),
        gradients=any(hook.reads_gradients for hook in hooks),
        outputs=outputs,
        group=group,
        batch_dim=(parts.form.input_dim, parts.form.target_dim),
    )
    run = Run(
        model,
        optimizer,
        parts,
        stepper,
        setup.feed_of(parts, policy, settings, stepper.device, model),
        setup.Measured(model, parts, metric, minimised, settings, outputs, ranks),
        settings,
        [*hooks, *_display(progress and ranks.first)],
        ranks,
    )
    if run_dir is None and ranks.size == 1:
        run.begin(test_untrained)
        return run.result(run.loop())
    config = run_config(
        model,
        optimizer,
        settings,
        problem=parts.problem,
        data=setup.data_config(parts, policy, settings),
        loss=minimised,
        outputs=outputs,
        metric=run.measured.name,
        callbacks=CallbackStates(hooks).config(),
        notes=notes or {},
    )
    if group is not None and not isinstance(optimizer, HessianFree):
        config["data"]["reduction"] = group.reduction
    several.check_configs(ranks, config)
    opened = RunFolder.resume if resume else RunFolder.create
    with contextlib.ExitStack() as stack:
        if run_dir is not None:
            run.path = path("run_dir", run_dir)
            folder = functools.partial(opened, run.path, config, keep=keep_checkpoints)
            run.folder = ranks.on_first(lambda: stack.enter_context(folder()))
        run.begin(test_untrained)
        return run.result(run.loop())


def _display(progress: bool) -> list[Callback]:
    if not progress:
        return []
    from hfcore.training.progress import ProgressDisplay  # rich is slow to import

    return [ProgressDisplay()]
