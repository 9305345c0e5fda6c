"""`python3 -m tests [pytest's arguments]`: everything that has to pass, on a fresh machine too.

Makes the environment with the tests' libraries if it is missing, then runs ruff, mypy and pytest one after the
other and ends with the first that fails. tests/host is the WebUI's side: pytest runs once more for it, in an
environment of its own with the WebUI's pins (tests/hostenv.py). The last line is pytest's own summary.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if not __package__:  # run by its path, as the environment's Python is told to
    sys.path[0] = str(ROOT)

HOST = "tests/host"
TRAINER_VARIABLE = "DREAMBOOTH_TESTS_TRAINER"  # the Python that the WebUI's side's tests train with
NOTHING_COLLECTED = 5  # pytest's exit code
CHECKS = (
    ("ruff", "check", "--quiet", "."),
    ("ruff", "format", "--check", "--quiet", "."),
    ("mypy", "--no-error-summary"),
)


def main() -> int:
    from dreambooth import environment
    from dreambooth.shared.errors import DreamboothError

    try:
        environment.enter(__file__, sys.argv[1:], tests=True)
    except DreamboothError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    # Two OpenMP threads on a busy machine with two cores make small runs up to ten times slower.
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    environ[TRAINER_VARIABLE] = sys.executable
    runs = [(sys.executable, command) for command in CHECKS]
    arguments = _arguments(sys.argv[1:], host=False)
    if arguments is not None:
        _fetch_references()
        runs.append((sys.executable, ("pytest", *arguments)))
    arguments = _arguments(sys.argv[1:], host=True)
    python = _host_python() if arguments is not None else None
    if arguments is not None and python:
        runs.append((python, ("pytest", *arguments)))
    return _run_all(runs, environ)


def _arguments(told: list[str], *, host: bool) -> list[str] | None:
    """What one of the two pytests is given of the arguments, None if they name the other's tests alone."""
    paths = [one for one in told if one.startswith("tests/")]
    mine = [one for one in paths if one.startswith(HOST) == host]
    if paths and not mine:
        return None
    options = [one for one in told if one not in paths]
    return [*options, *(mine or ([HOST] if host else []))]


def _fetch_references() -> None:
    from tests import references

    references.make(_tell)


def _host_python() -> str | None:
    from tests import hostenv

    base = hostenv.find_base()
    if base is None:
        print(
            f"== {HOST} is left out: the WebUI's pins need Python 3.11 or 3.10, and there is none", flush=True
        )
        return None
    return str(hostenv.make(base, _tell))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run_all(runs: list[tuple[str, tuple[str, ...]]], environ: dict[str, str]) -> int:
    """Runs each until one fails. A selection (`-k`) that leaves one of the two pytests nothing to do is no failure."""
    empty = 0
    for python, command in runs:
        print(f"== {' '.join(command)}", flush=True)
        done = subprocess.run([python, "-m", *command], cwd=ROOT, env=environ).returncode
        empty += done == NOTHING_COLLECTED
        if done not in (0, NOTHING_COLLECTED):
            print(f"{command[0]} failed", file=sys.stderr, flush=True)
            return done
    tests = [command for _, command in runs if command[0] == "pytest"]
    return NOTHING_COLLECTED if empty == len(tests) else 0


if __name__ == "__main__":
    sys.exit(main())
