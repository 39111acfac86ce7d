"""hf.train of modules that return several things: outputs= reaches steps, errors and resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import hfcore as hf
from hfcore.examples import language_model
from hfcore.training import ConfigMismatchError, Limits, RunFolderError

IGNORED = language_model.IGNORED
OWN = hf.losses.SoftmaxCrossEntropy(ignore_index=IGNORED, mean="weights")


@pytest.fixture(autouse=True)
def _draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcore.training.plots.draw_plots", lambda *a, **options: ())


class Texts(Dataset[dict[str, Tensor]]):
    """Items that are mappings with labels, as ``transformers`` collates them."""

    def __init__(self, count: int, seed: int) -> None:
        self.all = language_model.sequences(count, torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.all["labels"])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {key: value[i] for key, value in self.all.items()}


def loaders() -> dict[str, Any]:
    """Batches of unequal numbers of labels, the last one smaller."""
    return {
        "data": DataLoader(Texts(20, 0), batch_size=8, shuffle=True),
        "validation": DataLoader(Texts(11, 1), batch_size=4),
        "test": DataLoader(Texts(5, 2), batch_size=4),
    }


def causal(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return language_model.CausalModel()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def logits(output: Any) -> Any:
    return output.logits


def hessian_free(model: nn.Module, outputs: Any = "logits") -> hf.HessianFree:
    return hf.HessianFree(model, OWN, outputs=outputs, damping=0.3, cg_max_iter=3)


def run(
    model: nn.Module,
    make: Callable[[nn.Module], torch.optim.Optimizer],
    iterations: int,
    **options: Any,
) -> hf.TrainResult:
    given = {**loaders(), **options}
    stop = Limits(iterations=iterations)
    data = given.pop("data")
    return hf.train(
        model,
        data,
        make(model),
        stop=stop,
        progress=False,
        test_every=1,
        checkpoint_every=1,
        **given,
    )


def mean_over_labels(model: nn.Module, data: DataLoader[Any]) -> float:
    """torch's own loss of all labels together."""
    whole = data.dataset.all  # type: ignore[attr-defined]
    with torch.no_grad():
        model.eval()
        return float(model(**whole).loss)


@pytest.mark.parametrize("outputs", ["logits", logits], ids=["name", "function"])
def test_a_module_in_the_manner_of_transformers_goes_through_whole(outputs, tmp_path) -> None:
    whole, cut = causal(), causal()
    result = run(whole, lambda m: hessian_free(m, outputs), 4, run_dir=tmp_path / "whole")
    assert result.validation_error == pytest.approx(
        mean_over_labels(whole, loaders()["validation"]), rel=1e-5
    )
    assert result.test_error == pytest.approx(mean_over_labels(whole, loaders()["test"]), rel=1e-5)
    for iterations, resume in ((2, False), (4, True)):
        model = cut if not resume else causal(seed=9)
        run(
            model, lambda m: hessian_free(m, outputs), iterations,
            run_dir=tmp_path / "cut", resume=resume,
        )  # fmt: skip
    assert torch.equal(flat(model), flat(whole))
    with pytest.raises(ConfigMismatchError, match="outputs"):
        run(
            causal(), lambda m: hessian_free(m, lambda o: o.logits), 5,
            run_dir=tmp_path / "cut", resume=True,
        )  # fmt: skip


def test_lambdas_of_one_place_are_told_apart(tmp_path) -> None:
    def attempt(outputs: Any, resume: bool) -> None:
        model = causal()
        run(
            model, lambda m: hessian_free(m, outputs), 1 + resume, run_dir=tmp_path / "run",
            resume=resume, validation=None, test=None,
        )  # fmt: skip

    first, same, other = lambda o: o.logits, lambda o: o.logits, lambda o: 2 * o.logits
    attempt(first, False)
    with pytest.raises(ConfigMismatchError, match=r"<lambda>\(logits\)' there and"):
        attempt(other, True)
    attempt(same, True)


