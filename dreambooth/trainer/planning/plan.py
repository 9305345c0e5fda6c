"""The plan: everything up to the first write. What would happen, what it needs, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth import __version__
from dreambooth.shared.errors import concerning
from dreambooth.shared.problems import Problems
from dreambooth.shared.settings import Settings
from dreambooth.trainer import machine as machines
from dreambooth.trainer.adapters.kept import kept_adapter
from dreambooth.trainer.adapters.plan import AdapterPlan, adapter_plan, with_resolved
from dreambooth.trainer.adapters.results import from_base
from dreambooth.trainer.data.buckets import Size, bucket_sizes
from dreambooth.trainer.data.captions import Variation
from dreambooth.trainer.data.dataset import Augmentation, DataPlan, plan_data
from dreambooth.trainer.data.images import parse_colour
from dreambooth.trainer.data.looks import look_at
from dreambooth.trainer.data.survey import Survey
from dreambooth.trainer.eightbit import Verdict
from dreambooth.trainer.eightbit.instead import check_8bit, eight_bit_verdict
from dreambooth.trainer.families import TITLES
from dreambooth.trainer.machine import Machine
from dreambooth.trainer.memory.choice import Choice, choose
from dreambooth.trainer.memory.models import sharing
from dreambooth.trainer.memory.room import room_on
from dreambooth.trainer.memory.ways import plain
from dreambooth.trainer.models.checkpointing import with_checkpointing
from dreambooth.trainer.models.convert import LoadedModel
from dreambooth.trainer.models.export_file import yaml_beside
from dreambooth.trainer.models.int8 import NOTE as INT8_NOTE
from dreambooth.trainer.models.int8 import is_int8, with_base_precision
from dreambooth.trainer.models.kept_base import check_base
from dreambooth.trainer.models.text import chunks_for
from dreambooth.trainer.models.tokenizer import default_tokenizer
from dreambooth.trainer.optim.optimizer_rules import (
    check_fused_backward,
    check_optimizer,
    check_weights_dtype,
    notes_on,
    try_arguments,
)
from dreambooth.trainer.optim.rates import with_rates
from dreambooth.trainer.planning.advice import Surroundings, concept_facts
from dreambooth.trainer.planning.expected import Expected, expect, likeness
from dreambooth.trainer.planning.plan_notes import notes_on_model, notes_on_time, vae_text
from dreambooth.trainer.planning.plan_settings import (
    check_resolution,
    check_together,
    check_vae,
    images_of_step,
    open_base,
    survey_for,
    trained_components,
    with_folders,
    with_resolution,
    with_steps,
)
from dreambooth.trainer.planning.plan_text import plan_text
from dreambooth.trainer.planning.sizes import optimizer_bytes, parameters, planned_files
from dreambooth.trainer.saving.outputs import Outputs, PlannedFile, Volume, asked_name, check_room, outputs_of


@dataclass(frozen=True)
class Plan:
    """What a run will do. `settings` are resolved: names, folders and the number of steps are filled in.

    `trained` are parameters by component; `notes` say what `auto` became, and what was left out; `concepts` are each
    concept's facts with what a careful friend would say (advice.py); prompts are `chunks` of 75 tokens long. `vae` is
    another VAE than the model's own, in words ("": none).
    """

    settings: Settings
    machine: Machine
    base: LoadedModel
    survey: Survey
    buckets: tuple[Size, ...]
    outputs: Outputs
    files: tuple[PlannedFile, ...]
    volumes: tuple[Volume, ...]
    trained: Mapping[str, int]
    notes: tuple[str, ...]
    processes: int = 1
    concepts: tuple[Mapping[str, Any], ...] = ()
    expected: Expected = Expected(None, "")
    eight_bit: Verdict | None = None
    adapter: AdapterPlan | None = None
    memory: Choice | None = None
    chunks: int = 1
    vae: str = ""

    @property
    def steps(self) -> int:
        return self.settings.training.max_train_steps

    @property
    def prior(self) -> bool:
        return self.settings.prior.prior_loss_weight > 0

    @property
    def trains_text(self) -> bool:
        """Whether the text encoders are trained: all that the model has, or none."""
        return self.base.identified.family.text_encoders[0].component in self.trained

    @property
    def batch(self) -> int:
        """Instance images of one step, of all micro-batches of all processes."""
        return images_of_step(self.settings, self.processes)

    @property
    def text_encoder_stop(self) -> int:
        """The step from which the text encoder is left as it is."""
        return math.ceil(self.settings.training.text_encoder_stop * self.steps)

    @property
    def class_images_missing(self) -> int:
        return sum(folder.missing for folder in self.survey.class_folders())

    @property
    def epochs(self) -> float:
        drawn = sum(len(entry.instance) * entry.concept.repeats for entry in self.survey.concepts)
        return self.steps * self.batch / max(1, drawn)

    def as_event(self) -> dict[str, Any]:
        """The fields of the `plan` event, plain JSON values; sizes in bytes."""
        folders = self.survey.class_folders()
        return {
            "images": self.survey.instance_count,
            "class_images": sum(folder.found for folder in folders),
            "class_images_to_make": self.class_images_missing,
            "buckets": self._bucket_counts(),
            "steps": self.steps,
            "epochs": round(self.epochs, 2),
            "trained": [TITLES[name] for name in self.trained],
            "adapter": str(self.adapter or ""),
            "files": [{"path": str(f.path), "size": f.size, "what": f.what} for f in self.files],
            "disk_needed": sum(volume.needed for volume in self.volumes),
            "disk_free": min((volume.free for volume in self.volumes), default=0),
            "volumes": [{"path": str(v.path), "needed": v.needed, "free": v.free} for v in self.volumes],
            "memory": self.memory.as_json() if self.memory else {},
            "model": self.settings.model.model,
            "vae": self.vae,
            "family": self.base.identified.family.title,
            "prediction_type": self.base.identified.prediction_type,
            "told_by": self.base.identified.told_by,
            "device": self.machine.device_name,
            **({"eight_bit": self.eight_bit.as_json()} if self.eight_bit else {}),
            "mixed_precision": self.machine.mixed_precision,
            "output": str(self.outputs.final),
            "notes": list(self.notes),
            "concepts": [dict(concept) for concept in self.concepts],
            "expected_seconds": self.expected.seconds,
            "expected_by": self.expected.by,
            "like": likeness(self),
        }

    def _bucket_counts(self) -> dict[str, int]:
        counts = data_plan(self, self.survey).bucket_counts()
        return {f"{width}x{height}": count for (width, height), count in counts.items()}

    def text(self) -> str:
        """The plan as people read it before they say yes."""
        return plan_text(self)


def make_plan(
    settings: Settings, *, run: Path | None = None, processes: int = 1, measure: bool = False
) -> Plan:
    """Plans a run. Writes nothing. Raises InputError for whatever is wrong with the input, SeveralErrors if that is more
    than one thing and they have nothing to do with each other.

    `run` is the folder of a run that is resumed: its names are its own already, and a part of it is written.
    `measure`: the device's rate is measured if no earlier run tells how long this one will take.
    """
    asked, settings = settings, plain(settings)
    base, buckets, found = _looked_at(settings, run)
    settings = with_resolution(settings, base)
    components = trained_components(settings, base)
    adapter = kept_adapter(run, settings, base) or adapter_plan(settings, base, components)
    settings, rates = with_rates(with_resolved(settings, adapter), parameters(base, "unet"))
    settings = with_folders(with_base_precision(with_checkpointing(settings, base)))
    settings = with_steps(settings, found, processes)
    machine = _machine(settings, processes)
    settings, outputs = _with_outputs(settings, base, run)
    trained = {name: parameters(base, name, adapter) for name in components}
    plan = Plan(
        settings=settings,
        machine=machine,
        base=base,
        survey=found,
        buckets=buckets,
        outputs=outputs,
        files=(),
        volumes=(),
        trained=trained,
        notes=(*rates, *(adapter.notes if adapter else ()), *machine.notes),
        processes=processes,
        eight_bit=_eight_bit(settings, machine, base, trained, adapter),
        adapter=adapter,
        chunks=_chunks(settings, found),
    )
    return _told(_fitted(plan, asked), run=run, measure=measure)


def _looked_at(settings: Settings, run: Path | None) -> tuple[LoadedModel, tuple[Size, ...], Survey]:
    """The base, the sizes of images, and the photos. All that is wrong is told at once."""
    problems = Problems()
    problems.ask(check_together, settings)
    base = problems.ask(_base, settings, run)
    buckets = problems.ask(_buckets, settings, base)
    problems.ask(parse_colour, settings.images.background)
    if base is not None:
        problems.ask(check_vae, settings)
    problems.ask(check_optimizer, settings)
    problems.ask(with_folders, settings)
    found = problems.ask(survey_for, settings, base, is_new=run is None)
    problems.ask(_check_name, settings, base, run)
    problems.tell()
    assert base is not None and buckets is not None and found is not None  # else there was something to tell
    return base, buckets, found


def _base(settings: Settings, run: Path | None) -> LoadedModel:
    """The model; of a run that goes on the one that it began with. Raises InputError."""
    base = open_base(settings)
    if run is not None:
        check_base(run, settings, base)
    return base


def _buckets(settings: Settings, base: LoadedModel | None) -> tuple[Size, ...]:
    """The sizes that images are brought to; none where the model, whose steps they go in, is not known."""
    if base is None:
        check_resolution(settings)
        return ()
    return bucket_sizes(
        with_resolution(settings, base).images.resolution,
        aspect_ratio_buckets=settings.images.aspect_ratio_buckets,
        multiple=base.identified.family.side_step,
    )


def _check_name(settings: Settings, base: LoadedModel | None, run: Path | None) -> None:
    """Raises InputError for a result's name or place that cannot be; without a model for what is no name at all."""
    if base is not None:
        _with_outputs(settings, base, run)
    elif settings.result.output_name:
        asked_name(settings.result)


