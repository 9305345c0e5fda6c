import functools
import math
import multiprocessing
import os
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import training_rig
from accelerate.state import AcceleratorState
from training_rig import (
    ALL_UNITS,
    SD1,
    accelerator,
    embed,
    flat,
    make_rig,
    tiny_text_encoder,
    tiny_unet,
    tokenize,
)

from dreambooth.shared.errors import RunFailed
from dreambooth.shared.settings import TrainingSettings
from dreambooth.trainer.engine import Denoiser, Half, MicroBatch, TextEncoderSpan, TrainingEngine
from dreambooth.trainer.models import text
from dreambooth.trainer.models.embeddings import Embeddings
from dreambooth.trainer.objectives import Objective, scaled_linear_alphas_cumprod, zero_terminal_snr
from dreambooth.trainer.optim.schedules import Schedule

ALPHAS = scaled_linear_alphas_cumprod()


class Catcher:
    """In an optimizer's place: keeps the gradients of a step and changes nothing."""

    def __init__(self, *modules: torch.nn.Module) -> None:
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.optimizer = SimpleNamespace(param_groups=[{"params": self.parameters, "lr": 1e-3}])
        self.failed = torch.zeros(())
        self.rate = 1e-3
        self.gradients: list[torch.Tensor] = []

    def begin(self, step: int) -> None:
        pass

    def set_rates(self, factor: object) -> None:
        pass

    def step(self, loss: torch.Tensor) -> bool:
        self.gradients = [p.grad.clone() for p in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return True


class Fixed:
    """The same micro-batches at every step."""

    def __init__(self, *micro_batches: MicroBatch) -> None:
        self.micro_batches = micro_batches
        self.asked: list[tuple[int, bool]] = []

    def of_step(self, step: int, *, encoded: bool):
        self.asked.append((step, encoded))
        return iter(self.micro_batches)


def half(seed: int, count=2, *, sides=(8, 8), chunks=1, tokens=False, extra=False) -> Half:
    torch.manual_seed(seed)
    condition = Embeddings(torch.randn(count, 77 * chunks, 32))
    if tokens:
        condition = torch.stack([tokenize(f"{seed} {n}", chunks) for n in range(count)])
    latents, noise = torch.randn(2, count, 4, *sides)
    channels = torch.randn(count, 5, *sides) if extra else None
    return Half(latents, noise, torch.randint(0, 1000, (count,)), condition, channels)


def engine_for(denoiser, stepper, batches, **changes) -> TrainingEngine:
    rest = {
        "objective": Objective("epsilon", ALPHAS),
        "schedule": Schedule("constant", 10),
        "prior_weight": 1.0,
        "text_span": TextEncoderSpan(len(denoiser.text_encoders) > 0, 10),
        "accelerator": accelerator(),
        **changes,
    }
    return TrainingEngine(denoiser, stepper, rest.pop("objective"), batches, rest.pop("schedule"), **rest)


def plain_errors(unet, encoder, half: Half, prediction_type, alphas):
    """Each sample's mean squared error, by the papers' formulas, one sample at a time, in double precision."""
    errors = []
    for row in range(len(half.latents)):
        alpha = alphas[half.timesteps[row]].double()
        latents, noise = half.latents[row : row + 1].double(), half.noise[row : row + 1].double()
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        if half.extra is not None:
            noisy = torch.cat([noisy, half.extra[row : row + 1].double()], dim=1)
        if encoder is not None:
            chunks = [encoder(input_ids=chunk[None]).last_hidden_state for chunk in half.condition[row]]
            condition = torch.cat(chunks, dim=1)
        else:
            condition = half.condition.context[row : row + 1]
        prediction = unet(noisy, half.timesteps[row], condition.double()).sample
        target = (
            noise if prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        )
        errors.append((prediction - target).square().mean())
    return errors


def plain_loss(unet, encoder, micro: MicroBatch, *, prediction_type, alphas, gamma, prior_weight):
    instance = plain_errors(unet, encoder, micro.instance, prediction_type, alphas)
    for row, timestep in enumerate(micro.instance.timesteps):
        snr = alphas[timestep].double() / (1 - alphas[timestep].double())
        if gamma:
            instance[row] = (
                instance[row] * min(snr, gamma) / (snr if prediction_type == "epsilon" else snr + 1)
            )
    loss = torch.stack(instance).mean()
    if micro.prior is not None:
        prior = plain_errors(unet, encoder, micro.prior, prediction_type, alphas)
        loss = loss + prior_weight * torch.stack(prior).mean()
    return loss


def check_against_plain(micro_batches, *, prediction_type="epsilon", alphas=ALPHAS, gamma=0.0, prior_weight=1.0,
                        in_channels=4, with_text=False):  # fmt: skip
    """The engine's loss and gradients are the plain ones', to float32 precision."""
    unet, encoder = tiny_unet(in_channels=in_channels), tiny_text_encoder() if with_text else None
    modules = [module for module in (unet, encoder) if module is not None]
    catcher = Catcher(*modules)
    engine = engine_for(
        Denoiser(unet, [] if encoder is None else [encoder], SD1, clip_skip=1),
        catcher,
        Fixed(*micro_batches),
        objective=Objective(prediction_type, alphas, snr_gamma=gamma),
        prior_weight=prior_weight,
    )
    losses = engine.step(0)
    for module in modules:
        module.double()
    rules = {
        "prediction_type": prediction_type,
        "alphas": alphas,
        "gamma": gamma,
        "prior_weight": prior_weight,
    }
    torch.set_default_dtype(torch.float64)  # in which transformers before 5 makes its mask
    try:
        expected = torch.stack([plain_loss(unet, encoder, micro, **rules) for micro in micro_batches]).mean()
    finally:
        torch.set_default_dtype(torch.float32)
    gradients = torch.autograd.grad(expected, catcher.parameters)
    expected = expected.detach()
    assert float(losses.total) == pytest.approx(float(expected), rel=1e-5)
    ours, theirs = (
        torch.cat([g.double().flatten() for g in some]) for some in (catcher.gradients, gradients)
    )
    assert float((ours - theirs).norm() / theirs.norm()) < 2e-5
    assert float(theirs.norm()) > 1e-3
    return losses, expected


# ---- the loss and its gradient, against the formulas -------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 5.0], ids=["plain", "min-SNR"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_and_its_gradient_are_a_plain_implementations(prediction_type, gamma):
    instance = replace(half(1), timesteps=torch.tensor([15, 700]))  # on both sides of SNR 5
    check_against_plain([MicroBatch(instance)], prediction_type=prediction_type, gamma=gamma)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_prior_half_counts_with_its_weight_and_without_min_snr(prediction_type):
    prior = replace(half(2), timesteps=torch.tensor([3, 10]))  # where min-SNR would weigh least
    micro = MicroBatch(replace(half(1), timesteps=torch.tensor([15, 700])), prior)
    losses, expected = check_against_plain(
        [micro], prediction_type=prediction_type, gamma=5.0, prior_weight=0.3
    )
    total = float(losses.instance) + 0.3 * float(losses.prior)
    assert float(expected) == pytest.approx(total, rel=1e-5)


def test_a_model_with_a_zero_terminal_snr_learns_from_its_last_timestep():
    instance = replace(half(1), timesteps=torch.tensor([999, 500]))
    check_against_plain(
        [MicroBatch(instance)], prediction_type="v_prediction", alphas=zero_terminal_snr(ALPHAS)
    )


@pytest.mark.parametrize("other", [{"sides": (8, 12)}, {"chunks": 2}], ids=["sides", "chunks"])
def test_halves_of_different_shapes_go_through_in_two_forwards_with_the_same_sum(other):
    passed = []
    original = Denoiser.forward

    def counted(self, noisy, *rest):
        passed.append(len(noisy))
        return original(self, noisy, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, "forward", counted)
        check_against_plain([MicroBatch(half(1), half(2, **other))], prior_weight=0.7)
        assert passed == [2, 2]
        passed.clear()
        check_against_plain([MicroBatch(half(1), half(2))], prior_weight=0.7)
        assert passed == [4]


def test_the_inpainting_models_further_channels_go_in_beside_the_noisy_latents():
    micro = MicroBatch(half(1, extra=True), half(2, extra=True))
    check_against_plain([micro], in_channels=9)


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_text_encoder_gets_its_gradient_through_the_unet(chunks):
    micro = MicroBatch(half(1, tokens=True, chunks=chunks), half(2, tokens=True, chunks=chunks))
    check_against_plain([micro], with_text=True)


def test_micro_batches_are_the_mean_of_their_losses():
    first, second = MicroBatch(half(1), half(2)), MicroBatch(half(3), half(4))
    losses, _ = check_against_plain([first, second], prior_weight=0.5)
    assert float(losses.total) == pytest.approx(float(losses.instance + 0.5 * losses.prior))
    assert not losses.total.requires_grad


# ---- the same whatever the way -----------------------------------------------------------------------------------


def gradients_of(tmp_path, **options) -> list[torch.Tensor]:
    """The gradients of the run's step 1."""
    rig = make_rig(tmp_path, **options)
    modules = [rig.model.components[name] for name in rig.options.trained]
    catcher = Catcher(*modules)
    rig.engine.stepper = catcher  # type: ignore[assignment]
    rig.engine.step(1)
    return catcher.gradients


def relative_difference(one, other) -> float:
    one, other = (torch.cat([g.flatten() for g in some]) for some in (one, other))
    return float((one - other).norm() / other.norm())


def test_accumulated_batches_give_the_gradient_of_one_large_batch(tmp_path):
    whole = gradients_of(tmp_path, batch=4, trained=("unet", "text_encoder"), offset_noise=0.1)
    for parts in (2, 4):
        cut = gradients_of(
            tmp_path, batch=4, micro_batches=parts, trained=("unet", "text_encoder"), offset_noise=0.1
        )
        assert relative_difference(cut, whole) < 2e-5


def test_gradient_checkpointing_gives_the_same_gradients(tmp_path):
    trained = ("unet", "text_encoder")
    kept, made_again = (
        gradients_of(tmp_path, trained=trained, checkpointing=count) for count in (0, ALL_UNITS)
    )
    assert all(torch.equal(one, other) for one, other in zip(kept, made_again, strict=True))


def _note(calls: list[str], name: str, *_: object) -> None:
    calls.append(name)


def test_checkpointing_really_computes_again(tmp_path):
    counts = []
    for count in (0, ALL_UNITS):
        rig = make_rig(tmp_path, checkpointing=count, trained=("unet", "text_encoder"))
        calls = []
        for name, place in (
            ("unet", "down_blocks.0.resnets.0.conv1"),
            ("text_encoder", "encoder.layers.0.self_attn"),
        ):
            module = rig.model.components[name]
            module = getattr(module, "text_model", module) if name == "text_encoder" else module
            module.get_submodule(place).register_forward_hook(functools.partial(_note, calls, name))
        rig.train(0, 1)
        counts.append((calls.count("unet"), calls.count("text_encoder")))
    assert counts == [(1, 1), (2, 2)]


def test_a_text_encoder_alone_can_be_trained(tmp_path):
    rig = make_rig(tmp_path, trained=("text_encoder",), checkpointing=ALL_UNITS)
    unet = {name: p.clone() for name, p in rig.model.components["unet"].state_dict().items()}
    before = rig.bits()
    rig.train(0, 2)
    assert all(torch.equal(p, unet[name]) for name, p in rig.model.components["unet"].state_dict().items())
    changed = {
        name
        for name, tensor in rig.bits().items()
        if name in before and not torch.equal(tensor, before[name])
    }
    assert any("layers.0" in name for name in changed)


# ---- what is not finite ------------------------------------------------------------------------------------------


class Poisoned(Fixed):
    """Good batches but for one step's, whose latents are not finite."""

    def __init__(self, step: int, value: float) -> None:
        super().__init__(MicroBatch(half(1), half(2)))
        self.step, self.value = step, value

    def of_step(self, step: int, *, encoded: bool):
        (good,) = super().of_step(step, encoded=encoded)
        if step == self.step:
            latents = good.instance.latents.clone()
            latents[0, 0, 0, 0] = self.value
            good = MicroBatch(replace(good.instance, latents=latents), good.prior)
        return iter([good])


@pytest.mark.parametrize("settings", [
    TrainingSettings(learning_rate=1e-3),
    TrainingSettings(learning_rate=1e-3, optimizer_args={"fused": "no"}),
    TrainingSettings(learning_rate=1e-3, optimizer="adamw8bit"),
], ids=["fused", "plain", "8 bit"])  # fmt: skip
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_within_one_step_and_leaves_the_weights(
    tmp_path, settings, value
):
    rig = make_rig(tmp_path, training=settings)
    rig.engine._batches = Poisoned(2, value)
    rig.train(0, 2)
    rig.engine.check_finite()
    good = rig.bits()
    losses = rig.engine.step(2)
    assert not torch.isfinite(losses.total)
    with pytest.raises(RunFailed, match="NaN or infinite") as failure:
        rig.engine.check_finite()
    with pytest.raises(RunFailed, match="NaN or infinite"):
        rig.engine.step(3)
    assert failure.value.step == 2
    after = rig.bits()
    assert good.keys() == after.keys()
    steps = {name for name in good if name.endswith("step")}
    assert all(torch.equal(good[name], after[name]) for name in good.keys() - steps)


# ---- the text encoder's own rules --------------------------------------------------------------------------------


def encoder_bits(rig) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in rig.bits().items() if "text_encoder" in name}


