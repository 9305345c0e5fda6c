"""The tree of errors that a user may see. Each says what happened, where, and what to do.

DreamboothError      something went wrong that is not the input's fault (exit code 1)
├── InputError       the user's input is wrong; said before any work starts (exit code 2)
├── RunFailed        a run ended without a result (a NaN loss, no disk left, nothing learned; exit code 1)
└── StoppedByUser    the run was stopped after its state was saved (exit code 130)
"""

from __future__ import annotations


class DreamboothError(Exception):
    """What happened (`what`), where (`where`: a file, a setting's name) and what to do about it (`remedy`)."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  What to do: {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{advice}"


class InputError(DreamboothError):
    """The input is wrong: a setting, a path, an image, a model file."""

    exit_code = 2


class RunFailed(DreamboothError):
    """A run ended without a result; its last good state is kept."""


class StoppedByUser(DreamboothError):
    """The user stopped the run; its state was saved and `resume` goes on from it."""

    exit_code = 130
