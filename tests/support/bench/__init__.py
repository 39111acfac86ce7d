"""The checkout's ``bench``, without its root on the path: that would hide the installed hfcore."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[3] / "bench")]
