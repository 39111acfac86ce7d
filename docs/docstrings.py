"""Docstrings are plain text with a few marks of reStructuredText; the site is Markdown.

Roles become code, examples blocks, and both kinds of lists of arguments that the sources have
become lists. No parser of sections is used: text may follow such a list, and one entry may name
several arguments.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`")
EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.M)
GOOGLE = re.compile(r"^Args:\n((?:    .*(?:\n|\Z)|\n(?=    ))+)", re.M)
NUMPY = re.compile(r"^Parameters\n-+\n((?:.+(?:\n|\Z))+)", re.M)
ENTRY = re.compile(r"^([\w*]+(?:, [\w*]+)*) ?: ?")


def as_markdown(text: str) -> str:
    """The same for the site."""
    text = ROLE.sub(lambda match: f"`{match[1]}`", text).replace("``", "`")
    text = EXAMPLE.sub(lambda match: _example(match[0], match[1]), text)
    text = GOOGLE.sub(lambda match: _arguments(re.sub("^    ", "", match[1], flags=re.M)), text)
    return NUMPY.sub(lambda match: _arguments(match[1]), text)


def _example(text: str, indent: str) -> str:
    return f"{indent}```pycon\n{text}\n{indent}```"


def _arguments(text: str) -> str:
    """``name: what it is`` with indented further lines, as a list."""
    items: list[str] = []
    for line in text.splitlines():
        if line and not line.startswith(" "):
            items.append(ENTRY.sub(lambda match: f"**{match[1]}**: ", line))
        elif items:
            items[-1] += f" {line.strip()}"
    return "**Arguments**\n\n" + "".join(f"- {item}\n" for item in items) + "\n"


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **options: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
