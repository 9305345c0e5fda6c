"""The tree of errors that a user may see. Each says what happened, where, and what to do.

DreamboothError      something went wrong that is not the input's fault (exit code 1)
├── InputError       the user's input is wrong; said before any work starts (exit code 2)
│   └── SeveralErrors  in several places at once (problems.py)
├── RunFailed        a run ended without a result (a NaN loss, no disk left, nothing learned; exit code 1)
│   └── FailsAgain     and would end in the same way if it went on: it takes other settings
└── StoppedByUser    the run was stopped after its state was saved (exit code 130)
"""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

_in_short = reprlib.Repr()
_in_short.maxstring = _in_short.maxother = _in_short.maxlong = 80


def quoted(value: object) -> str:
    """A value as messages show it: text in quotes, no longer than a line, backslashes single as their owner wrote them."""
    return _in_short.repr(value).replace("\\\\", "\\")


class DreamboothError(Exception):
    """What happened (`what`), where (`where`: a file, a setting's name) and what to do about it (`remedy`).

    `setting` is the name of the setting that it is about, where `where` says something else: a form puts the reason
    beside that field. A concept's is `concepts[0].class_prompt`, the first concept's number being 0. `more` is what
    programs are told besides, as plain JSON values by name.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        remedy: str = "",
        setting: str = "",
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(what)
        self.more = dict(more or {})
        self.what = what
        self.where = where
        self.remedy = remedy
        self.setting = setting

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  What to do: {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{advice}"

    def as_json(self, *, form: str = "") -> dict[str, str]:
        """`text`, `where` (the setting, if there is one) and `remedy`, for who shows it beside a field.

        `form` is the file that the settings came from, which goes without saying where a setting is named.
        """
        obvious = not self.where or (form != "" and self.where.startswith(form))
        named = obvious or not self.setting or self.where == self.setting
        text = self.what if named else f"{self.where}: {self.what}"
        return {"text": text, "where": self.setting or self.where, "remedy": self.remedy}


class InputError(DreamboothError):
    """The input is wrong: a setting, a path, an image, a model file."""

    exit_code = 2


class RunFailed(DreamboothError):
    """A run ended without a result; its last good state is kept."""


class FailsAgain(RunFailed):
    """A run that would end in the same way if it went on, since it repeats its steps: it is trained anew, with `change`
    (`key=value`) for what a command line is to be told."""

    def __init__(
        self, what: str, *, where: str = "", remedy: str = "", setting: str = "", change: str = ""
    ) -> None:
        super().__init__(what, where=where, remedy=remedy, setting=setting)
        self.change = change


class StoppedByUser(DreamboothError):
    """The user stopped the run; its state was saved and `resume` goes on from it."""

    exit_code = 130


@contextlib.contextmanager
def concerning(setting: str) -> Iterator[None]:
    """What goes wrong in the block is about this setting, unless it says so of another one."""
    try:
        yield
    except DreamboothError as error:
        error.setting = error.setting or setting
        raise
