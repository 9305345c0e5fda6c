"""Class images: what the base model itself draws of the class, made where the user's folder has too few.

Images that are there are used, whoever made them; `survey` counts them. Those that are made have an index of their
own, from 0, that their name tells: `class-00007-<digits of the content's SHA-256>.png`. An image depends on the
class seed, the class prompt and its index, and, in its last bits, on the group that it is computed with: index k is
always in group k // batch size. So an interrupted group is made again as it would have been, and what it had already
written is left alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.shared.paths import check_writable, write_whole
from dreambooth.trainer.draws import words
from dreambooth.trainer.sampling.pictures import content_digits, parameters_text, png_bytes
from dreambooth.trainer.sampling.sample import SampleRequest, ShouldStop, check_size, sample
from dreambooth.trainer.sampling.samplers import SAMPLERS, check_sampler

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from dreambooth.shared.settings import PriorSettings
    from dreambooth.trainer.data.survey import ClassFolder, ClassImage
    from dreambooth.trainer.models.convert import LoadedModel
    from dreambooth.trainer.models.tokenizer import Tokenizer

OnImage = Callable[[int, int, Path], None]
_MADE = re.compile(r"class-(\d{5,})-[0-9a-f]{12}\.png")
_LEFTOVER = re.compile(_MADE.pattern + r"\..+\.partial")
_STALE_SECONDS = 3600.0


@dataclass(frozen=True)
class Recipe:
    """How class images are made. `resolution` is their width and height in pixels."""

    resolution: int
    batch_size: int
    steps: int = 20
    guidance_scale: float = 7.5
    sampler: str = "dpmpp_2m"
    seed: int = 0
    clip_skip: int = 1


@dataclass(frozen=True)
class ClassImagePlan:
    """The images to be made in one folder. `groups` are their indices as they are computed together, `missing` those
    that are not there; `requests` and `captions` (None: no file beside the image) go by index."""

    folder: Path
    groups: tuple[tuple[int, ...], ...]
    missing: frozenset[int]
    requests: tuple[SampleRequest, ...]
    captions: tuple[str | None, ...]
    clip_skip: int

    def share(self, process: int, processes: int) -> ClassImagePlan:
        """One process's part: whole groups, so that it does not matter how many processes there are."""
        groups = self.groups[process::processes]
        return replace(self, groups=groups, missing=self.missing.intersection(chain.from_iterable(groups)))


def recipe_of(prior: PriorSettings, *, resolution: int, clip_skip: int) -> Recipe:
    """The run's own settings for class images; a concept's come before them."""
    return Recipe(
        resolution=resolution,
        batch_size=prior.sample_batch_size,
        steps=prior.class_infer_steps,
        guidance_scale=prior.class_guidance_scale,
        sampler=prior.class_sampler,
        seed=prior.class_seed,
        clip_skip=clip_skip,
    )


def plan_class_images(folder: ClassFolder, recipe: Recipe) -> ClassImagePlan:
    """What has to be made in a surveyed folder. Makes nothing.

    Raises `InputError` for a resolution that is not a multiple of 8, an unknown sampler, or a folder that cannot be
    written to when there is something to make.
    """
    check_size(recipe.resolution, recipe.resolution, where="resolution")
    check_sampler(recipe.sampler, where="class_sampler")
    if folder.missing:
        check_writable(folder.folder, setting="class_data_dir")
    there = _made_in(folder.folder)
    missing = list(islice((index for index in count() if index not in there), folder.missing))
    others = max(0, folder.found - len(there))  # the user's own
    end = max([len(folder.prompts) - others, *(index + 1 for index in missing)]) if missing else 0
    groups = [
        tuple(range(start, min(start + recipe.batch_size, end))) for start in range(0, end, recipe.batch_size)
    ]
    return ClassImagePlan(
        folder=folder.folder,
        groups=tuple(group for group in groups if not set(group).isdisjoint(missing)),
        missing=frozenset(missing),
        requests=tuple(_request(folder, recipe, index) for index in range(end)),
        captions=tuple(_words_of(folder, index).caption for index in range(end)),
        clip_skip=recipe.clip_skip,
    )


def make_class_images(
    model: LoadedModel,
    tokenizer: Tokenizer,
    plan: ClassImagePlan,
    *,
    dtype: torch.dtype | None = None,
    on_image: OnImage | None = None,
    should_stop: ShouldStop | None = None,
) -> bool:
    """Make the missing images of a plan; each file is there, whole, as soon as it is done.

    `on_image` hears (number made, number to make, path). True when all are there, False when `should_stop`, asked
    between any two sampling steps, ended it. `dtype` as in `sample`. Raises `DreamboothError` when the disk is full.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(plan.folder)
    made = 0
    for group in plan.groups:
        requests = [plan.requests[index] for index in group]
        images = sample(
            model,
            tokenizer,
            requests,
            batch_size=len(group),
            clip_skip=plan.clip_skip,
            dtype=dtype,
            should_stop=should_stop,
        )
        done = 0
        for place, image in images:
            done += 1
            index = group[place]
            if index in plan.missing:
                path = _write(plan, index, image, model.source.path.stem)
                made += 1
                if on_image is not None:
                    on_image(made, len(plan.missing), path)
        if done < len(group):
            return False
    return True


def image_seed(class_seed: int, prompt: str, index: int) -> int:
    """The seed of a class image: 32 bits, as the WebUI's page takes them; no two indices of a prompt share one."""
    return (words("class image", class_seed, prompt)[0] + index) % 2**32


def _request(folder: ClassFolder, recipe: Recipe, index: int) -> SampleRequest:
    concept = folder.concept
    scale, steps = concept.class_guidance_scale, concept.class_infer_steps
    return SampleRequest(
        prompt=_words_of(folder, index).prompt,
        negative_prompt=concept.class_negative_prompt,
        seed=image_seed(recipe.seed, concept.class_prompt, index),
        steps=recipe.steps if steps is None else steps,
        guidance_scale=recipe.guidance_scale if scale is None else scale,
        width=recipe.resolution,
        height=recipe.resolution,
        sampler=recipe.sampler,
    )


def _words_of(folder: ClassFolder, index: int) -> ClassImage:
    return folder.prompts[index % len(folder.prompts)]


def _write(plan: ClassImagePlan, index: int, image: Image.Image, model: str) -> Path:
    request, caption = plan.requests[index], plan.captions[index]
    parameters = parameters_text(
        request, sampler_title=SAMPLERS[request.sampler].title, model=model, clip_skip=plan.clip_skip
    )
    content = png_bytes(image, parameters)
    path = plan.folder / f"class-{index:05d}-{content_digits(content)}.png"
    if caption is not None:  # first, so that an image is never there without its caption
        write_whole(path.with_suffix(".txt"), caption.encode())
    write_whole(path, content)
    return path


def _made_in(folder: Path) -> frozenset[int]:
    """The indices of the images that were made here before."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return frozenset(int(match[1]) for match in map(_MADE.fullmatch, names) if match)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written, but not what another one may be writing now."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name) and time.time() - path.stat().st_mtime > _STALE_SECONDS:
            path.unlink(missing_ok=True)
