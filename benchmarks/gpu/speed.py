"""Images a second on a card, against bare loops that do what the peers do, and as a share of what the card can.

    python benchmarks/gpu/speed.py [sd1] [sdxl] [sdxl-lora] [--batches 1 4] [--steps 20] [--rows …] [--folder DIR] [--tiny]

Ours is a real run's engine: a checkpoint with random weights is planned, loaded and its photos cached; no prior
preservation, UNet alone, bf16. The peers are loops in this process, of the same modules, each at its best documented
settings:

- diffusers: fp32 weights under bf16 autocast, TF32, VAE encoding and text encoder (both bf16) in each step, clipping,
  torch's AdamW as its script makes it. For SDXL its LoRA script keeps base and VAE in bf16.
- kohya: the same with latents and text encoder outputs cached.

Then: what channels last are worth; what compiled blocks would be (only with `--rows … compiled`: its first step takes
minutes); whether a step waits for the card where nothing is shown; where a step's time goes. Every row stands by itself:
one that fails says why, and the others are made. About 4 minutes for sd1 on an H100.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import rig
import torch
from profile_step import Watch, profile, table, watch_parts
from rig import FAMILIES, PEAK, Bench

LORA_RANK = 16
# Least ratios to the peers' images a second, and share of the arithmetic limit: issue 5's table for one H200
BARS = {("sd1", "diffusers"): 1.5, ("sd1", "kohya"): 1.1, ("sdxl", "diffusers"): 1.2, ("sdxl", "kohya"): 1.2}
SHARE = 0.30
ROWS = {
    "ours": "ours",
    "diffusers": "diffusers",
    "kohya": "kohya",
    "layout": "ours, channels not last",
    "compiled": "ours, blocks compiled",
    "waits": "a step waits for the card",
    "parts": "where a step's time goes",
}


def settings_of(bench: Bench, name: str, batch: int, **changes: Any) -> dict[str, Any]:
    """A job's settings: full fine-tunes of SD1 as they come; SDXL's with weights, gradients and state in 41 GB of float32;
    LoRA on the UNet."""
    family = name.split("-")[0]
    rates = {"output_kind": "lora", "rank": LORA_RANK} if name.endswith("lora") else {}
    plain = {"prior_loss_weight": 0, "train_text_encoder": False, "mixed_precision": "bf16"}
    return bench.settings(family, train_batch_size=batch, **plain, **rates, **changes)


def ours(bench: Bench, name: str, batch: int, steps: int, **changes: Any) -> rig.Pace:
    where = rig.device()
    found: rig.Pace = rig.in_run(
        settings_of(bench, name, batch, **changes),
        lambda engine, plan: rig.pace(rig.counted(engine), where, steps=steps),
    )
    return found


def peer_step(bench: Bench, name: str, batch: int, *, cached: bool) -> Callable[[], None]:
    """One step of the loop that stands for a peer."""
    from dreambooth.trainer.models import text
    from dreambooth.trainer.models.convert import load_model
    from dreambooth.trainer.models.embeddings import unet_arguments
    from dreambooth.trainer.models.tokenizer import default_tokenizer

    family, where = name.split("-")[0], rig.device()
    is_lora = name.endswith("lora")
    model = load_model(bench.model(family), dtype=torch.bfloat16)
    if not is_lora:
        wide = load_model(bench.model(family), dtype=torch.float32, components=["unet"])
        model.components |= wide.components
    for part in model.components.values():
        part.to(where)
    unet, vae = model.components["unet"], model.components["vae"]
    unet.train().requires_grad_(not is_lora)
    trained = _with_plain_lora(unet, where) if is_lora else list(unet.parameters())
    optimizer = torch.optim.AdamW(trained, lr=2e-6, weight_decay=1e-2)
    side = bench.pixels(family)
    vae_dtype = next(vae.parameters()).dtype
    pixels = torch.rand(batch, 3, side, side, device=where, dtype=vae_dtype) * 2 - 1
    kept = torch.randn(batch, 4, side // 8, side // 8, device=where)
    rules = model.identified.family
    encoders = text.encoders_of(model.components, rules)
    ids = text.tokenize(default_tokenizer(), rules, [rig.INSTANCE_PROMPT] * batch).to(where)
    alphas = torch.linspace(0.999, 0.005, 1000, device=where)
    sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]] * batch, device=where) if rules.sized else None

    @torch.no_grad()
    def told() -> Any:
        return text.encode(encoders, rules, ids)

    remembered = told()

    def step() -> None:
        latents = kept
        if not cached:
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.sample().float() * rules.scaling_factor  # type: ignore[operator]
        said = remembered if cached else told()
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (batch,), device=where)
        kept_part = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = kept_part.sqrt() * latents + (1 - kept_part).sqrt() * noise
        with torch.autocast(where.type, torch.bfloat16):
            arguments = unet_arguments(said.each(lambda tensor: tensor.to(torch.bfloat16)), sizes)
            prediction = unet(noisy, timesteps, **arguments, return_dict=False)[0]
        torch.nn.functional.mse_loss(prediction.float(), noise).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _with_plain_lora(unet: torch.nn.Module, where: torch.device) -> list[torch.nn.Parameter]:
    """A LoRA as one writes it down, on the layers that ours adapts by default; its weights in float32."""
    from step import PlainLora, adapted_layers

    layers = []
    for path in adapted_layers(unet):
        parent, _, name = path.rpartition(".")
        lora = PlainLora(unet.get_submodule(path), LORA_RANK).to(where)  # type: ignore[arg-type]
        lora.down.float()
        lora.up.float()
        setattr(unet.get_submodule(parent), name, lora)
        layers += [lora.down, lora.up]
    return [weight for layer in layers for weight in layer.parameters()]


def work_of(name: str) -> float:
    """FLOP of one image's step."""
    family = FAMILIES[name.split("-")[0]]
    return family.frozen if name.endswith("lora") else family.full


