"""The plan as a page of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dreambooth.trainer.adapters.results import from_base
from dreambooth.trainer.memory.room import GB
from dreambooth.trainer.planning.expected import time_text
from dreambooth.trainer.saving.outputs import size_text

if TYPE_CHECKING:
    from dreambooth.trainer.planning.plan import Plan


def plan_text(plan: Plan) -> str:
    """The plan as people read it before they say yes."""
    event = plan.as_event()
    training = plan.settings.training
    prior = _prior_text(plan, event["class_images"], event["class_images_to_make"])
    buckets = ", ".join(f"{count} at {size}" for size, count in event["buckets"].items())
    trained = ", ".join(
        f"{title} ({count / 1e6:.3g}M)"
        for title, count in zip(event["trained"], plan.trained.values(), strict=True)
    )
    factors = (training.train_batch_size, training.gradient_accumulation_steps, plan.processes)
    batch = " × ".join(str(factor) for factor in factors if factor > 1) or "1"
    lines = [
        f"Model      {event['model']}",
        f"           {event['family']}, predicts {event['prediction_type']} ({event['told_by']})",
        *([f"VAE        {plan.vae}"] if plan.vae else []),
        f"Images     {event['images']} ({buckets}); {prior}",
        f"Training   {plan.steps} steps of {batch} image{'' if batch == '1' else 's'}"
        f"{' and as many of the class' if plan.prior else ''}, {event['epochs']:g} epochs",
        f"           {trained}; {training.optimizer}, {_rates_text(plan)}",
        *([f"           {plan.adapter}"] if plan.adapter else []),
        f"Machine    {event['device']}, mixed precision {event['mixed_precision']}",
        *_memory_lines(plan),
        *(f"Writes     {file.path}  ({file.what}, {size_text(file.size)})" for file in plan.files),
        *(
            f"Disk       {size_text(volume.needed)} needed, {size_text(volume.free)} free at {volume.path}"
            for volume in plan.volumes
        ),
        *_expected_lines(plan),
        *(f"Note       {note}" for note in plan.notes),
        *_advice_lines(plan),
    ]
    return "\n".join(lines)


def _rates_text(plan: Plan) -> str:
    """The rate of what is trained; two where they differ."""
    training = plan.settings.training
    unet, text = training.learning_rate, training.text_encoder_learning_rate
    if "unet" not in plan.trained:
        return f"learning rate {text:g}"
    if not plan.trains_text or text == unet:
        return f"learning rate {unet:g}"
    return f"learning rate {unet:g}, of the text encoder {text:g}"


def _prior_text(plan: Plan, found: int, missing: int) -> str:
    if not plan.prior:
        return "no prior preservation"
    if from_base(plan.settings):
        return (
            f"the prior is the base's own prediction, of {f'{found} class images' if found else 'the photos'}"
        )
    narrower = missing and plan.machine.pictures != plan.machine.mixed_precision
    return f"{found} class images found, {missing} to be made{f' in {plan.machine.pictures}' if narrower else ''}"


def _memory_lines(plan: Plan) -> list[str]:
    """Each phase's sum, of the fullest one what it is made of, and the settings that made it so."""
    memory = plan.memory
    if memory is None:
        return []
    room, fullest = memory.room, memory.fullest
    share = "allowed" if room.limit and room.limit <= room.free else "free"
    fits = "fits" if memory.fits else "MAY NOT FIT"
    if memory.fits and fullest.bytes > room.usable:
        fits = "fits but for sample pictures"
    lines = [
        f"Memory     {fits}: {_gb(fullest.bytes)} at most, in {fullest.name}; {_gb(room.allowed)} of {room.of} are {share}, "
        f"{_gb(room.usable)} counted on"
    ]
    for phase in memory.phases:
        lines.append(f"           {_gb(phase.bytes):>9}  {phase.name}")
        if phase is fullest:
            lines += [f"           {'':>9}  {_gb(line.bytes):>9}  {line.text}" for line in phase.lines]
    for way in memory.ways:
        whose, does = "as asked" if way.asked else "chosen", f" ({way.does})" if way.does else ""
        lines.append(f"           {whose:>9}  {way.name}: {way.value}{does}")
    return lines


def _gb(size: int) -> str:
    return f"{size / GB:.2f} GB"


def _expected_lines(plan: Plan) -> list[str]:
    seconds = plan.expected.seconds
    return [] if seconds is None else [f"Time       about {time_text(seconds)} ({plan.expected.by})"]


def _advice_lines(plan: Plan) -> list[str]:
    return [
        f"Advice     concept {number}: {advice['text']}{_some(advice['files'])}"
        for number, concept in enumerate(plan.concepts, 1)
        for advice in concept["advice"]
    ]


def _some(files: Sequence[str]) -> str:
    """` (a.png, b.png, …)`"""
    return f" ({', '.join(files[:5])}{', …' if len(files) > 5 else ''})" if files else ""
