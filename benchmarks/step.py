"""What a training step costs beyond what cannot be saved: our step against a bare loop at the same shapes.

    python benchmarks/step.py [small] [large] [sdxl] [--text] [--lora RANK] [--compiled] [--seconds 60] [--threads 2]

The bare loop is forward, backward, torch's clipping and fused AdamW, with its data ready in memory. Ours is the engine's
step as a run makes it: samples planned, noise drawn, latents and embeddings from the caches, one instance and one
class image, prior preservation, clipping, the NaN guard, the step's numbers kept for the log, orders looked for.
With --text both train a text encoder too, of the same form, on token ids. With --lora both train a LoRA on attention
and feed-forward, the bare loop one of its own: base(x) + up(down(x)). With --compiled our blocks are compiled by
torch (which takes minutes, and a C++ compiler): what that would be worth, no setting.
Both models live in one process and step in turn, A B A B; the ratio is of the medians, on the clock and in seconds of
the processor, which others on the machine disturb less.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import torch  # noqa: E402


@dataclass(frozen=True)
class Size:
    """A UNet and the pixels that it is trained at; `target` is the ratio to be reached. With `pooled` it has SDXL's
    form: it is told the pooled prompt and the sizes. `text_layers` are those of the text encoder that goes with it."""

    pixels: int
    widths: tuple[int, ...]
    layers: int
    context: int
    target: float
    text_layers: int = 2
    pooled: int = 0


SIZES = {
    "small": Size(pixels=64, widths=(32, 64), layers=1, context=32, target=1.05),
    "large": Size(pixels=256, widths=(96, 192, 384, 384), layers=1, context=256, target=1.02, text_layers=12),
    "sdxl": Size(pixels=256, widths=(96, 192, 384), layers=2, context=256, target=1.06, pooled=128),
}
LORA_TARGET = 1.06
TEXT_TARGET = 1.05
MAX_NORM = 1.0
CAPTIONS = ("photo of sks cat", "photo of cat")
SIZE_WIDTH = 32  # of the sines and cosines of each of SDXL's six sizes


def make_unet(size: Size) -> torch.nn.Module:
    """A UNet with random weights: attention on all levels but the last, as Stable Diffusion has it."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    levels = len(size.widths)
    torch.manual_seed(0)
    sized = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_WIDTH,
        "projection_class_embeddings_input_dim": size.pooled + 6 * SIZE_WIDTH,
    }
    unet: torch.nn.Module = UNet2DConditionModel(
        **(sized if size.pooled else {}),
        sample_size=size.pixels // 8,
        block_out_channels=size.widths,
        layers_per_block=size.layers,
        cross_attention_dim=size.context,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
    )
    return unet.train()


def make_text_encoder(size: Size) -> torch.nn.Module:
    """CLIP's text encoder as wide as the UNet's context, with random weights and the real vocabulary."""
    from dreambooth.trainer.models.clip_text import CLIPTextEncoder

    torch.manual_seed(1)
    config = {
        "hidden_size": size.context,
        "intermediate_size": 4 * size.context,
        "num_attention_heads": size.context // 32,
        "num_hidden_layers": size.text_layers,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    }
    return CLIPTextEncoder(config).train()


def token_ids(caption: str) -> torch.Tensor:
    """(1, 77)"""
    from dreambooth.trainer.families import SD1
    from dreambooth.trainer.models import text
    from dreambooth.trainer.models.tokenizer import default_tokenizer

    return text.tokenize(default_tokenizer(), SD1, [caption])[0]


class PlainLora(torch.nn.Module):
    """LoRA as one writes it down."""

    def __init__(self, base: torch.nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = torch.nn.Linear(base.in_features, rank, bias=False)
        self.up = torch.nn.Linear(rank, base.out_features, bias=False)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x) + self.up(self.down(x))
        return out


def adapted_layers(unet: torch.nn.Module) -> list[str]:
    """The paths of the layers that an adapter changes by default."""
    from dreambooth.trainer.adapters.targets import DEFAULT_ROLES, role_of

    linear = [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear)]
    return [name for name in linear if role_of(name) in DEFAULT_ROLES]


