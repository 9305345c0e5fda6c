"""The parts that our routes share, made once in the life of the WebUI's process: "Reload UI" finds them again."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from .. import environment
from ..shared.errors import DreamboothError
from . import installation, webui
from .following import Follower
from .forms import LastForm, Places
from .jobs import Card, Jobs, TakeCard, Trainer
from .listing import Listing
from .planner import Planner
from .thumbnails import Thumbnails
from .uploads import Photos
from .watch import Watcher


@dataclass(frozen=True)
class Services:
    """What the routes lean on."""

    jobs: Jobs
    planner: Planner
    watcher: Watcher
    listing: Listing
    follower: Follower
    photos: Photos
    thumbnails: Thumbnails
    last_form: LastForm


@functools.lru_cache(maxsize=1)
def services() -> Services:
    """The one set of them."""
    home = webui.data_path() / "dreambooth"
    jobs = Jobs(home / "jobs", trainer, webui.runs_dir, webui.is_closing)
    watcher = Watcher(jobs.ending_of, jobs.is_starting, jobs.failed_resume, jobs.resumed_at)
    return Services(
        jobs=jobs,
        planner=Planner(trainer, webui.is_closing, webui.returned_bytes),
        watcher=watcher,
        listing=Listing(watcher, jobs.ending_of),
        follower=Follower(jobs.active, watcher.exports, webui.list_in_turn),
        photos=Photos(webui.photos_dir()),
        thumbnails=Thumbnails(home / "thumbnails"),
        last_form=LastForm(home / "form.json"),
    )


def trainer() -> Trainer:
    """How a trainer is started here. Raises DreamboothError with what to do while there is no environment."""
    return Trainer(installation.trainer_command(), installation.trainer_environ(), environment.ROOT)


def take_card() -> TakeCard:
    """Frees the card for a training as the user's settings say, in the WebUI's turn."""
    options = webui.options()

    def take(taken: object) -> Card:
        freed = webui.free_model(unload=options.unload_model, taken=taken)  # type: ignore[arg-type]
        return Card(freed.before_gb, freed.after_gb)

    return take


def places() -> Places:
    """The folders that a form's paths may lead to, as the WebUI's flags are."""
    models = [webui.checkpoints_dir(), *(Path(one.path) for one in [*webui.checkpoints(), *webui.vaes()])]
    return Places(
        data=webui.data_path(), photos=webui.photos_dir(), runs=webui.runs_dir(),
        checkpoints=webui.checkpoints_dir(), loras=webui.lora_dir(), models=models, free=webui.flags().paths_may_be_chosen,
    )  # fmt: skip


def check_environment() -> None:
    """Raises DreamboothError with what to do while nothing can be trained or planned."""
    found = installation.state()
    if found.state != "ready":
        raise DreamboothError(found.text, where="the trainer's environment", remedy=found.remedy)
