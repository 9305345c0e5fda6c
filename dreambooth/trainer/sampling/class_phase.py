"""The phase of a run in which its class images are made: by all processes, in smaller groups where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dreambooth.shared.errors import RunFailed
from dreambooth.shared.events import Emit
from dreambooth.shared.settings import Settings
from dreambooth.trainer.data.survey import ClassFolder
from dreambooth.trainer.models.convert import LoadedModel
from dreambooth.trainer.models.tiles import use_tiles
from dreambooth.trainer.models.tokenizer import Tokenizer
from dreambooth.trainer.planning.plan_settings import survey_of
from dreambooth.trainer.processes import Processes
from dreambooth.trainer.sampling.class_images import (
    ClassImagePlan,
    make_class_images,
    plan_class_images,
    recipe_of,
)
from dreambooth.trainer.stepdown import (
    described,
    first_line,
    free_memory,
    gone_down,
    is_out_of_memory,
    tiles_help,
)


@dataclass
class ClassPhase:
    """Makes the class images that are missing; `check_stop` may raise to stop.

    What is computed with what is a function of the settings and of what the run's `folder` keeps.
    """

    settings: Settings
    base: LoadedModel
    tokenizer: Tokenizer
    folder: Path
    emit: Emit
    should_stop: Callable[[], bool]
    check_stop: Callable[[], None]
    processes: Processes
    _made: int = field(default=0, init=False)

    def share(self, folders: Sequence[ClassFolder]) -> list[ClassImagePlan]:
        """This process's part of what is missing. The images that are there decide which ones are: every process has to
        look before any of them makes one."""
        recipe = recipe_of(
            self.settings.prior,
            resolution=self.settings.images.resolution,
            clip_skip=self.settings.model.clip_skip,
        )
        place = self.processes.index, self.processes.count
        return [plan_class_images(folder, recipe).share(*place) for folder in folders]

    def make(self, model: LoadedModel, share: Sequence[ClassImagePlan]) -> None:
        """Makes this process's part with the untrained model; each image is kept as soon as it is done.

        The first news, of none, is the moment from which their pace is counted: the model is there by now."""
        self.emit("progress", name="class images", done=0, of=sum(len(plan.missing) for plan in share))
        while True:
            try:
                self._make(model, share)
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                why = first_line(error)
            self._step_down(model, why)
            share = self.share(survey_of(self.settings, self.base).class_folders())

    def _make(self, model: LoadedModel, share: Sequence[ClassImagePlan]) -> None:
        of = self._made + sum(len(plan.missing) for plan in share)

        def show(*_: object) -> None:
            self._made += 1
            self.emit("progress", name="class images", done=self._made, of=of)

        for plan in share:
            if not make_class_images(
                model, self.tokenizer, plan, on_image=show, should_stop=self.should_stop
            ):
                self.check_stop()

    def _step_down(self, model: LoadedModel, why: str) -> None:
        """Groups of half the images from here on; one by one, the VAE in tiles."""
        where, most = (
            f"memory ran out while class images were made ({why})",
            self.settings.prior.sample_batch_size,
        )
        free_memory()
        rung: dict[str, int | str] = {"sample_batch_size": (most + 1) // 2}
        if most == 1 and tiles_help(self.settings, self.settings.images.resolution):
            rung = {"vae_tiling": "yes"}
        elif most == 1:
            raise RunFailed(
                f"{where}, one at a time",
                remedy="lower the resolution, let other programs leave the card, or put pictures of the class into "
                "class_data_dir; those that were made are kept, and `resume` goes on",
            )
        self.settings = gone_down(self.settings, rung, self.folder, self.processes, where)
        use_tiles(model.components["vae"], self.settings.images.vae_tiling == "yes")
        self.emit("warning", text=f"{where}: the rest is made with {described(rung)}", memory=rung)
