"""Latents of images, computed once and kept, or computed at each step, behind one interface.

The VAE's mean and standard deviation are kept, both times the family's scaling factor, in float32; each sample draws
from them with its own seed, so that caching does not freeze the VAE's noise. Pictures are encoded one at a time: what
is batched with what changes the last bits, and a batch gains nothing (a small VAE on a CPU is slower with 8 than with
1; a large one fills a card with one image). So an interruption, another batch size or `cache_latents: false` changes
no bit of what is trained on.

An entry is keyed by all that it depends on: the image's bytes, the VAE's weights, size, crop, flip, jitter,
background and mask. A changed image is encoded again, an unchanged one never. Random crops and jitters are a fixed
number of variants for each image (dataset.CACHED_VARIANTS) so that they can be kept too.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import torch
from PIL import Image

from dreambooth.shared.errors import InputError
from dreambooth.trainer.data.buckets import Size
from dreambooth.trainer.data.dataset import DataPlan, Sample, item_view
from dreambooth.trainer.data.images import Colour, open_image, pixels_of
from dreambooth.trainer.data.inpainting import cut_out, latent_mask, random_mask
from dreambooth.trainer.data.store import Key, TensorStore, module_id
from dreambooth.trainer.draws import words
from dreambooth.trainer.models.tiles import tiles_id
from dreambooth.trainer.noise import seeded_normal, to_device

Progress = Callable[[int, int], None]  # done, of

# Decoded pictures that are kept while nothing is cached
_PICTURE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Look:
    """One picture that is encoded: an item's view, with a mask cut out of it for inpainting models."""

    item: int
    variant: int
    flip: bool
    mask: int | None = None


@dataclass(frozen=True)
class LatentEncoder:
    """`encode`: pixels (3, H, W) in [-1, 1] → scaled mean and deviation (2, 4, H/8, W/8), float32, on the CPU.

    Encoders with one `id` give the same for the same pixels.
    """

    id: str
    encode: Callable[[torch.Tensor], torch.Tensor]


def vae_encoder(vae: torch.nn.Module, scaling_factor: float) -> LatentEncoder:
    """Encodes with diffusers' AutoencoderKL, on its device and in its precision, in tiles if it works so."""
    weight = next(vae.parameters())

    @torch.no_grad()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        posterior = vae.encode(pixels[None].to(weight.device, weight.dtype)).latent_dist  # type: ignore[operator]
        return torch.cat([posterior.mean, posterior.std]).float().mul_(scaling_factor).cpu()

    return LatentEncoder(f"{module_id(vae)} x {scaling_factor!r}{tiles_id(vae)}", encode)


class Pictures:
    """The pixels of looks; keeps decoded images, the last used ones, up to `keep_bytes`."""

    def __init__(self, plan: DataPlan, background: Colour, *, keep_bytes: int = 0) -> None:
        self._plan = plan
        self._background = background
        self._room = keep_bytes
        self._kept: OrderedDict[int, Image.Image] = OrderedDict()

    def pixels(self, look: Look) -> torch.Tensor:
        """Float32 (3, H, W) in [-1, 1]. Raises `InputError` if the image is no longer what was planned with."""
        view = item_view(self._plan, look.item, look.variant, flip=look.flip)
        pixels = pixels_of(self._opened(look.item), view)
        return pixels if look.mask is None else cut_out(pixels, self.mask(look.item, look.mask))

    def mask(self, item: int, number: int) -> torch.Tensor:
        """The mask of an item with this number, float32 (1, H, W)."""
        chosen = self._plan.items[item]
        return random_mask(chosen.bucket, chosen.image.content_id, number)

    def name(self, look: Look) -> str:
        return str(self._plan.items[look.item].image.path)

    def bucket(self, look: Look) -> Size:
        return self._plan.items[look.item].bucket

    def key(self, look: Look, encoder: LatentEncoder) -> Key:
        """All that a look's latents depend on."""
        view = item_view(self._plan, look.item, look.variant, flip=look.flip)
        return {
            "kind": "latents",
            "image": self._plan.items[look.item].image.content_id,
            "vae": encoder.id,
            "background": self._background,
            "mask": look.mask,
            **asdict(view),
        }

    def _opened(self, item: int) -> Image.Image:
        picture = self._kept.pop(item, None) or open_image(self._plan.items[item].image, self._background)
        self._kept[item] = picture
        # the newest always stays: variants of one image are encoded one after the other
        while len(self._kept) > 1 and sum(_bytes(kept) for kept in self._kept.values()) > self._room:
            self._kept.popitem(last=False)
        return picture


def looks_for(views: Sequence[tuple[int, int, bool, int]], *, masked: bool) -> list[Look]:
    """The looks behind dataset.views_used, each once; `masked`: also those with the masks cut out."""
    plain = {Look(item, variant, flip): None for item, variant, flip, _ in views}
    cut = [Look(item, variant, flip, mask) for item, variant, flip, mask in views] if masked else []
    return [*plain, *cut]


