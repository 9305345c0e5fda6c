"""Why a loss was NaN or infinite, and what a user can do about it: a run repeats its steps, so going on never helps."""

from __future__ import annotations

from dreambooth.shared.errors import DreamboothError, FailsAgain, InputError
from dreambooth.trainer.engine import NotFinite
from dreambooth.trainer.models.loading import LoadedModel
from dreambooth.trainer.planning.plan import Plan
from dreambooth.trainer.weights.casting import is_finite

_SLOWER = 10
# what is left to be tried at a mixed precision: it may be what overflows
_LATER = {
    "fp16": "train anew with a lower learning_rate, or with mixed_precision: bf16 or no; look for broken images, too",
    "bf16": "train anew with a lower learning_rate, or with mixed_precision: no; look for broken images, too",
    "no": "train anew with a lower learning_rate; look for broken images, too",
}
_AT_ONCE = "the loss was NaN or infinite in the first step, before anything was learned"


def explained(error: NotFinite, plan: Plan) -> DreamboothError:
    """What ended a run, by its plan. Before the first step has changed anything the learning rate cannot be the cause: the
    model is looked through then."""
    if error.step > 0:
        rate = plan.settings.training.learning_rate / _SLOWER
        remedy = _LATER[plan.machine.mixed_precision]
        return FailsAgain(error.what, remedy=remedy, change=f"learning_rate={rate:g}")
    model = plan.settings.model.model
    broken = broken_weight(plan.base)
    if broken:
        return InputError(
            f"its weights are broken: {broken} holds NaN or infinite numbers",
            where=model,
            setting="model",
            remedy="download the file again, or take another model",
        )
    if start := plan.settings.adapters.init_from:
        return FailsAgain(
            f"{_AT_ONCE}: the adapter that it goes on from is too strong for the model, whose own weights are sound",
            where=start,
            setting="init_from",
            remedy="train anew with another file for init_from, or without one",
            change="init_from=",
        )
    if plan.machine.mixed_precision != "no":
        return FailsAgain(
            f"{_AT_ONCE}: the model's weights are sound, but it overflows in {plan.machine.mixed_precision}",
            where=model,
            remedy="train anew with mixed_precision: no, or with another model; look for broken images, too",
            change="mixed_precision=no",
        )
    return FailsAgain(
        f"{_AT_ONCE}: the model overflows, though each of its weights is a number",
        where=model,
        setting="model",
        remedy="train anew with another model, or with its own VAE; look for broken images, too",
        change="model=FILE",
    )


def broken_weight(base: LoadedModel) -> str:
    """The first tensor of the UNet or a text encoder that holds NaN or infinity; empty if there is none. Reads them all."""
    for component, bindings in base.description.bindings.items():
        if component == "vae":  # what it gave was looked at when it was encoded
            continue
        for binding in bindings:
            if not is_finite(base.source.read(binding.original)):
                return binding.original
    return ""
