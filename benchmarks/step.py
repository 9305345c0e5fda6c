"""What a training step costs beyond what cannot be saved: our step against a bare loop at the same shapes.

    python benchmarks/step.py [small] [large] [sdxl] [--lora RANK] [--seconds 60] [--threads 2]

The bare loop is forward, backward and fused AdamW, no clipping, with its data ready in memory. Ours is the engine's
step as a run makes it: samples planned, noise drawn, latents and embeddings from the caches, one instance and one
class image, prior preservation, clipping, the NaN guard, the step's numbers kept for the log, orders looked for.
With --lora both train a LoRA on attention and feed-forward, the bare loop one of its own: base(x) + up(down(x)).
Both models live in one process and step in turn, A B A B; the ratio is of the medians.
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
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import torch  # noqa: E402


@dataclass(frozen=True)
class Size:
    """A UNet and the pixels that it is trained at; `target` is the ratio to be reached. With `pooled` it has SDXL's
    form: it is told the pooled prompt and the sizes."""

    pixels: int
    widths: tuple[int, ...]
    layers: int
    context: int
    target: float
    pooled: int = 0


SIZES = {
    "small": Size(pixels=64, widths=(32, 64), layers=1, context=32, target=1.10),
    "large": Size(pixels=256, widths=(96, 192, 384, 384), layers=1, context=256, target=1.04),
    "sdxl": Size(pixels=256, widths=(96, 192, 384), layers=2, context=256, target=1.06, pooled=128),
}
LORA_TARGET = 1.06
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


def bare_loop(unet: torch.nn.Module, size: Size, rank: int) -> Callable[[], None]:
    """One step of the bare loop: two samples, their noise, timesteps and texts in memory."""
    side = size.pixels // 8
    if rank:
        unet.requires_grad_(False)
        for path in adapted_layers(unet):
            parent = unet.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], PlainLora(unet.get_submodule(path), rank))  # type: ignore[arg-type]
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-6, fused=True)
    told = {"text_embeds": torch.randn(2, size.pooled), "time_ids": torch.full((2, 6), 64.0)}
    more = {"added_cond_kwargs": told} if size.pooled else {}
    noisy, target = torch.randn(2, 2, 4, side, side)
    context, timesteps = torch.randn(2, 77, size.context), torch.tensor([100, 700])

    def step() -> None:
        prediction = unet(noisy, timesteps, context, return_dict=False, **more)[0]
        torch.nn.functional.mse_loss(prediction, target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def attached(unet: torch.nn.Module, rank: int) -> None:
    """Puts our LoRA on the same layers."""
    from dreambooth.trainer.adapters.attached import attach
    from dreambooth.trainer.adapters.kinds import KINDS
    from dreambooth.trainer.adapters.plan import AdapterPlan, PlannedLayer
    from dreambooth.trainer.adapters.targets import Target

    layers = []
    for path in adapted_layers(unet):
        shape = tuple(unet.get_submodule(path).get_parameter("weight").shape)
        target = Target("unet", path, shape, "", "", "")
        layers.append(PlannedLayer(target, KINDS["lora"].shapes(shape, rank), float(rank)))
    attach({"unet": unet}, AdapterPlan(KINDS["lora"], rank, float(rank), 0.0, tuple(layers)), seed=0)


def our_step(unet: torch.nn.Module, size: Size, folder: Path, rank: int) -> Callable[[], None]:
    """One step of a run with default settings that trains the UNet alone."""
    from accelerate import Accelerator

    from dreambooth.shared.runfolder import create_run
    from dreambooth.shared.settings import TrainingSettings
    from dreambooth.trainer.control import Inbox, Signals
    from dreambooth.trainer.engine import Denoiser, TextEncoderSpan, TrainingEngine
    from dreambooth.trainer.families import SD1
    from dreambooth.trainer.objectives import Objective, scaled_linear_alphas_cumprod
    from dreambooth.trainer.optimizers import ParameterGroup, Stepper, build_optimizer
    from dreambooth.trainer.schedules import Schedule
    from dreambooth.trainer.steplog import StepLog

    settings = TrainingSettings(learning_rate=2e-6)
    if rank:
        attached(unet, rank)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    groups = [ParameterGroup("unet", trained, settings.learning_rate)]
    optimizer = build_optimizer(settings, groups, torch.device("cpu"))
    engine = TrainingEngine(
        Denoiser(unet, [], SD1, clip_skip=1),
        Stepper(optimizer, settings.max_grad_norm, None),
        Objective("epsilon", scaled_linear_alphas_cumprod()),
        cached_batches(size, folder),
        Schedule(settings.lr_scheduler, 10**6),
        accelerator=Accelerator(cpu=True, mixed_precision="no"),
        prior_weight=1.0,
        text_span=TextEncoderSpan(trained=False, stop=0),
    )
    inbox = Inbox(create_run(folder, "run", ""), Signals(), lambda event, **fields: None)
    log = StepLog(lambda event, **fields: None, 10**6)
    steps = iter(range(10**6))

    def step() -> None:
        number = next(steps)
        inbox.should_stop()
        inbox.commands()
        losses = engine.step(number)
        assert losses is not None
        log.add(number + 1, losses, engine.rate)

    return step


def cached_batches(size: Size, folder: Path) -> Any:
    """Five photos and as many class images behind the caches that a run fills; only their content is random."""
    from dreambooth.shared.concepts import Concept
    from dreambooth.trainer.batches import StepBatches
    from dreambooth.trainer.cache import LatentEncoder, Pictures, cached_latents, encode_missing, looks_for
    from dreambooth.trainer.captions import Variation
    from dreambooth.trainer.dataset import Augmentation, plan_data, views_used
    from dreambooth.trainer.embeddings import Embeddings
    from dreambooth.trainer.store import TensorStore
    from dreambooth.trainer.survey import survey
    from dreambooth.trainer.text_cache import CachedText, TextEncoder

    device, side = torch.device("cpu"), (size.pixels, size.pixels)
    concept = Concept(
        instance_prompt="photo of sks cat",
        class_prompt="photo of cat",
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
        tokens=None,
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


def measure(
    bare: Callable[[], None], ours: Callable[[], None], seconds: float
) -> Iterator[tuple[float, float]]:
    """Seconds of a bare step and of one of ours, in turn, until `seconds` have passed; who begins alternates."""
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


def _timed(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def report(name: str, size: Size, seconds: float, rank: int) -> None:
    unet = make_unet(size)
    millions = sum(parameter.numel() for parameter in unet.parameters()) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        ours = our_step(copy.deepcopy(unet), size, Path(folder), rank)
        bare = bare_loop(unet, size, rank)
        pairs = list(measure(bare, ours, seconds))
    target = LORA_TARGET if rank else size.target
    one, two = (statistics.median(times) * 1000 for times in zip(*pairs, strict=True))
    print(
        f"{name:6} {millions:5.1f}M at {size.pixels:3} px   bare {one:8.2f} ms   ours {two:8.2f} ms   "
        f"ratio {two / one:.3f}   (target {target:.2f}; {len(pairs)} pairs, {torch.get_num_threads()} threads)",
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
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    for name in chosen.sizes:
        report(name, SIZES[name], chosen.seconds, chosen.lora)


if __name__ == "__main__":
    main()
