import math

import pytest

from dreambooth.shared.errors import InputError
from dreambooth.trainer.data.buckets import (
    SIZES_AT_512,
    bucket_counts,
    bucket_sizes,
    bucket_step,
    nearest_bucket,
)


def test_without_buckets_there_is_one_square():
    assert bucket_sizes(768, aspect_ratio_buckets=False) == ((768, 768),)


def test_the_list_at_512_is_the_one_in_use():
    assert bucket_sizes(512, aspect_ratio_buckets=True) == SIZES_AT_512
    assert len(SIZES_AT_512) == 19
    assert {(h, w) for w, h in SIZES_AT_512} == set(SIZES_AT_512)


@pytest.mark.parametrize("resolution", [64, 128, 256, 1024])
def test_halved_and_doubled_resolutions_keep_all_aspect_ratios(resolution):
    sizes = bucket_sizes(resolution, aspect_ratio_buckets=True)
    assert sizes == tuple((w * resolution // 512, h * resolution // 512) for w, h in SIZES_AT_512)


@pytest.mark.parametrize("resolution", [64, 72, 96, 200, 256, 328, 512, 600, 640, 768, 1024, 1536])
def test_sides_are_multiples_of_the_step_and_areas_do_not_grow(resolution):
    step = bucket_step(resolution)
    sizes = bucket_sizes(resolution, aspect_ratio_buckets=True)
    assert step in (8, 16, 32, 64) and (step == 64) == (resolution >= 512)
    assert len(set(sizes)) == len(sizes) > 8
    largest = max(w * h for w, h in SIZES_AT_512) * (resolution / 512) ** 2
    for width, height in sizes:
        assert width % step == height % step == 0
        assert 0 < width * height <= largest


@pytest.mark.parametrize("resolution", [0, 4, 100, 513, -64])
def test_a_resolution_that_the_vae_cannot_take_is_refused(resolution):
    with pytest.raises(InputError, match="multiple of 8") as caught:
        bucket_sizes(resolution, aspect_ratio_buckets=True)
    assert caught.value.where == "resolution"


@pytest.mark.parametrize("resolution", [1024, 576])
def test_sides_are_multiples_of_what_a_model_needs(resolution):
    for size in bucket_sizes(resolution, aspect_ratio_buckets=True, multiple=64):
        assert size[0] % 64 == size[1] % 64 == 0
    assert (128, 64) in bucket_sizes(64, aspect_ratio_buckets=True, multiple=64)


@pytest.mark.parametrize(("resolution", "nearest"), [(1000, 1024), (40, 64), (72, 64), (0, 64)])
def test_a_resolution_that_a_model_cannot_take_is_refused_with_the_nearest_that_it_can(resolution, nearest):
    with pytest.raises(InputError, match="multiple of 64") as caught:
        bucket_sizes(resolution, aspect_ratio_buckets=False, multiple=64)
    assert caught.value.where == "resolution" and str(nearest) in caught.value.remedy


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((100, 100), (512, 512)),
        ((3000, 2000), (768, 512)),
        ((2000, 3000), (512, 768)),
        ((10, 1000), (256, 1024)),
        ((1920, 1080), (832, 448)),
        ((640, 576), (640, 576)),
    ],
)
def test_an_image_goes_to_the_bucket_of_the_nearest_shape(size, bucket):
    assert nearest_bucket(size, SIZES_AT_512) == bucket


def test_nearness_is_the_same_for_tall_and_wide():
    for width in range(100, 2000, 37):
        tall, wide = nearest_bucket((700, width), SIZES_AT_512), nearest_bucket((width, 700), SIZES_AT_512)
        distance = [abs(math.log(w / h) - math.log(700 / width)) for w, h in SIZES_AT_512]
        assert abs(math.log(tall[0] / tall[1]) - math.log(700 / width)) == pytest.approx(min(distance))
        assert wide == tall[::-1]


def test_of_equal_shapes_the_largest_bucket_is_taken():
    assert nearest_bucket((10, 10), [(64, 64), (128, 128), (64, 72)]) == (128, 128)


def test_counts_begin_with_the_commonest():
    assert list(bucket_counts([(8, 8), (16, 8), (16, 8)]).items()) == [((16, 8), 2), ((8, 8), 1)]
