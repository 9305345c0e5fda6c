"""Several things that are wrong at once: what one check finds hides nothing that another one finds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, TypeVar

from .errors import InputError

_P = ParamSpec("_P")
_T = TypeVar("_T")


class SeveralErrors(InputError):
    """Errors of the input that have nothing to do with each other. To whoever wants one it is the first."""

    def __init__(self, errors: Sequence[InputError]) -> None:
        first = errors[0]
        super().__init__(
            first.what, where=first.where, remedy=first.remedy, setting=first.setting, more=first.more
        )
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class Problems:
    """Asks checks that do not rest on each other, and keeps what they find."""

    def __init__(self) -> None:
        self._found: list[InputError] = []

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps an InputError that is raised in the block, and goes on behind it."""
        try:
            yield
        except InputError as error:
            self._found += all_of(error)

    def ask(self, check: Callable[_P, _T], *args: _P.args, **named: _P.kwargs) -> _T | None:
        """What `check` gives; None where it raised an InputError, which is kept."""
        with self.kept():
            return check(*args, **named)
        return None

    def tell(self) -> None:
        """Raises what was found: one error as it is, several as SeveralErrors."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            raise SeveralErrors(self._found)


def all_of(error: InputError) -> tuple[InputError, ...]:
    """Each error of one that may be several."""
    return error.errors if isinstance(error, SeveralErrors) else (error,)
