"""Kills a training again and again and proves that nothing of it can be told from one that was never interrupted.

    python -m tests.kill_test --kills 100

Text encoder, averaged weights and the 8-bit optimizer take part. A run is killed (SIGKILL) at a moment drawn at
random or before one of its operations on files, chosen so that every phase is met; then it is resumed, perhaps killed
again, until it ends. Its checkpoints' bytes, its class images and the loss of every step must be the uninterrupted
run's. Prints how many kills fell into which phase; exit code 1 for the first difference.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tiny
from forks import Start, Trainer, trainers

from dreambooth.shared.events import read_events

STEPS = 6
SETTINGS = {
    "max_train_steps": STEPS,
    "checkpointing_steps": 2,
    "export_steps": 4,
    "num_class_images": 5,
    "sample_batch_size": 2,
    "use_ema": True,
    "ema_decay": 0.5,
    "optimizer": "adamw8bit",
    "crop": "random",
    "random_flip": True,
    "caption_dropout": 0.2,
    "snr_gamma": 5,
    "offset_noise": 0.05,
    "train_batch_size": 2,
    "lr_scheduler": "cosine",
    "text_encoder_learning_rate": 5e-4,
    "num_validation_images": 1,
}
PLANNING, CLASS_IMAGES, CACHING, STEP, SAVE, EXPORT, END = PHASES = (
    "planning", "class images", "caching", "a step", "a save", "an export", "the end after the export",
)  # fmt: skip
# what an operation's path says of the phase that it belongs to
OF_PATH = (
    ("/class_images/", CLASS_IMAGES), ("/cache/", CACHING), ("/state", SAVE), ("/samples/", END),
    ("result.json", END), ("/out/", EXPORT), ("/runs", PLANNING),
)  # fmt: skip
AGAIN = 0.35  # the share of resumed lives that are killed too


class Difference(Exception):
    """A resumed run that can be told from the uninterrupted one."""


@dataclass
class Place:
    """One run's folders, all of them under `folder`."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "sks"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def output(self) -> Path:
        return self.folder / "output.txt"

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def events(self) -> list:
        return read_events(self.run / "events.jsonl")[0]

    def unfinished(self) -> set[Path]:
        """What a killed process leaves half written."""
        return {*self.out.glob(".*.tmp.*"), *(self.run / "state").glob("*.partial")}


@dataclass(frozen=True)
class Traces:
    """All that a run leaves and that has to be the same: hashes by file name, losses by step."""

    checkpoints: dict[str, str]
    class_images: dict[str, str]
    losses: dict[int, tuple]


@dataclass
class Work:
    """What all trials share."""

    start: Start
    model: Path
    photos: Path
    folder: Path
    rng: random.Random
    duration: float = 0.0
    operations: dict[str, list[int]] = field(default_factory=dict)
    killed: collections.Counter = field(default_factory=collections.Counter)

    def life(self, place: Place, *arguments: str | Path, **options: Any) -> Trainer:
        """Starts a trainer on a run."""
        return self.start(*arguments, output=place.output, trusts_8bit=True, **options)

    def place(self, name: str) -> Place:
        place = Place(self.folder / name)
        place.folder.mkdir()
        settings = {**tiny.quick_settings(self.model, self.photos, place.folder), **SETTINGS}
        tiny.write_config(place.config, **settings)
        return place


