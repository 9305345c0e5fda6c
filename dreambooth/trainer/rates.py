"""Learning rates that nobody named: the usual ones for what is trained."""

from __future__ import annotations

import dataclasses

from dreambooth.shared.settings import Settings
from dreambooth.trainer.adapters.results import is_adapter
from dreambooth.trainer.optimizer_table import TABLE, kind_of

# Hugging Face's blog on DreamBooth for whole models (2e-6 with the text encoder); diffusers' and kohya's trainers for
# adapters, which have far fewer numbers to move: 1e-4, and half of it for text encoders
MODEL, ADAPTER = 2e-6, 1e-4
ADAPTERS_TEXT = 0.5
RUINOUS = 100  # times the usual: beyond what small models or few steps could ask for


def with_rates(settings: Settings) -> tuple[Settings, list[str]]:
    """The settings with a number for each rate that is 0, and what is to be said of it.

    An optimizer that finds the rate by itself takes a factor, of which 1 is the usual.
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
    usual = ADAPTER if adapter else MODEL
    if (
        training.train_unet
        and kind_of(training.optimizer).name in TABLE
        and not own
        and rate > RUINOUS * usual
    ):
        notes.append(
            f"learning_rate {rate:g} is {rate / usual:.0f} times the usual {usual:g}, which ruins most models: look at the "
            "first sample pictures"
        )
    made = dataclasses.replace(training, learning_rate=rate, text_encoder_learning_rate=text)
    return dataclasses.replace(settings, training=made), notes
