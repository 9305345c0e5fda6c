"""All that we know of the WebUI, but for what would load a model (guarding.py): no other file imports `modules`, and
these two do it late, inside their functions.

What AUTOMATIC1111's v1.10.1 does is taken as given here; a fork's differences belong here too.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shared.errors import DreamboothError, InputError
from . import busy
from .checkpoint_file import check_whole

SECTION = ("dreambooth_trainer", "DreamBooth")
RUNS_DIR = "dreambooth_trainer_runs_dir"
ALLOW_GENERATING = "dreambooth_trainer_allow_generating"
UNLOAD_MODEL = "dreambooth_trainer_unload_model"
_SELECTED = "sd_model_checkpoint"
_listings: list[None] = []  # one for each time that we had the checkpoints listed anew
_failed_loads: list[str] = []  # why, of each checkpoint that the WebUI could not load


@dataclass(frozen=True)
class Model:
    """A file that the WebUI lists. `title` is what it calls it, `name` its path below the models' folder."""

    title: str
    name: str
    path: str
    sha256: str | None
    selected: bool
    loaded: bool


@dataclass(frozen=True)
class Flags:
    """The WebUI's command line flags that we obey. Nothing secret is among them: the page is told."""

    hide_ui_dir_config: bool
    disable_extension_access: bool
    freeze_settings: bool
    no_hashing: bool
    low_memory: str
    subpath: str

    @property
    def paths_may_be_chosen(self) -> bool:
        """Whether somebody at the page may name folders of this machine."""
        return not (self.hide_ui_dir_config or self.disable_extension_access)


@dataclass(frozen=True)
class Options:
    """Our section of the WebUI's Settings."""

    runs_dir: str
    allow_generate_while_training: bool
    unload_model: bool


@dataclass(frozen=True)
class Freed:
    """The card's free memory in GB before and after the model left it; None where there is no such card."""

    before_gb: float | None
    after_gb: float | None


# places


def data_path() -> Path:
    """Where the WebUI keeps its user's data (`--data-dir`)."""
    from modules.paths_internal import data_path

    return Path(data_path).absolute()


def checkpoints_dir() -> Path:
    """Where a new checkpoint goes so that the WebUI lists it."""
    from modules import sd_models

    return Path(_flag("ckpt_dir") or sd_models.model_path).absolute()


def lora_dir() -> Path:
    """Where a new LoRA goes so that the WebUI lists it."""
    from modules.paths_internal import models_path

    return Path(_flag("lora_dir") or Path(models_path) / "Lora").absolute()


def listed_folders(*, adapters: bool) -> list[Path]:
    """Where the WebUI looks for checkpoints, or for adapters: in these folders and all below them."""
    from modules import sd_models

    told = _flag("lyco_dir_backcompat") if adapters else sd_models.model_path
    own = lora_dir() if adapters else checkpoints_dir()
    return [own, *([Path(told).absolute()] if told else [])]


def runs_dir() -> Path:
    """Where runs are kept: as set in Settings, else below the WebUI's data."""
    told = options().runs_dir.strip()
    return (data_path() / (Path(told).expanduser() if told else "dreambooth/runs")).absolute()


def photos_dir() -> Path:
    """Where photos that were dropped into the page are kept."""
    return data_path() / "dreambooth" / "photos"


def is_closing() -> bool:
    """Whether the page's server is ending, as at "Reload UI". It waits for every answer that is still owed, however long
    that takes, so none of ours may take long from then on."""
    from modules import shared

    return bool(getattr(getattr(shared.demo, "server", None), "should_exit", False))


# flags and settings


def _flag(name: str, default: Any = None) -> Any:
    """A command line flag; forks lack some of them."""
    from modules.shared_cmd_options import cmd_opts

    return getattr(cmd_opts, name, default)


def flags() -> Flags:
    """The command line flags that we obey."""
    low = [name for name in ("lowvram", "medvram") if _flag(name)]
    return Flags(
        hide_ui_dir_config=bool(_flag("hide_ui_dir_config")),
        disable_extension_access=bool(_flag("disable_extension_access")),
        freeze_settings=bool(_flag("freeze_settings")),
        no_hashing=bool(_flag("no_hashing")),
        low_memory=low[0] if low else "",
        subpath=str(_flag("subpath") or ""),
    )


