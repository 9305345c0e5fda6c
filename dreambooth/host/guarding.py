"""While a training has the card, what would put a model of the WebUI's on it says so instead.

What AUTOMATIC1111's v1.10.1 calls for that is written down here; a part that a fork lacks is passed over.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from . import busy, webui
from .busy import Reason

_PICTURES = busy.Shown(before=([], "{}"), after=("",))
# A button of the page → where its reason is shown among what it gives. The page looks these up as it is made.
_BUTTONS = {
    "modules.txt2img:txt2img": _PICTURES,
    "modules.txt2img:txt2img_upscale": _PICTURES,
    "modules.img2img:img2img": _PICTURES,
    "modules.postprocessing:run_postprocessing_webui": busy.Shown(before=([],), after=("",)),
    "modules.textual_inversion.ui:train_embedding": busy.Shown(before=("",)),
    "modules.hypernetworks.ui:train_hypernetwork": busy.Shown(before=("",)),
}
# What brings models of its own, for whoever calls it: the page's Interrogate, the API, other extensions.
_OWN_MODELS = (
    "modules.postprocessing:run_extras",
    "modules.interrogate:InterrogateModels.interrogate",
    "modules.deepbooru:DeepDanbooru.tag",
)
# What takes it for granted that a checkpoint is in memory. (Merging checkpoints is done on the processor.)
_OWN_CHECKPOINT = (
    "modules.textual_inversion.textual_inversion:create_embedding",
    "modules.textual_inversion.textual_inversion:train_embedding",
    "modules.hypernetworks.hypernetwork:train_hypernetwork",
)
_LOAD_AGAIN = "modules.sd_models:send_model_to_device"
_NOTHING_TO_DO = (
    "modules.sd_models:unload_model_weights",
    "modules.ui_extra_networks_checkpoints_user_metadata:CheckpointUserMetadataEditor.update_vae",
    # by Refresh above the LoRAs' cards, which fails with it; they are read again as soon as a checkpoint is loaded
    "modules.textual_inversion.textual_inversion:EmbeddingDatabase.load_textual_inversion_embeddings",
)
# Options whose change loads a model, and options whose change needs one that is loaded.
_LOADING = ("sd_model_checkpoint", "fp8_storage", "cache_fp16_weight")
_NEEDING = ("sd_vae", "sd_vae_overrides_per_model_preferences", "cross_attention_optimization")


def guard(reason: Reason) -> None:
    """While `reason()` is not empty, the page's buttons show it in place of pictures, the API answers 503 with it, and
    no model is put on the card, also not at the WebUI's start. A checkpoint that is chosen meanwhile is loaded later.

    Once the training is done, what needs the checkpoint that has left for it loads it again.
    """
    from modules import sd_models

    sd_models.reload_model_weights = busy.refusing(
        sd_models.reload_model_weights, reason, failed=webui.note_failed_load
    )
    kind = type(sd_models.model_data)
    kind.get_sd_model = busy.instead(
        kind.get_sd_model, lambda data: _none_is_loaded() and bool(reason()), webui.leave_unloaded
    )
    for name in _OWN_MODELS:
        _replace(name, functools.partial(busy.refusing, reason=reason))
    for name in _OWN_CHECKPOINT:
        _replace(name, functools.partial(busy.refusing, reason=reason, first=_load_again))
    _replace(_LOAD_AGAIN, functools.partial(busy.instead, condition=_is_none, other=_load_again))
    for name in _NOTHING_TO_DO:
        _replace(name, functools.partial(busy.unless, condition=_none_is_loaded))
    # what the page calls is looked up when the page is made, which is after this callback
    webui.on(before_ui=lambda: _guard_page(reason))


def _guard_page(reason: Reason) -> None:
    from modules.shared import opts

    for name, shown in _BUTTONS.items():
        _replace(name, functools.partial(busy.saying, reason=reason, shown=shown))
    _guard_options(opts.data_labels, _LOADING, lambda: bool(reason()))
    _guard_options(opts.data_labels, _NEEDING, _none_is_loaded)


def _guard_options(labels: dict[str, Any], keys: tuple[str, ...], skip: Callable[[], bool]) -> None:
    """What a change of these options does at once is left to the next load of a model while `skip` holds."""
    for key in keys:
        label = labels.get(key)
        if label is not None and label.onchange is not None:
            label.onchange = busy.unless(label.onchange, skip)


def _none_is_loaded() -> bool:
    return webui.loaded_info() is None


def _is_none(model: Any) -> bool:
    return model is None


def _load_again() -> None:
    """Brings the selected checkpoint back if it has left for a training; refused while one runs."""
    from modules import sd_models

    if _none_is_loaded():
        sd_models.reload_model_weights()


def _replace(place: str, made_of: Callable[[Any], Any]) -> None:
    """Puts what is made of the function at `module:name` or `module:class.name` in its place, where there is one."""
    module, _, path = place.partition(":")
    try:
        owner: Any = importlib.import_module(module)
    except ImportError:
        return
    *classes, name = path.split(".")
    for one in classes:
        owner = getattr(owner, one, None)
    function = getattr(owner, name, None)
    if function is not None:
        setattr(owner, name, made_of(function))
