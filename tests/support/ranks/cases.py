"""What the ranks of a test do. Every function is called on each rank with its group."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

import hfcore as hf
from hfcore.distributed import ranks as ranks_module
from hfcore.distributed.ranks import Ranks, unwrapped

LOSS = hf.losses.SquaredError()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def drawn(model: nn.Module) -> nn.Module:
    """The same weights in every process."""
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(0.4 * normal(*p.shape, seed=100 + i))
    return model


class Softmax(nn.Module):
    """Any module: scores of classes."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 4, dtype=dtype), nn.Tanh(), nn.Linear(4, 3, dtype=dtype)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


Problem = tuple[nn.Module, Any, list[hf.Batch], dict[str, Any]]


def problem(kind: str, dtype: torch.dtype, cases: int = 21) -> Problem:
    """Model, loss, three batches of unequal size, and further options."""
    sizes = [cases, cases + 4, 7]
    batches = []
    if kind in ("rnn", "outputs"):
        model: nn.Module = hf.RNN(2, 5, 3, dtype=dtype)
        loss: Any = hf.losses.LogisticCrossEntropy()
        for i, B in enumerate(sizes):
            mask = normal(4, B, seed=20 + i) > -0.7
            mask[:, : B // 3] = False  # shards without an output that counts
            y = normal(4, B, 3, seed=10 + i).sigmoid().to(dtype)
            batches.append(hf.Batch(normal(4, B, 2, seed=i).to(dtype), y, mask))
        options = {"normalize": "outputs" if kind == "outputs" else "sequences"}
        return drawn(model), loss, batches, options
    for i, B in enumerate(sizes):
        classes = torch.randint(3, (B,), generator=torch.Generator().manual_seed(i))
        y = classes if kind in ("module", "weights") else normal(B, 3, seed=10 + i).to(dtype)
        batches.append(hf.Batch(normal(B, 3, seed=i).to(dtype), y))
    if kind == "mlp":
        return drawn(hf.MLP([3, 4, 3], ["tanh", "linear"], dtype=dtype)), LOSS, batches, {}
    if kind == "weights":
        weights = torch.tensor([0.5, 1.0, 2.5], dtype=dtype)
        return drawn(Softmax(dtype)), nn.CrossEntropyLoss(weight=weights), batches, {}
    assert kind == "module"
    return drawn(Softmax(dtype)), nn.CrossEntropyLoss(), batches, {"chunk_size": 16}


KINDS = ("rnn", "outputs", "mlp", "module", "weights")


def products(
    group: Any, *, kind: str, dtype: torch.dtype, cases: int = 21, **options: Any
) -> dict[str, Tensor]:
    """What operators give on all data, with L2 and damping; ``group`` None: in one process."""
    model, loss, batches, own = problem(kind, dtype, cases)
    given = {**own, **options, "process_group": group, "l2": 0.25, "damping": 0.5}
    structural = {"structural": 0.3} if kind in ("rnn", "outputs") else {}
    found: dict[str, Tensor] = {}
    N = sum(p.numel() for p in model.parameters())
    V = normal(3, N, seed=5).to(dtype)
    for name, operator, more in (
        ("ggn", hf.GaussNewton, structural),
        ("hessian", hf.Hessian, {}),
        ("fisher", hf.EmpiricalFisher, {}),
    ):
        A = operator(model, loss, batches, **given, **more)
        found[name] = A @ V[0]
        found[f"{name} rows"] = A.products(V)
        found[f"{name} loss"] = torch.tensor(A.loss, dtype=torch.float64)
        if name != "hessian" and not more:
            found[f"{name} diagonal"] = A.diagonal()
    objective = hf.GaussNewton(model, loss, batches, **given)._objective
    data = objective.prepare(batches)
    value, gradient = objective.gradient(data, V[1])
    found["loss"] = torch.tensor(value, dtype=torch.float64)
    found["gradient"] = gradient
    found["squares"] = objective.squared_gradients(data, V[1])
    A = hf.GaussNewton(model, loss, batches, **given)
    found["estimate"] = A.diagonal(3, torch.Generator().manual_seed(1))
    found["trace"] = torch.tensor(A.trace(4, torch.Generator().manual_seed(2)))
    return found


def own_products(group: Any, *, kind: str, reduction: str) -> dict[str, Tensor]:
    """The same where every rank has cases of its own: the last has none of the second batch, and
    the first rank all of the third."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    model, loss, batches, own = problem(kind, torch.float64)
    dim = 1 if kind in ("rnn", "outputs") else 0

    def part(batch: hf.Batch, first: int, end: int) -> hf.Batch:
        return hf.Batch(*(t if t is None else t.narrow(dim, first, end - first) for t in batch))

    shares = []
    for i, batch in enumerate(batches):
        B = batch.inputs.shape[dim]
        ranks = size - 1 if i == 1 else 1 if i == 2 else size
        edges = [int(B * f) for f in {1: [0, 1], 2: [0, 0.65, 1], 3: [0, 0.5, 0.8, 1]}[ranks]]
        edges += [B] * (size - ranks)
        shares.append(part(batch, edges[rank], edges[rank + 1]))
    given = {**own, "process_group": group, "cases": "own", "reduction": reduction, "l2": 0.25}
    A = hf.GaussNewton(model, loss, shares, **given)
    v = normal(A.shape[0], seed=5)
    return {
        "ggn": A @ v,
        "ggn loss": torch.tensor(A.loss, dtype=torch.float64),
        "ggn diagonal": A.diagonal(),
    }


def steps(
    group: Any,
    *,
    kind: str,
    dtype: torch.dtype = torch.float64,
    count: int = 3,
    spoil: str = "",
    **options: Any,
) -> dict[str, Any]:
    """Some Hessian-free steps, on batches by role; parameters and statistics of each.

    ``spoil``: what the last rank has otherwise.
    """
    model, loss, batches, own = problem(kind, dtype, cases=40)
    last = group is not None and dist.get_rank(group) == dist.get_world_size(group) - 1
    if spoil == "start" and last:
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
    if spoil == "options" and last:
        options["cg_max_iter"] = 4
    if spoil == "dtype" and last:
        model = model.float()
    if spoil == "model" and last:
        model = drawn(hf.MLP([3, 5, 3], ["tanh", "linear"], dtype=dtype))
    given = {"cg_max_iter": 6, "damping": 0.7, "l2": 0.01, "preconditioner": "fisher", **options}
    opt = hf.HessianFree(model, loss, process_group=group, **own, **given)
    roles = hf.Batches(batches, batches[0], batches[2:], batches[1])
    thetas, losses = [], []
    for i in range(count):
        if spoil == "parameters" and last and i == 1:
            with torch.no_grad():
                next(model.parameters()).add_(1e-6)
        if spoil == "data" and last and i == 1:
            roles = hf.Batches(batches[1:])
        stats = opt.step(roles)
        losses.append((stats.loss, stats.loss_after, stats.rho, stats.damping_next))
        thetas.append(hf.flat.FlatParameters(model).read())
    return {"thetas": thetas, "stats": losses, "state": opt.state_dict()}


# Those that find their ranks in torchrun's variables.
STARTED = ("command",)


def command(
    group: Any, *, arguments: list[str], restarts: int = 0, may_restart: bool = False
) -> tuple[int, str]:
    """``hfcore ARGUMENTS`` as torchrun starts it: exit code and output."""
    from command_line import invoke

    os.environ["TORCHELASTIC_RUN_ID"] = "test"
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(restarts)
    os.environ["TORCHELASTIC_MAX_RESTARTS"] = str(int(may_restart))
    result = invoke(*arguments)
    return result.exit_code, result.output


def refusals(group: Any) -> list[str]:
    """What is refused without a word on the processes, and what is not."""
    model, loss, (batch, *_), _ = problem("mlp", torch.float64)
    replica = nn.parallel.DistributedDataParallel(model)
    messages = []
    calls: list[Callable[[], Any]] = [
        lambda: hf.HessianFree(model, loss),
        lambda: hf.HessianFree(replica, loss),
        lambda: hf.HessianFree(replica, loss, local=True),
        lambda: hf.HessianFree(model, loss, process_group=group, local=True),
        lambda: hf.HessianFree(model, loss, process_group=3),
        lambda: hf.HessianFree(model, loss, cases="own", local=True),
        lambda: hf.HessianFree(model, loss, process_group=group, reduction="slow"),
        lambda: hf.HessianFree(model, loss, process_group=group, strategy="measure").step(
            (batch.inputs, batch.targets)
        ),
        lambda: hf.GaussNewton(model, loss, batch.inputs, batch.targets),
        lambda: hf.Jacobian(model, batch.inputs),
        lambda: hf.NAG(model, 0.1),
        lambda: hf.SGD(model, 0.1),
        lambda: hf.ClassicalMomentum(model.parameters(), 0.1),
        lambda: hf.AdaptiveNAG(model),
        lambda: hf.train(model, (batch.inputs, batch.targets), torch.optim.SGD(model.parameters())),
        lambda: hf.HessianFree(cut(model), process_group=group),
        lambda: hf.HessianFree(cut(model), loss, curvature="hessian_fd", process_group=group),
        lambda: hf.HessianFree(cut(model), curvature="hessian_fd", local=True),
        lambda: hf.NAG(cut(model), 0.1, process_group=group),
    ]
    for call in calls:
        try:
            call()
        except (ValueError, TypeError) as error:
            messages.append(f"{type(error).__name__}: {error}")
        else:
            messages.append("")
    other = dist.new_group([0])
    if dist.get_rank() == 1:
        try:
            hf.HessianFree(model, loss, process_group=other)
        except ValueError as error:
            messages.append(str(error))
    hf.HessianFree(model, loss, local=True).step((batch.inputs, batch.targets))
    hf.GaussNewton(model, loss, batch.inputs, batch.targets, local=True)
    hf.NAG(model, 0.1, local=True)
    return messages


def drift(group: Any) -> str:
    """Processes that join after the optimiser was made."""
    model, loss, (batch, *_), _ = problem("mlp", torch.float64)
    world, size = dist.get_world_size, dist.get_world_size()
    dist.get_world_size = lambda group=None: 1  # type: ignore[assignment, misc]
    opt = hf.HessianFree(model, loss)
    sgd = hf.SGD(model, 0.1)
    dist.get_world_size = world  # type: ignore[assignment, misc]
    assert world() == size
    said = []
    for step in (lambda: opt.step((batch.inputs, batch.targets)), sgd.step):
        try:
            step()
        except ValueError as error:
            said.append(str(error))
    return "; ".join(said)


def reduced(group: Any) -> list[Tensor]:
    """Sums of whole numbers, by all of gloo's ways: one round of messages, and two."""
    ranks, found = Ranks(group), []
    for least in (ranks_module.SECOND_ROUND_BYTES, -(1 << 20)):
        ranks_module.SECOND_ROUND_BYTES = least
        values = torch.arange(1000.0) * (ranks.rank + 1)
        ranks.all_reduce(values)
        found.append(values)
    return found


def failing(group: Any) -> None:
    """The second rank's own data hold NaN."""
    model, loss, (batch, *_), _ = problem("mlp", torch.float64)
    x = batch.inputs.clone()
    if dist.get_rank() == 1:
        x[3, 1] = torch.nan
    opt = hf.HessianFree(model, loss, process_group=group, cases="own")
    opt.step((x, batch.targets))


def leaving(group: Any) -> None:
    """The second rank ends in the middle of CG."""
    model, loss, batches, own = problem("rnn", torch.float64)
    opt = hf.HessianFree(model, loss, process_group=group, damping=1.0, cg_max_iter=20, **own)
    if dist.get_rank() == 1:
        inner = hf.nets.FusedNet.gauss_newton
        calls = [0]

        def gauss_newton(*arguments: Any, **keywords: Any) -> Any:
            calls[0] += 1
            if calls[0] > 40:
                os._exit(7)
            return inner(*arguments, **keywords)

        for net in hf.nets.RnnNet.__mro__:
            if "gauss_newton" in vars(net):
                inner = vars(net)["gauss_newton"]
                net.gauss_newton = gauss_newton  # type: ignore[attr-defined]
                break
    for _ in range(20):
        opt.step(batches)


def cut(model: nn.Module, group: Any = None) -> nn.Module:
    """A copy of which every process has a part (FullyShardedDataParallel of today's torch)."""
    mesh = DeviceMesh.from_group(group or dist.group.WORLD, "cpu")
    return fully_shard(copy.deepcopy(model), mesh=mesh)


def closures(group: Any, *, wrapper: str) -> dict[str, Any]:
    """Differences of gradients under a wrapper of torch's, or of each rank's own (``""``)."""
    model, _, (batch, *_), _ = problem("mlp", torch.float64, cases=24)
    size = 1 if group is None else dist.get_world_size(group)
    rank = 0 if group is None else dist.get_rank(group)
    x, y = (t.chunk(size)[rank] for t in batch[:2])
    called: nn.Module = model
    if size > 1 and wrapper == "ddp":
        called = nn.parallel.DistributedDataParallel(model)
    elif size > 1 and wrapper == "fully_shard":
        called = cut(model, group)
    opt = hf.HessianFree(
        called, curvature="hessian_fd", process_group=group, damping=1.0, cg_max_iter=5
    )
    stats = [opt.step(lambda: (called(x) - y).square().sum(1).mean()) for _ in range(3)]
    return {
        "theta": hf.flat.FlatParameters(unwrapped(called)).read(),
        "losses": [s.loss for s in stats],
    }


def averages(group: Any, *, method: str, wrapped: bool = False) -> Tensor:
    """Updates with momentum on shares of unequal size, one of them empty."""
    model, _, (batch, *_), _ = problem("mlp", torch.float64, cases=20)
    size = 1 if group is None else dist.get_world_size(group)
    rank = 0 if group is None else dist.get_rank(group)
    edges = {1: [0, 20], 2: [0, 13, 20], 3: [0, 13, 20, 20]}[size][rank : rank + 2]
    x, y = (t[edges[0] : edges[1]] for t in batch[:2])
    if rank:
        with torch.no_grad():
            next(model.parameters()).add_(1.0)  # the first rank's are sent
    optimizer = {"sgd": hf.SGD, "cm": hf.ClassicalMomentum, "nag": hf.NAG}[method]
    opt = optimizer(model, 0.05, process_group=group)

    def closure() -> Tensor:
        opt.zero_grad()
        if not len(x):
            return torch.zeros((), dtype=torch.float64)
        value = (model(x) - y).square().sum(1).mean()
        value.backward()
        return value

    losses = [opt.step(closure, weight=len(x)) for _ in range(4)]
    values = torch.stack([l for l in losses if l is not None])
    return torch.cat([hf.flat.FlatParameters(model).read(), values.detach()])


def trained(
    group: Any,
    *,
    optimizer: str,
    run_dir: str | None = None,
    iterations: int = 4,
    resume: bool = False,
    send: tuple[int, int] | None = None,
    reduction: str | None = None,
    seed_of_last: int = 0,
    kill: tuple[int, int, float] | None = None,
) -> dict[str, Any]:
    """A run of hf.train.

    ``send``: (rank, signal) before the third iteration; ``kill``: (rank, number of its exchanges,
    seconds after it).
    Only the first rank's folder is there for it.
    """
    rank = 0 if group is None else dist.get_rank(group)
    size = 1 if group is None else dist.get_world_size(group)
    model = hf.RNN(2, 6, 1, dtype=torch.float32)
    hf.init.sparse_(model, torch.Generator().manual_seed(0), fan_in=3)
    task = hf.problems.Addition(6)
    opt: torch.optim.Optimizer
    if optimizer == "hf":
        opt = hf.HessianFree(
            model, task.loss, damping=0.6, cg_max_iter=5, process_group=group, reduction=reduction
        )
    elif optimizer == "nag":
        opt = hf.NAG(model, 0.01, process_group=group, reduction=reduction)
    else:
        opt = torch.optim.Adam(model.parameters(), 0.01)
    if rank and run_dir is not None:
        run_dir = str(Path(run_dir) / "not" / "here")
    if kill is not None and rank == kill[0]:
        die_at(*kill[1:])

    class Sender(hf.Callback):
        def on_step(self, state: hf.TrainState) -> None:
            if send is not None and rank == send[0] and state.iteration == 2:
                os.kill(os.getpid(), send[1])

    result = hf.train(
        model,
        task,
        opt,
        batch_size=40,
        **({"gradient_batches": 3} if optimizer == "hf" else {}),
        test_size=50,
        stop=hf.training.Limits(iterations=iterations),
        solved_below=0.0,
        callbacks=[Sender()],
        run_dir=run_dir,
        resume=resume,
        progress=False,
        process_group=group,
        reduction=reduction,
        checkpoint_every=1,
        test_every=2,
        seed=seed_of_last if rank == size - 1 else 0,
    )
    return {
        "theta": hf.flat.FlatParameters(model).read(),
        "reason": result.reason,
        "iterations": result.iterations,
        "error": result.test_error,
    }


def program(group: Any, *, code: str) -> Tensor:
    """A program of the documentation, which finds net, loss and data; θ at its end."""
    model, loss, (batch, *_), _ = problem("mlp", torch.float64)
    names = {"model": model, "loss": loss, "x": batch.inputs, "y": batch.targets}
    exec(compile(code, "program", "exec"), names)
    return hf.flat.FlatParameters(model).read()


def die_at(count: int, seconds: float) -> None:
    """Kill this process so long after so many exchanges from now."""
    left = [count]
    gather = Ranks.all_gather

    def counted(self: Ranks, values: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] == 0:
            delay = f"sleep {seconds}; kill -9 {os.getpid()}"
            if seconds:
                subprocess.Popen(["sh", "-c", delay])
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return gather(self, values)

    Ranks.all_gather = counted  # type: ignore[method-assign]
