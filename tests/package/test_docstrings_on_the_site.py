"""Docstrings become Markdown that shows what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def text() -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "docstring_text.py"
    spec = importlib.util.spec_from_file_location("docstring_text", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MARKDOWN = {
    # Formulas are no emphasis, nor is code touched.
    "h_t = W x_t, at θ_*": r"h\_t = W x\_t, at θ\_\*",
    "``h_t [T,B,H]`` and `a*b`": "`h_t [T,B,H]` and `a*b`",
    ":class:`~hfcore.RNN_` is": "`hfcore.RNN_` is",
    "in layers::\n\n    c_t = f c_t\n\nand h_t": "in layers:\n\n    c_t = f c_t\n\nand h\\_t",
    ">>> v_0 * 2\n1_0": "```pycon\n>>> v_0 * 2\n1_0\n```",
    "**Not yet**: a * b": r"**Not yet**: a \* b",
    # Lists of arguments and of errors.
    "Args:\n    a_b, *c: of W_x.\n        More.\n    d: 1": (
        "**Arguments**\n\n- **a\\_b, \\*c**: of W\\_x. More.\n- **d**: 1\n\n"
    ),
    "Raises:\n    ValueError: a size.\n": "**Raises**\n\n- **ValueError**: a size.\n\n",
    "Parameters\n----------\nx : ``[N]``\n": "**Arguments**\n\n- **x**: `[N]`\n\n",
    "Raises ValueError: so.": "Raises ValueError: so.",
}


@pytest.mark.parametrize("docstring", MARKDOWN)
def test_a_docstring_on_the_site(text: ModuleType, docstring: str) -> None:
    assert text.as_markdown(docstring) == MARKDOWN[docstring]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("    loss: float  # ½‖r‖² before", "½‖r‖² before."),
        ("    rho: float  # of the last try.", "Of the last try."),
        ("    damping: float  # λ of it", "λ of it."),
        ("    loss: float", None),
        ("    x: Any = None  # type: ignore[misc]", None),
        ("    text: str = 'a  # b'", None),
    ],
)
def test_a_comment_behind_a_field_says_what_it_is(
    text: ModuleType, line: str, said: str | None
) -> None:
    assert text.of_comment([line]) == said


def test_a_field_over_several_lines_says_nothing(text: ModuleType) -> None:
    assert text.of_comment(["    x: int = (  # one", "    1)"]) is None