def test_the_text_encoder_learns_at_its_own_rate(tmp_path):
    """Adam's first step is the rate, whatever the gradient: the largest change of a weight tells it."""
    settings = TrainingSettings(learning_rate=1e-3, adam_weight_decay=0.0)
    rig = make_rig(tmp_path, trained=("unet", "text_encoder"), text_rate=1e-4, training=settings)
    before = rig.bits()
    rig.train(0, 1)
    after = rig.bits()
    for component, rate in (("unet", 1e-3), ("text_encoder", 1e-4)):
        names = [name for name in before if name.startswith(component)]
        assert max(float((after[name] - before[name]).abs().max()) for name in names) == pytest.approx(
            rate, rel=0.02
        )


def test_from_its_stop_the_text_encoder_never_changes_and_is_never_asked_but_for_the_memo(tmp_path):
    rig = make_rig(tmp_path, trained=("unet", "text_encoder"), text_stop=3, steps=8)
    calls = []
    rig.model.components["text_encoder"].register_forward_hook(lambda *_: calls.append(1))
    rig.train(0, 3)
    assert len(calls) == 3 and not rig.embedded
    stopped = encoder_bits(rig)
    unet = rig.bits()
    rig.train(3, 8)
    assert rig.embedded == ["photo of sks cat", "photo of cat"]
    assert len(calls) == 3 + 2
    after = encoder_bits(rig)
    assert all(torch.equal(after[name], stopped[name]) for name in stopped)
    assert any(not torch.equal(tensor, unet[name]) for name, tensor in rig.bits().items() if "unet" in name)
    expected = embed(rig.model.components["text_encoder"], "photo of sks cat")
    (micro,) = rig.batches.of_step(7, encoded=True)
    assert torch.equal(micro.instance.condition.context[0], expected)


