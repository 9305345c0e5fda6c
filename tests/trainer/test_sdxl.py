"""SDXL against diffusers' own pipeline: what the UNet is told, the pictures, and a training step."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tiny_sdxl
import torch
from training_rig import accelerator

from dreambooth.trainer.engine import Denoiser, Half, MicroBatch, TextEncoderSpan, TrainingEngine
from dreambooth.trainer.models.convert import convert, load_model
from dreambooth.trainer.models.embeddings import unet_arguments
from dreambooth.trainer.models.text import encode, encoders_of, tokenize, unused_modules
from dreambooth.trainer.models.tokenizer import default_tokenizer
from dreambooth.trainer.objectives import Objective, scaled_linear_alphas_cumprod, zero_terminal_snr
from dreambooth.trainer.optim.schedules import Schedule
from dreambooth.trainer.sampling.sample import (
    SampleRequest,
    sample,
    starting_noise,
)
from dreambooth.trainer.sampling.samplers import make_scheduler

pytestmark = pytest.mark.filterwarnings("ignore")
LONG = " ".join(["dog"] * 90)
KINDS = {"epsilon": "epsilon", "v": "v_prediction", "zsnr": "v_prediction"}


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_sdxl.base())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """diffusers' pipeline, from a folder, in float32."""
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp("sdxl") / "folder"
    convert(tiny_sdxl.base(), folder)
    made = StableDiffusionXLPipeline.from_pretrained(
        folder, local_files_only=True, torch_dtype=torch.float32, add_watermarker=False
    )
    made.set_progress_bar_config(disable=True)
    return made


def told(model, prompts, **options):
    family = model.identified.family
    ids = tokenize(default_tokenizer(), family, prompts)
    with torch.no_grad():
        return encode(encoders_of(model.components, family), family, ids, **options)


