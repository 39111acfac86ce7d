"""The compiled ops under Python threads, after a fork, and with a changing number of workers."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.bindings import dispatch, sparse
from hfcore.bindings import recurrence as ops
from hfcore.bindings.momentum import Step, momentum_update
from hfcore.bindings.net import Net as DenseNet
from hfcore.bindings.net import net_gradient, net_update
from hfcore.kernels.recurrence import RnnShape, RnnWeights

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Net:
    """A fixed net and data; ``run`` gives the results of recurrence and sparse ops as one tuple."""

    def __init__(self, B: int, H: int, dtype: torch.dtype, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        T, n, k = 7, 3, 2
        shape = RnnShape(n, H, k)

        def array(*size: int) -> Tensor:
            return torch.randn(1, *size, dtype=dtype, generator=generator)

        self.w = RnnWeights(*(array(*s) / H**0.5 for s in shape.shapes))
        self.x, self.v, self.gs = array(T, B, n), array(shape.numel), array(T, B, k)
        # Three entries a row where there are so many columns, every other row one fewer.
        index = torch.rand(H, H, generator=generator).topk(min(H, 3)).indices.sort().values
        index[::2, -1:] = index[::2, -2:][:, :1]
        self.pattern, self.value = sparse.ell_pattern(index, H), array(*index.shape)

    def run(self) -> tuple[Tensor, ...]:
        # use_backend is per context: each thread asks for the compiled form itself
        with hf.use_backend("cpu"):
            h, s = ops.rnn_forward(self.x, self.w)
            assert h is not None
            theta, velocity = self.v.clone(), self.v.clone()
            momentum_update(theta, velocity, self.v, learning_rate=0.1, momentum=0.9)
            cases, layer = h[0], self.w.W_hh.flatten(1)
            square = torch.cat([layer, self.w.b_h], 1).repeat(1, 2)  # two layers of H units
            H = cases.shape[2]
            shape = (H, H, H), ("tanh", "linear")
            losses, gradient = net_gradient(DenseNet("logistic", *shape), cases, cases, square)
            net, speed, one = square.clone(), square.clone(), cases[:1]
            step = Step(0.1, 0.9, 0.9)
            net_update(DenseNet("squared", *shape), one, one, net, speed, step)
            return (
                theta,
                velocity,
                losses,
                gradient,
                net,
                h,
                s,
                ops.linear_scan(h, h, self.w.W_hh, reverse=True),
                ops.rnn_backward(self.x, h, self.w, self.gs),
                ops.rnn_gauss_newton(self.x, h, self.w, self.v, self.gs.abs(), structural=0.1),
                sparse.ell_matmul(h[0], self.value, self.pattern),
                sparse.ell_matmul_t(h[0], self.value, self.pattern),
                sparse.ell_gradient(h[0], h[0], self.pattern),
                sparse.ell_scan(h, h, self.value, self.pattern, h, reverse=True),
                sparse.ell_hidden(h, self.value, self.pattern),
            )


def same(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def nets() -> list[Net]:
    sizes = [(1, 3), (17, 12), (33, 25), (100, 40), (250, 16), (64, 1)]
    return [
        Net(B, H, dtype, i)
        for i, (B, H) in enumerate(sizes)
        for dtype in (torch.float32, torch.float64)
    ]


def test_many_python_threads() -> None:
    cases = nets()
    want = [net.run() for net in cases]

    def work(i: int) -> bool:
        return same(cases[i % len(cases)].run(), want[i % len(cases)])

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(240), timeout=120))


def test_scratch_is_given_back_between_calls_of_other_threads() -> None:
    net, stop = Net(100, 40, torch.float32, 0), threading.Event()
    want = net.run()

    def release() -> None:
        while not stop.is_set():
            dispatch.native().release_scratch()
            dispatch.native().scratch_bytes()

    other = threading.Thread(target=release)
    other.start()
    try:
        assert all(same(net.run(), want) for _ in range(15))
    finally:
        stop.set()
        other.join(60)
    assert not other.is_alive()
    dispatch.native().release_scratch()
    assert dispatch.native().scratch_bytes() == 0
    assert same(net.run(), want)
    assert dispatch.native().scratch_bytes() > 0


def test_number_of_workers_changes_between_calls() -> None:
    cases = nets()
    want = [net.run() for net in cases]
    for count in (1, 40, 2, 7, 1, 3, 40, 1):
        torch.set_num_threads(count)
        for net, expected in zip(cases, want, strict=True):
            assert same(net.run(), expected)


def test_workers_that_fell_asleep_wake_again() -> None:
    """Pauses around the time that a worker stays awake for, on a changing number of them."""
    net = Net(100, 40, torch.float32, 0)
    want = net.run()
    for count in (2, 5, 2, 3):
        torch.set_num_threads(count)
        for microseconds in (0, 20, 40, 50, 60, 80, 200, 2000) * 5:
            time.sleep(microseconds * 1e-6)
            assert same(net.run(), want)


def test_failed_call_leaves_the_next_one_alone() -> None:
    net = Net(33, 25, torch.float64, 0)
    want = net.run()
    for _ in range(20):
        with pytest.raises(ValueError, match="steps"):
            dispatch.native().rnn_forward(
                net.x, *net.w, torch.tensor([99]), 0, None, torch.zeros(1, 1, 33, 2).double(), 2
            )
        assert same(net.run(), want)


def wait(pid: int, seconds: float) -> int:
    """Exit status of a child, which is killed if it hangs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    pytest.fail(f"the child still ran after {seconds} s")


