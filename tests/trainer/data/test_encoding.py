from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from sampling_models import tiny_text_encoder

from dreambooth.shared.concepts import Concept
from dreambooth.shared.errors import RunFailed
from dreambooth.shared.settings import CaptionSettings, ImageSettings, ModelSettings, Settings
from dreambooth.trainer import stepdown
from dreambooth.trainer.data import encoding as module
from dreambooth.trainer.data.captions import Variation
from dreambooth.trainer.data.dataset import Augmentation, plan_data, samples_of_step
from dreambooth.trainer.data.encoding import Encoding, LaterText
from dreambooth.trainer.data.store import TensorStore
from dreambooth.trainer.data.survey import survey
from dreambooth.trainer.data.text_cache import LiveText
from dreambooth.trainer.families import FAMILIES
from dreambooth.trainer.models import text
from dreambooth.trainer.models.tokenizer import Tokenizer
from dreambooth.trainer.processes import Processes
from dreambooth.trainer.stepdown import read_rungs

CPU = torch.device("cpu")
STEPS = 10
LONG = ", ".join(f"tag number {number} of many" for number in range(40))  # 240 tokens


class FakeVAE(torch.nn.Module):
    """Averages of 8x8 pixels; counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.calls = 0

    def encode(self, pixels):
        self.calls += 1
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        mean = torch.cat([mean, mean[:, :1]], dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=mean.abs() / 10 + 0.01))


class Stopped(Exception):
    pass


class Kit:
    """Photos, a model and a store; makes encodings over them and notes what they tell."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.photos = folder / "photos"
        self.photos.mkdir()
        for number in range(3):
            Image.new("RGB", (64, 64), (70 * number, 90, 10)).save(self.photos / f"{number}.png")
        self.vae, self.encoder = FakeVAE(), tiny_text_encoder()
        self.events: list[tuple[str, dict]] = []
        self.stop_after: int | None = None

    def encoding(
        self, *, prompt="photo of sks cat", processes=None, variation=None, store="cache", **groups
    ) -> Encoding:
        concept = Concept(instance_prompt=prompt, instance_data_dir=str(self.photos))
        found = survey(
            [concept], prior=False, num_class_images=0, allow_bad_images=False, class_root=self.folder
        )
        settings = replace(Settings(), **groups)
        data = plan_data(
            found, ((64, 64),), batch=2, augmentation=Augmentation(random_flip=True),
            variation=variation or Variation(), cached=settings.images.cache_latents,
        )  # fmt: skip
        model = SimpleNamespace(
            components={"vae": self.vae, "text_encoder": self.encoder},
            identified=SimpleNamespace(family=FAMILIES["sd1"]),
        )
        return Encoding(
            settings, data, model, Tokenizer(), TensorStore(self.folder / store), CPU, STEPS,
            lambda event, **fields: self.events.append((event, fields)), self.check_stop, self.folder,
            **({"processes": processes} if processes else {}),
        )  # fmt: skip

    def check_stop(self) -> None:
        done = [fields for event, fields in self.events if event == "progress"]
        if self.stop_after is not None and len(done) >= self.stop_after:
            raise Stopped

    def told(self, name: str) -> list[dict]:
        return [fields for event, fields in self.events if event == name]


@pytest.fixture
def kit(tmp_path) -> Kit:
    return Kit(tmp_path)


def drawn(encoding: Encoding, latents) -> list[torch.Tensor]:
    return [latents.batch(samples_of_step(encoding.data, 0, step).instance) for step in range(STEPS)]


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---- latents -------------------------------------------------------------------------------------------------------


def test_each_picture_is_encoded_once_and_never_again_while_it_is_stored(kit):
    first = kit.encoding()
    expected = drawn(first, first.latents())
    assert kit.vae.calls == 6  # three photos, mirrored or not
    assert kit.told("phase") == [{"name": "caching", "of": 6}]
    assert kit.told("progress") == [{"name": "images", "done": done, "of": 6} for done in range(1, 7)]
    second = kit.encoding()
    assert same(drawn(second, second.latents()), expected)
    assert kit.vae.calls == 6


@pytest.fixture
def small_card(kit, monkeypatch):
    """The VAE holds no whole picture; a tile is smaller than the photos. Pictures in tiles are a little other ones."""
    encode = kit.vae.encode

    def allocating(pixels):
        if kit.vae.calls == 2 and not kit.vae.use_tiling:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return encode(pixels * (0.99 if kit.vae.use_tiling else 1))

    def tiled(on=True):
        kit.vae.use_tiling = on

    kit.vae.encode, kit.vae.enable_tiling, kit.vae.use_tiling = allocating, tiled, False
    monkeypatch.setattr(stepdown, "TILE", 32)
    return kit


