"""Where data files come from: folders, the environment, downloads, and what is said when not."""

from __future__ import annotations

import hashlib
import io
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfcore.bindings.cache import cache_folder
from hfcore.data import DataFileError
from hfcore.data.files import DataFile

CONTENT = b"four score and seven"
URL = "https://example.org/set/digits.gz"
FILE = DataFile("set", "digits.gz", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), URL)

Serve = Callable[[bytes | Exception], list[str]]


@pytest.fixture(autouse=True)
def _no_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HFCORE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Answers every request with the given bytes or error; returns the list of requests."""

    def install(answer: bytes | Exception) -> list[str]:
        requests: list[str] = []

        def urlopen(url: str, timeout: float) -> Any:
            requests.append(url)
            if isinstance(answer, Exception):
                raise answer
            return io.BytesIO(answer)

        monkeypatch.setattr("urllib.request.urlopen", urlopen)
        return requests

    return install


def refusal(folder: Path | None = None, file: DataFile = FILE) -> str:
    """The error of reading, checked to be one sentence that says what to put where."""
    with pytest.raises(DataFileError) as caught:
        file.read(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert f"put {file.name} ({file.size} bytes, SHA-256 {file.sha256[:12]}…" in message
    assert f"from {URL}" in message
    assert "HFCORE_DATA" in message
    return message


@pytest.mark.parametrize("inside", ["", "set"], ids=["directly", "in_its_set"])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_reads_from_a_named_folder_without_a_request(
    inside: str, by: str, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = serve(CONTENT)
    (tmp_path / "data" / inside).mkdir(parents=True)
    (tmp_path / "data" / inside / FILE.name).write_bytes(CONTENT)
    if by == "environment":
        monkeypatch.setenv("HFCORE_DATA", str(tmp_path / "data"))
    assert FILE.read(tmp_path / "data" if by == "argument" else None) == CONTENT
    assert requests == []
    assert not cache_folder().exists()


def test_the_argument_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / FILE.name).write_bytes(CONTENT)
    monkeypatch.setenv("HFCORE_DATA", str(tmp_path))
    assert refusal(tmp_path / "other").startswith(f"{tmp_path / 'other' / FILE.name}: is not there")


def test_a_missing_file_of_a_named_folder_is_not_downloaded(tmp_path: Path, serve: Serve) -> None:
    requests = serve(CONTENT)
    refusal(tmp_path)
    assert requests == []


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE.name).write_bytes(CONTENT[:-1])
    assert f"is truncated, {FILE.size - 1} of {FILE.size} bytes" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", [CONTENT[:-1] + b"N", CONTENT + b"!"], ids=["flipped", "longer"]
)
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE.name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()[:12]
    assert f"is damaged or another file, its SHA-256 begins {digest}" in refusal(tmp_path)


def test_a_download_is_kept(serve: Serve) -> None:
    requests = serve(CONTENT)
    assert FILE.read() == CONTENT
    assert FILE.read() == CONTENT
    assert requests == [URL]
    assert [p.name for p in (cache_folder() / "set").iterdir()] == [FILE.name]


def test_a_damaged_copy_in_the_cache_is_fetched_again(serve: Serve) -> None:
    requests = serve(CONTENT)
    FILE.read()
    (cache_folder() / "set" / FILE.name).write_bytes(b"rotten")
    assert FILE.read() == CONTENT
    assert requests == [URL, URL]


@pytest.mark.parametrize("answer", [CONTENT[:3], b"<html>moved</html>" * 9], ids=["cut", "html"])
def test_a_wrong_download_is_refused_and_not_kept(answer: bytes, serve: Serve) -> None:
    serve(answer)
    assert refusal().startswith(f"{URL}: what it serves is ")
    assert not cache_folder().exists()


def test_no_network(serve: Serve) -> None:
    serve(urllib.error.URLError("no route to host"))
    assert "digits.gz: cannot be downloaded (<urlopen error no route to host>)" in refusal()


def test_a_cache_that_cannot_be_written(serve: Serve) -> None:
    serve(CONTENT)
    cache_folder().parent.mkdir()
    cache_folder().write_text("a file where the folder should be")
    with pytest.raises(DataFileError, match="set: cannot be written"):
        FILE.read()
