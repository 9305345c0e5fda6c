"""How long a run will take: as earlier runs with like settings did on this device, else by arithmetic."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.shared.config import to_mapping
from dreambooth.shared.runfolder import RunFolder, is_run
from dreambooth.trainer.models.checkpointing import units_of, wanted
from dreambooth.trainer.planning.sizes import parameters
from dreambooth.trainer.sampling.previews import STEPS as PREVIEW_STEPS

if TYPE_CHECKING:
    from dreambooth.trainer.planning.plan import Plan

MOST_RUNS = 40
PART = 2**18  # what is read of a run's events at either end, in bytes: they can be megabytes
# A forward pass of SD1.5's UNet (860M weights) on one image at 512 pixels, and its VAE's encoder, in FLOP
FORWARD, UNET_WEIGHTS = 0.803e12, 860e6
ENCODE, VAE_WEIGHTS = 1.12e12, 84e6
SIDE = 512
BACKWARD, AGAIN = 2.0, 0.75  # of a forward pass; `AGAIN` is what checkpointing computes a second time
ADAM_BYTES = 28  # that fp32 AdamW moves for each weight
SECONDS_A_TENSOR = 1.5e-4  # of starting what one weight tensor needs in a step: what small models wait for
EFFICIENCY = 0.4  # of a large matrix product's rate
BACKWARD_TO_ADAPTERS = 1.15  # the gradients of frozen weights are not computed
# Settings on which no step's time depends; every other one may
INDIFFERENT = frozenset(
    {
        "model", "vae", "prediction_type", "use_ema_weights", "attention", "mixed_precision", "output_name", "output_dir",
        "output_format", "output_dtype", "overwrite", "export_steps", "runs_dir", "concepts", "crop", "random_flip",
        "rotation", "brightness", "background", "allow_bad_images", "caption_dropout", "keep_tokens", "prior_loss_weight",
        "num_class_images", "class_guidance_scale", "class_seed", "sample_batch_size", "max_train_steps",
        "steps_per_image", "learning_rate", "text_encoder_learning_rate", "lr_scheduler", "lr_warmup_steps",
        "lr_num_cycles", "lr_power", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "snr_gamma",
        "offset_noise", "ema_decay", "seed", "checkpointing_steps", "checkpoints_total_limit", "validation_prompt",
        "validation_negative_prompt", "validation_steps", "num_validation_images", "report_to", "lora_alpha", "init_from",
    }
)  # fmt: skip
START = 15.0  # seconds to load, and to write and check the result


@dataclass(frozen=True)
class Expected:
    """Seconds, None where nothing is known; `by` says how they were told."""

    seconds: float | None
    by: str


@dataclass(frozen=True)
class Earlier:
    """What an earlier run took: seconds before its first step, for a class image (None: it made none), for a sampling
    step of a picture (None: it made none), for a step, and after its last."""

    name: str
    before: float
    class_image: float | None
    sampling_step: float | None
    step: float
    after: float


def likeness(plan: Plan) -> str:
    """Equal for plans whose steps take the same time on the same device."""
    settings = {name: value for name, value in to_mapping(plan.settings).items() if name not in INDIFFERENT}
    about = (
        plan.machine.device_name, plan.machine.mixed_precision, plan.machine.attention, torch.get_num_threads(),
        plan.processes, plan.base.identified.family.name, _weights(plan), sorted(plan.trained.items()), plan.prior,
        sorted(settings.items(), key=str),
    )  # fmt: skip
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def expect(plan: Plan, *, measure: bool) -> Expected:
    """The time that a run takes from its plan to its end. With `measure` the device's rate is measured (a moment)
    where no earlier run tells."""
    wanted = likeness(plan)
    for run in _newest(Path(plan.settings.result.runs_dir)):
        earlier = _earlier(run, wanted)
        if earlier is not None:
            seconds = earlier.before + plan.steps * earlier.step + earlier.after
            sampling_step = earlier.sampling_step or _sampling_step(plan, earlier.step)
            seconds += _pictures(plan, sampling_step, earlier.class_image, previews=1)
            return Expected(round(seconds, 1), f"as fast as the run {earlier.name}, which had like settings")
    if not measure:
        return Expected(None, "no earlier run had like settings")
    try:
        return _computed(plan)
    except RuntimeError as error:  # a card without room for it, which another program fills
        return Expected(None, f"the device cannot be measured now: {str(error).splitlines()[0]}")


def time_text(seconds: float) -> str:
    """`5400` is "1 h 30 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _weights(plan: Plan) -> dict[str, int]:
    return {name: parameters(plan.base, name) for name in sorted(plan.base.description.bindings)}


def _sampling_step(plan: Plan, step: float) -> float:
    """Seconds of a picture's two forward passes, from those of a training step with its three for each image. A small
    model's step is mostly other work, so that this is too much."""
    images = plan.batch // plan.processes * (2 if plan.prior else 1)
    return step / images * 2 / (1 + BACKWARD)


def _pictures(plan: Plan, sampling_step: float, class_image: float | None, *, previews: int) -> float:
    """Seconds for class images and sample pictures. `previews` is how often the latter are made besides every so many
    steps."""
    saving = plan.settings.saving
    if class_image is None:
        class_image = plan.settings.prior.class_infer_steps * sampling_step
    often = (plan.steps - 1) // saving.validation_steps if saving.validation_steps else 0
    prompts = 1 if saving.validation_prompt else len(plan.survey.concepts)
    samples = saving.num_validation_images * prompts * (often + previews)
    return plan.class_images_missing * class_image + samples * PREVIEW_STEPS * sampling_step


