"""Which image is seen when, with which words and which noise: planned before anything is computed.

The samples of a step are a pure function of (plan, seed, step): nothing that was drawn before is needed, so that a
resumed run sees what the uninterrupted one would have seen. They are planned for the whole global batch and then
shared among processes and micro-batches, so that they do not depend on how many there are. That is why all samples
of a step come from one bucket: however the step is cut, each part has one shape.

Buckets take turns in proportion to their images, evenly spread; within a bucket every image comes once before any
comes twice. Over time each image is therefore seen equally often, times its concept's repeats, whatever the batch
size: what does not fill a batch is carried on to the bucket's next turn.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from dreambooth.trainer.data.buckets import Size, bucket_counts, nearest_bucket
from dreambooth.trainer.data.captions import Variation, varied
from dreambooth.trainer.data.images import Probe, View, crop_box, is_cropped
from dreambooth.trainer.data.survey import Survey
from dreambooth.trainer.draws import below, shuffled, unit, words

# Random crops, turns and changes of brightness of an image, each encoded once where latents are cached
CACHED_VARIANTS = 4
# Masks of a view of an image that an inpainting model is trained with, where latents are cached
CACHED_MASKS = 4
# Where nothing is cached every sample has its own
_ENDLESS = 2**31
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Item:
    """One image and the words that belong to it. `variants` is how many ways there are to look at it."""

    image: Probe
    prompt: str
    concept: int  # index into the run's concepts
    is_class: bool
    bucket: Size
    variants: int


@dataclass(frozen=True)
class Augmentation:
    """What is changed at random: the crop's place, mirroring, angle (± degrees), brightness (± share)."""

    random_crop: bool = False
    random_flip: bool = False
    rotation: float = 0.0
    brightness: float = 0.0


