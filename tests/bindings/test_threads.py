"""Torch on one thread while the kernels keep theirs: restored whatever happens, whoever asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from threading import Barrier, Event, Thread

import pytest
import torch

import hfcore as hf
from hfcore.bindings import threads
from hfcore.bindings.dispatch import use_backend
from hfcore.bindings.threads import among_kernels, kernel_threads, torch_on_one_thread
from hfcore.optimisers.newton_step import NewtonStep


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def numbers() -> tuple[int, int]:
    return torch.get_num_threads(), kernel_threads()


def test_kernels_keep_what_torch_gives_up() -> None:
    assert numbers() == (3, 3)
    with torch_on_one_thread():
        assert numbers() == (1, 3)
        with torch_on_one_thread():
            assert numbers() == (1, 3)
        assert numbers() == (1, 3)
    assert numbers() == (3, 3)


def test_an_error_gives_them_back() -> None:
    with pytest.raises(KeyError), torch_on_one_thread():
        raise KeyError
    assert numbers() == (3, 3)
    assert threads._inside == 0


def test_two_at_once_each_have_all() -> None:
    """The second begins while torch is on one thread, and ends behind the first."""
    met, found = Barrier(2, timeout=30), []

    def second() -> None:
        with torch_on_one_thread():
            met.wait()  # both are inside
            found.append(numbers())
            met.wait()  # the first is gone
            met.wait()
            found.append(numbers())
        found.append(numbers())

    with torch_on_one_thread():
        other = Thread(target=second)
        other.start()
        met.wait()
        assert numbers() == (1, 3)
        met.wait()
    met.wait()
    other.join(30)
    assert found == [(1, 3), (1, 3), (3, 3)]
    assert numbers() == (3, 3)


@pytest.mark.parametrize(
    ("backend", "dtype", "torch_has"),
    [(None, torch.float32, 1), (None, torch.bfloat16, 3), ("reference", torch.float64, 3)],
)
def test_only_where_kernels_serve(backend: str | None, dtype: torch.dtype, torch_has: int) -> None:
    chosen = nullcontext() if backend is None else use_backend(backend)  # type: ignore[arg-type]
    with chosen, among_kernels(torch.zeros(3, dtype=dtype)):
        assert numbers() == (torch_has, 3)


@pytest.mark.parametrize("module", [False, True], ids=["hf.MLP", "torch module"])
def test_a_hessian_free_step_leaves_the_cores_to_the_kernels(
    module: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    run = NewtonStep.run

    def watched(*given: object) -> object:
        found.append(numbers())
        return run(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(NewtonStep, "run", watched)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2) if module else hf.MLP([3, 2], ["linear"])
    opt = hf.HessianFree(model, hf.losses.SquaredError())
    opt.step((torch.rand(5, 3), torch.rand(5, 2)))
    assert found == [(3, 3) if module else (1, 3)]
    assert numbers() == (3, 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_from_beside_a_step_has_its_own_numbers() -> None:
    """Another thread is inside while this one forks: its count does not go on in the child."""
    entered, done = Barrier(2, timeout=30), Event()

    def inside() -> None:
        with torch_on_one_thread():
            entered.wait()
            done.wait(30)

    thread = Thread(target=inside)
    thread.start()
    entered.wait()
    child = os.fork()
    if child == 0:
        found = [torch.get_num_threads()]
        torch.set_num_threads(1)
        with torch_on_one_thread():
            pass
        found += [torch.get_num_threads(), threads._inside]
        os._exit(0 if found == [3, 1, 0] else 1)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0
    assert numbers() == (3, 3)
