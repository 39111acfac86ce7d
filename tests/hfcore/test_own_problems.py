"""Problems of one's own that lack something, or give something else than they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.training import Limits


class Sum:
    """Each step's sum of two numbers."""

    name, input_size, output_size, loss = "sum", 2, 1, hf.losses.SquaredError()

    def batch(
        self, size: int, generator: np.random.Generator, dtype: torch.dtype = torch.float32
    ) -> Any:
        x = torch.from_numpy(generator.standard_normal((4, size, 2))).to(dtype)
        return x, x.sum(-1, keepdim=True)

    def errors(self, s: Tensor, batch: hf.Batch) -> Any:
        return (s - batch.targets).square().sum((0, 2)).double()

    def config(self) -> dict[str, Any]:
        return {"name": self.name}


class LeftOut(hf.problems.Problem):
    """Derived, without three of the methods."""

    name, input_size, output_size, loss = "left out", 2, 1, hf.losses.SquaredError()
    batch = Sum.batch
    config = Sum.config


def trained(problem: Any, **options: Any) -> hf.TrainResult:
    model = hf.RNN(2, 3, 1)
    opt = hf.HessianFree(model, hf.losses.SquaredError(), damping=1.0)
    stop = Limits(iterations=1)
    return hf.train(
        model, problem, opt, batch_size=6, test_size=6, stop=stop, progress=False, **options
    )


def test_a_batch_may_be_a_plain_tuple() -> None:
    assert np.isfinite(trained(Sum()).test_error)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": None}, r"^data: got Other, a problem without loss; hf\.problems says"),
        ({"config": None}, r"^data: got Other, a problem without config; hf\.problems says"),
        ({"errors": None}, r"^data: got Other, a problem without wrong and errors; need one"),
        ({"batch": lambda *_: None}, r"^problem\.batch: gave NoneType, need hf\.Batch\("),
        ({"batch": lambda *_: (1,)}, r"^problem\.batch: gave 1 items, need hf\.Batch\("),
        ({"errors": lambda *_: 0.5}, r"^problem\.errors: gave float, need a tensor \[B\]"),
        (
            {"errors": lambda _self, s, _batch: s.square().sum(-1)},
            r"^problem\.errors: gave shape \[4, 6\], need a tensor \[B\]",
        ),
    ],
)
def test_what_is_missing_or_other_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        trained(type("Other", (Sum,), given)())


def test_methods_that_a_derived_class_leaves_out_are_missing() -> None:
    """Those of the protocol give None."""
    with pytest.raises(TypeError, match=r"^data: got LeftOut, a problem without wrong and errors"):
        trained(LeftOut())
    with pytest.raises(TypeError, match=r"^problem: got LeftOut, a problem without errors"):
        hf.sweep(LeftOut(), {"learning_rate": [0.1]}, updates=2, progress=False)
    result = trained(LeftOut(), metric=lambda s, y: (s - y).square().mean())
    assert np.isfinite(result.test_error)


def test_numbers_of_numpy_and_torch_may_tell_one_run_from_another(tmp_path: Path) -> None:
    """They are no JSON by themselves."""

    class Sized(Sum):
        def config(self) -> dict[str, Any]:
            return {"name": self.name, "length": np.int64(4), "of": torch.tensor(2)}

    class Every(hf.Callback):
        def config(self) -> Any:
            return {"steps": np.int64(3), "scale": np.float32(0.5)}

    options: dict[str, Any] = {"callbacks": [Every()], "run_dir": tmp_path / "run"}
    trained(Sized(), **options)
    config = hf.load_run(tmp_path / "run", model=lambda: hf.RNN(2, 3, 1)).config
    assert config["problem"] == {"name": "sum", "length": 4, "of": 2}
    assert config["callbacks"] == {"Every": {"steps": 3, "scale": 0.5}}