def encode_missing(
    looks: Sequence[Look], pictures: Pictures, encoder: LatentEncoder, store: TensorStore, progress: Progress
) -> None:
    """Encodes what the store lacks. Several processes each take their part of the looks, then wait for the others.

    `progress` is told (0, all) first and then after each picture; it may raise to stop.
    """
    missing = [look for look in looks if not store.has(pictures.key(look, encoder))]
    progress(0, len(missing))
    with contextlib.closing(_pixels_ahead(missing, pictures)) as coming:
        for done, (look, pixels) in enumerate(zip(missing, coming, strict=True), 1):
            store.put(pictures.key(look, encoder), _encoded(pixels, encoder, pictures.name(look)))
            progress(done, len(missing))


def _pixels_ahead(looks: Sequence[Look], pictures: Pictures) -> Generator[torch.Tensor, None, None]:
    """The looks' pixels in their order, each made while the one before it is encoded: a card does that in less time than
    a photo takes to be opened and made small."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = [pool.submit(pictures.pixels, look) for look in looks[:1]]
        for after in range(1, len(looks) + 1):
            pixels = coming.pop().result()
            coming += [pool.submit(pictures.pixels, look) for look in looks[after : after + 1]]
            yield pixels


def encode_look(look: Look, pictures: Pictures, encoder: LatentEncoder) -> torch.Tensor:
    """Mean and deviation (2, 4, h, w) of a picture. Raises `InputError` if they are not finite."""
    return _encoded(pictures.pixels(look), encoder, pictures.name(look))


def _encoded(pixels: torch.Tensor, encoder: LatentEncoder, name: str) -> torch.Tensor:
    moments = encoder.encode(pixels)
    if not moments.isfinite().all():
        raise InputError(  # it computes in float32 in every run
            "the VAE's output for this image is not finite: the VAE is broken",
            where=name,
            setting="vae",
            remedy="train with another VAE (vae), or with a model whose own is sound",
        )
    return moments


class Latents:
    """Draws samples' latents, on the training device, from whatever gives the moments of looks.

    Samples of one call share a bucket. `moments`: looks → (B, 2, 4, h, w) on the CPU.
    """

    def __init__(
        self, moments: Callable[[Sequence[Look]], torch.Tensor], pictures: Pictures, device: torch.device
    ) -> None:
        self._moments = moments
        self._pictures = pictures
        self._device = device

    def batch(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Scaled latents (B, 4, h, w), drawn from each picture's posterior with the sample's own seed."""
        looks = [Look(sample.item, sample.variant, sample.flip) for sample in samples]
        return to_device(
            _drawn(self._moments(looks), [sample.latent_seed for sample in samples]), self._device
        )

    def inpainting(self, samples: Sequence[Sample]) -> torch.Tensor:
        """The inpainting model's further channels (B, 5, h, w): mask, then the masked picture's scaled latents."""
        looks = [Look(sample.item, sample.variant, sample.flip, sample.mask) for sample in samples]
        masks = torch.stack(
            [latent_mask(self._pictures.mask(sample.item, sample.mask)) for sample in samples]
        )
        seeds = [words(sample.latent_seed, "masked")[0] for sample in samples]
        return to_device(torch.cat([masks, _drawn(self._moments(looks), seeds)], dim=1), self._device)


def cached_latents(
    looks: Sequence[Look],
    pictures: Pictures,
    encoder: LatentEncoder,
    store: TensorStore,
    device: torch.device,
) -> Latents:
    """Latents of looks that lie in the store, held in memory as one tensor for each bucket."""
    by_bucket: dict[Size, list[Look]] = {}
    for look in looks:
        by_bucket.setdefault(pictures.bucket(look), []).append(look)
    places: dict[Look, tuple[torch.Tensor, int]] = {}
    for alike in by_bucket.values():
        first = _stored(alike[0], pictures, encoder, store)
        table = first.new_empty((len(alike), *first.shape))
        for row, look in enumerate(alike):
            table[row] = _stored(look, pictures, encoder, store)
            places[look] = table, row

    def moments(wanted: Sequence[Look]) -> torch.Tensor:
        rows = [places[look] for look in wanted]
        return rows[0][0][[row for _, row in rows]]

    return Latents(moments, pictures, device)


def live_latents(plan: DataPlan, background: Colour, encoder: LatentEncoder, device: torch.device) -> Latents:
    """Latents that are encoded at every step; only decoded images are kept."""
    pictures = Pictures(plan, background, keep_bytes=_PICTURE_BYTES)

    def moments(wanted: Sequence[Look]) -> torch.Tensor:
        return torch.stack([encode_look(look, pictures, encoder) for look in wanted])

    return Latents(moments, pictures, device)


def _stored(look: Look, pictures: Pictures, encoder: LatentEncoder, store: TensorStore) -> torch.Tensor:
    key = pictures.key(look, encoder)
    moments = store.get(key)
    if moments is None:  # damaged since it was stored
        moments = encode_look(look, pictures, encoder)
        store.put(key, moments)
    return moments


def _drawn(moments: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """mean + deviation * noise: (B, 2, 4, h, w) → (B, 4, h, w)."""
    return torch.addcmul(moments[:, 0], moments[:, 1], seeded_normal(seeds, moments.shape[2:]))


def _bytes(picture: Image.Image) -> int:
    return picture.width * picture.height * 3
