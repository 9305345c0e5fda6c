"""How fast class images are made, against diffusers' own script.

    python benchmarks/class_images.py PEER [--peer-packages DIR] [--images 8] [--rounds 1] [--ways defaults equal]

PEER is diffusers' train_dreambooth.py (peer.py says which, and what DIR is for). A model of 50M weights in the UNet, random
ones, draws class images at 256 px; what counts is from the start of the process to the last image, with one thread. Theirs
reads the diffusers folder that `convert` made of the file, with the published SD1's scheduler (PNDM) or, where sampler and
steps are to be equal, the multistep one that ours uses.

- defaults: each as it comes (theirs 50 steps in float32; ours 20, in bf16 where the processor has it)
- equal: 50 steps of one sampler, each in float32 and in bf16 (theirs with --prior_generation_precision)

With `--pipeline` PEER's process is left out: the pipeline that its script calls, in this process, against what draws ours,
without loading and start; `equal` has 20 steps then.

They take turns; seconds are those on the clock and of the processor, which others on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from convert import make_full_size
from ldm_layout import Layout
from peer import Peer, add_arguments, alike, from_arguments

ROOT = Path(__file__).resolve().parents[1]
CLASS_PROMPT = "photo of cat"
SIDE = 256
LAYOUT = Layout(
    channels=96,
    multiples=(1, 2, 4, 4),
    blocks=1,
    context=256,
    vae_channels=32,
    vae_multiples=(1, 2, 4, 4),
    text_layers=12,
    vocabulary=49408,
)
PNDM = {
    "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "trained_betas": None, "clip_sample": False,
}  # fmt: skip
MULTISTEP = {
    "_class_name": "DPMSolverMultistepScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000,
}  # fmt: skip
EQUAL = {"class_infer_steps": 50, "class_sampler": "dpmpp_2m"}
PATIENCE = 3600.0


@dataclass(frozen=True)
class Taken:
    """Seconds on the clock, and of the processor."""

    clock: float
    work: float


@dataclass(frozen=True)
class Job:
    folder: Path
    images: int

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    def peers_model(self, scheduler: dict[str, object]) -> Path:
        """The diffusers folder, with this scheduler in it."""
        path = self.folder / str(scheduler["_class_name"])
        if not path.exists():
            from dreambooth.trainer.models.convert import convert

            convert(self.model, path, dtype="float32")  # their script takes no other
            (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
            unet = json.loads((path / "unet" / "config.json").read_text())
            unet["sample_size"] = (
                SIDE // 8
            )  # their script draws at this size, which a single file does not tell
            (path / "unet" / "config.json").write_text(json.dumps(unet))
            index = json.loads((path / "model_index.json").read_text())
            index["scheduler"] = ["diffusers", scheduler["_class_name"]]
            (path / "model_index.json").write_text(json.dumps(index))
        return path


def in_process(job: Job) -> dict[str, dict[str, Callable[[], Taken]]]:
    """The ways without processes: diffusers' pipeline as its script calls it, and our `sample`."""
    import torch
    from diffusers import StableDiffusionPipeline

    from dreambooth.trainer.models.convert import load_model
    from dreambooth.trainer.models.tokenizer import default_tokenizer
    from dreambooth.trainer.sampling.sample import SampleRequest, sample

    torch.set_num_threads(1)

    def theirs(scheduler: dict[str, object], steps: int, dtype: torch.dtype) -> Callable[[], Taken]:
        pipeline = StableDiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
            job.peers_model(scheduler), torch_dtype=dtype, safety_checker=None
        )
        pipeline.set_progress_bar_config(disable=True)
        prompts = [CLASS_PROMPT] * job.images
        return lambda: timed(lambda: pipeline(prompts, num_inference_steps=steps))

    def ours(steps: int, dtype: torch.dtype) -> Callable[[], Taken]:
        model = load_model(job.model)
        model.components |= load_model(job.model, dtype=dtype, components=["unet"]).components
        requests = [
            SampleRequest(CLASS_PROMPT, seed=seed, steps=steps, width=SIDE, height=SIDE)
            for seed in range(job.images)
        ]
        return lambda: timed(
            lambda: list(sample(model, default_tokenizer(), requests, batch_size=job.images))
        )

    wide, narrow = torch.float32, torch.bfloat16
    return {
        "defaults": {"theirs": theirs(PNDM, 50, wide), "ours": ours(20, narrow)},
        "equal": {
            "theirs": theirs(MULTISTEP, 20, wide),
            "ours": ours(20, wide),
            "theirs, bf16": theirs(MULTISTEP, 20, narrow),
            "ours, bf16": ours(20, narrow),
        },
    }


