"""`python3 -m tests [pytest's arguments]`: everything that has to pass, on a fresh machine too.

Makes the environment with the tests' libraries if it is missing, then runs ruff, mypy and pytest one after the
other and ends with the first that fails. The last line is pytest's own summary.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if not __package__:  # run by its path, as the environment's Python is told to
    sys.path[0] = str(ROOT)

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
    for command in (*CHECKS, ("pytest", *sys.argv[1:])):
        print(f"== {' '.join(command)}", flush=True)
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environ)
        if done.returncode:
            print(f"{command[0]} failed", file=sys.stderr, flush=True)
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
