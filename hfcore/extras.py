"""Libraries that are used where they are installed, and named where they are not."""

from __future__ import annotations

import logging
from importlib.util import find_spec

logger = logging.getLogger("hfcore")


def missing(library: str, consequence: str) -> str | None:
    """A sentence that says what is left out without ``library``, None if that is installed.

    It is logged as well, for those who call from Python.
    """
    if find_spec(library) is not None:
        return None
    sentence = f"{consequence}: {library} is not installed (pip install {library})"
    logger.info(sentence)
    return sentence