def api_credentials() -> dict[str, str]:
    """Names and passwords of `--api-auth`, empty without that flag."""
    pairs = (one.partition(":") for one in str(_flag("api_auth") or "").split(",") if one.strip())
    return {name.strip(): password.strip() for name, _, password in pairs}


def allowed_origins() -> tuple[tuple[str, ...], str]:
    """Other sites that `--cors-allow-origins` lets in, and the pattern of `--cors-allow-origins-regex`."""
    named = str(_flag("cors_allow_origins") or "").split(",")
    return tuple(one.strip() for one in named if one.strip()), str(_flag("cors_allow_origins_regex") or "")


def options() -> Options:
    """Our settings as they are now."""
    from modules.shared import opts

    return Options(
        runs_dir=str(getattr(opts, RUNS_DIR, "") or ""),
        allow_generate_while_training=bool(getattr(opts, ALLOW_GENERATING, False)),
        unload_model=bool(getattr(opts, UNLOAD_MODEL, True)),
    )


def _add_options() -> None:
    """Our section in Settings. The folder is one of those that `--hide-ui-dir-config` takes out of the page's hands."""
    from modules.options import OptionInfo
    from modules.shared import opts

    rows = (
        (RUNS_DIR, "", "Folder for training runs", "empty: dreambooth/runs in the WebUI's data folder"),
        (ALLOW_GENERATING, False, "Allow generating while a training runs", "both need room on the card"),
        (
            UNLOAD_MODEL,
            True,
            "Free the card before a training",
            "the model comes back when it is next needed",
        ),
    )
    for key, default, label, info in rows:
        opts.add_option(key, OptionInfo(default, label, section=SECTION, category_id="training").info(info))
    opts.restricted_opts.add(RUNS_DIR)


def _frozen(key: str) -> bool:
    """Whether the command line keeps this option as it is."""
    from modules.shared import opts

    sections = [one.strip() for one in str(_flag("freeze_settings_in_sections") or "").split(",")]
    keys = [one.strip() for one in str(_flag("freeze_specific_settings") or "").split(",")]
    label = opts.data_labels.get(key)
    section = label.section[0] if label is not None and label.section else None
    return bool(_flag("freeze_settings")) or section in sections or key in keys


# models


def checkpoints() -> list[Model]:
    """The checkpoints that the WebUI lists, in its order."""
    from modules import sd_models

    selected, loaded = _selected_info(), _loaded_path()
    return [
        _model(info, selected=info is selected, loaded=info.filename == loaded)
        for info in list(sd_models.checkpoints_list.values())
    ]


def selected_checkpoint() -> Model | None:
    """The checkpoint that the next picture is made with, None where there is none at all."""
    listed = checkpoints()
    chosen = [one for one in listed if one.selected] or [one for one in listed if one.loaded] or listed
    return chosen[0] if chosen else None


def vaes() -> list[Model]:
    """The VAEs that the WebUI lists, in its order."""
    from modules import sd_vae
    from modules.shared import opts

    chosen, loaded = getattr(opts, "sd_vae", None), getattr(sd_vae, "loaded_vae_file", None)
    return [
        Model(name, name, path, None, selected=name == chosen, loaded=path == loaded)
        for name, path in list(sd_vae.vae_dict.items())
    ]


def vae_that_takes(name: str) -> str:
    """The VAE that the WebUI would use with a checkpoint called `name` (no suffix) for its file name's sake alone: one
    that begins with it. Empty where there is none."""
    return next((one.name for one in vaes() if Path(one.path).name.startswith(name)), "")


def _model(info: Any, *, selected: bool, loaded: bool) -> Model:
    return Model(info.title, info.name, info.filename, info.sha256, selected, loaded)


def _selected_info() -> Any:
    from modules import sd_models
    from modules.shared import opts

    return sd_models.checkpoint_aliases.get(getattr(opts, _SELECTED, None))


def loaded_info() -> Any:
    """What is in memory; looked at without `shared.sd_model`, which would load a model."""
    from modules import sd_models

    return getattr(sd_models.model_data.sd_model, "sd_checkpoint_info", None)


def _loaded_path() -> str | None:
    return getattr(loaded_info(), "filename", None)