@pytest.mark.parametrize("negative", [None, "blurry, low quality"])
def test_the_conditioning_is_that_of_diffusers_pipeline(model, pipeline, negative):
    prompts = ["photo of sks cat", "a dog on the beach, sunset"]
    with torch.no_grad():
        context, no_context, pooled, no_pooled = pipeline.encode_prompt(
            prompts, device="cpu", negative_prompt=negative and [negative] * 2
        )
    found = told(model, prompts)
    nothing = told(model, [negative or ""] * 2, unconditional=True)
    for ours, theirs in (
        (found.context, context),
        (found.pooled, pooled),
        (nothing.context, no_context),
        (nothing.pooled, no_pooled),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert found.context.shape == (2, 77, 96) and found.pooled.shape == (2, 64)


def test_only_no_prompt_at_all_is_zeros_and_only_where_it_stands_for_none(model):
    found = told(model, ["", "a", ""], unconditional=True)
    assert not found.context[[0, 2]].any() and not found.pooled[[0, 2]].any()
    assert found.context[1].any() and found.pooled[1].any()
    assert told(model, [""]).context.any() and told(model, [""]).pooled.any()


def test_long_prompts_are_chunks_one_after_the_other_and_pool_the_first(model, pipeline):
    found = told(model, [LONG])
    first, second = (" ".join(["dog"] * count) for count in (75, 15))
    with torch.no_grad():
        context, _, pooled, _ = pipeline.encode_prompt(
            [first, second], device="cpu", do_classifier_free_guidance=False
        )
    torch.testing.assert_close(found.context[0], context.flatten(0, 1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.pooled[0], pooled[0], rtol=1e-5, atol=1e-6)


def test_what_the_encoding_does_not_use_gets_no_gradient_and_all_else_does():
    model = load_model(tiny_sdxl.base())
    family = model.identified.family
    encoders = encoders_of(model.components, family)
    for encoder in encoders:
        encoder.requires_grad_(True)
    ids = tokenize(default_tokenizer(), family, ["a dog"])
    found = encode(encoders, family, ids)
    (found.context.square().sum() + found.pooled.square().sum()).backward()
    unused = {id(p) for part in unused_modules(encoders, family, 1) for p in part.parameters()}
    assert len(unused) == 16 + 2  # a layer's and a norm's
    for encoder in encoders:
        assert all((p.grad is None) is (id(p) in unused) for p in encoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler", "euler_a", "ddim"])
def test_pictures_equal_those_of_diffusers_own_pipeline(pipeline, sampler, kind):
    model = load_model(tiny_sdxl.base(kind))
    zero = kind == "zsnr"
    assert model.identified.prediction_type == KINDS[kind] and model.identified.zero_terminal_snr is zero
    wanted = [
        SampleRequest(
            "a dog", "blurry", seed, steps=3, guidance_scale=5.0, width=128, height=64, sampler=sampler
        )
        for seed in (3, 4)
    ]
    pipeline.scheduler = make_scheduler(sampler, 3, prediction_type=KINDS[kind], zero_terminal_snr=zero)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    expected = pipeline(
        ["a dog"] * 2,
        negative_prompt=["blurry"] * 2,
        num_inference_steps=3,
        guidance_scale=5.0,
        width=128,
        height=64,
        latents=starting_noise(generators, 128, 64),
        generator=generators,
        output_type="np",
    ).images
    found = dict(sample(model, default_tokenizer(), wanted, batch_size=2))
    for index, theirs in enumerate(expected):
        ours = np.asarray(found[index])
        assert ours.shape == (64, 128, 3) and ours.std() > 2
        assert np.abs(ours / 255.0 - theirs).max() <= 1 / 255


def test_without_a_negative_prompt_pictures_are_those_of_diffusers_too(model, pipeline):
    pipeline.scheduler = make_scheduler("ddim", 3)
    noise = starting_noise([torch.Generator().manual_seed(1)], 64, 64)
    expected = pipeline(
        "a dog",
        num_inference_steps=3,
        guidance_scale=5.0,
        width=64,
        height=64,
        latents=noise,
        output_type="np",
    ).images[0]
    wanted = SampleRequest("a dog", "", 1, steps=3, guidance_scale=5.0, width=64, height=64, sampler="ddim")
    ((_, found),) = sample(model, default_tokenizer(), [wanted], batch_size=1)
    assert np.abs(np.asarray(found) / 255.0 - expected).max() <= 1 / 255


# ---- a training step ---------------------------------------------------------------------------------------------


class Catcher:
    """Takes the place of the optimizer: keeps the gradients, changes nothing."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.failed = torch.zeros(())
        self.rate = 0.0
        self.optimizer = torch.optim.SGD(parameters, lr=0.0)

    def begin(self, step):
        pass

    def set_rates(self, rates):
        pass

    def step(self, loss):
        self.gradients = [None if p.grad is None else p.grad.clone() for p in self.parameters]
        return True


SIZES = torch.tensor([[480.0, 640.0, 0.0, 21.0, 64.0, 64.0], [64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])


def half(model, prompts, *, trained, seed):
    torch.manual_seed(seed)
    latents, noise = torch.randn(2, len(prompts), 4, 8, 8)
    ids = tokenize(default_tokenizer(), model.identified.family, prompts)
    condition = ids if trained else told(model, prompts, unconditional=True)
    return Half(latents, noise, torch.tensor([17, 999]), condition, sizes=SIZES)


def plain_error(pipeline, prompt, half, row, prediction_type, alphas):
    """One sample's mean squared error by the papers' formulas, with diffusers' and transformers' modules."""
    alpha = alphas[half.timesteps[row]]
    latents, noise = half.latents[row : row + 1], half.noise[row : row + 1]
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    ids = [
        tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)
    ]
    first = pipeline.text_encoder(ids[0], output_hidden_states=True)
    second = pipeline.text_encoder_2(ids[1], output_hidden_states=True)
    context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    added = {"text_embeds": second.text_embeds, "time_ids": half.sizes[row : row + 1]}
    prediction = pipeline.unet(noisy, half.timesteps[row], context, added_cond_kwargs=added).sample
    target = noise if prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    return (prediction - target).square().mean()


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("kind", ["epsilon", "zsnr"])
def test_loss_and_gradients_are_those_of_a_plain_implementation(pipeline, trained, kind):
    model = load_model(tiny_sdxl.base(kind))
    family, alphas = model.identified.family, scaled_linear_alphas_cumprod()
    alphas = zero_terminal_snr(alphas) if kind == "zsnr" else alphas
    names = ["unet", "text_encoder", "text_encoder_2"] if trained else ["unet"]
    for name in names:
        model.components[name].requires_grad_(True)
        getattr(pipeline, name).requires_grad_(True).zero_grad()
    encoders = encoders_of(model.components, family)
    for unused in unused_modules(encoders, family, 1):
        unused.requires_grad_(False)
    prompts = ["photo of sks cat", "cat"], ["photo of cat", "dog"]
    micro = MicroBatch(*(half(model, pair, trained=trained, seed=seed) for seed, pair in enumerate(prompts)))
    ours = {
        f"{name} {key}": p
        for name in names
        for key, p in model.components[name].named_parameters()
        if p.requires_grad
    }
    catcher = Catcher(list(ours.values()))

    class Fixed:
        def of_step(self, step, *, encoded):
            return [micro]

    engine = TrainingEngine(
        Denoiser(model.components["unet"], encoders if trained else [], family, 1),
        catcher,
        Objective(KINDS[kind], alphas),
        Fixed(),
        Schedule("constant", 10),
        accelerator=accelerator(),
        prior_weight=0.5,
        text_span=TextEncoderSpan(trained, 10),
    )
    losses = engine.step(0)
    errors = [
        torch.stack(
            [plain_error(pipeline, prompt, part, row, KINDS[kind], alphas) for row, prompt in enumerate(pair)]
        )
        for part, pair in zip((micro.instance, micro.prior), prompts, strict=True)
    ]
    expected = errors[0].mean() + 0.5 * errors[1].mean()
    expected.backward()
    assert float(losses.total) == pytest.approx(float(expected), rel=1e-5)
    theirs = {
        f"{name} {key.removeprefix('text_model.')}": p.grad
        for name in names
        for key, p in getattr(pipeline, name).named_parameters()
    }
    for name, found in zip(ours, catcher.gradients, strict=True):
        torch.testing.assert_close(found, theirs[name], rtol=2e-3, atol=2e-6, msg=name)
    pipeline.unet.requires_grad_(False)


def test_the_sizes_go_to_the_unet_beside_the_pooled_prompt(model):
    prompt = told(model, ["a"])
    found = unet_arguments(prompt, SIZES[:1])
    assert found["added_cond_kwargs"]["time_ids"] is not None
    assert torch.equal(found["added_cond_kwargs"]["text_embeds"], prompt.pooled)
    assert torch.equal(found["encoder_hidden_states"], prompt.context)
