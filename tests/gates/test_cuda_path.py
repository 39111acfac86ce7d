"""Gate: everything that CUDA data goes through, end to end, without a GPU.

The bindings' CUDA branches and whole Hessian-free steps run on CPU tensors: the kernels of CUDA C++
on fibers, those of Triton in the interpreter. In a process of its own, because the interpreter is
chosen when Triton is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from python_process import in_triton_interpreter
from torch import Tensor

import hfcore as hf
from emulation import Emulator
from hfcore.bindings import conjugate_gradient, cuda, dispatch, loss, recurrence, tensor_cores
from hfcore.bindings.forms.dense import measured
from hfcore.bindings.momentum import lookahead_point, momentum_update
from hfcore.kernels.recurrence import gpu, gpu_cluster, gpu_step, gpu_tensor
from oracles.cases import recurrence as of

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


if not INTERPRETED:

    def test_in_a_process_of_its_own(require_tool: Callable[[str], str]) -> None:
        require_tool("g++")
        require_tool("triton")
        in_triton_interpreter(Path(__file__).resolve(), timeout=900)

else:

    @pytest.fixture(scope="module")
    def emulators(emulated: Callable[[str], Path]) -> dict[str, Any]:
        """By family, and the recurrence on tensor cores by binary."""
        families = "recurrence", "gated", "dense"
        built = {family: Emulator(emulated(family)) for family in families}
        tensor = {
            kernels.BINARY: Emulator(emulated("recurrence", kernels.SOURCE))
            for kernels in (gpu_tensor, gpu_cluster, gpu_step)
        }
        return {**built, **tensor}

    @pytest.fixture
    def as_cuda(emulators: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
        """A context in which CPU tensors are served as if they were on a GPU."""
        device = SimpleNamespace(shared_limit=gpu.SHARED_LIMIT[90], launched=[])

        class Launch:
            shared_limit = device.shared_limit

            def __init__(self, family: str) -> None:
                self._emulator = emulators[family]

            def __call__(self, name: str, *rest: Any) -> None:
                self._emulator.launch(name, *rest)
                device.launched.append(name)

        @contextmanager
        def serving(op: str, family: str, where: torch.device) -> Iterator[Launch]:
            yield Launch(family)

        @contextmanager
        def served() -> Iterator[Any]:
            with monkeypatch.context() as patch:
                patch.setattr(cuda, "serving", serving)
                patch.setattr(cuda, "why_unavailable", lambda *_: None)
                patch.setattr(cuda, "launcher", lambda family, device, binary: Launch(binary))
                patch.setattr(tensor_cores, "_found", tensor_cores._found.__wrapped__)
                patch.setattr(tensor_cores, "_why_unable", lambda device: None)
                patch.setattr(tensor_cores, "_why_no_clusters", lambda device: None)
                patch.setattr(dispatch, "_fastest", lambda device: "cuda")
                patch.setattr(dispatch, "_why_declined", lambda *_: None)
                yield device

        return served

    def close(got: Tensor, want: Tensor, tolerance: float) -> None:
        assert got.shape == want.shape
        assert bool(torch.isfinite(got).all())
        worst = float((got.double() - want.double()).abs().max())
        assert worst <= tolerance * max(float(want.abs().max()), 1e-30)

    @pytest.mark.parametrize("steps", ["all", "last", "scattered"])
    @pytest.mark.parametrize("group", ["alone", "tangents", "expanded", "all_expanded", "distinct"])
    def test_recurrence_branches(as_cuda: Callable[[], Any], group: str, steps: str) -> None:
        """Through the bindings, into buffers and without: shapes and values of the reference."""
        size = of.Size(5, 9, 3, 20, 2)
        case = of.Case(size, torch.float32, "tanh", group, steps)
        T, B, _, H, k = size
        outputs = T if case.steps is None else case.steps.numel()
        N = case.shape.numel
        ops: dict[str, tuple[Callable[[Tensor | None], Any], tuple[int, ...]]] = {
            "forward": (
                lambda out: recurrence.rnn_forward(case.x, case.w, steps=case.steps, out=out),
                (T, B, H),
            ),
            "outputs alone": (
                lambda out: recurrence.rnn_forward(case.x, case.w, steps=case.steps, states=False)[
                    1
                ],
                (outputs, B, k),
            ),
            "scan": (
                lambda out: recurrence.linear_scan(case.u, case.d, case.W, case.a, out=out),
                (T, B, H),
            ),
            "reverse scan": (
                lambda out: recurrence.linear_scan(case.u, case.d, case.W, reverse=True, out=out),
                (T, B, H),
            ),
            "backward": (
                lambda out: recurrence.rnn_backward(
                    case.x, case.h, case.w, case.gs, steps=case.steps, out=out
                ),
                (N,),
            ),
            "product": (
                lambda out: case.product(
                    rank_one=True, structural=0.3, damping=0.2, scale=0.7, out=out
                ),
                (N,),
            ),
        }
        for name, (call, shape) in ops.items():
            with hf.use_backend("reference"):
                want = call(None)
            want = want if isinstance(want, tuple) else (want,)
            buffer = torch.full((want[0].shape[0], *shape), torch.nan)
            with as_cuda() as device:
                for out in (None, buffer):
                    got = call(out)
                    got = got if isinstance(got, tuple) else (got,)
                    if out is not None and name != "outputs alone":
                        assert got[0] is out, name
                    for g, w in zip(got, want, strict=True):
                        close(g, w, of.tolerance(torch.float32, size))
            assert device.launched, name

    @pytest.mark.parametrize("kind", loss.KINDS)
    @pytest.mark.parametrize("expanded", [False, True], ids=["own", "expanded"])
    def test_loss_branches(as_cuda: Callable[[], Any], kind: str, expanded: bool) -> None:
        draw = torch.Generator().manual_seed(0)
        T, B, k = 3, 5, 4
        s = torch.randn(1, T, B, k, generator=draw)
        y = torch.rand(1, T, B, k, generator=draw)
        if kind == "softmax":
            y = torch.randint(k, (1, T, B), generator=draw)
        mask = torch.rand(1, T, B, generator=draw) < 0.7
        if expanded:
            s, mask = s.expand(2, T, B, k), mask.expand(2, T, B)
        if kind == "poisson":
            y = (3 * y).round()
        c = loss.loss_curvature(kind, s, y, mask)
        calls: list[Callable[[Tensor | None], Tensor]] = [
            lambda out: loss.loss_value(kind, s, y, mask, scale=0.3),
            lambda out: loss.loss_gradient(kind, s, y, mask, scale=0.3, out=out),
            lambda out: loss.loss_curvature(kind, s, y, mask, out=out),
            lambda out: loss.loss_hessian_product(c, s, rank_one=kind == "softmax", out=out),
        ]
        for call in calls:
            with hf.use_backend("reference"):
                want = call(None)
            with as_cuda():
                close(call(None), want.expand_as(call(None)), 1e-6)
                buffer = torch.full((s.shape[0], T, B, k), torch.nan)
                close(call(buffer), want.expand_as(call(None)), 1e-6)

    def test_loss_refuses_the_same(as_cuda: Callable[[], Any]) -> None:
        s, y = torch.zeros(1, 2, 3, 4), torch.full((1, 2, 3), 4)
        with as_cuda():
            for op in (loss.loss_value, loss.loss_gradient):
                with pytest.raises(ValueError, match=r"targets: got class 4, need 0\.\.3"):
                    op("softmax", s, y, None)
                with pytest.raises(ValueError, match=r"mask: got -2\.0+, need finite"):
                    op("squared", s, s, torch.full((1, 2, 3), -2.0))

    def test_conjugate_gradient_branches(as_cuda: Callable[[], Any]) -> None:
        draw = torch.Generator().manual_seed(0)
        for N in (1, 1025):
            x, r, p, b, M = (torch.rand(N, generator=draw) + 0.1 for _ in range(5))
            for preconditioner in (None, M):
                results = []
                for served in (False, True):
                    v = [t.clone() for t in (x, r, p)]
                    z = v[1] if preconditioner is None else torch.empty(N)
                    with as_cuda() if served else hf.use_backend("reference"):
                        rz = conjugate_gradient.dot(v[1], v[1])
                        scalars = conjugate_gradient.cg_update(
                            v[0], v[1], z, v[2], p, b, rz, preconditioner
                        )
                        conjugate_gradient.cg_direction(v[2], z, 0.5)
                    results.append((torch.tensor([rz, *scalars], dtype=torch.float64), *v))
                for want, got in zip(*results, strict=True):
                    torch.testing.assert_close(got, want, rtol=3e-6, atol=1e-6)

    def test_momentum_branches(as_cuda: Callable[[], Any]) -> None:
        draw = torch.Generator().manual_seed(0)
        for N, full in ((1, False), (1025, True)):
            nets = torch.rand(4, 3, N, generator=draw)
            rate = torch.rand(3, generator=draw, dtype=torch.float64)
            ends = []
            for served in (False, True):
                theta, v, g, ahead = nets.clone()
                given: dict[str, Any] = {"learning_rate": rate, "momentum": 0.9}
                if full:
                    active = torch.tensor([True, False, True])
                    given |= {"lookahead": 0.5, "l2": rate, "ahead": ahead, "active": active}
                with as_cuda() if served else hf.use_backend("reference"):
                    momentum_update(theta, v, g.expand(3, N) if full else g[:1], **given)
                    point = lookahead_point(theta, v, 0.9)
                ends.append((theta, v, ahead, point))
            for want, got in zip(*ends, strict=True):
                torch.testing.assert_close(got, want, rtol=3e-6, atol=1e-6)

    @pytest.mark.parametrize("kind", ["SGD", "ClassicalMomentum", "NAG"])
    def test_momentum_end_to_end(as_cuda: Callable[[], Any], kind: str) -> None:
        x = torch.rand(5, 7, 2, generator=torch.Generator().manual_seed(1))

        def run() -> Tensor:
            model = hf.RNN(2, 9, 2, generator=torch.Generator().manual_seed(0))
            opt = getattr(hf, kind)(model.parameters(), 0.05, weight_decay=0.01)

            def closure() -> Tensor:
                opt.zero_grad()
                value = model(x).square().mean()
                value.backward()
                return value

            for _ in range(4):
                opt.step(closure)
            return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

        want = run()
        with as_cuda():
            got = run()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("problem", ["squared last", "softmax all"])
    def test_hessian_free_end_to_end(as_cuda: Callable[[], Any], problem: str) -> None:
        """Three steps take the same decisions as on the CPU backend, and end where it ends."""
        softmax = problem.startswith("softmax")
        k = 3 if softmax else 1
        draw = torch.Generator().manual_seed(1)
        batches = []
        for _ in range(3):
            x = torch.rand(6, 12, 2, generator=draw)
            y = torch.randint(k, (6, 12), generator=draw) if softmax else x.cumsum(0)[..., :1]
            mask = None
            if not softmax:
                mask = torch.zeros(6, 12, dtype=torch.bool)
                mask[-1] = True
            batches.append(hf.Batch(x, y, mask))
        loss_of = hf.losses.SoftmaxCrossEntropy() if softmax else hf.losses.SquaredError()

        def run() -> tuple[list[hf.StepStats], list[Tensor]]:
            model = hf.RNN(2, 10, k, generator=torch.Generator().manual_seed(0))
            options = {**hf.presets.rnn2011, "damping": 1.0, "cg_max_iter": 25}
            opt = hf.HessianFree(model, loss_of, **options)
            stats = [opt.step(hf.Batches(gradient=batches)) for _ in range(3)]
            return stats, [p.detach() for p in model.parameters()]

        want, there = run()
        with as_cuda() as device:
            got, here = run()
        scans = {f"{name}_registers" for name in ("rnn_forward", "rnn_tangent", "linear_scan")}
        assert scans <= set(device.launched)
        for a, b in zip(got, want, strict=True):
            assert (a.accepted, a.cg_stop, a.alpha) == (b.accepted, b.cg_stop, b.alpha)
            # Not the iterate that was kept: two of them may differ in the eighth digit.
            assert (a.cg_iterations, a.products) == (b.cg_iterations, b.products)
            assert a.loss_after == pytest.approx(b.loss_after, rel=1e-3)
            assert a.rho == pytest.approx(b.rho, rel=2e-2)
        for p, q in zip(here, there, strict=True):
            torch.testing.assert_close(p, q, rtol=2e-2, atol=2e-3)

    @pytest.mark.parametrize(("H", "T", "form"), [(10, 4, "tensor_2"), (130, 2, "cluster_3")])
    def test_recurrence_on_tensor_cores_end_to_end(
        as_cuda: Callable[[], Any], H: int, T: int, form: str
    ) -> None:
        """A step under "bf16x6" ends where that of the CPU backend does; no scan is by FFMA."""
        draw = torch.Generator().manual_seed(1)
        B = 9 if H < 100 else 2
        batch = hf.Batch(torch.rand(T, B, 2, generator=draw), torch.rand(T, B, 1, generator=draw))

        def run() -> Tensor:
            model = hf.RNN(2, H, 1, generator=torch.Generator().manual_seed(0))
            options = {**hf.presets.rnn2011, "damping": 1.0, "cg_max_iter": 4 if H < 100 else 2}
            hf.HessianFree(model, hf.losses.SquaredError(), **options).step(batch)
            return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

        want = run()
        with as_cuda() as device, hf.set_matmul_precision("bf16x6"):
            got = run()
        ran = {name for name in device.launched if name.startswith(("rnn", "linear"))}
        assert ran == {f"rnn_{op}_{form}" for op in ("forward", "tangent", "backward")}
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)

    class Tagger(torch.nn.Module):
        """torch's own two layers, read at every step."""

        def __init__(self, kind: type[torch.nn.RNNBase]) -> None:
            super().__init__()
            self.rnn, self.out = kind(2, 6, num_layers=2), torch.nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.rnn(x)[0])
            return out

    @pytest.mark.parametrize(
        ("cell", "masked"),
        [
            ("LSTM", False),
            ("GRU", True),
            pytest.param("LSTM", True, marks=pytest.mark.slow),
            pytest.param("GRU", False, marks=pytest.mark.slow),
        ],
    )
    def test_gated_nets_end_to_end(as_cuda: Callable[[], Any], cell: str, masked: bool) -> None:
        """A step of hf.LSTM and one of nn.LSTM end where those of the CPU backend do."""
        draw = torch.Generator().manual_seed(1)
        x, y = (torch.rand(5, 9, 2, generator=draw) for _ in range(2))
        mask = torch.rand(5, 9, generator=draw) < 0.6 if masked else None

        def run() -> Tensor:
            ends = []
            for own in (True, False):
                torch.manual_seed(0)
                model = getattr(hf, cell)(2, 8, 2) if own else Tagger(getattr(torch.nn, cell))
                opt = hf.HessianFree(
                    model, hf.losses.SquaredError(), damping=1.0, structural=0.1, cg_max_iter=4,
                    preconditioner="fisher", batch_dim=1,
                )  # fmt: skip
                opt.step(hf.Batch(x, y, mask))
                ends += [p.detach().reshape(-1) for p in model.parameters()]
            return torch.cat(ends)

        want = run()
        with as_cuda() as device:
            got = run()
        ran = {name for name in device.launched if not name.startswith("dense")}
        assert ran == {f"{cell.lower()}_{op}" for op in ("forward", "tangent", "backward")}
        torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-4)

    @pytest.mark.parametrize("precision", ["ieee", "tf32x3", "bf16x6"])
    def test_dense_layers_end_to_end(
        as_cuda: Callable[[], Any],
        precision: Any,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """An update of a net, by the compiled kernels and by Triton's, as on the CPU backend."""
        timed: list[Any] = []

        def seconds(device: torch.device, calls: dict[Any, Callable[[], object]]) -> Any:
            """The six products are the faster ones; either form runs."""
            for call in calls.values():
                call()
            timed.append(device)
            device_launched.clear()
            return dict(zip(calls, (2.0, 1.0), strict=True))

        monkeypatch.setattr(measured, "seconds", seconds)
        monkeypatch.setattr(measured, "_file", lambda device: tmp_path / "choices.txt")
        measured._choices.cache_clear()
        x = torch.rand(23, 7, generator=torch.Generator().manual_seed(1))

        def run() -> Tensor:
            model = hf.Autoencoder([7, 9, 3], generator=torch.Generator().manual_seed(0))
            opt = hf.HessianFree(
                model, hf.losses.LogisticCrossEntropy(), damping=1.0, cg_max_iter=5
            )
            opt.step(hf.Batch(x, x))
            return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

        from tensor_dot import six_products  # needs Triton

        want = run()
        with as_cuda() as device, hf.set_matmul_precision(precision), six_products():
            device_launched = device.launched
            got = run()
        measured._choices.cache_clear()
        assert bool(timed) == (precision == "bf16x6")
        ops = {name.rpartition("_")[0] for name in device.launched}
        every = {f"dense_{op}" for op in ("forward", "rforward", "backward", "gradient")}
        assert ops == (every if precision == "ieee" else set())
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)

    def test_two_runs_give_the_same_bits(as_cuda: Callable[[], Any]) -> None:
        draw = torch.Generator().manual_seed(2)
        batch = hf.Batch(torch.rand(5, 9, 2, generator=draw), torch.rand(5, 9, 1, generator=draw))
        ends = []
        for _ in range(2):
            model = hf.RNN(2, 8, 1, generator=torch.Generator().manual_seed(0))
            opt = hf.HessianFree(model, hf.losses.SquaredError(), damping=0.5, cg_max_iter=12)
            with as_cuda():
                opt.step(batch)
            ends.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        assert torch.equal(*ends)

    def test_autograd_of_the_rnn(as_cuda: Callable[[], Any]) -> None:
        model = hf.RNN(2, 9, 2, generator=torch.Generator().manual_seed(0))
        x = torch.rand(5, 7, 2, generator=torch.Generator().manual_seed(1))
        want = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        with as_cuda() as device:
            got = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        assert {"rnn_forward_registers", "linear_scan_registers"} <= set(device.launched)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)
