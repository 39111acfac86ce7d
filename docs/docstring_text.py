"""Docstrings as Markdown, for the reference on the site.

They are plain text with a few marks of reStructuredText. Roles and double backticks become code,
examples and what follows ``::`` become blocks, the lists of arguments and errors that the sources
have become lists, and what is left is prose, in which ``_`` and ``*`` stand for themselves. No
parser of sections is used: text may follow a list of arguments, and one entry may name several.
"""

from __future__ import annotations

import io
import re
import tokenize

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`")
EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.M)
LITERAL = re.compile(r"::$((?:\n[ ]*)*\n)(?=    )", re.M)
INDENTED = r"^{}:\n((?:    .*(?:\n|\Z)|\n(?=    ))+)"
GOOGLE = {
    title: re.compile(INDENTED.format(name), re.M)
    for name, title in (("Args", "Arguments"), ("Raises", "Raises"), ("Returns", "Returns"))
}
NUMPY = re.compile(r"^Parameters\n-+\n((?:.+(?:\n|\Z))+)", re.M)
ENTRY = re.compile(r"^([\w*.\\]+(?:, [\w*.\\]+)*) ?: ?")
# What prose is not: fenced and indented blocks, code, addresses of links.
NOT_PROSE = re.compile(r"(^ *```[^`]*```$|^ {4}\S[^\n]*$|`[^`]*`|\]\([^)]*\))", re.M)
STRONG = re.compile(r"(\*\*(?=\S)[^*\n]+\*\*)")


def as_markdown(text: str) -> str:
    """A docstring for the site."""
    text = ROLE.sub(lambda match: f"`{match[1]}`", text).replace("``", "`")
    text = LITERAL.sub(r":\1", text)
    text = EXAMPLE.sub(lambda match: _example(match[0], match[1]), text)
    for title, section in GOOGLE.items():
        text = section.sub(
            lambda match, title=title: _entries(title, re.sub("^    ", "", match[1], flags=re.M)),
            text,
        )
    text = NUMPY.sub(lambda match: _entries("Arguments", match[1]), text)
    return "".join(
        part if i % 2 else _prose(part) for i, part in enumerate(NOT_PROSE.split(text))
    ).replace(BOLD, "**")


def of_comment(lines: list[str]) -> str | None:
    """What is said of a field behind it: ``loss: float  # before the step`` is "Before the step."

    ``lines`` are those of the field; None where nothing is said.
    """
    if len(lines) != 1:
        return None
    tokens = tokenize.generate_tokens(io.StringIO(lines[0].strip()).readline)
    comments = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    if not comments or comments[0].startswith(("type:", "noqa")):
        return None
    said = comments[0]
    first = said[0].upper() if said[0].isascii() else said[0]  # λ is not Λ
    return f"{first}{said[1:]}{'' if said.endswith('.') else '.'}"


BOLD = "\x00"  # stands for ** until prose is escaped


def _prose(text: str) -> str:
    """Without emphasis that nobody meant; what is ``**so**`` was meant."""
    parts = STRONG.split(text)
    return "".join(
        part if i % 2 else re.sub(r"([_*])", r"\\\1", part) for i, part in enumerate(parts)
    )


def _example(text: str, indent: str) -> str:
    return f"{indent}```pycon\n{text}\n{indent}```"


def _entries(title: str, text: str) -> str:
    """``name: what it is`` with indented further lines, as a list."""
    items: list[str] = []
    for line in text.splitlines():
        if line and not line.startswith(" "):
            items.append(ENTRY.sub(lambda match: f"{BOLD}{match[1]}{BOLD}: ", line))
        elif items:
            items[-1] += f" {line.strip()}"
    return f"{BOLD}{title}{BOLD}\n\n" + "".join(f"- {item}\n" for item in items) + "\n"
