"""Commands as messages say them: what is copied into a shell does what it says, whatever is in a path."""

from __future__ import annotations

import re
import shlex
import sys

# what neither cmd nor PowerShell reads anything into
_PLAIN_ON_WINDOWS = re.compile(r"[\w\\/:.=+-]+")


def command_line(*words: object) -> str:
    """The words as one line for the platform's shell: shlex's quotes, double ones on Windows."""
    texts = [str(word) for word in words]
    return " ".join(map(_on_windows, texts)) if sys.platform == "win32" else shlex.join(texts)


def dreambooth_command(*words: object) -> str:
    """The line that runs a command of ours, such as `resume` with a run's folder."""
    return command_line("python3", "-m", "dreambooth", *words)


def _on_windows(word: str) -> str:
    if _PLAIN_ON_WINDOWS.fullmatch(word):
        return word
    # a program there takes backslashes before a double quote for pairs
    inner = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), word)
    return f'"{inner}"'
