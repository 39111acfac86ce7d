"""Public functions with tensors say in their docstrings which shapes those have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("hfcore", "bindings", "kernels")

# [T,B,k], [P], [], [*, n, n]: brackets that hold sizes and no types of Python's or torch's.
BRACKETS = re.compile(r"\[([^\[\]\n=:\"']*)\]")
TYPES = re.compile(r"\b(Tensor|int|float|str|bool|None|Any|object)\b")
ARRAYS = ("Tensor", "torch.Tensor", "np.ndarray")
# What takes parameters takes those of any model; what gives them knows its own.
PARAMETERS = ("nn.Parameter", "torch.nn.Parameter")

# Methods that torch calls, by the base class that says how.
CALLED_BY_TORCH = {
    "forward": ("Module", "Function"),
    "setup_context": ("Function",),
    "jvp": ("Function",),
    "backward": ("Function",),
    "vmap": ("Function",),
}

EXEMPT = {
    "bindings.checks.check_tensor": "its argument says which shape the tensor must have",
}


SOME = '''
class Base:
    def apply(self, R: Tensor) -> Tensor:
        """L R ``[N]``."""

class Derived(Base):
    def apply(self, R: Tensor) -> Tensor:
        return R

class Door(Protocol):
    def at(self, theta: Tensor) -> float:
        """f at ``theta [N]``."""

class Serves:
    def at(self, theta: Tensor) -> float:
        return 0.0

class Other:
    def apply(self, R: Tensor) -> Tensor:
        """Something."""

    def extra(self, t: "Tensor | None") -> None:
        """Something."""

    def _private(self, t: Tensor) -> None: ...

class Net(Module):
    """Outputs ``[B,k]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x

def silent(t: Tensor) -> None: ...

