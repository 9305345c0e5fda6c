"""The settings of a plan: what cannot be together is refused, and what was left to the model and its photos is filled in."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from dreambooth.shared.errors import InputError, concerning
from dreambooth.shared.paths import check_writable, default_runs_dir
from dreambooth.shared.settings import Settings
from dreambooth.trainer.adapters.results import check_prior, from_base
from dreambooth.trainer.data.survey import Survey, check_prompts, survey
from dreambooth.trainer.models.convert import LoadedModel, load_model
from dreambooth.trainer.models.loading import check_shapes
from dreambooth.trainer.sampling.model_size import model_size
from dreambooth.trainer.trackers import check_trackers

_LEAST_SIDE, _LARGEST_SIDE = 64, 2048


def check_together(settings: Settings) -> None:
    """Raises InputError for settings that make no sense together."""
    training = settings.training
    if not training.train_unet and not training.train_text_encoder:
        raise InputError(
            "neither the UNet nor the text encoder is to be trained",
            where="train_unet",
            remedy="train one of them",
        )
    if not training.train_unet and training.text_encoder_stop < 1:
        raise InputError(
            "nothing would be trained once the text encoder has stopped",
            where="text_encoder_stop",
            remedy="use 1, or train the UNet too",
        )
    check_prior(settings)
    check_trackers(settings)


def check_vae(settings: Settings) -> None:
    """Raises InputError if another VAE is named that cannot be used."""
    if not settings.model.vae:
        return
    try:
        load_model(settings.model.model, components=("vae",), vae=settings.model.vae)
    except InputError as error:
        raise InputError(
            f"{error.where}: {error.what}",
            where="vae",
            remedy="name a VAE's file or a checkpoint, or leave vae empty",
        ) from error


def open_base(settings: Settings) -> LoadedModel:
    """The checkpoint to start from, looked at and not loaded. Raises InputError for what cannot be used."""
    if not settings.model.model:
        raise InputError("no model is named", where="model", remedy="name a .safetensors or .ckpt file")
    if settings.model.vae and not Path(settings.model.vae).exists():
        raise InputError(f"there is no such file: {settings.model.vae}", where="vae", remedy="check the path")
    with concerning("model"):
        base = load_model(
            settings.model.model,
            components=(),
            prediction_type=settings.model.prediction_type,
            use_ema_weights=settings.model.use_ema_weights,
        )
        check_shapes(base.source, base.description)
    layers = int(base.configs["text_encoder"]["num_hidden_layers"])
    if base.identified.family.clip_skip and settings.model.clip_skip > layers:
        raise InputError(
            f"this model's text encoder has {layers} layers", where="clip_skip", remedy=f"use 1 to {layers}"
        )
    return base


def runs_dir_of(settings: Settings) -> Path:
    """The folder of the runs."""
    return Path(settings.result.runs_dir) if settings.result.runs_dir else default_runs_dir()


def check_resolution(settings: Settings) -> None:
    """Raises InputError for a resolution, other than 0, that is too small."""
    side = settings.images.resolution
    if 0 < side < _LEAST_SIDE:
        raise InputError(
            f"{side} pixels are too few to learn from",
            where="resolution",
            remedy=f"use {_LEAST_SIDE} or more, or 0 for the model's own size",
        )


def with_resolution(settings: Settings, base: LoadedModel) -> Settings:
    """A resolution of 0 becomes the size that the model was made for: of a shape that is no square, its area's."""
    side = settings.images.resolution
    if side == 0:
        width, height = model_size(base)
        step = base.identified.family.side_step
        side = min(_LARGEST_SIDE, max(step, math.isqrt(width * height) // step * step))
    else:
        check_resolution(settings)
    return dataclasses.replace(settings, images=dataclasses.replace(settings.images, resolution=side))


def with_folders(settings: Settings) -> Settings:
    """The settings with the folder of the runs. Raises InputError if nothing can be written there."""
    runs_dir = runs_dir_of(settings).absolute()
    check_writable(runs_dir, setting="runs_dir")
    return dataclasses.replace(settings, result=dataclasses.replace(settings.result, runs_dir=str(runs_dir)))


def class_root(settings: Settings, base: LoadedModel | None) -> Path:
    """Where class images go that no folder was named for: by model, since another model draws other ones. The folder of all
    of them where the model is not known."""
    root = runs_dir_of(settings) / "class_images"
    return root / f"{base.source.path.stem}-{base_fingerprint(base)[:8]}" if base is not None else root


def base_fingerprint(base: LoadedModel) -> str:
    """A hash that tells bases apart without reading them whole: names, shapes, dtypes, size and time."""
    import hashlib

    path = base.source.path
    about = path.stat()
    tensors = [(name, str(info.dtype), info.shape) for name, info in base.source.tensors.items()]
    return hashlib.sha256(repr((tensors, about.st_size, about.st_mtime_ns)).encode()).hexdigest()


def survey_of(settings: Settings, base: LoadedModel | None) -> Survey:
    """Looks at the images and the class images that are there now."""
    return survey(
        settings.concepts.concepts,
        prior=settings.prior.prior_loss_weight > 0,
        num_class_images=settings.prior.num_class_images,
        makes_class_images=not from_base(settings),
        allow_bad_images=settings.images.allow_bad_images,
        class_root=class_root(settings, base),
    )


def survey_for(settings: Settings, base: LoadedModel | None, *, is_new: bool) -> Survey:
    """The images of a run that is new, or goes on as it began, when names of files may have been taken for captions."""
    found = survey_of(settings, base)
    if is_new:
        check_prompts(found)
    return found


def images_of_step(settings: Settings, processes: int) -> int:
    """Instance images of one step, of all micro-batches of all processes."""
    training = settings.training
    return training.train_batch_size * training.gradient_accumulation_steps * processes


def with_steps(settings: Settings, found: Survey, processes: int) -> Settings:
    """The settings with a number of steps, where steps_per_image stood for it."""
    training = settings.training
    if not training.max_train_steps:
        images = sum(len(entry.instance) * entry.concept.repeats for entry in found.concepts)
        steps = max(1, math.ceil(training.steps_per_image * images / images_of_step(settings, processes)))
        training = dataclasses.replace(training, max_train_steps=steps)
    return dataclasses.replace(settings, training=training)


def trained_components(settings: Settings, base: LoadedModel) -> list[str]:
    """What is trained, or what the adapter is put on."""
    training = settings.training
    trains_text = training.train_text_encoder and training.text_encoder_stop > 0
    texts = [part.component for part in base.identified.family.text_encoders]
    return ["unet"] * training.train_unet + texts * trains_text
