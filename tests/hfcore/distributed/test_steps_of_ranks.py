"""Steps of several processes: those of one, together to the last bit, or an error on all."""

from __future__ import annotations

import time

import pytest
import torch

from ranks import Failed, Server, cases


@pytest.mark.parametrize("kind", ["rnn", "module"])
def test_steps_are_those_of_one_process(ranks: Server, kind: str) -> None:
    whole = cases.steps(None, kind=kind)
    bits = cases.steps(None, kind=kind, reduction="exact")
    for size in (2, 3):
        found = ranks.run(size, "steps", kind=kind)
        assert not any(isinstance(one, Failed) for one in found), found
        for one in found:
            assert one["stats"] == bits["stats"]
            for theta, same, near in zip(
                one["thetas"], bits["thetas"], whole["thetas"], strict=True
            ):
                assert torch.equal(theta, same)
                # Sums in another order, through six iterations of CG in each of three steps.
                assert torch.allclose(theta, near, rtol=1e-7, atol=1e-9)
    fast = ranks.run(2, "steps", kind=kind, reduction="fast")
    assert fast[0]["stats"] == fast[1]["stats"]
    for a, b, near in zip(fast[0]["thetas"], fast[1]["thetas"], whole["thetas"], strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, near, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"preconditioner": "ggn_diagonal", "diagonal_probes": 2},
        {"scale_damping": 0.1, "preconditioner": None},
        {"structural": 0.2, "trust_radius": 0.5, "preconditioner": "jacobi"},
        {"curvature": "hessian_fd", "cg_max_iter": 3},
        {"curvature": "fisher", "damping_window": (0.5, 0.9), "rho": "undamped"},
    ],
    ids=lambda options: next(iter(options.values())),
)
def test_every_part_of_a_step_has_one_pattern_of_bits(ranks: Server, options) -> None:
    alone = cases.steps(None, kind="rnn", count=2, reduction="exact", **options)
    found = ranks.run(3, "steps", kind="rnn", count=2, **options)
    for one in found:
        assert not isinstance(one, Failed), one
        assert one["stats"] == alone["stats"]
        assert torch.equal(one["thetas"][-1], alone["thetas"][-1])


def test_the_first_rank_decides_where_all_begin(ranks: Server) -> None:
    found = ranks.run(2, "steps", kind="mlp", spoil="start", count=1)
    right = cases.steps(None, kind="mlp", count=1, reduction="exact")
    for one in found:
        assert torch.equal(one["thetas"][0], right["thetas"][0])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("options", "cg_max_iter: is 6 on rank 0 and 4 on rank 2, need the same on every rank"),
        ("dtype", "parameter layers.0.weight: is [4, 3] torch.float64 on rank 0 and [4, 3] torch."),
        ("model", "parameter layers.0.weight: is [4, 3] torch.float64 on rank 0 and [5, 3] torch."),
        ("parameters", "parameters: rank 2 has other values than rank 0, need the same net on ev"),
        ("data", "data: rank 2 has other values than rank 0, need the same data on every rank"),
    ],
)
def test_what_differs_is_named_on_every_rank(ranks: Server, spoil: str, message: str) -> None:
    for one in ranks.run(3, "steps", kind="mlp", spoil=spoil):
        assert isinstance(one, Failed)
        assert one.kind == "ValueError"
        assert message in one.message


def test_an_error_of_one_rank_is_one_of_all(ranks: Server) -> None:
    first, second, third = ranks.run(3, "failing")
    assert second.message == "inputs: holds NaN or Inf, need finite values"
    for other in (first, third):
        assert other.kind == "RankFailed"
        assert other.message == f"rank 1 failed: ValueError: {second.message}"


def test_a_rank_that_ends_within_cg_ends_the_others(ranks: Server) -> None:
    began = time.monotonic()
    first, second = ranks.run(2, "leaving")
    assert second == Failed("status", "7")
    assert first.kind == "RankLost"
    assert "a process of the 2 has ended" in first.message
    assert time.monotonic() - began < 20


def test_nobody_drifts_silently(ranks: Server) -> None:
    without, with_one = ranks.run(2, "refusals")
    assert not isinstance(without, Failed), without
    for name, message in zip(["HessianFree", "HessianFree"], without[:2], strict=True):
        assert message == (
            "ValueError: process_group: got None in one of 2 processes, which would drift apart; "
            f"need hf.{name}(…, process_group=torch.distributed.group.WORLD) to work together, or "
            "local=True for a net of this process alone"
        )
    rest = [
        "which averages gradients over 2 processes, beside local=True",
        "local: got True beside a process_group, need one of the two",
        "TypeError: process_group: got int, need a ProcessGroup",
        "cases: got 'own' without a process_group",
        "reduction: got 'slow', need one of 'exact', 'fast'",
        "strategy: got 'measure'",
        "need hf.GaussNewton(…, process_group=",
        "need hf.Jacobian(…, local=True)",
        "need hf.NAG(…, process_group=",
        "need hf.SGD(…, process_group=",
        "need hf.ClassicalMomentum(…, process_group=",
        "need hf.AdaptiveNAG(…, local=True)",
        "need hf.train(…, process_group=",
        *["curvature='hessian_fd') takes a module cut by fully_shard"] * 2,
        "local: got True for parameters that are cut over the processes",
        "parameters of this FSDPMLP are cut over the processes",
    ]
    for message, wanted in zip(without[2:], rest, strict=True):
        assert wanted in message
    assert with_one[-1] == ("process_group: this process is not in it, need a group that it is in")


def test_processes_that_join_later_are_seen(ranks: Server) -> None:
    for said in ranks.run(2, "drift"):
        assert said.count("got None in one of 2 processes") == 2


@pytest.mark.parametrize("wrapper", ["ddp", "fully_shard", ""])
def test_closures_under_wrappers_and_without(ranks: Server, wrapper: str) -> None:
    whole = cases.closures(None, wrapper="")
    for one in ranks.run(2, "closures", wrapper=wrapper):
        assert not isinstance(one, Failed), one
        # Differences leave two thirds of the digits: the cases in another order in one process
        # move the losses by 1e-7.
        assert one["losses"] == pytest.approx(whole["losses"], rel=1e-6)
        assert torch.allclose(one["theta"], whole["theta"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["sgd", "cm", "nag"])
def test_updates_with_momentum(ranks: Server, method: str) -> None:
    whole = cases.averages(None, method=method)
    for size in (2, 3):
        found = ranks.run(size, "averages", method=method)
        for one in found:
            assert not isinstance(one, Failed), one
            assert torch.equal(one, found[0])
            assert torch.allclose(one, whole, rtol=1e-12, atol=1e-14)
