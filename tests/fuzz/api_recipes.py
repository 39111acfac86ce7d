"""Recipes of ``fuzz_api.py``: Jacobians, pre-training, nonlinear CG, the LSTM and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from api_source import Call, Source
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

import hfcore as hf


class Pair(nn.Module):
    """Takes its inputs by keyword and returns its outputs beside something else."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        return {"logits": self.net(x) * scale, "size": x.shape}


def jacobian(source: Source) -> Call:
    task = source.task()
    arguments = {"model": task["model"], "inputs": task["inputs"]}
    if source.pick(True, False):
        arguments = {"model": Pair(task["model"]), "inputs": {"x": task["inputs"]}}
        arguments["outputs"] = source.pick("logits", lambda o: o["logits"])

    def then(J: Any, source: Source) -> None:
        which = source.pick(J, J.mT, J.mT @ J)
        v = source.tensor(which.shape[1])
        which @ (v if source.random.random() < 0.5 else source.spoilt(v))

    return Call(hf.Jacobian, arguments, then)


def pretraining(source: Source) -> Call:
    depth = source.pick(1, 2)
    sizes = [source.n, *(source.size() for _ in range(depth))]
    options: dict[str, Any] = {"dtype": source.dtype, "generator": source.generator}
    net = hf.Autoencoder(
        sizes, activation="logistic", code=source.pick("linear", "logistic"), **options
    )
    images = torch.rand(source.B, source.n, generator=source.generator).to(source.dtype)
    arguments: dict[str, Any] = {
        "autoencoder": net, "data": source.pick(images, images.numpy()),
        "visible": source.pick("bernoulli", "gaussian"), "epochs": source.pick(1, [1] * depth),
        "learning_rate": source.pick(None, 0.01), "batch_size": source.pick(1, 100),
        "initial_momentum": 0.5, "momentum": 0.9, "initial_epochs": 1, "weight_cost": 1e-4,
        "scale": 0.1, "validation": source.pick(None, images), "seed": 0, "checkpoint_every": 1,
        "keep_checkpoints": 2, "report": source.pick(None, lambda line: None),
    }  # fmt: skip
    return Call(pretrain, arguments)


def pretrain(**arguments: Any) -> Any:
    """``hf.pretrain`` whose ``report`` does nothing of its own, whatever it takes."""
    if isinstance(arguments.get("report"), nn.Module):
        arguments["report"] = None
    return hf.pretrain(**arguments)


def machine(source: Source) -> Call:
    units = "bernoulli", "gaussian"
    arguments = {
        "visible": source.n, "hidden": source.H, "visible_units": source.pick(*units),
        "hidden_units": source.pick(*units), "scale": 0.1, "dtype": source.dtype, "device": "cpu",
        "generator": source.generator,
    }  # fmt: skip

    def then(rbm: Any, source: Source) -> None:
        v = torch.rand(source.B, source.n).to(source.dtype)
        given = v if source.random.random() < 0.5 else source.spoilt(v)
        source.pick(rbm.hidden_mean, rbm.free_energy)(given)

    return Call(hf.pretraining.RBM, arguments, then)


def nonlinear_cg(source: Source) -> Call:
    task = source.cases()
    net = task["model"]
    arguments: dict[str, Any] = {
        "params": source.pick(net, [*net.parameters()]), "line_searches": source.pick(1, 3),
        "restart": source.pick(True, False), "weight_decay": source.pick(0.0, 0.1),
        "sufficient_decrease": 0.05, "curvature": 0.1, "max_evaluations": 5, "margin": 0.1,
        "extrapolation": 3.0, "slope_ratio": 10.0, "local": source.pick(True, False),
    }  # fmt: skip

    def closure() -> Any:
        net.zero_grad()
        loss = (net(task["inputs"]) - 1).square().mean()
        loss.backward()
        return loss

    def then(opt: Any, source: Source) -> None:
        opt.step(closure)
        opt.step(closure if source.random.random() < 0.6 else source.spoilt(closure))
        opt.load_state_dict(opt.state_dict())

    return Call(hf.NonlinearCG, arguments, then)