def bare_loop(
    unet: torch.nn.Module, encoder: torch.nn.Module | None, size: Size, rank: int
) -> Callable[[], None]:
    """One step of the bare loop: two samples, their noise, timesteps and texts in memory."""
    side = size.pixels // 8
    if rank:
        unet.requires_grad_(False)
        for path in adapted_layers(unet):
            parent = unet.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], PlainLora(unet.get_submodule(path), rank))  # type: ignore[arg-type]
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    trained += [] if encoder is None else list(encoder.parameters())
    optimizer = torch.optim.AdamW(trained, lr=2e-6, fused=True)
    told = {"text_embeds": torch.randn(2, size.pooled), "time_ids": torch.full((2, 6), 64.0)}
    more = {"added_cond_kwargs": told} if size.pooled else {}
    noisy, target = torch.randn(2, 2, 4, side, side)
    known, timesteps = torch.randn(2, 77, size.context), torch.tensor([100, 700])
    ids = torch.cat([token_ids(caption) for caption in CAPTIONS])

    def step() -> None:
        context = known if encoder is None else encoder(ids).last_hidden_state
        prediction = unet(noisy, timesteps, context, return_dict=False, **more)[0]
        torch.nn.functional.mse_loss(prediction, target).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def attached(unet: torch.nn.Module, rank: int) -> None:
    """Puts our LoRA on the same layers."""
    from dreambooth.trainer.adapters.attached import attach
    from dreambooth.trainer.adapters.kinds import KINDS
    from dreambooth.trainer.adapters.layers import shape_of
    from dreambooth.trainer.adapters.plan import AdapterPlan, PlannedLayer
    from dreambooth.trainer.adapters.targets import Target

    layers = []
    for path in adapted_layers(unet):
        shape = shape_of(unet.get_submodule(path))
        target = Target("unet", path, shape, "", "", "")
        layers.append(PlannedLayer(target, KINDS["lora"].shapes(shape, rank), float(rank)))
    attach({"unet": unet}, AdapterPlan(KINDS["lora"], rank, float(rank), 0.0, tuple(layers)), seed=0)


@dataclass
class OurStep:
    """Our step with all that happens around it in a run's loop."""

    engine: Any
    inbox: Any
    log: Any
    number: int = 0

    def __call__(self) -> None:
        self.inbox.should_stop()
        self.inbox.commands()
        losses = self.engine.step(self.number)
        assert losses is not None
        self.number += 1
        self.log.add(self.number, losses, self.engine.rate)


def our_step(
    unet: torch.nn.Module, encoder: torch.nn.Module | None, size: Size, folder: Path, rank: int
) -> OurStep:
    """One step of a run with default settings that trains the UNet, and the text encoder if there is one."""
    from accelerate import Accelerator

    from dreambooth.shared.runfolder import create_run
    from dreambooth.shared.settings import TrainingSettings
    from dreambooth.trainer.control import Inbox, Signals
    from dreambooth.trainer.engine import Denoiser, TextEncoderSpan, TrainingEngine
    from dreambooth.trainer.families import SD1
    from dreambooth.trainer.objectives import Objective, scaled_linear_alphas_cumprod
    from dreambooth.trainer.optim.optimizers import ParameterGroup, Stepper, build_optimizer
    from dreambooth.trainer.optim.schedules import Schedule
    from dreambooth.trainer.steplog import StepLog

    settings = TrainingSettings(learning_rate=2e-6)
    if rank:
        attached(unet, rank)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    groups = [ParameterGroup("unet", trained, settings.learning_rate)]
    if encoder is not None:
        groups.append(ParameterGroup("text_encoder", list(encoder.parameters()), settings.learning_rate))
    optimizer = build_optimizer(settings, groups, torch.device("cpu"))
    engine = TrainingEngine(
        Denoiser(unet, [] if encoder is None else [encoder], SD1, clip_skip=1),
        Stepper(optimizer, settings.max_grad_norm, None),
        Objective("epsilon", scaled_linear_alphas_cumprod()),
        cached_batches(size, folder, trains_text=encoder is not None),
        Schedule(settings.lr_scheduler, 10**6),
        accelerator=Accelerator(cpu=True, mixed_precision="no"),
        prior_weight=1.0,
        text_span=TextEncoderSpan(trained=encoder is not None, stop=10**6),
    )
    inbox = Inbox(create_run(folder, "run", ""), Signals(), lambda event, **fields: None)
    log = StepLog(lambda event, **fields: None, 10**6)
    log.start(0)
    return OurStep(engine, inbox, log)


