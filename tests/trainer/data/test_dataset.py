from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
from PIL import Image

from dreambooth.shared.concepts import Concept
from dreambooth.trainer import draws
from dreambooth.trainer.data import dataset
from dreambooth.trainer.data.captions import Variation
from dreambooth.trainer.data.dataset import (
    CACHED_VARIANTS,
    Augmentation,
    DataPlan,
    StepSamples,
    all_samples,
    item_view,
    plan_data,
    samples_of_step,
    share,
    sizes_of,
    timestep_of,
    view_of,
    views_used,
)
from dreambooth.trainer.data.images import Probe, View, pixels_of
from dreambooth.trainer.data.survey import ConceptImages, Survey

SQUARE = ((64, 64),)
SHAPES = ((48, 80), (64, 64), (80, 48))
GOLDEN = [[1, True, 6166747933021176885], [0, False, 12903925581667164155], 9369255183728016862]


def image(name: str, size=(100, 100)) -> Probe:
    return Probe(Path(f"{name}.png"), f"hash of {name}", size)


def concept(number=1, instance=3, class_images=0, repeats=1, prompt="photo of sks dog", sizes=((100, 100),)):
    made = [image(f"i{number}-{n}", sizes[n % len(sizes)]) for n in range(instance)]
    others = [image(f"c{number}-{n}") for n in range(class_images)]
    about = Concept(instance_prompt=prompt, class_prompt="photo of dog", repeats=repeats)
    return ConceptImages(number, about, tuple(made), Path("c"), tuple(others), class_images)


def plan(
    *concepts, buckets=SQUARE, batch=2, augmentation=None, variation=None, cached=True, inpainting=False
) -> DataPlan:
    return plan_data(
        Survey(concepts or (concept(),), ()),
        buckets,
        batch=batch,
        augmentation=augmentation or Augmentation(),
        variation=variation or Variation(),
        cached=cached,
        inpainting=inpainting,
    )


def instances(made: DataPlan, steps: int, seed=0):
    return [sample for step in range(steps) for sample in samples_of_step(made, seed, step).instance]


