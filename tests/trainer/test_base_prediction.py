"""The prior from the base's own prediction: which target, of what, and that it costs the adapter nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from training_rig import make_rig, tiny_unet

from dreambooth.shared.concepts import Concept
from dreambooth.trainer import assembly
from dreambooth.trainer.adapters.attached import attach
from dreambooth.trainer.adapters.kinds import KINDS
from dreambooth.trainer.adapters.plan import AdapterPlan, PlannedLayer
from dreambooth.trainer.adapters.targets import Target, role_of
from dreambooth.trainer.data.captions import Variation
from dreambooth.trainer.data.dataset import Augmentation, plan_data, samples_of_step
from dreambooth.trainer.data.images import Probe
from dreambooth.trainer.data.survey import ConceptImages, Survey
from dreambooth.trainer.objectives import scaled_linear_alphas_cumprod
from dreambooth.trainer.parts import Part


def on_unet(unet: torch.nn.Module, rank: int = 2) -> AdapterPlan:
    """A LoRA on the attention of a UNet."""
    paths = [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear)]
    layers = []
    for path in (path for path in paths if role_of(path) == "attention"):
        shape = tuple(unet.get_submodule(path).weight.shape)
        target = Target("unet", path, shape, "attention", "", "")
        layers.append(PlannedLayer(target, KINDS["lora"].shapes(shape, rank), float(rank)))
    return AdapterPlan(KINDS["lora"], rank, float(rank), 0.0, tuple(layers))


def noised(half) -> torch.Tensor:
    alpha = scaled_linear_alphas_cumprod()[half.timesteps].view(-1, 1, 1, 1)
    return alpha.sqrt() * half.latents + (1 - alpha).sqrt() * half.noise


@pytest.fixture
def taught(tmp_path):
    """A rig whose UNet has an adapter that learned something, with the base as teacher."""
    rig = make_rig(tmp_path, trained=("unet",))
    unet = rig.model.components["unet"]
    attached = attach({"unet": unet}, on_unet(unet), seed=1)
    with torch.no_grad():
        for tensor in attached.state("unet").values():
            tensor += 0.3
    settings = SimpleNamespace(prior=SimpleNamespace(prior="base_prediction"))
    plan = SimpleNamespace(prior=True, settings=settings)
    rig.engine._teacher = assembly.teacher(plan, SimpleNamespace(attached=attached), rig.engine.denoiser)
    return rig


def test_the_class_half_is_to_look_as_the_base_has_it_and_the_photos_as_they_are(taught) -> None:
    (micro,) = taught.batches.of_step(0, encoded=True)
    losses = taught.engine._losses(Part(micro.instance, micro.prior))
    base, unet = tiny_unet(), taught.model.components["unet"]
    with torch.no_grad():
        parts = {}
        for name, half in (("instance", micro.instance), ("prior", micro.prior)):
            arguments = noised(half), half.timesteps, half.condition.context
            target = half.noise if name == "instance" else base(*arguments, return_dict=False)[0]
            parts[name] = float((unet(*arguments, return_dict=False)[0] - target).pow(2).mean())
    assert float(losses.instance) == pytest.approx(parts["instance"], rel=1e-5)
    assert float(losses.prior) == pytest.approx(parts["prior"], rel=1e-5) and parts["prior"] > 1e-6
    assert float(losses.total.detach()) == pytest.approx(sum(parts.values()), rel=1e-5)


def test_an_adapter_that_adds_nothing_has_no_prior_loss(tmp_path, taught) -> None:
    (micro,) = taught.batches.of_step(0, encoded=True)
    with torch.no_grad():
        for name, parameter in taught.model.components["unet"].named_parameters():
            if name.endswith("lora_up_weight"):
                parameter.zero_()
    assert float(taught.engine._losses(Part(micro.instance, micro.prior)).prior.detach()) < 1e-12


def test_the_teacher_has_no_gradient_and_leaves_the_adapter_on(taught) -> None:
    (micro,) = taught.batches.of_step(0, encoded=True)
    prior = taught.engine._taught(micro.prior, taught.engine._teacher)
    assert prior.target.requires_grad is False and prior.target.dtype == torch.float32
    noisy, unet = noised(micro.prior), taught.model.components["unet"]
    out = unet(noisy, micro.prior.timesteps, micro.prior.condition.context, return_dict=False)[0]
    assert not torch.allclose(out, prior.target)


def test_a_trained_text_encoder_is_asked_for_its_base_state_to_the_end(taught) -> None:
    class AskedWith(Exception):
        pass

    def of_step(step: int, *, encoded: bool) -> None:
        raise AskedWith(encoded)

    taught.engine._batches = SimpleNamespace(of_step=of_step)
    taught.engine._text_left = True
    for teacher, encoded in ((taught.engine._teacher, "False"), (None, "True")):
        taught.engine._teacher = teacher
        with pytest.raises(AskedWith, match=encoded):
            taught.engine.step(0)


def probe(name: str) -> Probe:
    return Probe(SimpleNamespace(name=name), name, (64, 64))  # type: ignore[arg-type]


@pytest.mark.parametrize("class_images", [(), ("c1", "c2")])
def test_without_class_images_the_photos_are_shown_with_the_class_prompt(class_images) -> None:
    concept = Concept(instance_prompt="sks cat", class_prompt="cat")
    entry = ConceptImages(1, concept, (probe("i1"), probe("i2")), None, tuple(map(probe, class_images)), 0)
    plan = plan_data(
        Survey((entry,), ()), ((64, 64),), batch=2, augmentation=Augmentation(), variation=Variation(), cached=True,
        photos_as_class=True,
    )  # fmt: skip
    samples = samples_of_step(plan, 0, 0)
    assert [sample.caption for sample in samples.prior] == ["cat", "cat"]
    shown = {plan.items[sample.item].image.content_id for sample in samples.prior}
    assert shown == set(class_images or ("i1", "i2"))
    assert {sample.noise_seed for sample in samples.prior}.isdisjoint(
        sample.noise_seed for sample in samples.instance
    )