def note_failed_load(error: Exception) -> None:
    """Remembers why the WebUI could not load a checkpoint: it tells its console alone."""
    _failed_loads.append(str(error) or type(error).__name__)


def failed_loads() -> tuple[int, str]:
    """How often the WebUI could not load a checkpoint, and why the last time."""
    return len(_failed_loads), _failed_loads[-1] if _failed_loads else ""


def leave_unloaded() -> None:
    """Nothing is loaded at the WebUI's start, and from then on its model is as one that has left for a training: what
    needs it brings it back. Otherwise whatever looks for a first one later, like Refresh above the LoRAs' cards, would
    load it outside of the queue, beside one that is being chosen."""
    from modules import sd_models

    sd_models.model_data.was_loaded_at_least_once = True


def await_first_load(*, patience: float = 120.0) -> None:
    """The WebUI's start loads its model outside of the queue: one that is chosen meanwhile would be loaded beside it,
    into the same place. Raises DreamboothError if that takes longer."""
    from modules import sd_models

    loading = getattr(sd_models.model_data, "lock", None)
    if loading is None:
        return
    if not loading.acquire(timeout=patience):
        raise DreamboothError(
            "the WebUI is still loading its model", remedy="try again when its console says that it is loaded"
        )
    loading.release()


def list_again() -> None:
    """Lists the checkpoints anew, after an export. The selected one stays selected where its file has new content:
    its old title would be known no more, and the next picture would be made with the first of the list."""
    from modules import sd_models
    from modules.shared import opts

    before = _selected_info()
    sd_models.list_models()
    _listings.append(None)
    if before is None or opts.data.get(_SELECTED) in sd_models.checkpoint_aliases:
        return
    same = [info for info in sd_models.checkpoints_list.values() if info.filename == before.filename]
    if same:
        opts.data[_SELECTED] = same[0].title


def times_listed() -> int:
    """How often `list_again` was called: open pages know by it that there may be new files."""
    return len(_listings)


def list_in_turn(*, patience: float = 60.0) -> None:
    """`list_again` in the WebUI's queue: the list is empty for a moment meanwhile, and a picture that is begun just then
    would find no model, or be made with another. Raises DreamboothError if it is not our turn in `patience` seconds."""
    with _queue(patience):
        list_again()


def load_checkpoint(path: str | Path, *, sha256: str = "", patience: float = 60.0) -> Model:
    """Makes a listed, whole file the WebUI's checkpoint and loads it; `sha256` is checked first where it is known.

    Waits for the WebUI's queue up to `patience` seconds. Raises InputError for a file that is not whole or not
    listed, DreamboothError where settings are frozen, the card is busy, or the file does not load.
    """
    from modules import sd_models, shared

    if _frozen(_SELECTED):
        raise DreamboothError(
            "the WebUI's settings are frozen, so its checkpoint cannot be changed from here"
        )
    why = busy.reason_now(sd_models.reload_model_weights)
    if why:
        raise DreamboothError(why, remedy="wait until the training is done, or stop it")
    check_whole(Path(path), sha256=sha256)
    with _queue(patience):
        list_again()
        info = _info_of(path)
        in_memory = loaded_info()
        again = getattr(in_memory, "filename", None) == info.filename and (
            not sha256 or in_memory.sha256 != sha256
        )
        try:
            sd_models.reload_model_weights(info=info, forced_reload=again)
        except Exception as error:
            _drop_models()  # what is left of the old one is half detached; the next picture loads it afresh
            raise DreamboothError(f"the WebUI could not load it: {error}", where=str(path)) from error
        shared.opts.data[_SELECTED] = info.title
    shared.opts.save(shared.config_filename)
    return _model(info, selected=True, loaded=True)


def _info_of(path: str | Path) -> Any:
    from modules import sd_models

    wanted = os.path.realpath(path)
    for info in sd_models.checkpoints_list.values():
        if os.path.realpath(info.filename) == wanted:
            return info
    raise InputError(
        "the WebUI does not list this file", where=str(path), remedy="put it into the checkpoints' folder"
    )


# the card