def timed(act: Callable[[], object]) -> Taken:
    began, worked = time.perf_counter(), time.process_time()
    act()
    return Taken(time.perf_counter() - began, time.process_time() - worked)


def prepare(folder: Path, images: int) -> Job:
    """Writes the model and a photo, which both want to see though it is not trained on here."""
    from tests import tiny

    job = Job(folder, images)
    make_full_size(job.model, LAYOUT)
    tiny.write_photos(folder / "photos", 1, side=SIDE)
    return job


def ours(job: Job, **settings: object) -> Taken:
    out = Path(tempfile.mkdtemp(dir=job.folder))
    config = out / "config.json"
    concept = {
        "instance_prompt": "photo of sks cat",
        "class_prompt": CLASS_PROMPT,
        "instance_data_dir": str(job.folder / "photos"),
        "class_data_dir": str(out / "class"),
    }
    mapping = {
        "model": str(job.model),
        "output_dir": str(out),
        "runs_dir": str(out / "runs"),
        "resolution": SIDE,
        "num_class_images": job.images,
        "max_train_steps": 1,
        "num_validation_images": 0,
        "concepts": [concept],
    }
    config.write_text(json.dumps(mapping | settings))
    command = [sys.executable, "-m", "dreambooth", "train", str(config)]
    return until_drawn(command, alike(), out / "class", "*.png", job.images)


def theirs(job: Job, peer: Peer, scheduler: dict[str, object], **options: object) -> Taken:
    out = Path(tempfile.mkdtemp(dir=job.folder))
    command = peer.command(
        "with_prior_preservation",
        pretrained_model_name_or_path=job.peers_model(scheduler),
        instance_data_dir=job.folder / "photos",
        instance_prompt="photo of sks cat",
        class_data_dir=out / "class",
        class_prompt=CLASS_PROMPT,
        num_class_images=job.images,
        resolution=SIDE,
        max_train_steps=1,
        output_dir=out / "trained",
        report_to="comet_ml",  # not installed: no tracker
        **options,
    )
    return until_drawn(command, peer.environment(), out / "class", "*.jpg", job.images)


def until_drawn(
    command: list[str], environment: dict[str, str], folder: Path, names: str, images: int
) -> Taken:
    """What a process takes until the last image is there; what it would do afterwards is cut off."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = psutil.Popen(command, env=environment, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        while len(list(folder.glob(names))) < images:
            if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                said.seek(0)
                raise SystemExit(
                    f"{command} made too few images:\n{said.read().decode(errors='replace')[-3000:]}"
                )
            time.sleep(0.05)
        used = process.cpu_times()
        taken = Taken(time.perf_counter() - began, used.user + used.system)
        process.kill()
        process.wait()
    shutil.rmtree(folder)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--pipeline", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ways", nargs="*", default=["defaults", "equal"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job, peer = prepare(Path(folder), arguments.images), from_arguments(arguments)
        ways: dict[str, dict[str, Callable[[], Taken]]] = (
            in_process(job)
            if arguments.pipeline
            else {
                "defaults": {
                    "theirs": lambda: theirs(job, peer, PNDM),
                    "ours": lambda: ours(job),
                },
                "equal": {
                    "theirs": lambda: theirs(job, peer, MULTISTEP),
                    "ours": lambda: ours(job, mixed_precision="no", **EQUAL),
                    "theirs, bf16": lambda: theirs(job, peer, MULTISTEP, prior_generation_precision="bf16"),
                    "ours, bf16": lambda: ours(job, **EQUAL),
                },
            }
        )
        for scheduler in (PNDM, MULTISTEP):
            job.peers_model(scheduler)
        for way in arguments.ways:
            found: dict[str, list[Taken]] = {name: [] for name in ways[way]}
            for _ in range(arguments.rounds):
                for name, act in ways[way].items():
                    found[name].append(act())
            clock, work = medians(found["theirs"])
            for name, taken in found.items():
                its_clock, its_work = medians(taken)
                print(
                    f"{way:9} {name:13} {its_clock:8.1f} s, {its_work:8.1f} s of the processor   "
                    f"{clock / its_clock:.2f}x, {work / its_work:.2f}x as fast as theirs",
                    flush=True,
                )


def medians(taken: list[Taken]) -> tuple[float, float]:
    return statistics.median(one.clock for one in taken), statistics.median(one.work for one in taken)


if __name__ == "__main__":
    main()
