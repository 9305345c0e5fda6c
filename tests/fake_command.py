"""The fake trainer behind the real one's command line: what the WebUI's side starts, without a model.

    python tests/fake_command.py train CONFIG --note FILE | resume RUN --note FILE | plan CONFIG --json | inspect FILE --json
                                 base FOLDER --json

The environment says how it behaves: FAKE_PACE (seconds a step), FAKE_FAIL_AT (a step), FAKE_DELAY (seconds before the
run folder is there), FAKE_DIES (before the run folder: input, traceback, memory or killed), FAKE_REFUSES (after the
run's note), FAKE_CRASH_AT (a step at which it ends without a word in its events). A form whose `output_name` is `wrong`
is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dreambooth.shared.config import dump_settings, load_settings
from dreambooth.shared.errors import DreamboothError, InputError
from dreambooth.shared.paths import write_json
from dreambooth.shared.runfolder import RunFolder, create_run, find_run
from dreambooth.shared.settings import Settings
from tests import fake_trainer

OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB."


class Crashing(fake_trainer.FakeTrainer):
    """Ends at a step as a crash does."""

    def train_step(self) -> None:
        super().train_step()
        if self.step == int(os.environ.get("FAKE_CRASH_AT", "0")):
            print(f'Traceback (most recent call last):\n  File "x.py", line 1\n{OUT_OF_MEMORY}', flush=True)
            os._exit(1)


def train(config: Path, note: Path) -> None:
    settings = load_settings(config)
    _check(settings)
    _die()
    time.sleep(float(os.environ.get("FAKE_DELAY", "0")))
    name = settings.result.output_name or "run"
    asked = dump_settings(settings)
    settings.training.learning_rate = (
        settings.training.learning_rate or 2e-6
    )  # as the real one fills in what is open
    run = create_run(Path(settings.result.runs_dir), name, dump_settings(settings), asked)
    _live(run, note)


def _check(settings: Settings) -> None:
    if settings.result.output_name == "wrong":
        raise InputError(
            "wrong.safetensors is there already", where="output_name", remedy="choose another name"
        )


def _die() -> None:
    how = os.environ.get("FAKE_DIES", "")
    if how == "input":
        raise InputError("there is no such file", where="model", remedy="check the path")
    if how == "traceback":
        raise RuntimeError("the sky fell")
    if how == "memory":
        raise RuntimeError(OUT_OF_MEMORY)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


def _live(run: RunFolder, note: Path) -> None:
    # the note before the lock: what is in between must not look like death
    write_json(note, {"run": str(run.path)})
    if os.environ.get("FAKE_REFUSES"):
        raise InputError("the photos are gone", where="concepts", remedy="bring them back")
    fake_trainer.FakeTrainer = Crashing  # type: ignore[misc]
    with run.log.open("a", encoding="utf-8") as log:
        log.write("2026-01-01 00:00:00 Training\n")
    pace, fail_at = float(os.environ.get("FAKE_PACE", "0")), int(os.environ.get("FAKE_FAIL_AT", "0"))
    fake_trainer.live(run, pace=pace, fail_at=fail_at)


def plan(config: Path) -> int:
    time.sleep(float(os.environ.get("FAKE_DELAY", "0")))
    try:
        settings = load_settings(config)
        _check(settings)
    except InputError as error:
        print(json.dumps({"error": error.as_json(form=str(config))}))
        return 2
    steps = settings.training.max_train_steps
    output = str(Path(settings.result.output_dir) / f"{settings.result.output_name or 'run'}.safetensors")
    print(json.dumps({"steps": steps, "images": 4, "output": output, "notes": [], "concepts": []}))
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("train", "resume", "plan", "inspect", "base"))
    parser.add_argument("subject")
    parser.add_argument("--note", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-hash", action="store_true")
    given = parser.parse_args(arguments)
    try:
        if given.command == "plan":
            return plan(Path(given.subject))
        if given.command == "inspect":
            print(json.dumps({"family": "Stable Diffusion 1", "size": Path(given.subject).stat().st_size}))
        elif given.command == "base":
            placed = Path(given.subject) / "small-base.safetensors"
            placed.write_bytes((2).to_bytes(8, "little") + b"{}")
            print(json.dumps({"path": str(placed)}))
        elif given.command == "train":
            train(Path(given.subject), given.note)
        else:
            _live(find_run(given.subject), given.note)
    except DreamboothError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
