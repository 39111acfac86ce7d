"""A setting of the process that is a lasting call and a context manager at once."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Switch(Generic[T]):
    """Gives a context variable a value; as a context manager takes it back on exit."""

    def __init__(self, variable: ContextVar[T], value: T) -> None:
        self._variable = variable
        self._token = variable.set(value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._variable.reset(self._token)