def test_where_no_whole_picture_fits_all_are_encoded_in_tiles_and_the_run_keeps_that(small_card):
    encoding = small_card.encoding()
    latents = drawn(encoding, encoding.latents())
    (warning,) = small_card.told("warning")
    assert "memory ran out while images were encoded (CUDA out of memory" in warning["text"]
    assert warning["memory"] == {"vae_tiling": "yes"} == read_rungs(small_card.folder)
    assert encoding.settings.images.vae_tiling == "yes"
    assert small_card.vae.calls == 2 + 6, "those that were encoded whole are encoded again"
    again = small_card.encoding(images=ImageSettings(vae_tiling="yes"))
    assert same(drawn(again, again.latents()), latents)
    assert small_card.vae.calls == 2 + 6


def test_where_tiles_are_no_help_it_ends_with_what_is(small_card, monkeypatch):
    monkeypatch.setattr(stepdown, "TILE", 64)
    with pytest.raises(RunFailed, match="memory ran out while images were encoded") as failed:
        small_card.encoding().latents()
    assert "resolution" in failed.value.remedy and read_rungs(small_card.folder) == {}


def test_pictures_that_are_encoded_at_each_step_are_so_in_tiles_from_where_memory_ran_out(small_card):
    encoding = small_card.encoding(images=ImageSettings(cache_latents=False))
    latents = drawn(encoding, encoding.latents())
    (warning,) = small_card.told("warning")
    assert "encoded (CUDA out of memory. Tried" in warning["text"] and "from here on" in warning["text"]
    assert warning["memory"] == {"vae_tiling": "yes"} == read_rungs(small_card.folder)
    assert small_card.vae.calls == 2 * STEPS, "the step at which it ran out is not given up"
    tiled = small_card.encoding(images=ImageSettings(cache_latents=False, vae_tiling="yes"))
    in_tiles = [torch.equal(*pair) for pair in zip(drawn(tiled, tiled.latents()), latents, strict=True)]
    assert in_tiles == [False] + [True] * (STEPS - 1)


def test_where_tiles_are_no_help_at_a_step_the_cache_is_named(small_card, monkeypatch):
    monkeypatch.setattr(stepdown, "TILE", 64)
    encoding = small_card.encoding(images=ImageSettings(cache_latents=False))
    with pytest.raises(RunFailed, match="memory ran out while images were encoded") as failed:
        drawn(encoding, encoding.latents())
    assert "cache_latents: yes" in failed.value.remedy and "kept" not in failed.value.remedy


def test_latents_are_scaled_by_the_familys_factor(kit):
    encoding = kit.encoding()
    sample = samples_of_step(encoding.data, 0, 0).instance[0]
    pixels = float(torch.tensor(70.0 * int(encoding.data.items[sample.item].image.path.stem)) / 127.5 - 1)
    latents = encoding.latents().batch([sample])
    assert float(latents[0, 0].mean()) == pytest.approx(pixels * 0.18215, abs=0.18215 * 0.05)


def test_without_the_cache_pictures_are_encoded_at_each_step_to_the_same_bits(kit):
    cached = kit.encoding()
    expected = drawn(cached, cached.latents())
    live = kit.encoding(images=ImageSettings(cache_latents=False), store="other")
    kit.vae.calls = 0
    kit.events.clear()
    latents = live.latents()
    assert kit.vae.calls == 0 and not kit.events
    assert same(drawn(live, latents), expected)
    assert kit.vae.calls == 2 * STEPS


def test_a_stop_between_two_pictures_keeps_those_that_are_done(kit):
    kit.stop_after = 2
    with pytest.raises(Stopped):
        kit.encoding().latents()
    assert kit.vae.calls == 3  # one more was made before anybody looked; it is kept too
    kit.stop_after = None
    kit.events.clear()
    kit.encoding().latents()
    assert kit.vae.calls == 6
    assert [event["of"] for event in kit.told("progress")] == [3, 3, 3]


def test_each_process_encodes_its_own_part_and_waits_for_the_others(kit, monkeypatch):
    waited = []

    def meet(self, failure):
        waited.append((self.index, kit.vae.calls))
        return [0, 0]

    monkeypatch.setattr(Processes, "_all_exit_codes", meet)
    monkeypatch.setattr(
        module, "cached_latents", lambda *_: None
    )  # the other process's pictures are not there
    for index in range(2):
        kit.encoding(processes=Processes(index, 2)).latents()
    assert waited == [(0, 3), (1, 6)]


# ---- text ----------------------------------------------------------------------------------------------------------


def embedded(kit: Kit, prompt: str, *, clip_skip=1, chunks=1) -> torch.Tensor:
    ids = text.tokenize(Tokenizer(), FAMILIES["sd1"], [prompt], chunks=chunks)
    with torch.no_grad():
        return text.encode([kit.encoder], FAMILIES["sd1"], ids, clip_skip=clip_skip).context[0]


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_captions_are_embedded_once_and_kept(kit, clip_skip):
    model = ModelSettings(clip_skip=clip_skip)
    source = kit.encoding(model=model).embeddings()
    assert torch.equal(
        source.batch(["photo of sks cat"]).context[0], embedded(kit, "photo of sks cat", clip_skip=clip_skip)
    )
    assert kit.told("progress") == [{"name": "captions", "done": 1, "of": 1}]
    kit.encoder.register_forward_hook(lambda *_: pytest.fail("embedded again"))
    again = kit.encoding(model=model).embeddings()
    assert torch.equal(*(one.batch(["photo of sks cat"]).context for one in (again, source)))


