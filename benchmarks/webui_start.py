"""What the extension adds to a WebUI's start: install.py's look at the environment, and the import of the extension.

    WEBUI/venv/bin/python benchmarks/webui_start.py [--rounds 9]

To be run by the WebUI's own Python, or the host tests'. Each round is a fresh process with warm files; what the WebUI has
loaded by then anyway (gradio, fastapi, omegaconf, Pillow) is loaded before the clock starts. Prints medians in ms.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOOK = """
import sys, time
start = time.perf_counter()
sys.path.insert(0, sys.argv[1])
from dreambooth import installing
installing.look()
print((time.perf_counter() - start) * 1000)
"""
IMPORT = """
import sys, time
sys.path.insert(0, sys.argv[1] + "/tests/standin")
root, sys.argv[1:] = sys.argv[1], ["--data-dir", sys.argv[2]]
import asyncio, email, multiprocessing
import fastapi, gradio, omegaconf, yaml, PIL.Image
from modules import errors, processing, script_callbacks, script_loading, sd_models, shared
script_callbacks.on_ui_tabs(lambda: [])  # as the WebUI's built-in extensions do: the first call looks at every module
start = time.perf_counter()
script_loading.load_module(root + "/scripts/dreambooth_trainer.py")
import dreambooth_trainer.host.routes
print((time.perf_counter() - start) * 1000)
"""
SCRIPTS = {"install.py's look, in its process": LOOK, "the extension and its routes": IMPORT}


def milliseconds(code: str, rounds: int) -> list[float]:
    """One figure a round, in ms; the first round, whose files are cold, is left out."""
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-c", code, str(ROOT), data]
        environ = {key: value for key, value in os.environ.items() if key != "DREAMBOOTH_PYTHON"}
        answers = [
            subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
            for _ in range(rounds + 1)
        ]
    return [float(answer.split()[-1]) for answer in answers[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(f"{'':36}{'median':>8}{'slowest':>10}  ms, {rounds} rounds")
    for name, code in SCRIPTS.items():
        found = milliseconds(code, rounds)
        print(f"{name:36}{statistics.median(found):8.0f}{max(found):10.0f}")


if __name__ == "__main__":
    main()
