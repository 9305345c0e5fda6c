"""How long a page waits for an answer about a run of 10,000 steps, and how large the answer is.

    environments/host-tests-…/bin/python benchmarks/poll.py [--steps 10000] [--polls 200]

Starts the tests' stand-in for the WebUI (gradio 3.41.2) with the extension and asks its routes over HTTP, as the page
does every second. Prints a table; exit code 1 if one poll in twenty took 20 ms or more, or one was 50 KB.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests" / "host"))

from asking import ask  # noqa: E402
from long_runs import make_long_run  # noqa: E402
from servers import Server, install_extension, standin  # noqa: E402

SLOWEST_MS, LARGEST = 20.0, 50_000


def measured(server: Server, path: str, polls: int) -> tuple[list[float], list[int]]:
    """Times in ms and sizes in bytes of `polls` answers, sorted."""
    times, sizes = [], []
    for _ in range(polls):
        began = time.perf_counter()
        answer = ask(server.url, path)
        times.append((time.perf_counter() - began) * 1000)
        sizes.append(len(json.dumps(answer, separators=(",", ":"))))
    return sorted(times), sorted(sizes)


def until_read(server: Server) -> tuple[float, int]:
    """Polls a run that the WebUI has not seen yet until all of it is read: the slowest poll in ms, and how many."""
    slowest, polls, behind = 0.0, 0, True
    while behind:
        began = time.perf_counter()
        behind = ask(server.url, "/runs/long/live")["behind"]
        slowest, polls = max(slowest, (time.perf_counter() - began) * 1000), polls + 1
    return slowest, polls


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--polls", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        run = make_long_run(data / "dreambooth" / "runs", given.steps)
        install_extension(data)
        server = standin(data, "--skip-load-model-at-start").start()
        try:
            ask(server.url, "/page")
            with run.hold():  # as the trainer of a run that goes on does
                first, polls = until_read(server)
                offset = ask(server.url, "/runs/long/live")["offset"]
                rows = {
                    "a poll, whole": measured(server, "/runs/long/live", given.polls),
                    "a poll, nothing new": measured(server, f"/runs/long/live?since={offset}", given.polls),
                    "all runs": measured(server, "/runs", given.polls),
                }
        finally:
            server.stop()
    print(f"{given.steps:,} steps; read for the first time in {polls} polls, the slowest {first:.1f} ms\n")
    print("| asked | median ms | 95 of 100 ms | bytes |\n|---|---|---|---|")
    for name, (times, sizes) in rows.items():
        print(
            f"| {name} | {times[len(times) // 2]:.1f} | {times[int(len(times) * 0.95)]:.1f} | {sizes[-1]:,} |"
        )
    slow = max(times[int(len(times) * 0.95)] for name, (times, _) in rows.items() if "poll" in name)
    return int(slow >= SLOWEST_MS or max(sizes[-1] for _, sizes in rows.values()) >= LARGEST)


if __name__ == "__main__":
    sys.exit(main())
