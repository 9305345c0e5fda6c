"""How long from the start of the process to the end of the first training step, against diffusers' own script.

    python benchmarks/startup.py PEER [--peer-packages DIR] [--rounds 9]

PEER is diffusers' train_dreambooth.py (peer.py says which, and what DIR is for). Both train the same tiny model in
float32 with the text encoder, on the same photos and class images that are there already, with no tracker; files
are warm. They take turns within each round, and what counts is the median of the rounds. Ours reads the single
file, makes and prints its plan, checks every image and makes its run folder before the step; theirs reads the
diffusers folder that `convert` made of the file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from peer import Peer, add_arguments, alike, from_arguments

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
INSTANCE_PROMPT, CLASS_PROMPT = "photo of sks cat", "photo of cat"
PHOTOS, CLASS_IMAGES, SIDE = 5, 4, 64


@dataclass(frozen=True)
class Job:
    """What both train."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "tiny.safetensors"

    @property
    def model_folder(self) -> Path:
        return self.folder / "tiny"

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @property
    def class_images(self) -> Path:
        return self.folder / "class"


def prepare(folder: Path) -> Job:
    """Writes the model, as a file and as a folder, the photos and the class images."""
    from dreambooth.trainer.models.convert import convert
    from tests import tiny

    job = Job(folder)
    tiny.write_checkpoint(job.model)
    convert(job.model, job.model_folder, dtype="float32")  # their script takes no other
    tiny.write_photos(job.photos, PHOTOS, side=512)
    tiny.write_photos(job.class_images, CLASS_IMAGES, side=SIDE)
    return job


def ours(job: Job, python: list[str], runs: Path, **variables: str) -> float:
    """Seconds to the end of our first step; `runs` keeps the runs and their caches."""
    out = Path(tempfile.mkdtemp(dir=job.folder))
    config = out / "config.json"
    settings = {
        "model": str(job.model),
        "output_name": "result",
        "output_dir": str(out),
        "runs_dir": str(runs),
        "resolution": SIDE,
        "num_class_images": CLASS_IMAGES,
        "max_train_steps": 1,
        "num_validation_images": 0,
        "concepts": [
            {
                "instance_prompt": INSTANCE_PROMPT,
                "class_prompt": CLASS_PROMPT,
                "instance_data_dir": str(job.photos),
                "class_data_dir": str(job.class_images),
            }
        ],
    }
    config.write_text(json.dumps(settings))
    command = [*python, "-m", "dreambooth", "train", str(config)]
    started = time.time()
    done = subprocess.run(command, env=alike() | variables, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ours failed:\n{done.stderr}")
    newest = max(runs.glob("*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    events = [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()]
    return float(next(event["time"] for event in events if event["event"] == "step")) - started


def theirs(job: Job, peer: Peer) -> float:
    """Seconds until their progress bar shows the loss of the first step."""
    command = peer.command(
        "train_text_encoder",
        "with_prior_preservation",
        pretrained_model_name_or_path=job.model_folder,
        instance_data_dir=job.photos,
        instance_prompt=INSTANCE_PROMPT,
        class_data_dir=job.class_images,
        class_prompt=CLASS_PROMPT,
        num_class_images=CLASS_IMAGES,
        resolution=SIDE,
        train_batch_size=1,
        max_train_steps=1,
        output_dir=tempfile.mkdtemp(dir=job.folder),
        report_to="comet_ml",  # not installed: no tracker; their default, TensorBoard, takes longer
    )
    started = time.time()
    process = subprocess.Popen(
        command, env=peer.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said, seconds = b"", 0.0
    while piece := process.stderr.read1(65536):  # type: ignore[attr-defined]
        said += piece
        if not seconds and b"loss=" in said:
            seconds = time.time() - started
    if process.wait() or not seconds:
        raise SystemExit(f"theirs failed:\n{said.decode(errors='replace')}")
    return seconds


def contenders(job: Job, peer: Peer) -> dict[str, Callable[[], float]]:
    """What is timed, by name."""
    warm = Path(tempfile.mkdtemp(dir=job.folder))
    own = [sys.executable]
    bare = [getattr(sys, "_base_executable", sys.executable)]

    def fresh() -> Path:
        return Path(tempfile.mkdtemp(dir=job.folder))

    return {
        "diffusers' train_dreambooth.py": lambda: theirs(job, peer),
        "ours, nothing cached": lambda: ours(job, own, fresh()),
        "ours, latents cached": lambda: ours(job, own, warm),
        "ours, from a bare Python, nothing cached": lambda: ours(
            job, bare, fresh(), DREAMBOOTH_PYTHON=sys.executable
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        todo = contenders(prepare(Path(folder)), from_arguments(arguments))
        found: dict[str, list[float]] = {name: [] for name in todo}
        for contender in todo.values():  # the first start compiles the libraries' files, and fills the cache
            contender()
        for _ in range(arguments.rounds):
            for name, contender in todo.items():
                found[name].append(contender())
    medians = {name: statistics.median(values) for name, values in found.items()}
    first = next(iter(medians.values()))
    for name, seconds in medians.items():
        print(f"{name:<42} {seconds:5.2f} s  {seconds / first:5.2f}x")
    print(json.dumps({name: [round(value, 2) for value in values] for name, values in found.items()}))


if __name__ == "__main__":
    main()