@dataclass(frozen=True)
class Stream:
    """Item indices that are drawn from, by bucket; an item with n repeats is there n times."""

    name: str
    buckets: tuple[Size, ...]
    entries: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Samples of one epoch."""
        return sum(len(entries) for entries in self.entries)

    @property
    def turns(self) -> tuple[int, ...]:
        """How often each bucket comes in one cycle."""
        shared = math.gcd(*(len(entries) for entries in self.entries))
        return tuple(len(entries) // shared for entries in self.entries)


@dataclass(frozen=True)
class DataPlan:
    """All that decides about samples, besides seed and step."""

    items: tuple[Item, ...]
    instance: Stream
    prior: Stream | None
    batch: int  # instance samples of a step, of all processes and micro-batches; as many class samples beside them
    augmentation: Augmentation
    variation: Variation
    masks: int = 0  # 0: no masks (not an inpainting model)

    def epochs(self, steps: int) -> float:
        """How often each instance image has been seen after so many steps (times its repeats)."""
        return steps * self.batch / self.instance.size

    def bucket_counts(self) -> dict[Size, int]:
        """Instance images of each bucket, repeats counted."""
        sizes = zip(self.instance.buckets, self.instance.entries, strict=True)
        return bucket_counts(size for size, entries in sizes for _ in entries)

    def captions(self) -> list[str] | None:
        """All texts that samples can have, each once; None where tags are shuffled."""
        if self.variation.shuffle_tags:
            return None
        texts = {item.prompt: None for item in self.items}
        return [*texts, ""] if self.variation.dropout and "" not in texts else [*texts]

    def fingerprint(self) -> str:
        """A hash of the plan: equal ones give equal samples. A resumed run compares it with its own."""
        parts = [
            (i.image.content_id, i.prompt, i.concept, i.is_class, i.bucket, i.variants) for i in self.items
        ]
        rest = (self.instance, self.prior, self.batch, self.augmentation, self.variation, self.masks)
        return hashlib.sha256(repr((parts, rest)).encode()).hexdigest()


@dataclass(frozen=True)
class Sample:
    """One image as a step sees it. The seeds are independent integers of 64 bits."""

    item: int  # index into the plan's items
    variant: int
    flip: bool
    mask: int
    caption: str
    noise_seed: int
    timestep_seed: int
    latent_seed: int  # for drawing from the VAE's posterior


@dataclass(frozen=True)
class StepSamples:
    """The samples of a step or of a part of it; `prior` is empty without prior preservation."""

    instance: tuple[Sample, ...]
    prior: tuple[Sample, ...]


def plan_data(
    found: Survey,
    buckets: Sequence[Size],
    *,
    batch: int,
    augmentation: Augmentation,
    variation: Variation,
    cached: bool,
    inpainting: bool = False,
    photos_as_class: bool = False,
) -> DataPlan:
    """Plans from what a survey found; class images that are still missing are not in it.

    `photos_as_class`: a concept without class images has its photos with the class prompt in their place.
    `cached`: each image has at most `CACHED_VARIANTS` crops and jitters, else a new one each time. Class images are
    cropped and mirrored like the others, but neither turned nor lit: they show what the base model draws.
    """
    items: list[Item] = []
    instance: list[int] = []
    prior: list[int] = []

    def add(image: Probe, prompt: str, concept: int, *, is_class: bool) -> int:
        bucket = nearest_bucket(image.size, buckets)
        varies = _varies(image, bucket, augmentation, is_class=is_class)
        variants = (CACHED_VARIANTS if cached else _ENDLESS) if varies else 1
        items.append(Item(image, prompt, concept, is_class, bucket, variants))
        return len(items) - 1

    for index, entry in enumerate(found.concepts):
        for image in entry.instance:
            item = add(image, entry.instance_prompt(image), index, is_class=False)
            instance += [item] * entry.concept.repeats
        shown = entry.class_images or (entry.instance if photos_as_class else ())
        for image in shown:
            prior.append(add(image, entry.class_prompt(image), index, is_class=True))
    masks = (CACHED_MASKS if cached else _ENDLESS) if inpainting else 0
    streams = _stream("instance", items, instance), _stream("prior", items, prior) if prior else None
    return DataPlan(tuple(items), *streams, batch, augmentation, variation, masks)


def samples_of_step(plan: DataPlan, seed: int, step: int) -> StepSamples:
    """All samples of a step, of all processes: `plan.batch` instance samples and, with prior, as many class samples."""
    instance = _samples(plan, plan.instance, seed, step)
    return StepSamples(instance, _samples(plan, plan.prior, seed, step) if plan.prior else ())


def share(
    samples: StepSamples, micro_batches: int, process: int = 0, processes: int = 1
) -> list[StepSamples]:
    """This process's part of a step, by micro-batch; instance and class samples are cut alike.

    Raises `ValueError` if the step's samples cannot be cut evenly.
    """
    size, rest = divmod(len(samples.instance), micro_batches * processes)
    if rest:
        raise ValueError(
            f"{len(samples.instance)} samples do not make {micro_batches} x {processes} equal parts"
        )
    parts = [
        slice(size * place, size * (place + 1))
        for place in range(process, micro_batches * processes, processes)
    ]
    return [StepSamples(samples.instance[part], samples.prior[part]) for part in parts]


def view_of(plan: DataPlan, sample: Sample) -> View:
    """How a sample looks at its image. It depends on the image's content and the variant, not on seed or step."""
    return item_view(plan, sample.item, sample.variant, flip=sample.flip)


def item_view(plan: DataPlan, index: int, variant: int, *, flip: bool) -> View:
    """The view of an item that a variant's number stands for."""
    item = plan.items[index]
    if item.variants == 1:
        return View(item.bucket, flip=flip)
    rules = plan.augmentation
    angle, light = words(item.image.content_id, variant)[:2]
    position = 0.5
    if rules.random_crop:
        # steps of the golden ratio from a random beginning: uniform, and few crops already cover the image
        first = unit(words(item.image.content_id, "crop")[0])
        position = (first + variant * _GOLDEN) % 1.0
    if item.is_class:
        return View(item.bucket, position, flip)
    return View(
        item.bucket,
        position,
        flip,
        angle=(2 * unit(angle) - 1) * rules.rotation,
        brightness=1 + (2 * unit(light) - 1) * rules.brightness,
    )


def sizes_of(plan: DataPlan, sample: Sample) -> tuple[int, ...]:
    """What SDXL is told of an image's sizes (Podell et al. 2023, arXiv 2307.01952, section 2.2), in pixels.

    Height and width of the original image; top and left of the crop in the image as it was scaled (and mirrored);
    height and width of the crop.
    """
    size, view = plan.items[sample.item].image.size, view_of(plan, sample)
    left, top, right, _ = crop_box(size, view.size, view.position)
    scale = max(view.size[0] / size[0], view.size[1] / size[1])
    cut = size[0] - right if view.flip else left
    return size[1], size[0], round(top * scale), round(cut * scale), view.size[1], view.size[0]


