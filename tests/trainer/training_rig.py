"""All that a training step needs, tiny: random UNet and text encoder, made-up latents, captions of a few token ids."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from optional import skip_without

from dreambooth.shared.concepts import Concept
from dreambooth.shared.settings import TrainingSettings
from dreambooth.trainer.assembly import complete_torch
from dreambooth.trainer.data.batches import StepBatches
from dreambooth.trainer.data.cache import Latents
from dreambooth.trainer.data.captions import Variation
from dreambooth.trainer.data.dataset import Augmentation, DataPlan, plan_data
from dreambooth.trainer.data.encoding import LaterText
from dreambooth.trainer.data.images import Probe
from dreambooth.trainer.data.survey import ConceptImages, Survey
from dreambooth.trainer.data.text_cache import CachedText, TextEncoder, TokenText
from dreambooth.trainer.draws import words
from dreambooth.trainer.engine import Denoiser, TextEncoderSpan, TrainingEngine
from dreambooth.trainer.families import FAMILIES
from dreambooth.trainer.models import text
from dreambooth.trainer.models.checkpointing import checkpoint_units
from dreambooth.trainer.models.embeddings import Embeddings
from dreambooth.trainer.noise import seeded_normal
from dreambooth.trainer.objectives import Objective, scaled_linear_alphas_cumprod
from dreambooth.trainer.optim.ema import EMA, OptimizersAverage
from dreambooth.trainer.optim.optimizers import ParameterGroup, Stepper, averages, build_optimizer
from dreambooth.trainer.optim.rounding import StochasticRounding
from dreambooth.trainer.optim.schedules import Schedule
from dreambooth.trainer.saving.keeper import RunKeeper, TrainedWeights
from dreambooth.trainer.saving.outputs import Outputs

CPU = torch.device("cpu")
WIDTH = 32
WORDS = 100
ALL_UNITS = 1000
SD1 = FAMILIES["sd1"]


def accelerator() -> Any:
    """A new one each time: accelerate keeps its state for the whole process, and other tests drop it."""
    from accelerate import Accelerator

    complete_torch()
    return Accelerator(cpu=True, mixed_precision="no")


def tiny_unet(seed: int = 1, in_channels: int = 4) -> torch.nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def tiny_text_encoder(seed: int = 2, layers: int = 2) -> torch.nn.Module:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    torch.manual_seed(seed)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=layers,
            num_attention_heads=2, bos_token_id=WORDS - 2, eos_token_id=WORDS - 1, pad_token_id=WORDS - 1,
        )
    )  # fmt: skip


def tokenize(caption: str, chunks: int = 1) -> torch.Tensor:
    """Token ids (chunks, 77) that only this caption has."""
    ids = [words(caption, chunk, place)[0] % (WORDS - 2) for chunk in range(chunks) for place in range(77)]
    return torch.tensor(ids).reshape(chunks, 77)


def data_plan(*, images: int = 3, class_images: int = 4, batch: int = 2, **more: Any) -> DataPlan:
    """Square photos that are nowhere, one concept."""
    probes = [
        tuple(_probe(name, n) for n in range(count)) for name, count in (("i", images), ("c", class_images))
    ]
    concept = Concept(instance_prompt="photo of sks cat", class_prompt="photo of cat")
    found = Survey((ConceptImages(1, concept, probes[0], Path("c"), probes[1], class_images),), ())
    rules = {"augmentation": Augmentation(), "variation": Variation(), "cached": True, **more}
    return plan_data(found, ((64, 64),), batch=batch, **rules)


def _probe(name: str, number: int) -> Probe:
    return Probe(Path(f"{name}{number}.png"), f"content of {name}{number}", (64, 64))


def made_up_latents() -> Latents:
    """Each look's own mean and deviation, (2, 4, 8, 8)."""

    def moments(looks: Any) -> torch.Tensor:
        return torch.stack(
            [seeded_normal([words(look.item, look.flip)[0]], (2, 4, 8, 8))[0] for look in looks]
        )

    return Latents(moments, SimpleNamespace(), CPU)  # type: ignore[arg-type]


def embed(encoder: torch.nn.Module, caption: str, clip_skip: int = 1, chunks: int = 1) -> torch.Tensor:
    """The embedding (chunks * 77, width) that the encoder gives now."""
    with torch.no_grad():
        return text.encode([encoder], SD1, tokenize(caption, chunks)[None], clip_skip=clip_skip).context[0]


@dataclass
class Options:
    """What a test may change; the rest is a run's default."""

    steps: int = 8
    batch: int = 2
    micro_batches: int = 1
    forward_batch: int = 0
    prior_weight: float = 1.0
    offset_noise: float = 0.0
    clip_skip: int = 1
    chunks: int = 1
    trained: tuple[str, ...] = ("unet",)
    text_rate: float | None = None
    text_stop: int | None = None
    ema_decay: float | None = None
    schedule: Schedule | None = None
    snr_gamma: float = 0.0
    checkpointing: int = 0  # units of the UNet; the text encoder's layers with any
    layout: torch.memory_format = torch.preserve_format
    scaler: Any = None
    keep: int = 1
    training: TrainingSettings = field(default_factory=lambda: TrainingSettings(learning_rate=1e-3))