def test_a_step_does_not_depend_on_what_was_asked_before():
    made = plan(
        concept(instance=9, class_images=4, sizes=SHAPES),
        buckets=SHAPES,
        augmentation=Augmentation(random_crop=True, random_flip=True, rotation=5, brightness=0.1),
        variation=Variation(0.2, True, 0),
    )
    forwards = [samples_of_step(made, 3, step) for step in range(40)]
    draws.shuffled.cache_clear()
    dataset._cycle.cache_clear()
    backwards = [samples_of_step(made, 3, step) for step in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert forwards != [samples_of_step(made, 4, step) for step in range(40)]


def test_the_samples_of_a_seed_never_change():
    # a changed value here would change every run that is resumed after an update
    made = plan(concept(class_images=2), augmentation=Augmentation(random_flip=True))
    [first, second] = samples_of_step(made, 7, 11).instance
    assert [first.item, first.flip, first.noise_seed] == GOLDEN[0]
    assert [second.item, second.flip, second.noise_seed] == GOLDEN[1]
    assert samples_of_step(made, 7, 11).prior[0].timestep_seed == GOLDEN[2]


def test_every_image_comes_once_before_any_comes_twice():
    made = plan(concept(instance=5), batch=2)
    drawn = [sample.item for sample in instances(made, 50)]
    rounds = [tuple(drawn[begin : begin + 5]) for begin in range(0, 100, 5)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in rounds)
    assert len(set(rounds)) > 10


def test_repeats_are_repeated_and_epochs_count_them():
    made = plan(concept(1, instance=2, repeats=3), concept(2, instance=4), batch=2)
    assert Counter(sample.item for sample in instances(made, 5)) == {0: 3, 1: 3, 2: 1, 3: 1, 4: 1, 5: 1}
    assert made.epochs(5) == 1.0
    assert made.instance.size == 10


def test_with_prior_preservation_each_step_has_as_many_class_samples_of_their_own():
    made = plan(concept(1, class_images=3), concept(2, class_images=2), batch=4)
    both = samples_of_step(made, 0, 0)
    assert len(both.instance) == len(both.prior) == 4
    drawn = Counter(sample.item for step in range(5) for sample in samples_of_step(made, 0, step).prior)
    assert set(drawn.values()) == {4} and len(drawn) == 5
    assert all(made.items[item].is_class and made.items[item].prompt == "photo of dog" for item in drawn)
    assert samples_of_step(plan(concept()), 0, 0).prior == ()


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_step_has_one_bucket_and_all_images_are_seen_equally_often(batch):
    sizes = ((48, 80), (64, 64), (64, 64), (64, 64), (80, 48), (64, 64), (80, 48))
    made = plan(concept(instance=7, sizes=sizes), buckets=SHAPES, batch=batch)
    assert made.bucket_counts() == {(64, 64): 4, (80, 48): 2, (48, 80): 1}
    steps = 7 * 6
    for step in range(steps):
        assert len({made.items[s.item].bucket for s in samples_of_step(made, 0, step).instance}) == 1
    assert set(Counter(sample.item for sample in instances(made, steps)).values()) == {6 * batch}


def test_buckets_take_turns_evenly():
    sizes = ((64, 64),) * 30 + ((80, 48),) * 10
    made = plan(concept(instance=40, sizes=sizes), buckets=SHAPES, batch=1)
    wide = [
        step
        for step in range(400)
        if made.items[samples_of_step(made, 0, step).instance[0].item].bucket == (80, 48)
    ]
    assert len(wide) == 100
    gaps = [after - before for before, after in pairwise(wide)]
    assert max(gaps) <= 8 and len(set(gaps)) > 1


@pytest.mark.parametrize(("micro_batches", "processes"), [(1, 1), (4, 1), (1, 4), (2, 2), (2, 6), (12, 1)])
def test_however_a_step_is_cut_its_samples_are_the_same(micro_batches, processes):
    whole = samples_of_step(plan(concept(class_images=2), batch=12), 0, 5)
    parts = [share(whole, micro_batches, process, processes) for process in range(processes)]
    assert {len(part) for part in parts} == {micro_batches}
    rows = [parts[process][row] for row in range(micro_batches) for process in range(processes)]
    assert (
        {len(row.instance) for row in rows}
        == {len(row.prior) for row in rows}
        == {12 // micro_batches // processes}
    )
    joined = StepSamples(sum((row.instance for row in rows), ()), sum((row.prior for row in rows), ()))
    assert joined == whole


def test_a_step_that_cannot_be_cut_evenly_is_refused():
    with pytest.raises(ValueError, match="do not make"):
        share(samples_of_step(plan(batch=3), 0, 0), 2)


def test_all_seeds_are_different():
    made = plan(concept(class_images=2), batch=2)
    samples = list(all_samples(made, 0, 500))
    seeds = [seed for s in samples for seed in (s.noise_seed, s.timestep_seed, s.latent_seed)]
    assert len(set(seeds)) == len(seeds) == 500 * 4 * 3
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_flips_variants_and_timesteps_are_equally_likely():
    made = plan(
        concept(sizes=((150, 100),)), augmentation=Augmentation(random_crop=True, random_flip=True), batch=4
    )
    samples = instances(made, 1000)
    assert Counter(s.flip for s in samples)[True] == pytest.approx(2000, abs=130)  # four standard deviations
    variants = Counter(s.variant for s in samples)
    assert len(variants) == CACHED_VARIANTS
    assert all(count == pytest.approx(1000, abs=110) for count in variants.values())
    hundreds = Counter(timestep_of(s, 1000) // 100 for s in samples)
    assert len(hundreds) == 10
    assert all(count == pytest.approx(400, abs=76) for count in hundreds.values())


def test_captions_are_final_and_their_whole_set_is_known_unless_tags_are_shuffled():
    made = plan(concept(prompt="a, b, c", class_images=1), variation=Variation(dropout=0.5))
    seen = {sample.caption for sample in all_samples(made, 0, 50)}
    assert seen == set(made.captions()) == {"a, b, c", "photo of dog", ""}
    shuffled = plan(concept(prompt="a, b, c"), variation=Variation(shuffle_tags=True))
    assert shuffled.captions() is None
    assert len({sample.caption for sample in instances(shuffled, 50)}) == 6


def test_an_image_that_fits_its_bucket_is_seen_in_one_way():
    made = plan(augmentation=Augmentation(random_crop=True))
    assert {item.variants for item in made.items} == {1}
    assert view_of(made, instances(made, 1)[0]) == View((64, 64))


def test_crops_cover_the_image_and_differ_from_image_to_image():
    made = plan(concept(instance=40, sizes=((200, 100),)), augmentation=Augmentation(random_crop=True))
    rows = [sorted(item_view(made, n, v, flip=False).position for v in range(4)) for n in range(40)]
    assert all(row[0] >= 0 and row[-1] < 1 and row[-1] - row[0] > 0.5 for row in rows)
    assert len({row[0] for row in rows}) == 40
    mean = sum(sum(row) for row in rows) / 160
    assert mean == pytest.approx(0.5, abs=0.05)


def test_photos_are_turned_and_lit_within_bounds_and_class_images_are_not():
    made = plan(concept(instance=30, class_images=5), augmentation=Augmentation(rotation=10, brightness=0.2))
    views = [item_view(made, n, v, flip=False) for n in range(30) for v in range(4)]
    assert all(abs(view.angle) <= 10 and abs(view.brightness - 1) <= 0.2 for view in views)
    assert max(view.angle for view in views) > 8 and min(view.angle for view in views) < -8
    assert max(view.brightness for view in views) > 1.16 and min(view.brightness for view in views) < 0.84
    assert {item.variants for item in made.items if item.is_class} == {1}
    assert item_view(made, 31, 0, flip=True) == View((64, 64), flip=True)


def test_a_view_depends_on_the_image_and_not_on_its_place_in_the_list():
    rules = Augmentation(random_crop=True, rotation=5)
    one, two = concept(1, sizes=((200, 100),)), concept(2, sizes=((200, 100),))
    first, other = plan(one, two, augmentation=rules), plan(two, one, augmentation=rules)
    assert [item_view(first, n, 2, flip=False) for n in range(3)] == [
        item_view(other, n, 2, flip=False) for n in (3, 4, 5)
    ]


def test_without_a_cache_every_sample_has_a_variant_of_its_own():
    made = plan(augmentation=Augmentation(rotation=5), cached=False)
    samples = instances(made, 100)
    assert len({s.variant for s in samples}) == 200
    assert len({view_of(made, s).angle for s in samples}) == 200


@pytest.mark.parametrize("steps", [1, 10, 60, 5000])
@pytest.mark.parametrize("inpainting", [False, True])
def test_the_views_to_cache_are_those_that_the_run_uses(steps, inpainting):
    made = plan(
        concept(instance=4, class_images=6, sizes=((200, 100), (100, 100))),
        augmentation=Augmentation(random_crop=True, random_flip=True),
        inpainting=inpainting,
    )
    views = views_used(made, 0, steps)
    used = {(s.item, s.variant, s.flip, s.mask) for s in all_samples(made, 0, min(steps, 3000))}
    assert views == sorted(set(views))
    assert used <= set(views)
    possible = (2 * 4 + 2 + 6) * 2 * (4 if inpainting else 1)
    assert len(views) <= possible
    if steps == 5000:
        assert len(views) == possible
    if steps <= 10:
        assert used == set(views)


def test_a_fingerprint_tells_plans_apart():
    made = plan(concept(class_images=2))
    assert made.fingerprint() == plan(concept(class_images=2)).fingerprint()
    moved = [
        replace(item, image=replace(item.image, path=Path("else") / item.image.path)) for item in made.items
    ]
    assert replace(made, items=tuple(moved)).fingerprint() == made.fingerprint()
    others = [
        plan(concept(class_images=1)),
        plan(concept(class_images=2, prompt="x")),
        plan(concept(class_images=2), batch=1),
        plan(concept(class_images=2), augmentation=Augmentation(random_flip=True)),
        plan(concept(class_images=2), variation=Variation(dropout=0.1)),
        plan(concept(class_images=2, repeats=2)),
    ]
    assert len({made.fingerprint(), *(other.fingerprint() for other in others)}) == 7


# ---- what SDXL is told of sizes ------------------------------------------------------------------------------------


def sized(size, bucket, *, random_crop=False, flip=False):
    made = plan(concept(instance=1, sizes=(size,)), buckets=(bucket,), augmentation=Augmentation(random_crop))
    return made, replace(samples_of_step(made, 0, 0).instance[0], flip=flip)


@pytest.mark.parametrize(
    ("size", "bucket", "expected"),
    [
        (
            (640, 480),
            (64, 64),
            (480, 640, 0, 11, 64, 64),
        ),  # 640 becomes 85.33, of which 10.67 are cut at each side
        ((480, 640), (64, 64), (640, 480, 11, 0, 64, 64)),
        ((1024, 1024), (1024, 1024), (1024, 1024, 0, 0, 1024, 1024)),
        ((30, 30), (64, 64), (30, 30, 0, 0, 64, 64)),  # enlarged: the original's size is still told
        ((3000, 2000), (768, 512), (2000, 3000, 0, 0, 512, 768)),
        ((3000, 2000), (640, 576), (2000, 3000, 0, 112, 576, 640)),
    ],
)
def test_the_sizes_told_are_the_originals_the_crops_and_the_targets(size, bucket, expected):
    assert sizes_of(*sized(size, bucket)) == expected


@pytest.mark.parametrize("size", [(200, 100), (100, 230), (317, 211)])
@pytest.mark.parametrize("flip", [False, True])
def test_the_crops_place_is_where_the_pixels_come_from(size, flip):
    """Each pixel of the picture says where it stands in it; mirrored, the place is in the mirrored picture."""
    made, sample = sized(size, (64, 64), random_crop=True, flip=flip)
    for variant in range(made.items[0].variants):
        sample = replace(sample, variant=variant)
        _, _, top, left, _, _ = sizes_of(made, sample)
        rows, columns = numpy.mgrid[: size[1], : size[0]]
        columns = columns[:, ::-1] if flip else columns
        where = numpy.stack([columns / size[0], rows / size[1], 0 * rows], axis=-1)
        picture = Image.fromarray((where * 255).round().astype(numpy.uint8))
        pixels = (pixels_of(picture, view_of(made, sample)) + 1) / 2
        scale = 64 / min(size)
        assert float(pixels[0, :, 0].mean()) * size[0] * scale == pytest.approx(left + 0.5, abs=1.5)
        assert float(pixels[1, 0, :].mean()) * size[1] * scale == pytest.approx(top + 0.5, abs=1.5)