def views_used(plan: DataPlan, seed: int, steps: int) -> list[tuple[int, int, bool, int]]:
    """(item, variant, flip, mask) of all samples of a run, each once, in order; `mask` is 0 without masks.

    Where a run sees nearly all of what is possible, this is all that is possible.
    """
    flips = (False, True) if plan.augmentation.random_flip else (False,)
    masks = max(1, plan.masks)
    possible = sum(item.variants for item in plan.items) * len(flips) * masks
    if steps * plan.batch * (2 if plan.prior else 1) < 4 * possible:
        return sorted({(s.item, s.variant, s.flip, s.mask) for s in all_samples(plan, seed, steps)})
    return [
        (index, variant, flip, mask)
        for index, item in enumerate(plan.items)
        for variant in range(item.variants)
        for flip in flips
        for mask in range(masks)
    ]


def all_samples(plan: DataPlan, seed: int, steps: int) -> Iterator[Sample]:
    """The samples of the first `steps` steps."""
    for step in range(steps):
        both = samples_of_step(plan, seed, step)
        yield from both.instance
        yield from both.prior


def timestep_of(sample: Sample, count: int) -> int:
    """The sample's timestep, uniform in [0, count)."""
    return below(sample.timestep_seed, count)


def _varies(image: Probe, bucket: Size, rules: Augmentation, *, is_class: bool) -> bool:
    jitters = bool(rules.rotation or rules.brightness) and not is_class
    return jitters or (rules.random_crop and is_cropped(image.size, bucket))


def _stream(name: str, items: Sequence[Item], entries: Sequence[int]) -> Stream:
    by_bucket: dict[Size, list[int]] = {}
    for entry in entries:
        by_bucket.setdefault(items[entry].bucket, []).append(entry)
    buckets = sorted(by_bucket)
    return Stream(name, tuple(buckets), tuple(tuple(by_bucket[bucket]) for bucket in buckets))


def _samples(plan: DataPlan, stream: Stream, seed: int, step: int) -> tuple[Sample, ...]:
    bucket, earlier = _turn(stream, seed, step)
    entries = stream.entries[bucket]
    begin = earlier * plan.batch
    return tuple(
        _sample(plan, _drawn(entries, stream, seed, bucket, begin + place), (seed, stream.name, step, place))
        for place in range(plan.batch)
    )


def _drawn(entries: tuple[int, ...], stream: Stream, seed: int, bucket: int, position: int) -> int:
    """The entry at a place of a bucket's endless row of orders."""
    round_, place = divmod(position, len(entries))
    return entries[shuffled(len(entries), seed, stream.name, "order", bucket, round_)[place]]


def _sample(plan: DataPlan, index: int, key: tuple[int | str, ...]) -> Sample:
    item = plan.items[index]
    noise, timestep, latent, flip, variant, mask, caption, _ = words(*key)
    return Sample(
        item=index,
        variant=below(variant, item.variants),
        flip=plan.augmentation.random_flip and bool(flip & 1),
        mask=below(mask, plan.masks) if plan.masks else 0,
        caption=varied(item.prompt, plan.variation, caption),
        noise_seed=noise,
        timestep_seed=timestep,
        latent_seed=latent,
    )


def _turn(stream: Stream, seed: int, step: int) -> tuple[int, int]:
    """The bucket of a step, and how many of its turns were before."""
    if len(stream.buckets) == 1:
        return 0, step
    turns = stream.turns
    cycle, place = divmod(step, sum(turns))
    order, places = _cycle(turns, seed, stream.name, cycle)
    bucket = order[place]
    return bucket, cycle * turns[bucket] + bisect_left(places[bucket], place)


@lru_cache(maxsize=8)
def _cycle(
    turns: tuple[int, ...], seed: int, name: str, cycle: int
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The buckets of a cycle's steps, each bucket's turns evenly spread from a random beginning, and their places."""
    starts = [unit(words(seed, name, "cycle", cycle, bucket)[0]) for bucket in range(len(turns))]
    dues = sorted(
        ((turn + starts[bucket]) / count, bucket)
        for bucket, count in enumerate(turns)
        for turn in range(count)
    )
    order = tuple(bucket for _, bucket in dues)
    places = tuple(
        tuple(place for place, b in enumerate(order) if b == bucket) for bucket in range(len(turns))
    )
    return order, places