@pytest.mark.parametrize("loss", ["own", "torch"])
@pytest.mark.parametrize("make", [hf.NAG, torch.optim.SGD])
def test_first_order_training_takes_outputs(make, loss, tmp_path) -> None:
    """The steps are those of the module that returns its scores alone."""

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = causal()

        def forward(self, **given: Tensor) -> Tensor:
            scores: Tensor = self.inner(**given).logits
            return scores if loss == "own" else scores.transpose(1, 2)

    criterion = OWN if loss == "own" else nn.CrossEntropyLoss(ignore_index=IGNORED)
    select = "logits" if loss == "own" else lambda o: o.logits.transpose(1, 2)

    def optimizer(m: nn.Module) -> torch.optim.Optimizer:
        return make(m.parameters(), lr=0.1)

    model, plain = causal(), Scores()
    options: dict[str, Any] = {"loss": criterion, "run_dir": tmp_path / "run"}
    result = run(model, optimizer, 3, outputs=select, **options)
    want = run(plain, optimizer, 3, loss=criterion)
    assert torch.equal(flat(model), flat(plain))
    assert result.validation_error == want.validation_error
    assert want.validation_error == pytest.approx(
        mean_over_labels(model, loaders()["validation"]), rel=1e-5
    )
    run(model, optimizer, 4, outputs=select, resume=True, **options)
    with pytest.raises(ConfigMismatchError, match="outputs"):
        run(model, optimizer, 5, outputs=1, resume=True, **options)


def test_outputs_that_do_not_fit_are_named() -> None:
    def sgd(m: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(m.parameters(), lr=0.1)

    for outputs, error, message in (
        (1.5, TypeError, "outputs: got float, need a key or attribute"),
        ("scores", ValueError, "outputs: the model returned ModelOutput, without 'scores'"),
        (None, TypeError, "outputs: the model returned ModelOutput, need one tensor.*'logits'"),
    ):
        with pytest.raises(error, match=message):
            run(causal(), sgd, 1, outputs=outputs, loss=OWN)
    with pytest.raises(ValueError, match="outputs: got 'loss', need 'logits' like the optimiser"):
        run(causal(), hessian_free, 1, outputs="loss")
    run(causal(), hessian_free, 1, outputs="logits")


def test_outputs_of_a_net_with_kernels_are_taken_through_autograd() -> None:
    """The fused net would not see them."""
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    options: dict[str, Any] = {"stop": Limits(iterations=1), "progress": False}
    loss = hf.losses.SquaredError()

    def mlp() -> hf.MLP:
        generator = torch.Generator().manual_seed(0)
        return hf.MLP([3, 2], ["linear"], dtype=torch.float64, generator=generator)

    for make in (lambda m, s: hf.NAG(m, 0.1), lambda m, s: hf.HessianFree(m, loss, outputs=s)):
        model = mlp()
        select = lambda s: s[:, :1]  # noqa: E731
        before = float(0.5 * (model(x).detach()[:, :1] - y).square().sum() / 6)
        result = hf.train(
            model,
            (x, y),
            make(model, select),
            loss=loss,
            outputs=select,
            validation=(x, y),
            **options,
        )
        after = float(0.5 * (model(x).detach()[:, :1] - y).square().sum() / 6)
        assert result.validation_error == pytest.approx(after)
        assert after < before
        assert torch.equal(model.layers[0].weight[1], mlp().layers[0].weight[1])


def test_load_run_tests_on_the_runs_outputs(tmp_path) -> None:
    for name, outputs in (("name", "logits"), ("function", logits)):
        model, folder = causal(), tmp_path / name
        run(model, lambda m, o=outputs: hessian_free(m, o), 1, run_dir=folder)
        stored = json.loads((folder / "config.json").read_text())
        assert ("function" in stored["outputs"]) == (name == "function")
        loaded = hf.load_run(folder, model=causal)
        want = mean_over_labels(model, loaders()["test"])
        data = loaders()["test"]
        if name == "function":
            assert loaded.optimizer is None
            with pytest.raises(ValueError, match=r"chose them by the function .*logits"):
                loaded.test(data, loss=OWN)
        else:
            assert loaded.test(data, loss=OWN) == pytest.approx(want, rel=1e-5)
        assert loaded.test(data, loss=OWN, outputs=logits) == pytest.approx(want, rel=1e-5)
    with pytest.raises(RunFolderError, match="does not know how to build"):
        hf.load_run(folder)