def _machine(settings: Settings, processes: int) -> Machine:
    machine = machines.examine(settings)
    check_fused_backward(settings, machine.mixed_precision, processes)
    check_weights_dtype(settings, machine.mixed_precision)
    return machine


def _with_outputs(settings: Settings, base: LoadedModel, run: Path | None) -> tuple[Settings, Outputs]:
    """Where results go, and the settings that say so."""
    outputs = outputs_of(settings, run=run)
    if settings.result.output_kind == "checkpoint":  # whether a .yaml that is there is in its way
        with concerning("output_name"):
            yaml_beside(outputs.final, base.source, base.description, overwrite=settings.result.overwrite)
    result = dataclasses.replace(settings.result, output_name=outputs.name, output_dir=str(outputs.folder))
    return dataclasses.replace(settings, result=result), outputs


def _eight_bit(
    settings: Settings,
    machine: Machine,
    base: LoadedModel,
    trained: Mapping[str, int],
    adapter: AdapterPlan | None,
) -> Verdict | None:
    """What is known of 8 bit here where an optimizer needs it. Raises InputError if it does not work."""
    found = check_8bit(
        settings.training.optimizer,
        machine.device,
        lambda name: optimizer_bytes(base, trained, name, adapter),
    )
    if found:
        try_arguments(settings.training)
    return found