def cached_batches(size: Size, folder: Path, *, trains_text: bool) -> Any:
    """Five photos and as many class images behind the caches that a run fills; only their content is random."""
    from dreambooth.shared.concepts import Concept
    from dreambooth.trainer.data.batches import StepBatches
    from dreambooth.trainer.data.cache import (
        LatentEncoder,
        Pictures,
        cached_latents,
        encode_missing,
        looks_for,
    )
    from dreambooth.trainer.data.captions import Variation
    from dreambooth.trainer.data.dataset import Augmentation, plan_data, views_used
    from dreambooth.trainer.data.store import TensorStore
    from dreambooth.trainer.data.survey import survey
    from dreambooth.trainer.data.text_cache import CachedText, TextEncoder, TokenText
    from dreambooth.trainer.models.embeddings import Embeddings

    device, side = torch.device("cpu"), (size.pixels, size.pixels)
    concept = Concept(
        instance_prompt=CAPTIONS[0],
        class_prompt=CAPTIONS[1],
        instance_data_dir=str(make_photos(folder / "instance", size.pixels)),
        class_data_dir=str(make_photos(folder / "class", size.pixels)),
    )
    found = survey([concept], prior=True, num_class_images=5, allow_bad_images=False, class_root=folder)
    plan = plan_data(found, (side,), batch=1, augmentation=Augmentation(), variation=Variation(), cached=True)
    store, pictures = TensorStore(folder / "cache"), Pictures(plan, (255, 255, 255))
    encoder = LatentEncoder("random", lambda pixels: torch.rand(2, 4, size.pixels // 8, size.pixels // 8))
    looks = looks_for(views_used(plan, 0, 10**6), masked=False)
    encode_missing(looks, pictures, encoder, store, lambda done, of: None)
    pooled = torch.randn(size.pooled) if size.pooled else None
    texts = TextEncoder("random", lambda text: Embeddings(torch.randn(77, size.context), pooled))
    captions = plan.captions()
    assert captions is not None
    return StepBatches(
        plan,
        0,
        cached_latents(looks, pictures, encoder, store, device),
        tokens=TokenText(token_ids, device) if trains_text else None,
        embeddings=CachedText(captions, texts, device),
        micro_batches=1,
        offset_noise=0.0,
        device=device,
        sized=bool(size.pooled),
    )


def make_photos(folder: Path, side: int) -> Path:
    """Five grey pictures of different bytes."""
    from PIL import Image

    folder.mkdir()
    for number in range(5):
        shade = 40 * number + (folder.name == "class")
        Image.new("RGB", (side, side), (shade,) * 3).save(folder / f"{number}.png")
    return folder


def compile_blocks(unet: torch.nn.Module) -> None:
    """Has torch compile each residual and transformer block, once for every shape that it meets."""
    from dreambooth.trainer.models.checkpointing import checkpointable_units

    torch._dynamo.config.cache_size_limit = 64
    for unit in checkpointable_units(unet):
        unit.module.compile(dynamic=False)


class Taken(NamedTuple):
    """Seconds on the clock, and of the processor: on a busy machine only the latter are the step's own."""

    clock: float
    work: float


def measure(
    bare: Callable[[], None], ours: Callable[[], None], seconds: float
) -> Iterator[tuple[Taken, Taken]]:
    """What a bare step takes and what one of ours does, in turn, until `seconds` have passed; who begins alternates."""
    for _ in range(3):
        bare()
        ours()
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        one = _timed(bare)
        two = _timed(ours)
        three = _timed(ours)
        four = _timed(bare)
        yield one, two
        yield four, three


def _timed(step: Callable[[], None]) -> Taken:
    began, worked = time.perf_counter(), time.process_time()
    step()
    return Taken(time.perf_counter() - began, time.process_time() - worked)


def report(name: str, size: Size, seconds: float, rank: int, *, trains_text: bool, compiled: bool) -> None:
    unet = make_unet(size)
    encoder = make_text_encoder(size) if trains_text else None
    millions = sum(parameter.numel() for parameter in unet.parameters()) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        ours = our_step(copy.deepcopy(unet), copy.deepcopy(encoder), size, Path(folder), rank)
        bare = bare_loop(unet, encoder, size, rank)
        if compiled:
            compile_blocks(ours.engine.denoiser.unet)
        pairs = list(measure(bare, ours, seconds))
    target = LORA_TARGET if rank else TEXT_TARGET if trains_text else size.target
    (one, own), (two, our) = (
        (statistics.median(times) * 1000 for times in zip(*taken, strict=True))
        for taken in zip(*pairs, strict=True)
    )
    print(
        f"{name:6} {millions:5.1f}M{' and text' if trains_text else ''} at {size.pixels:3} px   "
        f"bare {one:8.2f} ms   ours {two:8.2f} ms   "
        f"ratio {two / one:.3f}, of processor time {our / own:.3f}   "
        f"(target {target:.2f}; {len(pairs)} pairs, {torch.get_num_threads()} threads)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", choices=[*SIZES, []], default=list(SIZES))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--lora", type=int, default=0, metavar="RANK", help="train a LoRA instead of the UNet"
    )
    parser.add_argument("--text", action="store_true", help="train a text encoder too")
    parser.add_argument("--compiled", action="store_true", help="compile our blocks")
    chosen = parser.parse_args()
    if chosen.text and (chosen.lora or "sdxl" in chosen.sizes):
        parser.error("--text goes with small and large, and without --lora")
    torch.set_num_threads(chosen.threads)
    for name in chosen.sizes:
        report(
            name, SIZES[name], chosen.seconds, chosen.lora, trains_text=chosen.text, compiled=chosen.compiled
        )


if __name__ == "__main__":
    main()