def test_until_its_stop_a_run_is_the_run_that_never_stops_it(tmp_path):
    trained = ("unet", "text_encoder")
    stopping, going_on = (make_rig(tmp_path, trained=trained, text_stop=stop) for stop in (3, 8))
    assert stopping.train(0, 3) == going_on.train(0, 3)
    assert stopping.train(3, 4) == pytest.approx(going_on.train(3, 4))  # the same step, by another way
    assert stopping.train(4, 6) != going_on.train(4, 6)


def test_layers_that_clip_skip_leaves_out_are_not_trained(tmp_path):
    rig = make_rig(tmp_path, trained=("unet", "text_encoder"), clip_skip=2)
    encoder = rig.model.components["text_encoder"]
    (skipped,) = text.unused_modules([encoder], SD1, 2)
    before = {name: p.clone() for name, p in encoder.named_parameters()}
    left_out = {id(p) for p in skipped.parameters()}
    assert left_out and not left_out & {id(p) for *_, p in rig.weights.parameters()}
    rig.train(0, 2)
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter, before[name]) is (id(parameter) in left_out), name
    assert set(rig.weights.weights()["text_encoder"]) == {n.removeprefix("text_model.") for n in before}


def test_longer_prompts_go_through_in_chunks(tmp_path):
    rig = make_rig(tmp_path, trained=("unet", "text_encoder"), chunks=3, text_stop=1)
    (micro,) = rig.batches.of_step(0, encoded=False)
    assert micro.instance.condition.shape == (2, 3, 77)
    (later,) = rig.batches.of_step(1, encoded=True)
    assert later.instance.condition.context.shape == (2, 3 * 77, 32)
    assert all(math.isfinite(loss) for loss in rig.train(0, 2))