# ---- earlier runs --------------------------------------------------------------------------------------------------


def _newest(runs_dir: Path) -> list[RunFolder]:
    found = []
    try:
        for path in runs_dir.iterdir():
            run = RunFolder(path)
            if is_run(path) and run.events.is_file():
                found.append((run.events.stat().st_mtime, run))
    except OSError:  # not there yet, or gone meanwhile
        pass
    return [run for _, run in sorted(found, key=lambda pair: -pair[0])[:MOST_RUNS]]


def _earlier(run: RunFolder, wanted: str) -> Earlier | None:
    """What a run took, None if it had other settings or did not come to its end."""
    try:
        with run.events.open("rb") as file:
            head = list(_events(file.read(PART)))
            if not head or head[0].get("event") != "plan" or head[0].get("like") != wanted:
                return None
            size = file.seek(0, 2)
            file.seek(max(0, size - PART))
            tail = list(_events(file.read()))
        return _told(run.name, head, tail)
    except (OSError, KeyError, TypeError, ValueError):
        return None  # another version's, or damaged


def _events(part: bytes) -> Iterator[dict[str, Any]]:
    for line in part.splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # cut at an end of the part
            continue
        if isinstance(event, dict):
            yield event


def _told(name: str, head: list[dict[str, Any]], tail: list[dict[str, Any]]) -> Earlier | None:
    steps = [event for event in tail if event["event"] == "step" and event["it_s"]]
    training = [event for event in head if event["event"] == "phase" and event["name"] == "training"]
    done = [event for event in tail if event["event"] == "done"]
    if not steps or not training or not done:
        return None
    drawn = [event for event in head if event.get("name") == "class images"]  # the phase, 0 images, then each
    made = drawn[-1].get("done", 0) if drawn else 0
    began = max((event["time"] for event in drawn if not event.get("done")), default=0.0)
    drawing = drawn[-1]["time"] - began if made else 0.0
    before = training[0]["time"] - head[0]["time"] - drawing
    after = done[-1]["time"] - steps[-1]["time"]
    class_image = drawing / made if made else None
    return Earlier(name, before, class_image, _sampled(head, tail), 1 / steps[-1]["it_s"], after)


def _sampled(head: list[dict[str, Any]], tail: list[dict[str, Any]]) -> float | None:
    """Seconds of a sampling step of a sample picture, when they came fastest: the first ones warm the device up."""
    fastest = math.inf
    for part in (head, tail):
        told = [event for event in part if event["event"] == "progress" and event["name"] == "samples"]
        for first, last in itertools.pairwise(event for event in told if event["done"] in (0, event["of"])):
            if first["done"] == 0 and last["done"] == last["of"] > 0:
                fastest = min(fastest, (last["time"] - first["time"]) / last["of"])
    return fastest / PREVIEW_STEPS if 0 < fastest < math.inf else None


# ---- arithmetic ----------------------------------------------------------------------------------------------------


def _computed(plan: Plan) -> Expected:
    rate, bandwidth = _rate(plan), _bandwidth(plan.machine.device)
    weights, training = _weights(plan), plan.settings.training
    area = (plan.settings.images.resolution / SIDE) ** 2
    forward = FORWARD * weights["unet"] / UNET_WEIGHTS * area
    backward = BACKWARD_TO_ADAPTERS if plan.adapter else BACKWARD
    units = units_of(plan.base)
    passes = 1 + backward + AGAIN * wanted(training.gradient_checkpointing, units) / units
    images = plan.batch // plan.processes * (2 if plan.prior else 1)
    moved = ADAM_BYTES * sum(plan.trained.values()) / bandwidth
    tensors = sum(len(plan.base.description.bindings[name]) for name in plan.trained)
    passed = training.gradient_accumulation_steps
    if training.forward_batch_size:
        passed = max(passed, math.ceil(images / training.forward_batch_size))
    step = images * forward * passes / (EFFICIENCY * rate) + moved + SECONDS_A_TENSOR * tensors * passed
    encoded = plan.survey.instance_count + sum(entry.class_wanted for entry in plan.survey.concepts)
    encoding = encoded * ENCODE * weights["vae"] / VAE_WEIGHTS * area / (EFFICIENCY * rate)
    launched = SECONDS_A_TENSOR / (1 + BACKWARD) * len(plan.base.description.bindings["unet"])
    sampling_step = 2 * forward / (EFFICIENCY * rate) + launched / plan.settings.prior.sample_batch_size
    seconds = START + encoding + plan.steps * step + _pictures(plan, sampling_step, None, previews=2)
    by = f"arithmetic and this device's measured {rate / 1e12:.2g} TFLOP/s; the first run here will tell better"
    return Expected(float(f"{seconds:.2g}"), by)


def _rate(plan: Plan) -> float:
    """FLOP per second of a large matrix product in the precision that is trained in."""
    device = plan.machine.device
    side = 1024 if device.type == "cpu" else 4096
    factor = torch.randn(side, side).to(device, plan.machine.compute_dtype)
    return 2 * side**3 / _fastest(lambda: factor @ factor, device)


def _bandwidth(device: torch.device) -> float:
    """Bytes per second that are read and written."""
    source = torch.zeros(2**24, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), device)


def _fastest(act: Any, device: torch.device) -> float:
    """Seconds of the fastest of a few tries."""
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        taken.append(time.perf_counter() - began)
    return max(min(taken), 1e-9)