@contextlib.contextmanager
def _queue(patience: float) -> Iterator[None]:
    """The WebUI's turn at the card. Its lock is not reentrant: nothing inside may set an option through `opts.set`.
    It is asked for again and again rather than waited for, so that nobody hangs behind a long generation."""
    from modules.call_queue import queue_lock

    deadline = time.monotonic() + patience
    while not queue_lock.acquire(blocking=False):
        if time.monotonic() > deadline or is_closing():
            raise DreamboothError(
                "the WebUI is busy making pictures",
                remedy="wait until they are done, or press Interrupt, and try again",
            )
        time.sleep(0.05)
    try:
        yield
    finally:
        queue_lock.release()


def free_model(
    *, unload: bool = True, taken: Callable[[], object] | None = None, patience: float = 60.0
) -> Freed:
    """Takes the model off the card completely; the WebUI loads it again when it next needs it.

    `taken` is called before anybody else can use the card: from then on the guard's reason is to hold.
    With `unload` False only that is done. Waits for the WebUI's queue up to `patience` seconds (so never call it on
    the event loop), then raises DreamboothError.
    """
    with _queue(patience):
        before = _free_gb()
        if unload:
            _drop_models()
        after = _free_gb()
        if taken is not None:
            taken()
    return Freed(before, after)


def _drop_models() -> None:
    """Under the queue's lock: every model leaves memory, whatever `--medvram` and `--lowvram` have left where."""
    from modules import devices, lowvram, sd_models, sd_unet, sd_vae

    data = sd_models.model_data
    if data.sd_model is not None and getattr(sd_unet, "current_unet", None) is not None:
        sd_unet.apply_unet("None")
    lowvram.send_everything_to_cpu()
    models = [*data.loaded_sd_models]
    if data.sd_model is not None and data.sd_model not in models:
        models.append(data.sd_model)
    for model in models:
        sd_models.send_model_to_trash(model)
    data.loaded_sd_models.clear()
    data.sd_model = None
    sd_vae.delete_base_vae()
    sd_vae.loaded_vae_file = None
    del models
    gc.collect()
    devices.torch_gc()


def _free_gb() -> float | None:
    found = _card()
    return None if found is None else float(found[0].mem_get_info(found[1])[0]) / 1024**3


def returned_bytes() -> int:
    """What of the card this process holds, and gives back before a training: a plan may count on it."""
    found = _card() if options().unload_model else None
    return 0 if found is None else int(found[0].memory_reserved(found[1]))


def _card() -> tuple[Any, int] | None:
    """torch's view of the WebUI's card and its number; None where there is none."""
    from modules import devices

    torch: Any = sys.modules.get("torch")
    if torch is None or getattr(devices.device, "type", "") != "cuda":
        return None
    index = devices.device.index
    return torch.cuda, torch.cuda.current_device() if index is None else index


def device_environ() -> dict[str, str]:
    """What tells the trainer which card is the WebUI's: `--device-id` counts inside the WebUI's own
    CUDA_VISIBLE_DEVICES; none of them with `--use-cpu all` (or `sd`)."""
    if {"all", "sd"} & set(_flag("use_cpu") or ()):
        return {"CUDA_VISIBLE_DEVICES": "-1"}
    told = str(_flag("device_id") or "").strip()
    if not told.isdigit():
        return {}
    visible = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    if not visible:
        return {"CUDA_VISIBLE_DEVICES": told}
    return {"CUDA_VISIBLE_DEVICES": visible[int(told)] if int(told) < len(visible) else visible[0]}


# registration


def register(*, tab: Callable[[], list[Any]], app: Callable[[Any], None]) -> None:
    """Registers the tab (`tab` gives what `on_ui_tabs` wants), our section of Settings, and the routes (`app` gets
    the FastAPI app). "Reload UI" forgets all of it and runs our script again, which calls this again."""
    on(ui_settings=_add_options, ui_tabs=tab, app_started=lambda _page, fastapi: app(fastapi))


def on(**callbacks: Callable[..., Any]) -> None:
    """Registers callbacks by their kind, from a thread of its own: the WebUI looks through the whole stack of whoever
    registers, and from deep within its loading of scripts that takes longer than all of our imports."""
    from modules import script_callbacks

    def register_all() -> None:
        for kind, callback in callbacks.items():
            getattr(script_callbacks, f"on_{kind}")(callback)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(register_all).result()
