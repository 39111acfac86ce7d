"""``hfcore report``, and what runs say where optional libraries are absent."""

from __future__ import annotations

import base64
import csv
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from command_line import invoke
from hfcore.training.report import write_report

TINY = ["train", "addition", "--length", "6", "--hidden", "5", "--batch-size", "16", "--quiet"]
TINY += ["--test-size", "40", "--solved-below", "0", "--minibatches", "0.2"]
SWEEP = ["sweep", "addition", "--length", "6", "--hidden", "5", "--learning-rate", "0.1,0.01"]
SWEEP += ["--updates", "4", "--test-every", "2", "--test-size", "20", "--batch-size", "8"]
SWEEP += ["--quiet"]
PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Tables by the heading above them, and pictures; tags must be closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.pictures: list[bytes] = []
        self._open: list[str] = []
        self._heading = ""
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            source = dict(attrs)["src"] or ""
            self.pictures.append(base64.b64decode(source.removeprefix("data:image/png;base64,")))
        elif tag != "meta":
            self._open.append(tag)
        if tag == "h2":
            self._heading = ""
        if tag == "table":
            self.tables[self._heading] = []
        if tag == "tr":
            self.tables[self._heading].append([])
        if tag in ("td", "th"):
            self.tables[self._heading][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "h2":
            self._heading += data
        elif self._open and self._open[-1] in ("td", "th"):
            self.tables[self._heading][-1][-1] += data


def test_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "run<1>"
    assert invoke(*TINY, "--run-dir", str(folder)).exit_code == 0
    result = invoke("report", str(folder))
    assert result.output == f"written: {folder / 'report.html'}\n"
    text = (folder / "report.html").read_text()
    assert "<h1>run&lt;1&gt;: addition</h1>" in text
    page = Page(text)
    assert len(page.pictures) == 3
    assert all(picture.startswith(PNG) for picture in page.pictures)
    settings = dict(map(tuple, page.tables["Settings"][1:]))
    assert settings["problem.length"] == "6"
    ending = dict(map(tuple, page.tables["How it ended"][1:]))
    assert ending["reason"] == "budget"
    header, *steps = page.tables["The last 20 steps"]
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len(logged)
    assert float(steps[-1][header.index("loss_after")]) == pytest.approx(
        logged[-1]["loss_after"], rel=1e-4
    )


def test_a_sweep(tmp_path: Path) -> None:
    folder, out = tmp_path / "sweep", tmp_path / "page.html"
    assert invoke(*SWEEP, "--run-dir", str(folder)).exit_code == 0
    assert invoke("report", str(folder), "--out", str(out)).exit_code == 0
    page = Page(out.read_text())
    assert len(page.pictures) == 2
    header, *runs = page.tables["Runs"]
    with (folder / "runs.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    assert len(runs) == len(expected) == 2
    for row, full in zip(runs, expected, strict=True):
        shown = row[header.index("test_loss")]
        assert shown == f"{float(full['test_loss']):.5g}" != full["test_loss"]
        assert row[header.index("escaped_at")] == "–"
        assert row[header.index("method")] == full["method"]
    assert "The last 20 steps" not in page.tables
    assert ["runs", "2"] in page.tables["Settings"]


def test_what_is_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        result = invoke("report", str(folder))
        assert result.exit_code == 1
        assert result.output == f"Error: {folder}: is no run folder, it has no config.json\n"
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_and_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("matplotlib", "tensorboard"):
        monkeypatch.setitem(sys.modules, library, None)
    folder = tmp_path / "run"
    result = invoke(*TINY, "--run-dir", str(folder))
    assert result.exit_code == 0, result.output
    for what, library in (("plots", "matplotlib"), ("TensorBoard events", "tensorboard")):
        assert re.search(
            rf"^not written +no {what}: {library} is not installed \(pip install {library}\)$",
            result.output,
            re.M,
        )
    assert not (folder / "tensorboard").exists()
    assert (folder / "metrics.jsonl").stat().st_size > 0
    assert "drawn when training ends" in write_report(folder).read_text()
    refused = invoke("reproduce", "fig5")
    assert refused.exit_code == 1
    assert "hfcore reproduce draws plots: pip install matplotlib" in refused.output


def test_check_curvature_of_a_function_that_takes_arguments() -> None:
    result = invoke("check-curvature", "math:sqrt")
    assert result.exit_code == 1
    assert result.output.startswith(
        "Error: math:sqrt: cannot be called without arguments: TypeError: "
    )
    assert len(result.output.splitlines()) == 1


def test_imports_that_can_wait() -> None:
    """``import hfcore`` alone loads none of the slow libraries that only some calls need."""
    from python_process import python

    slow = (
        "numba",
        "scipy.sparse",
        "scipy.linalg",
        "scipy.fft",
        "rich",
        "matplotlib",
        "tensorboard",
    )
    code = f"import sys, hfcore; print([name for name in {slow} if name in sys.modules])"
    assert python("-c", code).stdout == "[]\n"