@dataclass
class Rig:
    """A run's parts, put together as a session does it, over made-up data."""

    folder: Path
    options: Options
    model: Any
    weights: TrainedWeights
    engine: TrainingEngine
    keeper: RunKeeper
    batches: StepBatches
    embedded: list[str]
    events: list[tuple[str, dict[str, Any]]]

    def train(self, start: int, end: int) -> list[float]:
        """Makes the steps from `start` up to `end`; returns their losses."""
        return [float(self.engine.step(step).total) for step in range(start, end)]  # type: ignore[union-attr]

    def bits(self) -> dict[str, torch.Tensor]:
        """Copies of everything that a run must go on with: weights, optimizer, averages, what clipping remembers."""
        found = {
            f"{component} {name}": tensor.clone()
            for component, tensors in self.weights.weights().items()
            for name, tensor in tensors.items()
        }
        for component, tensors in self.weights.averages().items():
            found |= {f"average {component} {name}": tensor.clone() for name, tensor in tensors.items()}
        state = self.engine.stepper.optimizer.state_dict()["state"]
        found |= {f"optimizer {name}": value.clone() for name, value in flat(state)}
        return found | {
            f"clipping {name}": value.clone() for name, value in flat(self.engine.stepper.clipping())
        }


def flat(tree: Any, prefix: str = "") -> list[tuple[str, torch.Tensor]]:
    """The tensors and numbers of nested dicts, by path."""
    if isinstance(tree, dict):
        return [pair for key, value in tree.items() for pair in flat(value, f"{prefix} {key}")]
    return [(prefix, torch.as_tensor(tree))]


def make_rig(folder: Path, **changes: Any) -> Rig:
    """A fresh run in `folder`; the same options give the same run."""
    options = Options(**changes)
    unet, encoder = tiny_unet(), tiny_text_encoder()
    for name, module in (("unet", unet), ("text_encoder", encoder)):
        module.requires_grad_(name in options.trained).train(name in options.trained)
        if options.training.weights_dtype == "bfloat16":
            module.to(torch.bfloat16)
    unet.to(memory_format=options.layout)
    trains_text = "text_encoder" in options.trained
    if trains_text:
        for unused in text.unused_modules([encoder], SD1, options.clip_skip):
            unused.requires_grad_(False)
    if options.checkpointing:
        checkpoint_units(unet, options.checkpointing)
        if trains_text:
            # said, since transformers before 5 takes the other by itself; the trainer's own encoder has this one
            encoder.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    model = SimpleNamespace(components={"unet": unet, "text_encoder": encoder})
    weights = TrainedWeights(model, options.trained)
    if options.ema_decay is not None:
        weights.ema = EMA([parameter for *_, parameter in weights.parameters()], options.ema_decay)
    stepper = _stepper(weights, options)
    if averages(stepper.optimizer):
        weights.ema = OptimizersAverage(
            [parameter for *_, parameter in weights.parameters()], stepper.optimizer
        )
    embedded: list[str] = []
    batches = _batches(encoder, options, trains_text, embedded)
    engine = TrainingEngine(
        Denoiser(unet, [encoder] if trains_text else [], SD1, options.clip_skip),
        stepper,
        Objective("epsilon", scaled_linear_alphas_cumprod(), snr_gamma=options.snr_gamma),
        batches,
        options.schedule or Schedule("constant", options.steps),
        accelerator=_accelerator(options),
        prior_weight=options.prior_weight,
        text_span=TextEncoderSpan(
            trains_text, options.steps if options.text_stop is None else options.text_stop
        ),
        ema=weights.ema,
        forward_batch=options.forward_batch,
    )
    events: list[tuple[str, dict[str, Any]]] = []
    keeper = RunKeeper(
        folder / "state",
        Outputs(folder, "sks", ".safetensors"),
        weights,
        engine,
        lambda event, **fields: events.append((event, fields)),
        keep=options.keep,
        write_checkpoint=lambda path, trained: SimpleNamespace(path=path, sha256="0" * 64),  # type: ignore[arg-type,return-value]
        make_samples=lambda step, model: None,
        scaler=options.scaler,
    )
    return Rig(folder, options, model, weights, engine, keeper, batches, embedded, events)


def _accelerator(options: Options) -> Any:
    if options.training.weights_dtype == "bfloat16":
        return SimpleNamespace(
            num_processes=1,
            autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
            backward=lambda loss: loss.backward(),
        )
    if options.scaler is None:
        return accelerator()

    class Scaling:
        """accelerate's own scaler is for a card alone; this does with ours what accelerate does with its."""

        num_processes = 1
        autocast = staticmethod(accelerator().autocast)

        @staticmethod
        def backward(loss: torch.Tensor) -> None:
            options.scaler.scale(loss).backward()

    return Scaling()


def _stepper(weights: TrainedWeights, options: Options) -> Stepper:
    rates = {
        "unet": options.training.learning_rate,
        "text_encoder": options.text_rate or options.training.learning_rate,
    }
    groups = [
        ParameterGroup(
            name, [p for component, _, p in weights.parameters() if component == name], rates[name]
        )
        for name in options.trained
    ]
    skip_without(options.training.optimizer)
    optimizer = build_optimizer(options.training, groups, CPU)
    training = options.training
    rounding = StochasticRounding(training.seed, CPU) if training.weights_dtype == "bfloat16" else None
    return Stepper(
        optimizer,
        training.max_grad_norm,
        options.scaler,
        fused_backward=training.fused_backward == "yes",
        rounding=rounding,
    )


def _batches(
    encoder: torch.nn.Module, options: Options, trains_text: bool, embedded: list[str]
) -> StepBatches:
    plan = data_plan(batch=options.batch)

    def encode(caption: str) -> Embeddings:
        embedded.append(caption)
        return Embeddings(embed(encoder, caption, options.clip_skip, options.chunks))

    captions = plan.captions()
    assert captions is not None
    later = LaterText(lambda: CachedText(captions, TextEncoder("tiny", encode), CPU))
    return StepBatches(
        plan,
        3,
        made_up_latents(),
        tokens=TokenText(functools.partial(tokenize, chunks=options.chunks), CPU) if trains_text else None,
        embeddings=later,
        micro_batches=options.micro_batches,
        offset_noise=options.offset_noise,
        device=CPU,
    )
