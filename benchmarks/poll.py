"""How long a page waits for an answer about a run of 10,000 steps, and how large the answer is.

    environments/host-tests-…/bin/python benchmarks/poll.py [--steps 10000] [--polls 200]

Starts the tests' stand-in for the WebUI (gradio 3.41.2) with the extension and asks its routes over HTTP, as the page
does every second: a living run, and the same run finished, at a WebUI that was started anew. Prints a table; exit code 1
if one poll in twenty took 20 ms or more, the first looks among them, or one was 50 KB.
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

from dreambooth.shared.events import EventLog  # noqa: E402
from dreambooth.shared.runfolder import RunFolder  # noqa: E402

SLOWEST_MS, LARGEST = 20.0, 50_000
Rows = dict[str, tuple[list[float], list[int]]]


def measured(server: Server, path: str, polls: int) -> tuple[list[float], list[int]]:
    """Times in ms and sizes in bytes of `polls` answers, sorted."""
    times, sizes = [], []
    for _ in range(polls):
        began = time.perf_counter()
        answer = ask(server.url, path)
        times.append((time.perf_counter() - began) * 1000)
        sizes.append(len(json.dumps(answer, separators=(",", ":"))))
    return sorted(times), sorted(sizes)


def until_read(server: Server) -> tuple[list[float], list[int]]:
    """Polls a run that the WebUI has not seen yet until all of it is read: like `measured`."""
    times, sizes, behind = [], [], True
    while behind:
        began = time.perf_counter()
        answer = ask(server.url, "/runs/long/live")
        times.append((time.perf_counter() - began) * 1000)
        sizes.append(len(json.dumps(answer, separators=(",", ":"))))
        behind = answer["behind"]
    return sorted(times), sorted(sizes)


def finish(run: RunFolder) -> None:
    """As the trainer ends it."""
    log = EventLog(run.events)
    log.emit("done", path="/models/Stable-diffusion/long.safetensors", weight_change={})
    log.close()


def asked_first(server: Server) -> Rows:
    """The first looks of a WebUI that has just been started, at one finished run."""
    server.stop()
    server.start()
    ask(server.url, "/page")
    return {
        "all runs, first": measured(server, "/runs", 1),
        "finished, until read": until_read(server),
        "finished, a poll": measured(server, "/runs/long/live", 20),
    }


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
                rows = {"a poll, until read": until_read(server)}
                offset = ask(server.url, "/runs/long/live")["offset"]
                rows |= {
                    "a poll, whole": measured(server, "/runs/long/live", given.polls),
                    "a poll, nothing new": measured(server, f"/runs/long/live?since={offset}", given.polls),
                    "all runs": measured(server, "/runs", given.polls),
                }
            finish(run)
            rows |= asked_first(server)
        finally:
            server.stop()
    print(f"{given.steps:,} steps\n")
    print("| asked | times | median ms | 95 of 100 ms | slowest ms | bytes |\n|---|---|---|---|---|---|")
    for name, (times, sizes) in rows.items():
        middle, late = times[len(times) // 2], times[int(len(times) * 0.95)]
        print(f"| {name} | {len(times)} | {middle:.1f} | {late:.1f} | {times[-1]:.1f} | {sizes[-1]:,} |")
    slow = max(times[int(len(times) * 0.95)] for times, _ in rows.values())
    return int(slow >= SLOWEST_MS or max(sizes[-1] for _, sizes in rows.values()) >= LARGEST)


if __name__ == "__main__":
    sys.exit(main())
