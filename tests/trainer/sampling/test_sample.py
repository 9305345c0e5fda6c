from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from sampling_models import tiny_model, tiny_vae

from dreambooth.shared.errors import InputError, RunFailed
from dreambooth.shared.settings import SAMPLERS as SAMPLER_NAMES
from dreambooth.trainer.models.embeddings import Embeddings
from dreambooth.trainer.models.tokenizer import default_tokenizer, write_tokenizer_folder
from dreambooth.trainer.sampling.sample import (
    Conditioning,
    SampleRequest,
    check_size,
    decode,
    inpaint_channels,
    sample,
    sample_latents,
    starting_noise,
)
from dreambooth.trainer.sampling.samplers import SAMPLERS, make_scheduler

LONG = " ".join(["dog"] * 90)


def request(prompt="a dog", **changed):
    values = {"steps": 3, "width": 64, "height": 64, "guidance_scale": 5.0, "seed": 7}
    return SampleRequest(prompt, **{**values, **changed})


def pictures(model, requests, **options):
    options = {"batch_size": 4, **options}
    found = dict(sample(model, default_tokenizer(), requests, **options))
    return [np.asarray(found[index]) for index in sorted(found)]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer_folder(folder)
    return folder


def diffusers_pipeline(model, tokenizer_folder, scheduler):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    pipeline = StableDiffusionPipeline(
        **model.components,
        tokenizer=CLIPTokenizer.from_pretrained(str(tokenizer_folder)),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_every_sampler_of_the_settings_is_there_and_no_other():
    assert tuple(SAMPLERS) == SAMPLER_NAMES


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures_equal_those_of_diffusers_own_pipeline(tokenizer_folder, sampler, prediction_type):
    model = tiny_model(prediction_type=prediction_type)
    wanted = [request(seed=seed, sampler=sampler, negative_prompt="blurry", steps=4) for seed in (3, 4)]
    pipeline = diffusers_pipeline(
        model, tokenizer_folder, make_scheduler(sampler, 4, prediction_type=prediction_type)
    )
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    expected = pipeline(
        ["a dog"] * 2,
        negative_prompt=["blurry"] * 2,
        num_inference_steps=4,
        guidance_scale=5.0,
        latents=starting_noise(generators, 64, 64),
        generator=generators,
        output_type="np",
    ).images
    found = pictures(model, wanted, batch_size=2)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.std() > 2
        assert np.abs(ours / 255.0 - theirs).max() <= 1 / 255


def test_latents_equal_those_of_diffusers_own_pipeline_to_float_precision(model, tokenizer_folder):
    from dreambooth.trainer.models.text import encode, tokenize

    ids = tokenize(default_tokenizer(), model.identified.family, ["a dog", ""])
    positive, negative = (
        Embeddings(row[None])
        for row in encode([model.components["text_encoder"]], model.identified.family, ids).context
    )
    noise = starting_noise([torch.Generator().manual_seed(5)], 64, 64)
    expected = diffusers_pipeline(model, tokenizer_folder, make_scheduler("dpmpp_2m", 6))(
        "a dog", num_inference_steps=6, guidance_scale=4.0, latents=noise, output_type="latent"
    ).images
    found = sample_latents(
        model.components["unet"],
        make_scheduler("dpmpp_2m", 6),
        noise,
        Conditioning(positive, negative, 4.0),
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


class PerfectModel(torch.nn.Module):
    """Knows the one picture there is, and so predicts exactly the noise, or the velocity, of what it sees."""

    def __init__(self, scheduler, picture, prediction_type):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().numpy()
        self.picture, self.prediction_type = picture, prediction_type

    def forward(self, seen, timestep, encoder_hidden_states, return_dict):
        sigma = float(np.interp(float(timestep), np.arange(1000), self.sigmas))
        signal, spread = 1 / (sigma**2 + 1) ** 0.5, sigma / (sigma**2 + 1) ** 0.5
        noise = (seen - signal * self.picture) / spread
        velocity = signal * noise - spread * self.picture
        return (noise if self.prediction_type == "epsilon" else velocity,)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_finds_the_picture_that_a_perfect_model_knows(sampler, prediction_type):
    scheduler = make_scheduler(sampler, 20, prediction_type=prediction_type)
    picture = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    found = sample_latents(
        PerfectModel(scheduler, picture, prediction_type),
        scheduler,
        starting_noise(generators, 64, 64),
        Conditioning(Embeddings(torch.zeros(2, 77, 4))),
        generators=generators if SAMPLERS[sampler].draws_noise else None,
    )
    # ddim ends, as Stable Diffusion's own, at the noise level of the first timestep, 0.029, and not at none
    torch.testing.assert_close(found, picture, atol=0.15 if sampler == "ddim" else 1e-5, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_zero_terminal_snr_starts_at_the_last_timestep_whose_signal_is_nothing(sampler):
    scheduler = make_scheduler(sampler, 5, prediction_type="v_prediction", zero_terminal_snr=True)
    assert int(scheduler.timesteps[0]) == 999
    assert float(scheduler.alphas_cumprod[-1]) < 1e-7


def test_a_zero_terminal_snr_model_gives_numbers():
    model = tiny_model("sd2", "v_prediction", zero_terminal_snr=True)
    assert len({picture.tobytes() for picture in pictures(model, [request(seed=1), request(seed=2)])}) == 2


def test_the_same_group_gives_the_same_bits_and_another_seed_another_picture(model):
    wanted = [request(seed=seed, sampler="euler_a") for seed in (1, 2)]
    first, second = pictures(model, wanted), pictures(model, wanted)
    assert [picture.tobytes() for picture in first] == [picture.tobytes() for picture in second]
    assert first[0].tobytes() != first[1].tobytes()


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a"])
def test_a_picture_depends_on_its_own_request_and_not_on_its_batch(model, sampler):
    wanted = [
        request(seed=seed, sampler=sampler, prompt=text) for seed, text in enumerate(["a", LONG, "c", "d"])
    ]
    together = pictures(model, wanted, batch_size=3)
    for alone, shared in zip((pictures(model, [one])[0] for one in wanted), together, strict=True):
        assert np.abs(alone.astype(int) - shared).max() <= 1


def test_each_index_comes_once_whatever_can_be_batched(model):
    wanted = [request(width=64 + 8 * (index % 2), steps=1 + index % 3) for index in range(7)]
    found = dict(sample(model, default_tokenizer(), wanted, batch_size=2))
    assert sorted(found) == list(range(7))
    assert all(found[index].size == (wanted[index].width, 64) for index in range(7))


def test_prompts_of_different_length_are_guided_without_padding(model):
    from dreambooth.trainer.models.text import encode, tokenize

    family, unet = model.identified.family, model.components["unet"]
    long, short = (
        encode([model.components["text_encoder"]], family, tokenize(default_tokenizer(), family, [text]))
        for text in (LONG, "")
    )
    noise = starting_noise([torch.Generator().manual_seed(0)], 64, 64)
    scheduler = make_scheduler("ddim", 1)
    found = sample_latents(unet, make_scheduler("ddim", 1), noise, Conditioning(long, short, 3.0))
    timestep = scheduler.timesteps[0]
    with torch.no_grad():
        without, with_prompt = (
            unet(noise, timestep, encoder_hidden_states=told.context).sample for told in (short, long)
        )
    expected = scheduler.step(without + 3.0 * (with_prompt - without), timestep, noise).prev_sample
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert long.context.shape[1] == 2 * short.context.shape[1]


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_guidance_of_one_or_less_runs_the_model_once_and_ignores_the_negative_prompt(model, scale):
    calls = []
    handle = model.components["unet"].register_forward_pre_hook(
        lambda module, args: calls.append(len(args[0]))
    )
    plain = pictures(model, [request(guidance_scale=scale)])
    other = pictures(model, [request(guidance_scale=scale, negative_prompt="blurry")])
    handle.remove()
    assert calls == [1] * 6
    assert plain[0].tobytes() == other[0].tobytes()


def test_a_negative_prompt_changes_a_guided_picture(model):
    plain, other = (pictures(model, [request(negative_prompt=text)])[0] for text in ("", "blurry"))
    assert plain.tobytes() != other.tobytes()


def test_clip_skip_changes_the_picture_where_the_family_has_it():
    for family, differs in (("sd1", True), ("sd2", False)):
        model = tiny_model(family)
        first, second = (pictures(model, [request()], clip_skip=skip)[0] for skip in (1, 2))
        assert (first.tobytes() != second.tobytes()) == differs


def test_an_inpainting_model_sees_a_full_mask_and_a_grey_picture_behind_the_latents():
    model = tiny_model("sd1-inpaint")
    seen = []
    model.components["unet"].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    assert pictures(model, [request()])[0].shape == (64, 64, 3)
    vae = model.components["vae"]
    grey = vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean * 0.18215
    assert seen[0].shape == (2, 9, 8, 8)
    assert torch.equal(seen[0][:, 4], torch.ones(2, 8, 8))
    torch.testing.assert_close(seen[0][:, 5:], grey.expand(2, -1, -1, -1))
    assert inpaint_channels(vae, 64, 72, 0.18215).shape == (1, 5, 9, 8)


@pytest.mark.parametrize("size", [(72, 64), (64, 104), (8, 8)])
def test_sides_need_be_multiples_of_eight_only(model, size):
    width, height = size
    assert pictures(model, [request(width=width, height=height)])[0].shape == (height, width, 3)


@pytest.mark.parametrize("size", [(60, 64), (64, 0), (-8, 64)])
def test_other_sizes_are_refused_with_the_nearest_that_can_be(size):
    with pytest.raises(InputError, match="multiples of 8") as caught:
        check_size(*size)
    assert "x" in caught.value.remedy
    assert caught.value.exit_code == 2


def test_a_wrong_size_is_refused_before_any_picture_is_made(model):
    with pytest.raises(InputError):
        next(sample(model, default_tokenizer(), [request(), request(width=65)], batch_size=1))


def test_an_unknown_sampler_is_refused_with_the_names_there_are():
    with pytest.raises(InputError, match="dpmpp_2m_karras"):
        make_scheduler("plms", 10)


def test_stopping_ends_between_two_steps_and_keeps_the_groups_that_were_done(model):
    asked = []

    def should_stop():
        asked.append(None)
        return len(asked) == 5  # the first group has three steps, so this is before the second group's second

    found = list(
        sample(
            model,
            default_tokenizer(),
            [request(seed=seed) for seed in range(3)],
            batch_size=1,
            should_stop=should_stop,
        )
    )
    assert [index for index, _ in found] == [0]
    assert len(asked) == 5


def test_a_model_that_gives_no_numbers_is_named_as_such():
    model = tiny_model()
    model.components["unet"].conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(RunFailed, match="not finite"):
        pictures(model, [request()])


def test_half_precision_by_autocast_and_by_weights_is_near_to_float32():
    full = pictures(tiny_model(), [request()])[0].astype(int)
    under_autocast = pictures(tiny_model(), [request()], dtype=torch.bfloat16)[0]
    half = tiny_model()
    for module in half.components.values():
        module.to(torch.bfloat16)
    for picture in (under_autocast, pictures(half, [request()])[0]):
        assert 0 < np.abs(picture - full).mean() < 6


def test_training_mode_gradients_and_the_global_generator_are_left_alone():
    model = tiny_model()
    model.components["unet"].train().requires_grad_(True)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    for sampler in SAMPLERS:
        pictures(model, [request(sampler=sampler)])
    assert torch.equal(torch.rand(3), expected)
    assert model.components["unet"].training
    assert not model.components["vae"].training
    output = model.components["unet"](torch.randn(1, 4, 8, 8), 5, torch.randn(1, 77, 32)).sample
    output.sum().backward()
    assert model.components["unet"].conv_in.weight.grad.abs().sum() > 0


def test_the_decoder_scales_and_rounds_as_defined():
    vae, latents = tiny_vae(), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = ((vae.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
    for picture, wanted in zip(decode(vae, latents, 0.5), expected.numpy(), strict=True):
        assert picture.mode == "RGB"
        assert np.abs(np.asarray(picture) - wanted).max() <= 0.51


def half_convolutions_work():
    try:
        torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3).half(), torch.ones(1, 1, 3, 3).half())
    except RuntimeError:
        return False
    return True


@pytest.mark.skipif(
    not half_convolutions_work(), reason="torch before 2.2 has no float16 convolution on a CPU"
)
def test_a_decoder_that_overflows_in_half_precision_is_repeated_in_float32():
    vae = tiny_vae()
    vae.decoder.conv_out.bias.data.fill_(0.25)
    vae.decoder.conv_in.weight.data.mul_(3e5)  # beyond float16's 65504; the group norms after it take it back
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = [np.asarray(picture).astype(int) for picture in decode(vae, latents, 1.0)]
    half = tiny_vae().half()
    half.load_state_dict({name: value.clamp(-6e4, 6e4).half() for name, value in vae.state_dict().items()})
    for picture, wanted in zip(decode(half, latents, 1.0), expected, strict=True):
        assert np.abs(np.asarray(picture) - wanted).max() <= 8
    assert next(half.parameters()).dtype == torch.float16