def data_hash(path: Path) -> str:
    """The hash of a .safetensors file's tensors: their names, shapes and bytes, without the metadata."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode() + content[8 + size :]).hexdigest()


def traces(place: Place) -> Traces:
    images = sorted((place.folder / "runs" / "class_images").rglob("*.png"))
    losses: dict[int, tuple] = {}
    for event in place.events():
        if event.name == "step":
            found = tuple(event[name] for name in ("loss", "instance_loss", "prior_loss", "lr"))
            if losses.setdefault(event["step"], found) != found:
                raise Difference(f"step {event['step']} had other losses when it was repeated")
    return Traces(
        {path.name: data_hash(path) for path in sorted(place.out.iterdir()) if path.suffix == ".safetensors"},
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in images},
        losses,
    )


def uninterrupted(work: Work) -> Traces:
    """The reference, twice: it has to repeat, and the second life notes its operations and its time."""
    found = []
    for name in ("reference", "again"):
        place = work.place(name)
        noted = place.folder / "operations.txt"
        began = time.monotonic()
        trainer = work.life(place, "train", place.config, operations=str(noted))
        if trainer.wait() != 0:
            raise Difference(f"the uninterrupted run failed:\n{trainer.said()}")
        work.duration = time.monotonic() - began
        found.append(traces(place))
    if found[0] != found[1]:
        raise Difference("two uninterrupted runs differ")
    for number, line in enumerate(noted.read_text().splitlines(), 1):
        phase = next((phase for part, phase in OF_PATH if part in line), None)
        if phase is not None and "events.jsonl" not in line and "log.txt" not in line:
            work.operations.setdefault(phase, []).append(number)
    return found[1]


def killed_in(place: Place, before: set[Path]) -> str:
    """The phase in which a run died, as its folder tells; `before`: what was half written before this life."""
    events = place.events()
    begun = max((n for n, event in enumerate(events) if event.name == "plan"), default=0)
    events = events[begun:]
    left = place.unfinished() - before
    if any(event.name == "exported" and event["step"] == STEPS for event in events):
        return END
    if any(path.parent == place.out for path in left):
        return EXPORT
    if left:
        return SAVE
    phases = [event["name"] for event in events if event.name == "phase"]
    last = phases[-1] if phases else PLANNING
    return {"training": STEP, "export": EXPORT}.get(last, last)


def kill_at_chosen_phase(work: Work, place: Place, phase: str) -> None:
    """One life that is killed in `phase` of a fresh run."""
    if phase == STEP:
        trainer = work.life(place, "train", place.config)
        trainer.until(lambda: any(e.name == "phase" and e["name"] == "training" for e in place.events()))
        time.sleep(work.rng.uniform(0, 0.25 * work.duration))
        trainer.kill()
        return
    number = work.rng.choice(work.operations[phase])
    work.life(place, "train", place.config, kill_at=number).wait()


def kill_at_random(work: Work, place: Place, *arguments: str | Path) -> Trainer:
    """One life that is killed at a random moment, or before a random operation."""
    if work.rng.random() < 0.5:
        last = max(number for numbers in work.operations.values() for number in numbers)
        number = work.rng.randint(1, last)
        trainer = work.life(place, *arguments, kill_at=number)
        trainer.wait()
        return trainer
    trainer = work.life(place, *arguments)
    time.sleep(work.rng.uniform(0, work.duration))
    trainer.kill()
    return trainer


def trial(work: Work, number: int, reference: Traces) -> None:
    """One run, killed at least once (if it is not too quick), resumed to its end, compared."""
    place = work.place(f"trial-{number}")
    phase = [*PHASES, None][number % (len(PHASES) + 1)]
    if phase is None or not work.operations.get(phase, phase == STEP):
        ended = kill_at_random(work, place, "train", place.config).wait() == 0
    else:
        kill_at_chosen_phase(work, place, phase)
        ended = False
    note_kill(work, place, set(), ended)
    while not ended:
        again = ("resume", place.run) if (place.run / "config.yaml").exists() else ("train", place.config)
        before = place.unfinished()
        if work.rng.random() < AGAIN:
            ended = kill_at_random(work, place, *again).wait() == 0
            note_kill(work, place, before, ended)
            continue
        trainer = work.life(place, *again)
        if trainer.wait() != 0:
            raise Difference(f"{again[0]} ended with {trainer.wait()}:\n{trainer.said()}")
        ended = True
    compare(place, reference)
    shutil.rmtree(place.folder)


def note_kill(work: Work, place: Place, before: set[Path], ended: bool) -> None:
    if not ended:
        work.killed[killed_in(place, before)] += 1


def compare(place: Place, reference: Traces) -> None:
    found = traces(place)
    for name in ("checkpoints", "class_images", "losses"):
        one, other = getattr(found, name), getattr(reference, name)
        wrong = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
        if wrong:
            raise Difference(f"{place.folder}: {name} differ from the uninterrupted run's: {wrong}")
    if place.unfinished():
        raise Difference(f"{place.folder}: half written files were left: {sorted(place.unfinished())}")
    if not (place.run / "result.json").is_file() or place.events()[-1].name != "done":
        raise Difference(f"{place.folder}: the end was not noted")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="at least so many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="work there, and leave a differing run for a look"
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary, trainers() as start:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = tiny.write_checkpoint(folder / "tiny.safetensors")
        photos = tiny.write_photos(folder / "photos")
        work = Work(start, model, photos, folder, random.Random(given.seed))
        try:
            reference = uninterrupted(work)
            number = 0
            while sum(work.killed.values()) < given.kills or not all(work.killed[phase] for phase in PHASES):
                trial(work, number, reference)
                number += 1
                print(
                    f"\r{number} runs, {sum(work.killed.values())} kills", end="", file=sys.stderr, flush=True
                )
        except Difference as difference:
            print(difference)
            return 1
    print(
        f"{number} runs, {sum(work.killed.values())} kills, every run's bits those of the uninterrupted one"
    )
    for phase in PHASES:
        print(f"  in {phase:<28} {work.killed[phase]:>4}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