def block_lstm(source: Source) -> Call:
    arguments = {
        "input_size": source.n, "output_size": source.k, "blocks": source.size(),
        "cells": source.size(), "forget_bias": 1.0, "dtype": source.dtype, "device": "cpu",
        "generator": source.generator,
    }  # fmt: skip
    loss, targets = source.loss_and_targets(source.T, source.B)
    x = source.tensor(source.T, source.B, source.n)

    def then(net: Any, source: Source) -> None:
        data = [x, targets]
        theta = nn.utils.parameters_to_vector(net.parameters()).detach()
        if source.random.random() < 0.5:
            i = source.random.randrange(2)
            data[i] = source.spoilt(data[i])
        source.pick(
            lambda: net(data[0]),
            lambda: hf.GaussNewton(net, loss, *data) @ theta,
            lambda: hf.HessianFree(net, loss, damping=1.0, cg_max_iter=2).step(tuple(data)),
        )()

    return Call(hf.BlockLSTM, arguments, then)


@contextmanager
def processes(size: int) -> Iterator[None]:
    """torch.distributed as one of ``size`` processes, of which nobody else is there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def one_process(source: Source) -> Call:
    """What is said of processes, in one alone."""
    task = source.cases()
    group = source.pick(None, hf.distributed.Ranks())
    arguments: dict[str, Any] = {
        "process_group": group, "reduction": source.pick(None, "exact", "fast"),
        "cases": "shared" if group is None else source.pick("shared", "own"),
        "local": group is None and source.pick(True, False), "damping": 1.0,
    }  # fmt: skip
    data = task.pop("inputs"), task.pop("targets")

    def step(opt: Any, source: Source) -> None:
        opt.step(data if source.random.random() < 0.7 else source.spoilt(data))

    def product(A: Any, source: Source) -> None:
        v = source.tensor(A.shape[0])
        A @ (v if source.random.random() < 0.5 else source.spoilt(v))

    if source.pick(True, False):
        return Call(hf.HessianFree, {**task, **arguments, "cg_max_iter": 2}, step)
    kind = source.pick(hf.GaussNewton, hf.Hessian, hf.EmpiricalFisher)
    return Call(kind, {**task, "inputs": data[0], "targets": data[1], **arguments}, product)


def several_processes(source: Source) -> Call:
    """One of two processes: what would drift apart is refused, what is local is not."""
    task = source.cases()
    net, loss, x, y = (task[name] for name in ("model", "loss", "inputs", "targets"))
    stop, nag = hf.training.Limits(iterations=1), hf.NAG(net, 0.1, local=True)
    build: Callable[[bool], Any] = source.pick(
        lambda local: hf.HessianFree(net, loss, damping=1.0, local=local).step((x, y)),
        lambda local: hf.GaussNewton(net, loss, x, y, local=local),
        lambda local: hf.Hessian(net, loss, x, y, local=local),
        lambda local: hf.Jacobian(net, x, local=local),
        lambda local: hf.NonlinearCG(net, local=local),
        lambda local: hf.AdaptiveNAG(net.parameters(), local=local),
        lambda local: hf.train(net, (x, y), nag, loss=loss, stop=stop, progress=False, local=local),
    )

    def function(local: Any) -> None:
        with processes(2):
            if local is True:
                build(True)
                return
            with suppress(ValueError, TypeError):
                build(local)
                raise AssertionError(f"local={local!r} was taken by one of two processes")

    return Call(function, {"local": source.pick(True, False)})


RECIPES: list[tuple[int, Callable[[Source], Call]]] = [
    (2, jacobian), (2, pretraining), (1, machine), (2, nonlinear_cg), (1, block_lstm),
    (1, one_process), (1, several_processes),
]  # fmt: skip