# ---- rates, averages, skipped steps ------------------------------------------------------------------------------


def test_each_step_has_the_rate_of_its_schedule(tmp_path):
    schedule = Schedule("linear", 8, warmup=2)
    rig = make_rig(tmp_path, schedule=schedule)
    rates = []
    for step in range(8):
        rig.engine.step(step)
        rates.append(rig.engine.rate)
    assert rates == pytest.approx([1e-3 * schedule.factor(step, 1e-3) for step in range(8)])
    assert rates[0] == 0 and max(rates) == pytest.approx(1e-3)


def test_averages_follow_the_weights_step_by_step(tmp_path):
    rig = make_rig(tmp_path, ema_decay=0.5)
    parameter, average = rig.weights.parameters()[0][2], rig.weights.ema.averages[0]
    expected = parameter.detach().clone()
    for step in range(4):
        rig.engine.step(step)
        share = min(0.5, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * parameter.detach()
    torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)
    assert rig.weights.ema.updates == 4


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="this torch scales on cards alone")
def test_a_skipped_step_changes_nothing_and_is_made_again_with_the_same_samples(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    rig = make_rig(tmp_path, scaler=scaler, ema_decay=0.9)
    gradient = rig.weights.parameters()[5][2]  # overflows as float16 would: while the scale is too large
    gradient.register_hook(lambda given: given * (math.inf if scaler.get_scale() > 1024 else 1.0))
    asked = []
    original = rig.batches.of_step
    rig.engine._batches = SimpleNamespace(
        of_step=lambda step, *, encoded: asked.append(step) or original(step, encoded=encoded)
    )
    before = rig.bits()
    assert rig.engine.step(0) is None
    assert scaler.get_scale() == 2048.0
    assert rig.weights.ema.updates == 0
    after = rig.bits()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert rig.engine.step(0) is None
    assert rig.engine.step(0) is not None
    assert rig.weights.ema.updates == 1
    assert asked == [0, 0, 0]
    plain = make_rig(tmp_path)
    plain.train(0, 1)
    one, other = (
        torch.cat([t.flatten() for n, t in r.bits().items() if n.startswith("unet")]) for r in (rig, plain)
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_optimizer_remembers_nothing_of_the_frozen(tmp_path):
    rig = make_rig(tmp_path)
    rig.train(0, 1)
    state = rig.engine.stepper.optimizer.state_dict()["state"]
    assert len(state) == len(list(rig.model.components["unet"].parameters()))
    assert all(parameter.grad is None for parameter in rig.model.components["text_encoder"].parameters())
    assert flat(state)


# ---- mixed precision -----------------------------------------------------------------------------------------------


@pytest.fixture
def bf16(monkeypatch):
    """accelerate keeps one precision for a whole process."""
    from accelerate import Accelerator

    def make():
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=True, mixed_precision="bf16")

    monkeypatch.setattr(training_rig, "accelerator", make)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_bf16_computes_coarser_and_keeps_weights_gradients_and_loss_in_float32(tmp_path, bf16):
    trained = ("unet", "text_encoder")
    rig = make_rig(tmp_path, trained=trained)
    kinds = []
    rig.model.components["unet"].conv_in.register_forward_hook(
        lambda _, given, made: kinds.append(made.dtype)
    )
    losses = rig.engine.step(0)
    assert kinds == [torch.bfloat16]
    assert losses.total.dtype == torch.float32
    assert {p.dtype for *_, p in rig.weights.parameters()} == {torch.float32}
    coarse = gradients_of(tmp_path, trained=trained)
    assert {gradient.dtype for gradient in coarse} == {torch.float32}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_rig, "accelerator", accelerator)
        AcceleratorState._reset_state(reset_partial_state=True)
        exact = gradients_of(tmp_path, trained=trained)
    assert 1e-4 < relative_difference(coarse, exact) < 0.1


