"""`python3 -m dreambooth COMMAND`, on a bare Python too: enters the trainer's environment, then runs the command.

Wrong usage and `--help` are answered before an environment is made.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import NoReturn

if not __package__:  # run by its path, as the environment's Python is told to
    sys.path[0] = str(Path(__file__).resolve().parent.parent)


def _check_usage(arguments: list[str]) -> None:
    from dreambooth import cli

    cli.parse(arguments)


def main() -> int:
    """Runs the command that the command line names and gives its exit code."""
    from dreambooth import environment
    from dreambooth.shared.errors import DreamboothError

    arguments = sys.argv[1:]
    try:
        environment.enter(__file__, arguments, before_making=lambda: _check_usage(arguments))
    except DreamboothError as error:
        print(error, file=sys.stderr)  # noqa: T201  (there is no command yet that could say it)
        return error.exit_code
    from dreambooth import allocator, cli, lean

    allocator.prepare()
    lean.start()
    code = cli.main(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _leave(code)
    return code


def _leave(code: int) -> NoReturn:
    """Ends one of several processes at once: taking apart what joined them may wait for one that has left already."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