def forked(check: Callable[[], bool]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            code = 0 if check() else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return wait(pid, 60)


@needs_fork
def test_fork_after_use() -> None:
    net = Net(100, 40, torch.float32, 0)
    want = net.run()
    assert forked(lambda: all(same(net.run(), want) for _ in range(5))) == 0
    assert same(net.run(), want)


@needs_fork
def test_fork_of_a_fork() -> None:
    net = Net(33, 25, torch.float64, 0)
    want = net.run()

    def child() -> bool:
        return same(net.run(), want) and forked(lambda: same(net.run(), want)) == 0

    assert forked(child) == 0


@needs_fork
def test_fork_while_other_threads_compute() -> None:
    """At the fork the pool is in use by a thread that the child does not have."""
    net, small, stop = Net(250, 40, torch.float32, 0), Net(17, 12, torch.float64, 1), False
    want, want_small = net.run(), small.run()
    good: list[bool] = []

    def busy() -> None:
        while not stop:
            good.append(same(net.run(), want))

    others = [threading.Thread(target=busy) for _ in range(2)]
    for other in others:
        other.start()
    try:
        codes = [forked(lambda: same(small.run(), want_small)) for _ in range(30)]
    finally:
        stop = True
        for other in others:
            other.join(60)
    assert codes == [0] * 30
    assert good
    assert all(good)


def limited(megabytes: int) -> Callable[[], None]:
    """Allow this process so much more address space; gives the function that lifts the limit."""
    import resource

    with open("/proc/self/statm") as status:
        used = int(status.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    ceiling = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, ceiling))
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))


def fill(megabytes: int) -> list[Tensor]:
    """All room for blocks of this size, also what tests before left free in the allocator."""
    blocks = []
    while True:
        try:
            blocks.append(torch.empty(megabytes * 2**20, dtype=torch.uint8))
        except RuntimeError:
            return blocks


limits_memory = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc and limits the address space"
)


class Scan:
    """y_t = y_{t-1} / 2 + 1 in 600 sequences, which are 19 tiles or more; all memory at hand."""

    def __init__(self) -> None:
        self.u, self.y = torch.ones(1, 3, 600, 16), torch.empty(1, 3, 600, 16)
        self.W = torch.eye(16).unsqueeze(0) / 2
        self.want = torch.tensor([1.0, 1.5, 1.75]).view(1, 3, 1, 1).expand_as(self.u).contiguous()

    def good(self, threads: int) -> bool:
        self.y.zero_()
        dispatch.native().linear_scan(self.u, self.u, self.W, None, False, self.y, threads)
        return torch.equal(self.y, self.want)


@needs_fork
@limits_memory
def test_fewer_threads_than_asked_for() -> None:
    """A call whose threads the system will not start runs on those that it has."""
    scan = Scan()

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    def check() -> bool:
        torch.set_num_threads(1)  # torch's own pool does not survive a refused thread
        lift = limited(60)  # 200 stacks of 8 MiB do not fit
        good, few = scan.good(200), threads()
        good = good and scan.good(200) and scan.good(1)
        lift()
        return good and few < 200 and scan.good(200) and threads() > few

    assert forked(check) == 0


@needs_fork
@limits_memory
def test_out_of_memory() -> None:
    """What a worker cannot allocate is a MemoryError of this call and no other."""
    T, H = 20_000, 64
    scan, net = Scan(), Net(33, H, torch.float32, 0)
    out, last = torch.empty_like(net.v), torch.tensor([T - 1])
    x, h = torch.ones(1, T, 33, 3), torch.full((1, T, 33, H), 0.9)
    c = torch.zeros(1, 1, 33, 2)

    def product(threads: int) -> None:
        """Structural damping keeps a tile's tangents of all steps: 80 MB or more for a worker."""
        dispatch.native().rnn_gauss_newton(
            x, h, *net.w, net.v, c, False, last, 0, 1.0, 0.1, 0.0, out, threads
        )

    def check() -> bool:
        torch.set_num_threads(1)
        good = scan.good(3)
        lift = limited(1)
        filled = fill(40)
        lift()
        lift = limited(40)
        for threads in (1, 2, 3):
            try:
                product(threads)
                good = False
            except MemoryError:
                good = good and scan.good(threads)
        lift()
        filled.clear()
        product(2)
        return good and bool(out.isfinite().all())

    assert forked(check) == 0


def _child(net: Net, pipe: Connection) -> None:
    pipe.send([a.tolist() for a in net.run()])
    pipe.close()


@needs_fork
def test_multiprocessing_fork() -> None:
    net = Net(17, 12, torch.float64, 0)
    want = net.run()
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(net, there))
    process.start()
    try:
        assert here.poll(60), "the child sent nothing"
        got = tuple(torch.tensor(a, dtype=torch.float64) for a in here.recv())
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert same(got, want)
