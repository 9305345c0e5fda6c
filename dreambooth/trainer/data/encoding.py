"""What is the same at every step is computed once, before training: latents, embeddings, token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from dreambooth.shared.errors import RunFailed
from dreambooth.shared.events import Emit
from dreambooth.shared.settings import Settings
from dreambooth.trainer.data.cache import (
    LatentEncoder,
    Latents,
    Pictures,
    cached_latents,
    encode_missing,
    live_latents,
    looks_for,
    vae_encoder,
)
from dreambooth.trainer.data.dataset import DataPlan, views_used
from dreambooth.trainer.data.images import parse_colour
from dreambooth.trainer.data.store import TensorStore, module_id
from dreambooth.trainer.data.text_cache import CachedText, LiveText, TextEncoder, TextSource, TokenText
from dreambooth.trainer.models import text
from dreambooth.trainer.models.convert import LoadedModel
from dreambooth.trainer.models.embeddings import Embeddings
from dreambooth.trainer.models.tiles import use_tiles
from dreambooth.trainer.models.tokenizer import Tokenizer
from dreambooth.trainer.processes import ALONE, Processes
from dreambooth.trainer.stepdown import (
    described,
    first_line,
    free_memory,
    gone_down,
    is_out_of_memory,
    tiles_help,
)


class LaterText:
    """Embeddings of a text encoder that is trained first and then left as it is: made when first asked for."""

    def __init__(self, make: Callable[[], TextSource]) -> None:
        self._make = make

    @cached_property
    def _source(self) -> TextSource:
        return self._make()

    def batch(self, captions: Sequence[str]) -> Embeddings | torch.Tensor:
        return self._source.batch(captions)


@dataclass
class Encoding:
    """Turns images and captions into what the engine is fed; `check_stop` may raise to stop between two images. The run's
    `folder` keeps what it came to when memory ran out."""

    settings: Settings
    data: DataPlan
    model: LoadedModel
    tokenizer: Tokenizer
    store: TensorStore
    device: torch.device
    steps: int
    emit: Emit
    check_stop: Callable[[], None]
    folder: Path
    processes: Processes = ALONE

    def latents(self) -> Latents:
        """The images' latents: encoded now and kept, in tiles where memory runs out, or at each step where caching is
        off. Pictures that are encoded in tiles are other ones, so all of them are."""
        try:
            return self._latents()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            why = first_line(error)
        self._step_down(why, "all are encoded")
        return self._latents()

    def _step_down(self, why: str, what: str) -> None:
        where, rung = f"memory ran out while images were encoded ({why})", {"vae_tiling": "yes"}
        free_memory()
        if not tiles_help(self.settings, max(max(item.bucket) for item in self.data.items)):
            kept = self.settings.images.cache_latents
            raise RunFailed(
                where,
                remedy="lower the resolution, or let other programs leave the card; what was encoded is kept, and "
                "`resume` goes on"
                if kept
                else "use cache_latents: yes, with which the VAE is done before the training, or a lower resolution, or let "
                "other programs leave the card",
            )
        self.settings = gone_down(self.settings, rung, self.folder, self.processes, where)
        use_tiles(self.model.components["vae"], True)
        self.emit("warning", text=f"{where}: {what} with {described(rung)}", memory=rung)

    def _latents(self) -> Latents:
        background = parse_colour(self.settings.images.background)
        encoder = vae_encoder(self.model.components["vae"], self.model.identified.family.scaling_factor)
        if not self.settings.images.cache_latents:
            return live_latents(self.data, background, self._stepping_down(encoder), self.device)
        pictures = Pictures(self.data, background)
        views = views_used(self.data, self.settings.training.seed, self.steps)
        looks = looks_for(views, masked=bool(self.data.masks))
        self.emit("phase", name="caching", of=len(looks))
        own = looks[self.processes.index :: self.processes.count]
        with self.processes.together():
            encode_missing(own, pictures, encoder, self.store, self._progress("images"))
        return cached_latents(looks, pictures, encoder, self.store, self.device)

    def _stepping_down(self, encoder: LatentEncoder) -> LatentEncoder:
        """One for pictures that are encoded within the steps: in tiles from the one on at which memory runs out."""

        def encode(pixels: torch.Tensor) -> torch.Tensor:
            try:
                return encoder.encode(pixels)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                why = first_line(error)
            self._step_down(why, "from here on they are encoded")
            return encode(pixels)

        return replace(encoder, encode=encode)

    def tokens(self) -> TextSource:
        """Token ids, for a text encoder that is trained."""
        return TokenText(self._tokenize, self.device)

    def embeddings(self) -> TextSource:
        """The frozen text encoder's output: computed now and kept where captions do not vary."""
        captions = self.data.captions()
        if captions is None:
            return LiveText(self._encoder(), self.device)
        if self.processes.count > 1:
            with self.processes.together():
                if own := captions[self.processes.index :: self.processes.count]:
                    self._cached(own)
        return self._cached(captions)

    def _cached(self, captions: Sequence[str]) -> CachedText:
        progress = self._progress("captions")
        return CachedText(captions, self._encoder(), self.device, store=self.store, progress=progress)

    def later_embeddings(self, then: Callable[[], None] = lambda: None) -> TextSource:
        """As `embeddings`, of a text encoder that is still trained now; its result is nobody else's to keep. `then` is
        called once all of them are computed, if they are: nobody asks the encoders any more."""
        captions = self.data.captions()
        if captions is None:
            return LaterText(lambda: LiveText(self._encoder(), self.device))

        def make() -> TextSource:
            made = CachedText(captions, self._encoder(), self.device)
            then()
            return made

        return LaterText(make)

    def _progress(self, name: str) -> Callable[[int, int], None]:
        def told(done: int, of: int) -> None:
            self.check_stop()
            if done:
                self.emit("progress", name=name, done=done, of=of)

        return told

    @cached_property
    def _chunks(self) -> int:
        """The number of 75-token chunks that all captions of the run get."""
        limit = self.settings.captions.max_prompt_chunks
        prompts = {item.prompt for item in self.data.items}
        cut = sum(text.tokens_cut(self.tokenizer, prompt, limit) > 0 for prompt in prompts)
        if cut:
            self.emit(
                "warning",
                text=f"captions longer than {limit * text.CONTENT} tokens are cut there: {cut} of {len(prompts)}",
            )
        return text.chunks_for(self.tokenizer, prompts, limit)

    def _tokenize(self, prompt: str) -> torch.Tensor:
        rules, limit = self.model.identified.family, self.settings.captions.max_prompt_chunks
        return text.tokenize(self.tokenizer, rules, [prompt], chunks=self._chunks, max_chunks=limit)[0]

    def _encoder(self) -> TextEncoder:
        rules = self.model.identified.family
        encoders = text.encoders_of(self.model.components, rules)
        clip_skip = self.settings.model.clip_skip

        @torch.no_grad()
        def encode(prompt: str) -> Embeddings:
            try:
                ids = self._tokenize(prompt)[None].to(self.device)
                told = text.encode(encoders, rules, ids, clip_skip=clip_skip, unconditional=True)
                return told.each(lambda tensor: tensor[0].float().cpu())
            except Exception as error:
                if is_out_of_memory(error):  # one caption at a time: there is nothing to step down to
                    raise _no_caption_fits(error, self._chunks) from error
                raise

        weights = " ".join(module_id(encoder) for encoder in encoders)
        pooled = any(part.pooled for part in rules.text_encoders)
        return TextEncoder(f"{weights} clip_skip {clip_skip} chunks {self._chunks}", encode, pooled)


def _no_caption_fits(error: Exception, chunks: int) -> RunFailed:
    others = "let other programs leave the card; captions that were encoded are kept, and `resume` goes on"
    return RunFailed(
        f"memory ran out while captions were encoded ({first_line(error)})",
        remedy=f"lower max_prompt_chunks, or {others}" if chunks > 1 else others,
    )