def handed(f: Callable[[Tensor], Tensor]) -> None: ...
'''


@dataclass(frozen=True)
class Function:
    """A function or method of the source: where, in which class (None: of the module), what."""

    path: Path
    owner: ast.ClassDef | None
    node: ast.FunctionDef

    @property
    def name(self) -> str:
        module = ".".join(self.path.relative_to(ROOT).with_suffix("").parts)
        return ".".join([module, *([self.owner.name] if self.owner else []), self.node.name])

    @property
    def public(self) -> bool:
        names = [*self.path.relative_to(ROOT).with_suffix("").parts, *self.name.split(".")]
        return all(not name.startswith("_") or re.fullmatch("__.*__", name) for name in names)

    @property
    def docstring(self) -> str:
        """That of a constructor is its class's as well."""
        texts = [ast.get_docstring(self.node)]
        if self.owner is not None and self.node.name == "__init__":
            texts.append(ast.get_docstring(self.owner))
        return "\n".join(text for text in texts if text)

    @property
    def arguments(self) -> list[ast.arg]:
        a = self.node.args
        rest = [arg for arg in (a.vararg, a.kwarg) if arg is not None]
        return [*a.posonlyargs, *a.args, *a.kwonlyargs, *rest]

    @property
    def signature(self) -> tuple[str, ...]:
        return (self.node.name, *(arg.arg for arg in self.arguments if arg.arg != "self"))

    def has_tensors(self) -> bool:
        """Whether it takes or gives one; those of a function that it is handed are not its own."""
        annotations = [arg.annotation for arg in self.arguments]
        returns = self.node.returns
        return any(names_tensor(a) for a in annotations if a is not None) or (
            returns is not None and names_tensor(returns, (*ARRAYS, *PARAMETERS))
        )

    def is_overload(self) -> bool:
        return any(ast.unparse(d).endswith("overload") for d in self.node.decorator_list)


def names_tensor(annotation: ast.AST, types: tuple[str, ...] = ARRAYS) -> bool:
    """Whether it names one outside of ``Callable[...]``."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in (
        "Callable",
        "Literal",
    ):
        return False
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return names_tensor(ast.parse(annotation.value), types)
    if isinstance(annotation, ast.Name | ast.Attribute):
        return ast.unparse(annotation) in types
    return any(names_tensor(node, types) for node in ast.iter_child_nodes(annotation))


def names_a_shape(docstring: str) -> bool:
    return any(not TYPES.search(inside) for inside in BRACKETS.findall(docstring))


def base_names(owner: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).split("[")[0].split(".")[-1] for base in owner.bases]


def has_tensor_fields(owner: ast.ClassDef) -> bool:
    fields = [node for node in owner.body if isinstance(node, ast.AnnAssign)]
    return any(
        names_tensor(field.annotation)
        for field in fields
        if isinstance(field.target, ast.Name) and not field.target.id.startswith("_")
    )


class Source:
    """All functions and classes of the folders of the checkout, as syntax trees."""

    def __init__(self) -> None:
        self.trees = {
            path: ast.parse(path.read_text(encoding="utf-8"))
            for folder in FOLDERS
            for path in sorted((ROOT / folder).rglob("*.py"))
        }
        self.functions = list(self._functions())
        self.owners: dict[str, list[ast.ClassDef]] = {}
        for tree in self.trees.values():
            for node in tree.body:
                if isinstance(node, ast.ClassDef):
                    self.owners.setdefault(node.name, []).append(node)
        documented = [f for f in self.functions if names_a_shape(f.docstring)]
        self.methods = {(id(f.owner), f.node.name) for f in documented if f.owner is not None}
        self.protocols = {
            f.signature
            for f in documented
            if f.owner is not None and "Protocol" in base_names(f.owner)
        }

    def _functions(self) -> Iterator[Function]:
        for path, tree in self.trees.items():
            for node in tree.body:
                if isinstance(node, ast.FunctionDef):
                    yield Function(path, None, node)
                elif isinstance(node, ast.ClassDef):
                    for item in node.body:
                        if isinstance(item, ast.FunctionDef):
                            yield Function(path, node, item)

    def documented_elsewhere(self, function: Function) -> bool:
        """By a base class, or by a protocol that has a method (or a form's function) like it.

        What torch calls, of a module or an autograd function, is described by its class.
        """
        if function.node.name == "__init__":
            return False
        if function.signature in self.protocols:
            return True
        waiting = base_names(function.owner) if function.owner is not None else []
        if function.owner is not None and set(waiting).intersection(
            CALLED_BY_TORCH.get(function.node.name, ())
        ):
            return names_a_shape(ast.get_docstring(function.owner) or "")
        while waiting:
            for base in self.owners.get(waiting.pop(), []):
                if (id(base), function.node.name) in self.methods:
                    return True
                waiting.extend(base_names(base))
        return False

    def without_shapes(self) -> dict[str, Function]:
        return {
            f.name: f
            for f in self.functions
            if f.public
            and f.has_tensors()
            and not f.is_overload()
            and not names_a_shape(f.docstring)
            and not self.documented_elsewhere(f)
        }


@pytest.fixture(scope="module")
def source() -> Source:
    return Source()


def test_public_functions_with_tensors_name_shapes(source: Source) -> None:
    missing = source.without_shapes()
    assert sorted(missing.keys() - EXEMPT.keys()) == []
    assert sorted(EXEMPT.keys() - missing.keys()) == [], "exemptions that are no longer needed"


def test_public_classes_with_tensors_name_shapes(source: Source) -> None:
    """Fields of data classes, named tuples and protocols are documented in their class."""
    missing = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path, tree in source.trees.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith("_")
        and has_tensor_fields(node)
        and not names_a_shape(ast.get_docstring(node) or "")
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("docstring", "named"),
    [
        ("Outputs ``s [T,B,k]``.", True),
        ("A scalar ``[]``, or ``[1 or G,...]``.", True),
        ("Any shape ``[…]``.", True),
        ("A list[Tensor] or dict[str, Tensor].", False),
        ("The values at x[0:3] of options['a'].", False),
        ("No shape at all.", False),
    ],
)
def test_what_counts_as_a_shape(docstring: str, named: bool) -> None:
    assert names_a_shape(docstring) is named


def test_the_walk_finds_what_is_missing(tmp_path, monkeypatch) -> None:
    """Of a package with one of each kind, what has no shape and nothing that documents it."""
    (tmp_path / "hfcore").mkdir()
    (tmp_path / "hfcore" / "some.py").write_text(SOME)
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert sorted(Source().without_shapes()) == [
        "hfcore.some.Other.apply",
        "hfcore.some.Other.extra",
        "hfcore.some.silent",
    ]


def test_docstrings_are_sentences(source: Source) -> None:
    """They begin and end as sentences do: no fragment that trails off, nothing left open."""
    bad = []
    for path, tree in source.trees.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node)
                if text is not None and not re.search(r"[.!?:)`\]»]$", text.split("\n\n")[0]):
                    bad.append(f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}")
    assert bad == []
