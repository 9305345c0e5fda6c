"""A trainer without a model: a real process that keeps every promise of the border and learns nothing.

    python tests/fake_trainer.py RUN [--pace SECONDS] [--fail-at STEP]

It holds the run's lock for its whole life, reads the run's config.yaml (max_train_steps, checkpointing_steps,
validation_steps, export_steps, output_dir, output_name), goes on from the newest state, emits each event of the
schema, answers commands between steps, and ends with the real trainer's exit codes. The border's tests and the
tab's drive it, so it imports nothing but `dreambooth.shared`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dreambooth.shared.config import load_settings
from dreambooth.shared.errors import DreamboothError, RunFailed, StoppedByUser
from dreambooth.shared.events import Event, EventLog, read_events
from dreambooth.shared.paths import write_json, write_whole
from dreambooth.shared.runfolder import Command, RunFolder
from dreambooth.shared.settings import Settings


@dataclass
class FakeTrainer:
    """One life of a trainer on a run. `pace` is how long a step takes, in seconds."""

    run: RunFolder
    settings: Settings
    log: EventLog
    pace: float = 0.0
    fail_at: int = 0
    step: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def steps(self) -> int:
        return self.settings.training.max_train_steps or 10

    def work(self) -> None:
        """From the newest state to the result. Raises StoppedByUser or RunFailed where it ends before that."""
        for command in self.run.waiting_commands():  # meant for an earlier life
            command.path.unlink()
        self.step = newest_state(self.run)
        self.plan()
        self.make_class_images()
        self.log.emit("phase", name="training", of=self.steps)
        if self.step == 0 and self.settings.saving.num_validation_images:
            self.sample()
        while self.step < self.steps:
            self.train_step()
            self.obey()
            self.do_what_is_due()
        self.save()
        self.finish()

    def plan(self) -> None:
        missing = self.settings.prior.num_class_images if self.step == 0 else 0
        self.log.emit(
            "plan", images=4, class_images=0, class_images_to_make=missing, buckets={"64x64": 4}, steps=self.steps,
            epochs=self.steps / 4, trained=["UNet"], files=[{"path": str(self.result_path()), "size": 6}],
            disk_needed=6, disk_free=shutil.disk_usage(self.run.path).free, memory=0,
        )  # fmt: skip
        if self.settings.result.output_dtype == "bfloat16":
            self.log.emit("warning", text="bfloat16 can erase much of a gentle training")

    def make_class_images(self) -> None:
        count = self.settings.prior.num_class_images if self.step == 0 else 0
        if count:
            self.log.emit("phase", name="class images", of=count)
            for done in range(count + 1):
                self.log.emit("progress", name="class images", done=done, of=count)

    def train_step(self) -> None:
        time.sleep(self.pace)
        self.step += 1
        if self.step == self.fail_at:
            raise RunFailed(
                "the loss is not a number", remedy="lower learning_rate; the last good state is kept"
            )
        loss = 1 / self.step
        speed = self.step / max(time.monotonic() - self.began, 1e-9)
        self.log.emit(
            "step", step=self.step, of=self.steps, loss=loss, instance_loss=loss / 2, prior_loss=loss / 2,
            lr=self.settings.training.learning_rate, it_s=speed, eta_s=(self.steps - self.step) / speed,
            memory_gb=0.0,
        )  # fmt: skip

    def obey(self) -> None:
        for command in self.run.waiting_commands():
            if command.do == "stop":
                self.save()
                self.answer(command)
                raise StoppedByUser("stopped by the user after its state was saved")
            if command.do == "stop_now":
                self.answer(command)
                raise DreamboothError("stopped at once, without saving")
            {"save": self.save, "export": self.export, "sample": self.sample}[command.do]()
            self.answer(command)

    def answer(self, command: Command) -> None:
        self.log.emit("ack", id=command.id)
        command.path.unlink(missing_ok=True)

    def do_what_is_due(self) -> None:
        saving, result = self.settings.saving, self.settings.result
        for every, act in (
            (saving.validation_steps, self.sample),
            (saving.checkpointing_steps, self.save),
            (result.export_steps, self.export),
        ):
            if every and self.step % every == 0 and self.step < self.steps:
                act()

    def save(self) -> None:
        state = self.run.states / f"step-{self.step}"
        state.mkdir(parents=True, exist_ok=True)
        write_json(state / "state.json", {"step": self.step})
        self.log.emit("checkpoint", step=self.step, path=state)

    def sample(self) -> None:
        path = self.run.samples / f"step-{self.step}.png"
        write_whole(path, one_colour_png(red=self.step * 8 % 256))
        seed = self.settings.training.seed
        self.log.emit("sample", step=self.step, number=0, seed=seed, prompt="photo of sks dog", path=path)

    def result_path(self, step: int = 0) -> Path:
        folder = Path(self.settings.result.output_dir or self.run.path)
        name = self.settings.result.output_name or self.run.name
        return folder / f"{name}{f'-{step}' if step else ''}.{self.settings.result.output_format}"

    def export(self, *, final: bool = False) -> dict[str, Any]:
        path = self.result_path(0 if final else self.step)
        content = f"step {self.step}\n".encode()
        write_whole(path, content)
        about = {"step": self.step, "path": str(path), "sha256": hashlib.sha256(content).hexdigest()}
        self.log.emit("exported", **about)
        return about

    def finish(self) -> None:
        self.log.emit("phase", name="export", of=1)
        result = self.export(final=True)
        self.sample()
        change = {"UNet": 0.01}
        write_json(self.run.result, {**result, "weight_change": change})
        self.log.sync()
        self.log.emit("done", path=result["path"], weight_change=change)


def newest_state(run: RunFolder) -> int:
    """The step of the newest whole state, 0 if there is none."""
    return max(
        (json.loads(path.read_bytes())["step"] for path in run.states.glob("step-*/state.json")), default=0
    )


def one_colour_png(*, red: int, side: int = 8) -> bytes:
    """A small picture, without PIL: the host may show it, and shared code has nothing to draw with."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = (b"\0" + bytes([red, 64, 64]) * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def live(run: RunFolder, *, pace: float, fail_at: int) -> None:
    """One life under the lock; whatever ends it is an event too."""
    with run.hold(), contextlib.closing(EventLog(run.events)) as log:
        trainer = FakeTrainer(run, load_settings(run.config), log, pace, fail_at)
        try:
            trainer.work()
        except RunFailed as error:
            log.emit("error", text=error.what, remedy=error.remedy)
            raise
        except DreamboothError:
            log.emit("phase", name="stopped", of=0)
            raise


@contextlib.contextmanager
def started(run: RunFolder, *options: str) -> Iterator[subprocess.Popen[str]]:
    """For tests: this file as a process of its own, which does not outlive the block."""
    command = [sys.executable, str(Path(__file__).resolve()), str(run.path), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], run: RunFolder, name: str, *, patience: float = 30.0) -> Event:
    """For tests: the first event called `name`, as soon as it is there."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        for event in read_events(run.events)[0]:
            if event.name == name:
                return event
        if ended:
            raise AssertionError(f"the trainer ended ({process.returncode}) without {name!r}")
        time.sleep(0.005)
    raise AssertionError(f"no {name!r} in {patience} seconds")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--fail-at", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        live(RunFolder(given.run), pace=given.pace, fail_at=given.fail_at)
    except DreamboothError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
