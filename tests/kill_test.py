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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tiny
from forks import Start, Trainer, trainers

from dreambooth.shared.events import Event, read_events

SETTINGS = {
    "max_train_steps": 6,
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
    "text_encoder_stop": 0.6,
    "num_validation_images": 1,
}
BRIEFLY = {"num_validation_images": 0, "max_train_steps": 4, "export_steps": 0, "num_class_images": 3}
PLANNING, CLASS_IMAGES, CACHING, STEP, SAVE, EXPORT, END = PHASES = (
    "planning", "class images", "caching", "a step", "a save", "an export", "the end after the export",
)  # fmt: skip
# what an operation's path says of the phase that it belongs to
OF_PATH = (
    ("/class_images/", CLASS_IMAGES), ("/cache/", CACHING), ("/state", SAVE), ("/samples/000000", STEP),
    ("/samples/", END),
    ("result.json", END), (".tmp", EXPORT), ("/out/", EXPORT), ("/runs", PLANNING),
)  # fmt: skip
# an operation in the middle of a phase, of a resumed run too: a part of its path, and which one of those
IN_THE_MIDDLE = {
    PLANNING: ("/.sks.", 3),
    CLASS_IMAGES: ("/class_images/", 6),
    CACHING: ("/cache/", 2),
    SAVE: ("/state/step-", 3),
    EXPORT: (".tmp", 1),
    END: ("result.json", 1),
}
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

    def events(self) -> list[Event]:
        return read_events(self.run / "events.jsonl")[0]

    def unfinished(self) -> set[Path]:
        """What a killed process leaves half written."""
        return {*self.out.glob(".*.tmp*"), *(self.run / "state").glob("*.partial")}

    def begin(self) -> Life:
        """A new life of the run, of which nothing is there yet."""
        return Life(self, len(self.events()), self.unfinished())

    def go_on(self) -> tuple[str | Path, ...]:
        """The command line that goes on with it: one that died before its folder was made is begun again."""
        return ("resume", self.run) if (self.run / "config.yaml").exists() else ("train", self.config)


@dataclass
class Life:
    """One trainer's life on a run: its news come after `events`, what is half written besides `left` is its own."""

    place: Place
    events: int
    left: set[Path]

    def news(self) -> list[Event]:
        return self.place.events()[self.events :]

    def phase(self) -> str:
        """The phase that it has come to."""
        news, left = self.news(), self.place.unfinished() - self.left
        if any(event.name == "exported" and Path(event["path"]).name == "sks.safetensors" for event in news):
            return END
        if any(path.parent == self.place.out for path in left):
            return EXPORT
        if left:
            return SAVE
        named = next((event["name"] for event in reversed(news) if event.name == "phase"), PLANNING)
        return {"training": STEP, "export": EXPORT}.get(named, named)


@dataclass(frozen=True)
class Traces:
    """All that a run leaves and that has to be the same: hashes by file name, losses by step."""

    checkpoints: dict[str, str]
    class_images: dict[str, str]
    losses: dict[int, tuple[float, ...]]


@dataclass
class Work:
    """What all trials share. `operations` are the numbers of the operations of each phase, of an uninterrupted run
    that took `duration` seconds."""

    start: Start
    model: Path
    photos: Path
    folder: Path
    rng: random.Random
    settings: dict[str, Any]
    duration: float = 0.0
    operations: dict[str, list[int]] = field(default_factory=dict)
    killed: collections.Counter[str] = field(default_factory=collections.Counter)

    def phases(self) -> list[str]:
        """The phases that these runs have."""
        return [phase for phase in PHASES if phase == STEP or phase in self.operations]

    def trainer(self, place: Place, *arguments: str | Path, **options: Any) -> Trainer:
        return self.start(*arguments, output=place.output, trusts_8bit=True, **options)

    def place(self, name: str) -> Place:
        place = Place(self.folder / name)
        place.folder.mkdir()
        settings = {**tiny.quick_settings(self.model, self.photos, place.folder), **self.settings}
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
    losses: dict[int, tuple[float, ...]] = {}
    for event in place.events():
        if event.name == "step":
            found = tuple(event[name] for name in ("loss", "instance_loss", "prior_loss", "lr"))
            if losses.setdefault(event["step"], found) != found:
                raise Difference(
                    f"{place.folder}: step {event['step']} had other losses when it was repeated"
                )
    return Traces(
        {path.name: data_hash(path) for path in sorted(place.out.iterdir()) if path.suffix == ".safetensors"},
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in images},
        losses,
    )


def uninterrupted(work: Work, name: str) -> Traces:
    """A run that nobody interrupts, whose time and operations are noted."""
    place = work.place(name)
    noted = place.folder / "operations.txt"
    began = time.monotonic()
    trainer = work.trainer(place, "train", place.config, operations=str(noted))
    if trainer.wait() != 0:
        raise Difference(f"the uninterrupted run failed:\n{trainer.said()}")
    work.duration = time.monotonic() - began
    work.operations.clear()
    for number, line in enumerate(noted.read_text().splitlines(), 1):
        phase = next((phase for part, phase in OF_PATH if part in line), None)
        if phase is not None and "events.jsonl" not in line and "log.txt" not in line:
            work.operations.setdefault(phase, []).append(number)
    return traces(place)