# ---- several processes ---------------------------------------------------------------------------------------------


def _train_in_a_group(index: int, folder: Path, options: dict[str, object], spoil_at: int | None) -> None:
    """One of two processes: three steps over its share of each, and what it has then, into a file."""
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ |= {
        "WORLD_SIZE": "2", "RANK": str(index), "LOCAL_RANK": str(index), "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (folder / "port").read_text(),
    }  # fmt: skip
    rig = make_rig(folder / str(index), **options)
    rig.batches._process = (index, 2)
    if spoil_at is not None and index == 1:
        rig.engine._batches = Poisoned(spoil_at, math.nan)
    losses: list[float | str] = []
    try:
        for step in range(3):
            losses += rig.train(step, step + 1)
    except RunFailed as failure:
        losses.append(failure.what)
    torch.save((losses, rig.bits()), folder / f"{index}.pt")
    torch.distributed.destroy_process_group()


def train_in_two_processes(folder: Path, *, spoil_at: int | None = None, **options):
    """(losses, bits) of each of two processes that train one run together."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        (folder / "port").write_text(str(server.getsockname()[1]))
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_train_in_a_group, args=(index, folder, options, spoil_at))
        for index in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in range(2)]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are started by forking here")


@needs_fork
@pytest.mark.parametrize("options", [
    {"batch": 4, "trained": ("unet", "text_encoder"), "text_stop": 2, "ema_decay": 0.9},
    {"batch": 4, "micro_batches": 2, "forward_batch": 1, "trained": ("unet", "text_encoder"), "clip_skip": 2,
     "checkpointing": True},
], ids=["text encoder stops", "accumulation, in parts"])  # fmt: skip
def test_two_processes_train_what_one_does(tmp_path, options):
    (losses, bits), (other_losses, other_bits) = train_in_two_processes(tmp_path, **options)
    assert losses == other_losses
    assert all(torch.equal(bits[name], other_bits[name]) for name in bits)
    alone = make_rig(tmp_path, **options)
    assert losses == pytest.approx(alone.train(0, 3), rel=1e-5)
    start, end = make_rig(tmp_path, **options).bits(), alone.bits()
    moved, differing = (
        torch.cat([(some[name] - end[name]).flatten() for name in start if not name.startswith("optimizer")])
        for some in (start, bits)
    )
    assert float(differing.norm()) < 1e-3 * float(moved.norm())


@needs_fork
def test_what_is_not_finite_in_one_process_ends_all_of_them(tmp_path):
    (losses, bits), (other_losses, other_bits) = train_in_two_processes(tmp_path, spoil_at=1)
    for told in (losses, other_losses):
        assert len(told) == 3 and math.isnan(told[1]) and "NaN" in told[2]
    assert all(torch.equal(bits[name], other_bits[name]) for name in bits if name.startswith("unet"))
    assert all(tensor.isfinite().all() for tensor in bits.values())
