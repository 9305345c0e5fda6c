import threading
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from dreambooth.shared.concepts import Concept
from dreambooth.shared.errors import InputError
from dreambooth.trainer.data.buckets import bucket_sizes
from dreambooth.trainer.data.cache import (
    LatentEncoder,
    Look,
    Pictures,
    cached_latents,
    encode_missing,
    live_latents,
    looks_for,
    vae_encoder,
)
from dreambooth.trainer.data.captions import Variation
from dreambooth.trainer.data.dataset import (
    CACHED_VARIANTS,
    Augmentation,
    DataPlan,
    plan_data,
    samples_of_step,
    share,
    view_of,
    views_used,
)
from dreambooth.trainer.data.images import open_image, pixels_of
from dreambooth.trainer.data.inpainting import cut_out, latent_mask, random_mask
from dreambooth.trainer.data.store import TensorStore
from dreambooth.trainer.data.survey import survey

CPU = torch.device("cpu")
WHITE = (255, 255, 255)
STEPS = 6


class CountingVAE:
    """Means are the pixels' averages over 8x8, deviations a tenth of that; counts what it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def encoder(self, id: str = "vae") -> LatentEncoder:
        return LatentEncoder(id, self.encode)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        mean = torch.cat([mean, mean[:1]])
        return torch.stack([mean, mean.abs() / 10 + 0.01])


def write_photo(path: Path, seed: int, size=(40, 32)) -> None:
    values = numpy.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        write_photo(folder / f"{number}.png", number, (40 + 8 * number, 32))
    return folder


def plan_of(
    folder: Path, *, resolution=32, inpainting=False, cached=True, buckets=False, **augmentation
) -> DataPlan:
    rules = {"random_crop": True, "random_flip": True, **augmentation}
    return plan_data(
        survey(
            [Concept(instance_prompt="a", instance_data_dir=str(folder))], prior=False, num_class_images=0
        ),
        bucket_sizes(resolution, aspect_ratio_buckets=buckets),
        batch=4,
        augmentation=Augmentation(**rules),
        variation=Variation(),
        cached=cached,
        inpainting=inpainting,
    )


def fill(
    plan: DataPlan,
    vae: CountingVAE,
    folder: Path,
    *,
    id="vae",
    background=WHITE,
    steps=STEPS,
    stop_after=None,
):
    """Caches a plan's latents as a run does; returns them and how often the VAE was asked."""
    before, store, pictures = vae.calls, TensorStore(folder / "cache"), Pictures(plan, background)
    looks = looks_for(views_used(plan, 0, steps), masked=plan.masks > 0)

    def progress(done: int, of: int) -> None:
        if done == stop_after:
            raise KeyboardInterrupt

    encode_missing(looks, pictures, vae.encoder(id), store, progress)
    return cached_latents(looks, pictures, vae.encoder(id), store, CPU), vae.calls - before


def batches(plan: DataPlan, source, micro_batches=1, inpainting=False) -> torch.Tensor:
    parts = [
        part.instance
        for step in range(STEPS)
        for part in share(samples_of_step(plan, 0, step), micro_batches)
    ]
    return torch.cat([(source.inpainting if inpainting else source.batch)(samples) for samples in parts])


