"""What is pasted into a shell reaches the program as it was meant."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from dreambooth.shared.commands import command_line, dreambooth_command

HARD = ["plain", "/my runs/sks é", "it's", 'say "no"', "a&b", "$HOME", "100%", "(a)", "", "a<2", "-m"]


def test_a_shell_gives_each_word_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert shlex.split(command_line("program", *HARD)) == ["program", *HARD]
    assert dreambooth_command("resume", "/my runs/sks") == "python3 -m dreambooth resume '/my runs/sks'"


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
def test_a_real_shell_does_so_too() -> None:
    line = command_line(sys.executable, "-c", "import sys; print(sys.argv[1:])", *HARD)
    found = subprocess.run(["sh", "-c", line], capture_output=True, check=True, encoding="utf-8")
    assert found.stdout.strip() == repr(HARD)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (r"C:\runs\sks", r"C:\runs\sks"),
        (r"C:\My runs\sks", r'"C:\My runs\sks"'),
        ("C:\\My runs\\", '"C:\\My runs\\\\"'),
        (r"C:\a&b", r'"C:\a&b"'),
        ("a<2", '"a<2"'),
        ('a \\"b', '"a \\\\\\"b"'),
        ("", '""'),
    ],
)
def test_on_windows_double_quotes_stand_around_what_its_shells_would_read(
    word: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert command_line("resume", word) == f"resume {line}"
