"""What a plan says of a model beside its numbers: what was left out, and what looks unintended."""

from __future__ import annotations

import json
from collections.abc import Mapping

from dreambooth.shared.settings import AdapterSettings, PriorSettings, Settings
from dreambooth.trainer.adapters.results import from_base, is_adapter
from dreambooth.trainer.families.detect import told_by_file
from dreambooth.trainer.models.convert import LoadedModel
from dreambooth.trainer.models.sources import EMA_PREFIX, open_model, vae_origin
from dreambooth.trainer.saving.outputs import SETTINGS_KEY

LONG = 7  # days


def notes_on_model(settings: Settings, base: LoadedModel) -> list[str]:
    """What is to be known of the model with these settings, and what was left out."""
    notes = []
    if settings.not_taken:
        notes.append(f"not taken over, since it means nothing here: {', '.join(settings.not_taken)}")
    if settings.images.aspect_ratio_buckets and settings.prior.prior_loss_weight > 0:
        notes.append(
            "aspect_ratio_buckets with prior preservation: class images are square, photos are not, "
            "so that the model may learn their shapes as part of the subject"
        )
    if any(name.startswith(EMA_PREFIX) for name in base.source.tensors):
        notes.append("the model's own averaged (EMA) weights are left out of the result")
    if settings.model.clip_skip > 1 and not base.identified.family.clip_skip:
        notes.append(f"clip_skip is ignored by {base.identified.family.title}, as the WebUI does")
    notes += _trained_before(base.source.metadata) + _without_effect(settings)
    return notes + _contradiction(settings, base) + _notes_on_family(settings, base)


def vae_text(settings: Settings) -> str:
    """The VAE that is used in place of the model's own, and what it is from; empty if there is none."""
    if not settings.model.vae:
        return ""
    origin = vae_origin(settings.model.vae)
    told = f"from {origin[0]}" if origin else "its file does not tell of which family it is"
    return f"{settings.model.vae} ({told})"


def notes_on_time(seconds: float | None) -> list[str]:
    """A training of more than a week is seldom meant."""
    days = (seconds or 0) / 86_400
    if days <= LONG:
        return []
    return [f"this takes about {days:,.0f} days: are so many steps or class images meant?"]


def _without_effect(settings: Settings) -> list[str]:
    """Settings that were given and that the others leave nothing to do."""
    training, notes = settings.training, []
    if training.lr_warmup_steps and training.lr_scheduler == "constant":
        notes.append(
            "lr_warmup_steps has no effect with lr_scheduler: constant; constant_with_warmup has a warm-up"
        )
    elif training.lr_warmup_steps >= training.max_train_steps:
        notes.append(
            f"the learning rate never reaches its value: it rises for {training.lr_warmup_steps} steps "
            f"(lr_warmup_steps) of {training.max_train_steps}"
        )
    if settings.captions.keep_tokens and not settings.captions.shuffle_tags:
        notes.append("keep_tokens has no effect without shuffle_tags")
    if _counts_in_vain(settings):
        notes.append(
            "num_class_images has no effect with prior: base_prediction: none are made, and all in class_data_dir are used"
        )
    if not training.train_text_encoder and training.text_encoder_stop < 1:
        notes.append("text_encoder_stop has no effect: the text encoder is not trained")
    if not is_adapter(settings) and (given := _of_adapters(settings.adapters)):
        notes.append(f"no effect, since the whole model is trained and no adapter: {', '.join(given)}")
    return notes


def _counts_in_vain(settings: Settings) -> bool:
    """Whether a number of class images was asked for where none are made."""
    prior = settings.prior
    if not from_base(settings) or not prior.prior_loss_weight:
        return False
    asked = prior.num_class_images not in (0, PriorSettings().num_class_images)
    return asked or any(
        concept.num_class_images or concept.num_class_images_per for concept in settings.concepts.concepts
    )


def _of_adapters(asked: AdapterSettings) -> list[str]:
    """Settings that were given and say how an adapter is made. A form that was a LoRA's before has them still."""
    usual = AdapterSettings()
    names = ("rank", "lora_alpha", "lora_dropout", "clip_rank")
    return [f"`{name}`" for name in names if getattr(asked, name) != getattr(usual, name)]


def _trained_before(metadata: Mapping[str, str]) -> list[str]:
    """A base that is a result of ours: after "Use it now" it is easily taken for the next training's too."""
    try:
        concepts = json.loads(metadata[SETTINGS_KEY])["concepts"]
        learned = ", ".join(f"`{concept['instance_prompt']}`" for concept in concepts)
    except (KeyError, TypeError, ValueError):
        return []
    return [
        f"the model is itself the result of a training ({learned}): this one goes on from it; to begin afresh, take the "
        "checkpoint that it was made from"
    ]


def _contradiction(settings: Settings, base: LoadedModel) -> list[str]:
    """A prediction type that is set against what the file states of itself."""
    wanted = settings.model.prediction_type
    told = None if wanted == "auto" else told_by_file(base.source, open_model(settings.model.model).stated)
    if told is None or told[0] == wanted:
        return []
    return [
        f"prediction_type: {wanted} is set, but the model predicts {told[0]} ({told[1]}); if the model is right, the "
        "result's pictures will be noise"
    ]


def _notes_on_family(settings: Settings, base: LoadedModel) -> list[str]:
    identified, notes = base.identified, []
    family, side = identified.family, settings.images.resolution
    if family.vae_overflows and not settings.model.vae:
        notes.append(f"the VAE works in float32: that of {family.title} overflows in half precision")
    if family.sized and side < family.resolution * 3 // 4:
        notes.append(f"{family.title} was made for {family.resolution} pixels, and resolution is {side}")
    if identified.zero_terminal_snr:
        last = (
            "; with snr_gamma the last timestep, whose SNR is zero, has no weight"
            if settings.training.snr_gamma and identified.prediction_type == "v_prediction"
            else ""
        )
        notes.append(f"the noise schedule is rescaled to zero terminal SNR, as the model's{last}")
    return notes
