"""What a careful friend says of the photos of a form in which something else is wrong: nobody need mend that first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth.shared.concepts import Concept
from dreambooth.shared.errors import InputError
from dreambooth.shared.settings import Settings
from dreambooth.trainer.data.buckets import Size, bucket_sizes, nearest_bucket
from dreambooth.trainer.data.looks import look_at
from dreambooth.trainer.data.survey import ConceptImages, survey
from dreambooth.trainer.models.tokenizer import default_tokenizer
from dreambooth.trainer.planning.advice import Surroundings, concept_facts
from dreambooth.trainer.planning.plan_settings import open_base, with_resolution

_SIDE, _STEP = 512, 64  # of a model that cannot be asked


def remarks_despite(settings: Settings) -> list[Mapping[str, Any]]:
    """Each concept's facts as the plan has them (without its class images), {} for one of which nothing can be told.
    Images that cannot be used are left out of them."""
    buckets = _buckets(settings)
    return [_facts(concept, buckets, settings) for concept in settings.concepts.concepts]


def _facts(concept: Concept, buckets: tuple[Size, ...], settings: Settings) -> Mapping[str, Any]:
    try:
        entry = _images(concept)
    except InputError:
        return {}
    around = Surroundings(
        targets={image.content_id: nearest_bucket(image.size, buckets) for image in entry.instance},
        looks=look_at(entry.instance),
        tokenizer=default_tokenizer(),
        max_chunks=settings.captions.max_prompt_chunks,
    )
    return concept_facts(entry, around)


def _images(concept: Concept) -> ConceptImages:
    return survey([concept], prior=False, num_class_images=0, allow_bad_images=True).concepts[0]


def _buckets(settings: Settings) -> tuple[Size, ...]:
    """The sizes that photos would be brought to. A resolution that cannot be is taken as the nearest that can, that of a
    model that cannot be asked as 512."""
    shapes = settings.images.aspect_ratio_buckets
    try:
        base = open_base(settings)
        side = with_resolution(settings, base).images.resolution
        return bucket_sizes(side, aspect_ratio_buckets=shapes, multiple=base.identified.family.side_step)
    except InputError:
        side = max(_STEP, round((settings.images.resolution or _SIDE) / _STEP) * _STEP)
        return bucket_sizes(side, aspect_ratio_buckets=shapes)
