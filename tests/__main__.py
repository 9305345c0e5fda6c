"""`python3 -m tests [pytest's arguments]`: everything that has to pass, on a fresh machine too.

Makes the environment with the tests' libraries if it is missing, then runs ruff, mypy and pytest one after the
other and ends with the first that fails. tests/host is the WebUI's side: pytest runs once more for it, beside the
other, in an environment of its own with the WebUI's pins (tests/hostenv.py). The last line is pytest's own summary.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if not __package__:  # run by its path, as the environment's Python is told to
    sys.path[0] = str(ROOT)

HOST = "tests/host"
TRAINER_VARIABLE = "DREAMBOOTH_TESTS_TRAINER"  # the Python that the WebUI's side's tests train with
NOTHING_COLLECTED = 5  # pytest's exit code
Run = tuple[str, tuple[str, ...]]  # a Python, and what it runs with its arguments
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


def _run_all(runs: list[Run], environ: dict[str, str]) -> int:
    """Runs each until one fails. A selection (`-k`) that leaves one of the two pytests nothing to do is no failure.

    The two pytests of a run without arguments go side by side, each with one thread: half of the host's time is a
    browser's and a server's. What the second one says comes after the first one's end.
    """
    tests = [run for run in runs if run[1][0] == "pytest"]
    together = len(tests) == 2 and len(tests[0][1]) == 1
    ends: list[int] = []
    for run in runs:
        if together and run is tests[0]:
            ends += _run_both(*tests, environ)
        elif not (together and run is tests[1]):
            ends.append(_run(run, environ))
        if any(_is_bad(code) for code in ends):
            print(f"{run[1][0]} failed", file=sys.stderr, flush=True)
            return next(filter(_is_bad, ends))
    return NOTHING_COLLECTED if ends.count(NOTHING_COLLECTED) == len(tests) > 0 else 0


def _is_bad(code: int) -> bool:
    return code not in (0, NOTHING_COLLECTED)


def _run(run: Run, environ: dict[str, str]) -> int:
    python, command = run
    print(f"== {' '.join(command)}", flush=True)
    return subprocess.run([python, "-m", *command], cwd=ROOT, env=environ).returncode


def _run_both(first: Run, second: Run, environ: dict[str, str]) -> list[int]:
    """Both at once; what the second says is shown after the first one's end, also where that failed."""
    python, command = second
    with tempfile.TemporaryFile() as said:
        beside = subprocess.Popen(
            [python, "-m", *command], cwd=ROOT, env=environ, stdout=said, stderr=subprocess.STDOUT
        )
        ends = [_run(first, environ)]
        ends.append(beside.wait())
        said.seek(0)
        print(f"== {' '.join(command)}", flush=True)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    return ends


if __name__ == "__main__":
    sys.exit(main())