def _chunks(settings: Settings, found: Survey) -> int:
    """Chunks of 75 tokens that each prompt of the run gets."""
    prompts = {entry.instance_prompt(image) for entry in found.concepts for image in entry.instance}
    prompts |= {image.prompt for folder in found.class_folders() for image in folder.prompts}
    return chunks_for(default_tokenizer(), prompts, settings.captions.max_prompt_chunks)


def _told(plan: Plan, *, run: Path | None, measure: bool) -> Plan:
    """The plan with what it says of itself: notes, files, facts of the concepts, and how long it takes."""
    settings = plan.settings
    data = data_plan(plan, plan.survey)
    files = tuple(planned_files(plan, data, run))
    expected = expect(plan, measure=measure)
    notes = (
        *plan.notes,
        *([INT8_NOTE] if is_int8(settings) else ()),
        *notes_on(settings),
        *([plan.eight_bit.text] if plan.eight_bit else ()),
        *notes_on_model(settings, plan.base),
        *plan.survey.warnings,
        *notes_on_time(expected.seconds),
    )
    return dataclasses.replace(
        plan,
        notes=notes,
        files=files,
        volumes=tuple(_room(files)),
        concepts=tuple(_concept_facts(settings, plan.survey, data)),
        expected=expected,
        vae=vae_text(settings),
    )


def _fitted(plan: Plan, asked: Settings) -> Plan:
    """The plan with the quickest settings that fit into memory where `asked` left them open."""
    room = room_on(plan.machine.device, plan.settings.model.vram_limit, plan.processes)
    verdicts: dict[str, Verdict] = {}

    def works(name: str) -> bool:
        if name not in verdicts:
            verdicts[name] = eight_bit_verdict(name, plan.machine.device)
        return verdicts[name].works

    with sharing():
        choice = choose(plan, asked, room, works)
    return dataclasses.replace(
        plan,
        settings=choice.settings,
        memory=choice,
        notes=(*plan.notes, *choice.notes),
        eight_bit=verdicts.get(choice.settings.training.optimizer, plan.eight_bit),
    )


def _room(files: Sequence[PlannedFile]) -> list[Volume]:
    with concerning("output_dir"):
        return check_room(files)


def _concept_facts(settings: Settings, found: Survey, data: DataPlan) -> Iterator[Mapping[str, Any]]:
    images = [image for entry in found.concepts for image in entry.instance]
    around = Surroundings(
        targets={item.image.content_id: item.bucket for item in data.items},
        looks=look_at(images),
        tokenizer=default_tokenizer(),
        max_chunks=settings.captions.max_prompt_chunks,
    )
    for entry in found.concepts:
        yield concept_facts(entry, around)


def data_plan(plan: Plan, found: Survey) -> DataPlan:
    """What every sample of the run is drawn from."""
    images, captions = plan.settings.images, plan.settings.captions
    return plan_data(
        found,
        plan.buckets,
        batch=plan.batch,
        augmentation=Augmentation(
            random_crop=images.crop == "random",
            random_flip=images.random_flip,
            rotation=images.rotation,
            brightness=images.brightness,
        ),
        variation=Variation(captions.caption_dropout, captions.shuffle_tags, captions.keep_tokens),
        cached=images.cache_latents,
        inpainting=plan.base.identified.family.in_channels == 9,
        photos_as_class=plan.prior and from_base(plan.settings),
    )


def versions() -> dict[str, str]:
    """What the run was made with, for its config.yaml."""
    libraries = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
    found = {name: _version(name) for name in libraries}
    return {"dreambooth": __version__, "python": platform.python_version(), **found}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
