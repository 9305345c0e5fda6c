"""Sample pictures of a run: what the model makes of the prompts now, beside what the untrained one made of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from dreambooth.shared.events import Emit
from dreambooth.shared.paths import write_whole
from dreambooth.shared.settings import Settings
from dreambooth.trainer.data.survey import Survey
from dreambooth.trainer.models.convert import LoadedModel
from dreambooth.trainer.models.tokenizer import Tokenizer
from dreambooth.trainer.sampling.pictures import parameters_text, png_bytes
from dreambooth.trainer.sampling.sample import SampleRequest, ShouldStop, sample
from dreambooth.trainer.sampling.samplers import SAMPLERS
from dreambooth.trainer.stepdown import first_line, free_memory, is_out_of_memory

STEPS = 25
GUIDANCE_SCALE = 7.5
SAMPLER = "dpmpp_2m"


def preview_requests(settings: Settings, found: Survey) -> list[SampleRequest]:
    """The pictures of one preview: each prompt with as many seeds as asked for, the same at every step."""
    saving, side = settings.saving, settings.images.resolution
    prompts = [saving.validation_prompt] if saving.validation_prompt else _instance_prompts(found)
    return [
        SampleRequest(
            prompt=prompt,
            negative_prompt=saving.validation_negative_prompt,
            seed=(settings.training.seed + number) % 2**32,
            steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            width=side,
            height=side,
            sampler=SAMPLER,
        )
        for prompt in prompts
        for number in range(saving.num_validation_images)
    ]


def _instance_prompts(found: Survey) -> list[str]:
    return list(
        dict.fromkeys(entry.instance_prompt(entry.instance[0]) for entry in found.concepts if entry.instance)
    )


class Previews:
    """Makes a run's sample pictures as files `<step>-<number>-<prompt>.png`, each announced by an event."""

    def __init__(
        self,
        folder: Path,
        requests: Sequence[SampleRequest],
        settings: Settings,
        tokenizer: Tokenizer,
        emit: Emit,
        *,
        should_stop: ShouldStop | None = None,
    ) -> None:
        self._folder = folder
        self._requests = requests
        self._settings = settings
        self._tokenizer = tokenizer
        self._emit = emit
        self._should_stop = should_stop

    def __bool__(self) -> bool:
        return bool(self._requests)

    def make(self, step: int, model: LoadedModel, dtype: torch.dtype | None = None) -> list[Path]:
        """Makes the pictures of a step, in the requests' order; `dtype` as in `sample.sample`.

        Those that are not begun when a stop is asked for are left out. A picture takes its time, above all on a
        processor: how many there are to be is said before the first.
        """
        self._folder.mkdir(exist_ok=True)
        self._emit("progress", name="samples", done=0, of=len(self._requests))
        made: dict[int, Path] = {}
        at_once = self._settings.prior.sample_batch_size
        try:
            self._make(step, model, dtype, made, at_once)
            return [made[number] for number in sorted(made)]
        except Exception as error:
            if not is_out_of_memory(error) or at_once == 1:
                raise
            why = first_line(error)
        free_memory()
        self._emit(
            "warning", text=f"memory ran out ({why}): the sample pictures of step {step} are made one by one"
        )
        self._make(step, model, dtype, made, 1)
        return [made[number] for number in sorted(made)]

    def _make(
        self, step: int, model: LoadedModel, dtype: torch.dtype | None, made: dict[int, Path], at_once: int
    ) -> None:
        """Makes those that are not in `made` yet, and adds them."""
        missing = [number for number in range(len(self._requests)) if number not in made]
        pictures = sample(
            model,
            self._tokenizer,
            [self._requests[number] for number in missing],
            batch_size=at_once,
            clip_skip=self._settings.model.clip_skip,
            dtype=dtype,
            should_stop=self._should_stop,
        )
        for place, image in pictures:
            number = missing[place]
            request = self._requests[number]
            title = SAMPLERS[request.sampler].title
            parameters = parameters_text(
                request,
                sampler_title=title,
                model=self._settings.result.output_name,
                clip_skip=self._settings.model.clip_skip,
            )
            path = self._path(step, number)
            write_whole(path, png_bytes(image, parameters))
            self._emit(
                "sample", step=step, number=number, seed=request.seed, prompt=request.prompt, path=path
            )
            made[number] = path
            self._emit("progress", name="samples", done=len(made), of=len(self._requests))

    def are_made(self, step: int) -> bool:
        """Whether all pictures of a step are there."""
        return all(self._path(step, number).is_file() for number in range(len(self._requests)))

    def _path(self, step: int, number: int) -> Path:
        words = re.sub(r"[^\w]+", "-", self._requests[number].prompt).strip("-")[:40]
        return self._folder / f"{step:06d}-{number:02d}-{words or 'picture'}.png"
