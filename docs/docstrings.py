"""What mkdocstrings asks while it reads the sources: docstrings are rewritten for the site.

A field whose meaning is a comment behind it has that as its docstring.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from docstring_text import as_markdown, of_comment


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **options: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
        elif obj.is_attribute and (said := of_comment(obj.lines)) is not None:
            obj.docstring = griffe.Docstring(as_markdown(said), parent=obj)