def kill_in_phase(work: Work, place: Place, phase: str) -> bool:
    """One life that is killed in `phase` of a fresh run. Whether it was over before that."""
    life = place.begin()
    if phase in (STEP, SAVE, EXPORT) and (phase == STEP or work.rng.random() < 0.5):
        return kill_when_seen(work, life, phase, delay=0.2 * work.duration if phase == STEP else 0.02)
    number = work.rng.choice(work.operations[phase])
    return note(work, life, work.trainer(place, *place.go_on(), kill_at=number))


def kill_when_seen(work: Work, life: Life, phase: str, *, delay: float) -> bool:
    """A life that is killed at most `delay` seconds after `phase` is seen to have begun."""
    trainer = work.trainer(life.place, *life.place.go_on())
    trainer.until(lambda: life.phase() == phase or trainer.ended(), phase)
    time.sleep(work.rng.uniform(0, delay))
    trainer.kill()
    return note(work, life, trainer)


def kill_at_random(work: Work, place: Place) -> bool:
    """A life that is killed at a random moment, or before a random operation. Whether it was over before that."""
    life = place.begin()
    if work.rng.random() < 0.5:
        number = work.rng.randint(1, max(max(numbers) for numbers in work.operations.values()))
        return note(work, life, work.trainer(place, *place.go_on(), kill_at=number))
    trainer = work.trainer(place, *place.go_on())
    time.sleep(work.rng.uniform(0, work.duration))
    trainer.kill()
    return note(work, life, trainer)


def note(work: Work, life: Life, trainer: Trainer) -> bool:
    """Counts a kill for the phase that it fell into. Whether the life came to its own end instead."""
    code = trainer.wait()
    if code == 0:
        return True
    if code > 0:
        raise Difference(f"a life ended with {code}:\n{trainer.said()}")
    work.killed[life.phase()] += 1
    return False


def finish(work: Work, place: Place) -> None:
    trainer = work.trainer(place, *place.go_on())
    if trainer.wait() != 0:
        raise Difference(f"{place.go_on()[0]} ended with {trainer.wait()}:\n{trainer.said()}")


def trial(work: Work, number: int, reference: Traces) -> None:
    """One run, killed at least once (if it is not too quick), resumed to its end, compared."""
    place = work.place(f"trial-{number}")
    phases = (*work.phases(), None)
    phase = phases[number % len(phases)]
    ended = kill_in_phase(work, place, phase) if phase else kill_at_random(work, place)
    while not ended and work.rng.random() < AGAIN:
        ended = kill_at_random(work, place)
    if not ended:
        finish(work, place)
    compare(place, reference)
    shutil.rmtree(place.folder)


def one_run_killed_everywhere(work: Work, reference: Traces) -> None:
    """The short form: one run with a kill in each phase, one after the other."""
    place = work.place("killed everywhere")
    for phase in PHASES:
        life = place.begin()
        if phase == STEP:
            kill_when_seen(work, life, phase, delay=0.1)
        else:
            note(work, life, work.trainer(place, *place.go_on(), kill_on=IN_THE_MIDDLE[phase]))
    finish(work, place)
    compare(place, reference)


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


def made_ready(start: Start, folder: Path, *, seed: int = 0, **settings: Any) -> Work:
    """A checkpoint and photos in `folder`, and what is done with them."""
    model = tiny.write_checkpoint(folder / "tiny.safetensors")
    photos = tiny.write_photos(folder / "photos")
    return Work(start, model, photos, folder, random.Random(seed), {**SETTINGS, **settings})


def in_brief(start: Start, folder: Path) -> collections.Counter[str]:
    """One kill in each phase of one run; gives the kills by phase. Raises Difference."""
    work = made_ready(start, folder, **BRIEFLY)
    one_run_killed_everywhere(work, uninterrupted(work, "reference"))
    return work.killed


def at_length(work: Work, *, kills: int, tell: Callable[[str], None]) -> collections.Counter[str]:
    """At least `kills` kills, at least one in each phase; gives the kills by phase. Raises Difference."""
    reference = uninterrupted(work, "reference")
    if uninterrupted(work, "again") != reference:
        raise Difference("two uninterrupted runs differ")
    number = 0
    while sum(work.killed.values()) < kills or not all(work.killed[phase] for phase in work.phases()):
        trial(work, number, reference)
        number += 1
        tell(f"{number} runs, {sum(work.killed.values())} kills")
    return work.killed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="at least so many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="work there, and leave a differing run for a look"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="other settings of the runs")
    given = parser.parse_args(arguments)

    def tell(text: str) -> None:
        print(text, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as temporary, trainers() as start:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            settings = dict(text.split("=", 1) for text in given.settings)
            work = made_ready(start, folder, seed=given.seed, **settings)
            killed = at_length(work, kills=given.kills, tell=tell)
        except Difference as difference:
            print(difference)
            return 1
    print(f"{sum(killed.values())} kills; every run's bits were those of the run that nobody interrupted")
    for phase in PHASES:
        print(f"  in {phase:<28} {killed[phase]:>4}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