@pytest.mark.parametrize(("prompt", "longer"), [("photo of sks cat", False), (LONG, True)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_captions_that_do_not_fit_end_the_run_with_what_helps(kit, prompt, longer, shuffled):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    kit.encoder.register_forward_hook(full)
    encoding = kit.encoding(prompt=prompt, variation=Variation(shuffle_tags=shuffled))
    with pytest.raises(
        RunFailed, match=r"while captions were encoded \(CUDA out of memory\. Tried"
    ) as failed:
        encoding.embeddings().batch([prompt])
    assert ("max_prompt_chunks" in failed.value.remedy) is longer


def test_an_encoder_that_fails_otherwise_says_so_itself(kit):
    kit.encoder.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        kit.encoding().embeddings()


def test_another_clip_skip_is_another_embedding(kit):
    one, two = (
        kit.encoding(model=ModelSettings(clip_skip=skip)).embeddings().batch(["photo of sks cat"]).context
        for skip in (1, 2)
    )
    assert not torch.allclose(one, two)


def test_dropped_captions_have_their_embedding_too(kit):
    source = kit.encoding(variation=Variation(dropout=0.1)).embeddings()
    assert torch.equal(source.batch([""]).context[0], embedded(kit, ""))


def test_captions_that_are_shuffled_are_embedded_when_they_come(kit):
    source = kit.encoding(variation=Variation(shuffle_tags=True)).embeddings()
    assert isinstance(source, LiveText)
    assert torch.equal(source.batch(["cat, sks"]).context[0], embedded(kit, "cat, sks"))
    assert not kit.told("progress")


@pytest.mark.parametrize("shuffled", [False, True])
def test_an_encoder_that_is_still_trained_is_asked_when_it_has_stopped_and_nobody_else_gets_its_answer(
    kit, shuffled
):
    left = []
    encoding = kit.encoding(variation=Variation(shuffle_tags=shuffled))
    source = encoding.later_embeddings(lambda: left.append(1))
    with torch.no_grad():
        for parameter in kit.encoder.parameters():
            parameter.add_(0.1 * torch.ones_like(parameter))
    expected = embedded(kit, "photo of sks cat")
    assert left == []
    assert torch.equal(source.batch(["photo of sks cat"]).context[0], expected)
    assert left == ([] if shuffled else [1]), "only who is asked no more may leave the card"
    kit.encoder.register_forward_hook(lambda *_: pytest.fail("asked again"))
    assert torch.equal(source.batch(["photo of sks cat"]).context[0], expected)
    assert not [path for path in (kit.folder / "cache").rglob("*") if path.is_file()]


def test_later_text_is_made_at_the_first_question():
    made = []
    source = LaterText(lambda: made.append(1) or SimpleNamespace(batch=lambda captions: captions))
    assert not made
    assert [source.batch(["a"]), source.batch(["b"])] == [["a"], ["b"]]
    assert made == [1]


def test_token_ids_are_the_tokenizers_framed_and_padded(kit):
    ids = kit.encoding().tokens().batch(["photo of a sks dog", "photo of sks cat"])
    assert ids.shape == (2, 1, 77)
    assert ids[0, 0, :7].tolist() == [49406, 1125, 539, 320, 48136, 1929, 49407]
    assert set(ids[0, 0, 7:].tolist()) == {49407}


def test_all_captions_get_as_many_chunks_as_the_longest_needs(kit):
    encoding = kit.encoding(prompt=LONG, captions=CaptionSettings(max_prompt_chunks=5))
    needed = text.count_chunks(Tokenizer(), LONG)
    assert needed in (3, 4)
    assert encoding.tokens().batch(["short"]).shape == (1, needed, 77)
    assert encoding.embeddings().batch([LONG]).context.shape == (1, needed * 77, 32)
    assert torch.equal(encoding.embeddings().batch([LONG]).context[0], embedded(kit, LONG, chunks=needed))
    assert not kit.told("warning")


def test_captions_that_are_too_long_are_cut_and_that_is_said_once(kit):
    encoding = kit.encoding(prompt=LONG, captions=CaptionSettings(max_prompt_chunks=2))
    tokens = encoding.tokens()
    assert tokens.batch([LONG]).shape == tokens.batch(["short"]).shape == (1, 2, 77)
    encoding.embeddings()
    (warning,) = kit.told("warning")
    assert warning["text"] == "captions longer than 150 tokens are cut there: 1 of 1"


def test_a_stop_is_heard_between_two_captions(kit):
    kit.stop_after = 0
    with pytest.raises(Stopped):
        kit.encoding().embeddings()
