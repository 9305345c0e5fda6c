"""Learning rates that nobody named: the usual ones for what is trained."""

from __future__ import annotations

import dataclasses

from dreambooth.shared.settings import Settings
from dreambooth.trainer.adapters.results import is_adapter
from dreambooth.trainer.optim.optimizer_table import TABLE, kind_of

# Hugging Face's blog on DreamBooth for whole models (2e-6 with the text encoder); diffusers' and kohya's trainers for
# adapters, which have far fewer numbers to move: 1e-4, and half of it for text encoders
MODEL, ADAPTER = 2e-6, 1e-4
ADAPTERS_TEXT = 0.5
# times the usual. Everything that trainers and their users report for models of full size lies within ten times
# (whole models 4e-7 to 1e-5, adapters 5e-5 to 1e-3); small ones are taught with far higher rates
FAR, FAR_FOR_SMALL = 10, 100
SMALL = 100_000_000  # parameters of a UNet; the smallest that anybody draws pictures with has 860 million


def with_rates(settings: Settings, unet_parameters: int = SMALL) -> tuple[Settings, list[str]]:
    """The settings with a number for each rate that is 0, and what is to be said of it.

    An optimizer that finds the rate by itself takes a factor, of which 1 is the usual. `unet_parameters` is the model's
    size: a rate that is far from the usual for it and for what is trained is remarked on.
    """
    training, adapter = settings.training, is_adapter(settings)
    own = kind_of(training.optimizer).own_rate
    rate = training.learning_rate or (1.0 if own else ADAPTER if adapter else MODEL)
    text = training.text_encoder_learning_rate or rate * (ADAPTERS_TEXT if adapter and not own else 1)
    notes = []
    if not training.learning_rate and training.train_unet:
        what = "this optimizer" if own else "an adapter" if adapter else "a whole model"
        notes.append(f"learning_rate {rate:g}, the usual for {what}")
    if not training.text_encoder_learning_rate and training.train_text_encoder and text != rate:
        notes.append(f"text_encoder_learning_rate {text:g}, half of the UNet's, as is usual for an adapter")
    if kind_of(training.optimizer).name in TABLE and not own:
        small = unet_parameters < SMALL
        usual = ADAPTER if adapter else MODEL
        what = "an adapter" if adapter else "a whole model"
        if training.train_unet:
            notes += _unusual("learning_rate", rate, usual, what, small)
        if training.train_text_encoder and training.text_encoder_learning_rate and not small:
            usual *= ADAPTERS_TEXT if adapter else 1
            notes += _unusual("text_encoder_learning_rate", text, usual, what, small)
    made = dataclasses.replace(training, learning_rate=rate, text_encoder_learning_rate=text)
    return dataclasses.replace(settings, training=made), notes


def _unusual(name: str, rate: float, usual: float, what: str, small: bool) -> list[str]:
    """What is said of a rate that was named and is far from the usual for a model that is `small` or not."""
    if rate > (FAR_FOR_SMALL if small else FAR) * usual:
        return [
            f"{name} {rate:g} is {rate / usual:.0f} times the usual {usual:g} for {what}, which ruins most models: look "
            "at the first sample pictures"
        ]
    if not small and rate * FAR < usual:
        return [
            f"{name} {rate:g} is {usual / rate:.0f} times smaller than the usual {usual:g} for {what}: hardly anything "
            "may be learned"
        ]
    return []