def test_latents_are_drawn_from_the_posterior_with_the_samples_own_seed(photos, tmp_path):
    plan, vae = plan_of(photos), CountingVAE()
    source, _ = fill(plan, vae, tmp_path)
    for step in range(STEPS):
        samples = samples_of_step(plan, 0, step).instance
        for sample, latents in zip(samples, source.batch(samples), strict=True):
            pixels = pixels_of(open_image(plan.items[sample.item].image, WHITE), view_of(plan, sample))
            mean, deviation = vae.encode(pixels)
            noise = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(sample.latent_seed))
            torch.testing.assert_close(latents, mean + deviation * noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("inpainting", [False, True])
def test_caching_batch_size_and_interruptions_change_no_bit(photos, tmp_path, inpainting):
    plan, vae = plan_of(photos, rotation=10, brightness=0.2, inpainting=inpainting), CountingVAE()
    whole, calls = fill(plan, vae, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fill(plan, vae, tmp_path / "cut", stop_after=5)
    cut, rest = fill(plan, vae, tmp_path / "cut")
    assert (calls, rest) == (calls, calls - 5)
    live = live_latents(plan, WHITE, vae.encoder(), CPU)
    for which in {False, inpainting}:
        expected = batches(plan, whole, inpainting=which)
        assert torch.equal(batches(plan, cut, inpainting=which), expected)
        assert torch.equal(batches(plan, whole, micro_batches=4, inpainting=which), expected)
        assert torch.equal(batches(plan, live, micro_batches=2, inpainting=which), expected)


def test_an_unchanged_image_is_never_encoded_again_and_a_changed_one_is(photos, tmp_path):
    vae, long = CountingVAE(), 200  # steps enough to see every view of every image
    _, first = fill(plan_of(photos), vae, tmp_path, steps=long)
    assert first == sum(item.variants for item in plan_of(photos).items) * 2
    (photos / "moved").mkdir()
    (photos / "0.png").rename(photos / "moved" / "another name.png")
    source, again = fill(plan_of(photos), vae, tmp_path, steps=long)
    assert again == 0
    before = batches(plan_of(photos), source)
    write_photo(photos / "1.png", 77, (48, 32))
    source, changed = fill(plan_of(photos), vae, tmp_path, steps=long)
    assert changed == CACHED_VARIANTS * 2
    assert not torch.equal(batches(plan_of(photos), source), before)


@pytest.mark.parametrize(
    ("changes", "id", "background"),
    [
        ({"resolution": 40}, "vae", WHITE),
        ({"rotation": 3.0}, "vae", WHITE),
        ({"brightness": 0.1}, "vae", WHITE),
        ({"random_crop": False}, "vae", WHITE),
        ({}, "another vae", WHITE),
        ({}, "vae", (0, 0, 0)),
    ],
)
def test_whatever_latents_depend_on_is_in_their_key(photos, tmp_path, changes, id, background):
    vae = CountingVAE()
    fill(plan_of(photos), vae, tmp_path)
    plan = plan_of(photos, **changes)
    _, calls = fill(plan, vae, tmp_path, id=id, background=background)
    assert calls == len(views_used(plan, 0, STEPS))


def test_each_bucket_has_latents_of_its_own_shape(photos, tmp_path):
    plan = plan_of(photos, resolution=64, buckets=True)
    source, _ = fill(plan, CountingVAE(), tmp_path)
    shapes = set()
    for step in range(STEPS):
        samples = samples_of_step(plan, 0, step).instance
        width, height = plan.items[samples[0].item].bucket
        assert source.batch(samples).shape == (4, 4, height // 8, width // 8)
        shapes.add((width, height))
    assert len(shapes) > 1


def test_a_damaged_entry_is_encoded_again(photos, tmp_path):
    plan, vae = plan_of(photos), CountingVAE()
    expected = batches(plan, fill(plan, vae, tmp_path)[0])
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    again, calls = fill(plan, vae, tmp_path)
    assert calls == len(views_used(plan, 0, STEPS))
    assert torch.equal(batches(plan, again), expected)
    assert fill(plan, vae, tmp_path)[1] == 0


def test_an_image_that_changes_between_plan_and_cache_stops_the_run(photos, tmp_path):
    plan = plan_of(photos)
    write_photo(photos / "1.png", 77)
    with pytest.raises(InputError, match="changed") as caught:
        fill(plan, CountingVAE(), tmp_path)
    assert caught.value.where == str(photos / "1.png")


def test_latents_that_are_not_finite_are_refused_with_the_images_name(photos, tmp_path):
    plan = plan_of(photos)
    broken = LatentEncoder("nan", lambda pixels: torch.full((2, 4, 4, 4), float("nan")))
    with pytest.raises(InputError, match="not finite") as caught:
        encode_missing(
            [Look(1, 0, False)], Pictures(plan, WHITE), broken, TensorStore(tmp_path), lambda *_: None
        )
    assert caught.value.where == str(photos / "1.png")


def test_the_next_picture_is_opened_while_one_is_encoded(tmp_path):
    begun = {name: threading.Event() for name in "abc"}

    class Slow:
        def key(self, look, encoder):
            return {"look": look}

        def name(self, look):
            return look

        def pixels(self, look):
            begun[look].set()
            return torch.tensor([ord(look)])

    order = []

    def encode(pixels):
        order.append(chr(pixels.item()))
        after = begun.get(chr(pixels.item() + 1))
        assert after is None or after.wait(10)
        return torch.zeros(2, 4, 1, 1)

    encode_missing("abc", Slow(), LatentEncoder("id", encode), TensorStore(tmp_path), lambda *_: None)
    assert order == ["a", "b", "c"]


def test_inpainting_sees_the_mask_and_the_picture_without_what_is_masked(photos, tmp_path):
    plan, vae = plan_of(photos, inpainting=True), CountingVAE()
    source, _ = fill(plan, vae, tmp_path)
    samples = [sample for step in range(STEPS) for sample in samples_of_step(plan, 0, step).instance]
    assert len({sample.mask for sample in samples}) == 4
    for sample, extra in zip(samples, source.inpainting(samples), strict=True):
        item = plan.items[sample.item]
        mask = random_mask(item.bucket, item.image.content_id, sample.mask)
        assert torch.equal(extra[:1], latent_mask(mask))
        mean, deviation = vae.encode(
            cut_out(pixels_of(open_image(item.image, WHITE), view_of(plan, sample)), mask)
        )
        assert ((extra[1:] - mean).abs() <= 5 * deviation).all()
    plain = source.batch(samples)
    assert not torch.equal(plain, source.inpainting(samples)[:, 1:])


def test_several_processes_share_the_work(photos, tmp_path):
    plan, store = plan_of(photos), TensorStore(tmp_path)
    looks = looks_for(views_used(plan, 0, STEPS), masked=False)
    vaes = [CountingVAE(), CountingVAE()]
    for process, vae in enumerate(vaes):
        encode_missing(looks[process::2], Pictures(plan, WHITE), vae.encoder(), store, lambda *_: None)
    assert sum(vae.calls for vae in vaes) == len(looks)
    source = cached_latents(looks, Pictures(plan, WHITE), vaes[0].encoder(), store, CPU)
    assert sum(vae.calls for vae in vaes) == len(looks)
    alone, _ = fill(plan, CountingVAE(), tmp_path / "alone")
    assert torch.equal(batches(plan, source), batches(plan, alone))


def test_decoded_pictures_are_kept_within_their_room(photos, monkeypatch):
    plan = plan_of(photos)
    opened = []
    monkeypatch.setattr(
        "dreambooth.trainer.data.cache.open_image",
        lambda image, _: opened.append(image) or Image.new("RGB", (40, 32)),
    )
    roomy = Pictures(plan, WHITE, keep_bytes=3 * 40 * 32 * 3)
    for item in (0, 1, 2, 0, 1, 2):
        roomy.pixels(Look(item, 0, False))
    assert len(opened) == 3
    narrow = Pictures(plan, WHITE)
    for item in (0, 0, 1, 1, 0):
        narrow.pixels(Look(item, 0, False))
    assert len(opened) == 6


def test_a_real_vae_gives_its_scaled_posterior():
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[32] * 4,
        latent_channels=4,
    ).eval()
    encoder = vae_encoder(vae, 0.18215)
    pixels = torch.rand(3, 32, 48) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels[None]).latent_dist
    mean, deviation = encoder.encode(pixels)
    torch.testing.assert_close(mean, posterior.mean[0] * 0.18215)
    torch.testing.assert_close(deviation, posterior.std[0] * 0.18215)
    assert not mean.requires_grad
    assert encoder.id == vae_encoder(vae, 0.18215).id != vae_encoder(vae, 0.13025).id