def row(name: str, batch: int, who: str, taken: rig.Pace, ours: rig.Pace | None, *, tiny: bool) -> None:
    """Prints one line of the table, and whether it reaches its bar; `tiny` models have none."""
    line = f"{name:10} batch {batch}  {who:24} {batch / taken.step:8.2f} images/s  {taken.step * 1000:8.1f} ms a step"
    if ours is None:
        share = batch * work_of(name) / taken.step / PEAK
        line += f"  {taken.host * 1000:7.1f} ms of the host  {share:6.1%} of {PEAK / 1e12:.0f} TFLOP/s"
        if batch > 1 and not tiny:
            line += f" ({'reached' if share >= SHARE else 'not reached'}: {SHARE:.0%})"
    else:
        ratio = taken.step / ours.step
        bar = None if tiny else BARS.get((name, who))
        line += f"  ours is {ratio:.2f}x as fast"
        line += "" if bar is None else f" ({'reached' if ratio >= bar else 'not reached'}: {bar:g})"
    print(line, flush=True)
    rig.note({"job": name, "batch": batch, "who": who, "step_s": taken.step, "host_s": taken.host})


def without_waiting(bench: Bench, name: str) -> str:
    """Whether a step waits for the card; torch raises where it would. Without a card there is nothing to wait for."""
    where = rig.device()
    if where.type != "cuda":
        return "not asked: there is no card"

    def act(engine: Any, plan: Any) -> str:
        step = rig.counted(engine)
        step()
        step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        except RuntimeError as error:
            return f"yes: {str(error).splitlines()[0]}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return "no"

    return str(rig.in_run(settings_of(bench, name, 1), act))


def parts(bench: Bench, name: str, batch: int, seconds: float) -> str:
    """Where a step's time goes, the card waited for after each part."""
    where = rig.device()

    def now() -> float:
        rig.wait(where)
        return time.perf_counter()

    def act(engine: Any, plan: Any) -> str:
        watch = Watch(now)
        watch_parts(watch, engine)
        return table(profile(rig.counted(engine), watch, seconds))

    return str(rig.in_run(settings_of(bench, name, batch), act))


def compiled(bench: Bench, name: str, batch: int, steps: int) -> rig.Pace:
    """Ours with each transformer and residual block compiled: an experiment, not a setting."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    where = rig.device()

    def act(engine: Any, plan: Any) -> rig.Pace:
        for module in engine.denoiser.unet.modules():
            if isinstance(module, (BasicTransformerBlock, ResnetBlock2D)):
                module.compile()
        return rig.pace(rig.counted(engine), where, steps=steps)

    found: rig.Pace = rig.in_run(settings_of(bench, name, batch), act)
    return found


def measure(bench: Bench, name: str, batch: int, steps: int, rows: Collection[str]) -> None:
    """The rows of a job at one batch size."""
    own: list[rig.Pace] = []
    where = rig.device()

    def peer(*, cached: bool) -> Callable[[], rig.Pace]:
        return lambda: rig.pace(peer_step(bench, name, batch, cached=cached), where, steps=steps)

    acts: dict[str, Callable[[], rig.Pace]] = {
        "ours": lambda: ours(bench, name, batch, steps),
        "diffusers": peer(cached=False),
        "kohya": peer(cached=True),
        "layout": lambda: _contiguous(bench, name, batch, steps),
        "compiled": lambda: compiled(bench, name, batch, steps),
    }
    for who in [who for who in acts if who in rows]:
        title = ROWS[who]
        try:
            taken = acts[who]()
            row(name, batch, title, taken, own[0] if own else None, tiny=bench.tiny)
            if who == "ours":
                own.append(taken)
        except RuntimeError as error:  # above all a card that is too small for it
            print(f"{name:10} batch {batch}  {title:24} failed: {str(error).splitlines()[0]}", flush=True)
        rig.free()


def _contiguous(bench: Bench, name: str, batch: int, steps: int) -> rig.Pace:
    from dreambooth.trainer import arithmetic

    chosen = arithmetic.memory_format
    arithmetic.memory_format = lambda device, compute: torch.preserve_format
    try:
        return ours(bench, name, batch, steps)
    finally:
        arithmetic.memory_format = chosen


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", nargs="*", default=["sd1"], help="sd1, sdxl, sdxl-lora")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="how long the parts of a step are looked at"
    )
    parser.add_argument("--folder", type=Path, help="keeps the models for the next command")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=[row for row in ROWS if row != "compiled"])
    parser.add_argument("--tiny", action="store_true", help="small enough for a processor")
    chosen = parser.parse_args(arguments)
    with rig.bench(chosen.folder, tiny=chosen.tiny) as bench:
        can = rig.rate(rig.device(), 256 if chosen.tiny else 8192)
        print(f"# a large bf16 matrix product runs at {can / 1e12:.3g} TFLOP/s", flush=True)
        for name in chosen.jobs:
            for batch in chosen.batches:
                measure(bench, name, batch, chosen.steps, chosen.rows)
            if "waits" in chosen.rows:
                print(f"{name}: {ROWS['waits']}: {without_waiting(bench, name)}", flush=True)
                rig.free()
            if "parts" in chosen.rows:
                print(f"{name}: {ROWS['parts']}, batch {chosen.batches[-1]}", flush=True)
                print(parts(bench, name, chosen.batches[-1], chosen.seconds), flush=True)
                rig.free()


if __name__ == "__main__":
    main()
