import pytest
import torch
from training_rig import CPU, data_plan, made_up_latents, tokenize

from dreambooth.trainer.data.batches import StepBatches
from dreambooth.trainer.data.cache import Latents
from dreambooth.trainer.data.captions import Variation
from dreambooth.trainer.data.dataset import Augmentation, samples_of_step, sizes_of, timestep_of
from dreambooth.trainer.data.text_cache import TokenText
from dreambooth.trainer.draws import words
from dreambooth.trainer.models.embeddings import Embeddings as Told
from dreambooth.trainer.noise import seeded_normal

SEED = 11


class Embeddings:
    """A number for each caption, and what was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def batch(self, captions):
        self.asked.append(list(captions))
        return Told(torch.stack([torch.full((77, 32), float(words(text)[0] % 1000)) for text in captions]))


def batches(
    plan=None, *, tokens=False, micro_batches=1, process=(0, 1), latents=None, **options
) -> StepBatches:
    rules = {"embeddings": Embeddings(), "offset_noise": 0.0, **options}
    return StepBatches(
        plan or data_plan(batch=4),
        SEED,
        latents or made_up_latents(),
        tokens=TokenText(tokenize, CPU) if tokens else None,
        micro_batches=micro_batches,
        device=CPU,
        process=process,
        **rules,
    )


def fields(half) -> list[torch.Tensor]:
    return [half.latents, half.noise, half.timesteps, half.condition.context]


def test_a_steps_tensors_are_those_of_its_planned_samples():
    plan = data_plan(batch=4)
    (micro,) = batches(plan).of_step(5, encoded=True)
    samples = samples_of_step(plan, SEED, 5)
    for half, planned in ((micro.instance, samples.instance), (micro.prior, samples.prior)):
        assert torch.equal(half.latents, made_up_latents().batch(planned))
        assert half.timesteps.dtype == torch.int64
        assert half.timesteps.tolist() == [timestep_of(sample, 1000) for sample in planned]
        assert torch.equal(half.noise, seeded_normal([sample.noise_seed for sample in planned], (4, 8, 8)))
        assert torch.equal(
            half.condition.context, Embeddings().batch([sample.caption for sample in planned]).context
        )
        assert half.extra is None


def test_a_step_is_the_same_whenever_it_is_asked_for():
    made = batches()
    first = [
        fields(half)
        for step in (3, 9)
        for micro in made.of_step(step, encoded=True)
        for half in (micro.instance, micro.prior)
    ]
    again = [
        fields(half)
        for step in (9, 3)
        for micro in batches().of_step(step, encoded=True)
        for half in (micro.instance, micro.prior)
    ]
    for one, other in zip(first[:2] + first[2:], again[2:] + again[:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(first[0][1], first[2][1])


@pytest.mark.parametrize(("micro_batches", "processes"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4)])
def test_samples_do_not_depend_on_how_a_step_is_cut(micro_batches, processes):
    (whole,) = batches(offset_noise=0.1).of_step(2, encoded=True)
    parts = {
        (index, number): micro
        for index in range(processes)
        for number, micro in enumerate(
            batches(offset_noise=0.1, micro_batches=micro_batches, process=(index, processes)).of_step(
                2, encoded=True
            )
        )
    }
    assert len(parts) == micro_batches * processes
    ordered = [parts[index, number] for number in range(micro_batches) for index in range(processes)]
    for name in ("instance", "prior"):
        joined = [
            torch.cat(column)
            for column in zip(*(fields(getattr(part, name)) for part in ordered), strict=True)
        ]
        assert all(torch.equal(a, b) for a, b in zip(joined, fields(getattr(whole, name)), strict=True))


def test_without_class_images_there_is_no_prior_half():
    (micro,) = batches(data_plan(class_images=0)).of_step(0, encoded=True)
    assert micro.prior is None and len(micro.instance.latents) == 2


def test_token_ids_serve_while_the_text_encoder_is_trained_and_embeddings_after_it():
    made = batches(tokens=True)
    (trained,) = made.of_step(0, encoded=False)
    (left,) = made.of_step(0, encoded=True)
    assert trained.instance.condition.shape == (4, 1, 77)
    assert left.instance.condition.context.shape == (4, 77, 32)
    assert torch.equal(trained.instance.condition[0], tokenize("photo of sks cat"))
    assert torch.equal(trained.prior.condition[0], tokenize("photo of cat"))


def test_without_token_ids_there_are_always_embeddings():
    (micro,) = batches().of_step(0, encoded=False)
    assert isinstance(micro.instance.condition, Told)


def test_offset_noise_shifts_each_channel_of_each_image_by_its_own_amount():
    (plain,), (shifted,) = (batches(offset_noise=share).of_step(4, encoded=True) for share in (0.0, 0.1))
    shift = shifted.instance.noise - plain.instance.noise
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), rtol=0, atol=1e-6)
    amounts = shift[:, :, 0, 0].flatten()
    assert len({round(float(amount), 4) for amount in amounts}) == len(amounts) == 16
    assert torch.equal(plain.instance.latents, shifted.instance.latents)


def test_offset_noise_has_the_deviation_that_was_asked_for():
    made = {share: batches(data_plan(batch=64), offset_noise=share) for share in (0.0, 0.1)}
    plain, shifted = (
        torch.cat([micro.instance.noise for step in range(8) for micro in one.of_step(step, encoded=True)])
        for one in made.values()
    )
    assert float((shifted - plain)[:, :, 0, 0].std()) == pytest.approx(0.1, rel=0.1)
    assert float(plain.std()) == pytest.approx(1.0, rel=0.01)
    assert float(plain.mean()) == pytest.approx(0.0, abs=0.01)


def test_the_shift_is_not_told_by_the_noise_that_it_shifts():
    plan = data_plan(batch=64)
    (plain,), (shifted,) = (
        batches(plan, offset_noise=share).of_step(0, encoded=True) for share in (0.0, 1.0)
    )
    amounts = (shifted.instance.noise - plain.instance.noise)[:, :, 0, 0].flatten()
    for column in range(4):
        beside = plain.instance.noise[:, :, 0, column].flatten()
        first = plain.instance.noise[:, 0, 0, :4].flatten()  # what the same seed would give
        for other in (beside, first):
            assert abs(float(torch.corrcoef(torch.stack([amounts, other]))[0, 1])) < 0.25  # four deviations


def test_timesteps_are_spread_over_the_whole_schedule():
    drawn = torch.cat(
        [
            micro.instance.timesteps
            for step in range(100)
            for micro in batches(data_plan(batch=16)).of_step(step, encoded=True)
        ]
    )
    assert drawn.min() >= 0 and drawn.max() <= 999
    counts = torch.histc(drawn.float(), bins=10, min=0, max=1000)
    assert counts.min() > 110 and counts.max() < 215  # 160 each, give or take four deviations


def test_dropped_captions_reach_the_model_as_the_empty_one():
    source = Embeddings()
    made = batches(data_plan(batch=8, variation=Variation(dropout=0.5)), embeddings=source)
    for step in range(8):
        list(made.of_step(step, encoded=True))
    asked = [text for captions in source.asked for text in captions]
    assert 30 < asked.count("") < 98
    assert set(asked) == {"", "photo of sks cat", "photo of cat"}


class Inpainting(Latents):
    """Five further channels that tell which samples they are for."""

    def __init__(self) -> None:
        plain = made_up_latents()
        super().__init__(plain._moments, plain._pictures, CPU)

    def inpainting(self, samples):
        return torch.stack(
            [torch.full((5, 8, 8), float(sample.mask * 100 + sample.item)) for sample in samples]
        )


def test_an_inpainting_model_gets_its_further_channels_in_both_halves():
    plan = data_plan(batch=2, inpainting=True)
    (micro,) = batches(plan, latents=Inpainting()).of_step(0, encoded=True)
    samples = samples_of_step(plan, SEED, 0)
    for half, planned in ((micro.instance, samples.instance), (micro.prior, samples.prior)):
        assert half.extra.shape == (2, 5, 8, 8)
        assert half.extra[:, 0, 0, 0].tolist() == [sample.mask * 100 + sample.item for sample in planned]


def test_mirrored_samples_get_the_mirrored_pictures_latents():
    plan = data_plan(batch=8, augmentation=Augmentation(random_flip=True))
    (micro,) = batches(plan).of_step(0, encoded=True)
    flips = [sample.flip for sample in samples_of_step(plan, SEED, 0).instance]
    assert set(flips) == {True, False}
    assert torch.equal(
        micro.instance.latents, made_up_latents().batch(samples_of_step(plan, SEED, 0).instance)
    )


def test_only_models_that_know_sizes_are_told_them():
    plan = data_plan(batch=4)
    (plain,), (sized,) = (batches(plan, sized=on).of_step(3, encoded=True) for on in (False, True))
    assert plain.instance.sizes is None and plain.prior.sizes is None
    samples = samples_of_step(plan, SEED, 3)
    for half, planned in ((sized.instance, samples.instance), (sized.prior, samples.prior)):
        assert half.sizes.tolist() == [list(sizes_of(plan, sample)) for sample in planned]
