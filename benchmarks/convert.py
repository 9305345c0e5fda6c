"""How fast a full-size checkpoint comes in and goes out, against safetensors' own read and write of the same file.

    python benchmarks/convert.py [FOLDER] [--rounds 3] [--threads 2]

Makes a file of Stable Diffusion 1.5's size (2.13 GB, float16, random weights) in FOLDER once, then measures in
turn, each round, and prints the medians and their ratios. Files are warm; before each measure the disk is synced.
Ours sync what they write, safetensors does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
KIB = 1 << 10
PEAK = r"""
import re, sys
sys.path.insert(0, {root!r})
import torch, transformers.models.clip.modeling_clip, diffusers.models.unets.unet_2d_condition
import dreambooth.trainer.write_folder, tokenizers
from dreambooth.trainer.convert import convert
torch.set_num_threads({threads})
resident = lambda what: int(re.search(rf"{{what}}:\s+(\d+)", open("/proc/self/status").read()).group(1))
before = resident("VmRSS")
convert({src!r}, {dst!r}, overwrite=True)
print(resident("VmHWM") - before)
"""


def make_full_size(path: Path) -> None:
    """A checkpoint with the names, shapes and dtypes of SD1.5's, and random weights."""
    import torch

    from dreambooth.trainer.families import SD1, names
    from dreambooth.trainer.families.topology import (
        Level,
        TextTopology,
        UNetTopology,
        VAETopology,
        text_config,
        unet_config,
        vae_config,
    )
    from dreambooth.trainer.loading import TEXT_MODEL, empty_module
    from dreambooth.trainer.weights import Entry, write_weights

    levels = tuple(Level(width, 2, depth, 8) for width, depth in ((320, 1), (640, 1), (1280, 1), (1280, 0)))
    unet = UNetTopology(levels, 1, 4, 4, 768, False)
    text = TextTopology(768, 3072, 12, 12, 49408, 77, "quick_gelu")
    vae = VAETopology((128, 256, 512, 512), 2, 4, 3)
    configs = {
        "unet": unet_config(unet),
        "vae": vae_config(vae, SD1.scaling_factor),
        "text_encoder": text_config(text),
    }
    table = {
        "unet": names.unet_bindings(unet),
        "vae": names.vae_bindings(vae),
        "text_encoder": names.clip_bindings(text),
    }
    torch.manual_seed(0)
    noise = (torch.randn(40_000_000) * 0.02).half()
    entries = []
    for component, bindings in table.items():
        state = empty_module(component, configs[component]).state_dict()
        shapes = {name.removeprefix(TEXT_MODEL): tuple(value.shape) for name, value in state.items()}
        for index, binding in enumerate(bindings):
            shape = shapes[binding.canonical[0]] + ((1, 1) if binding.flat else ())
            entries.append(Entry(binding.original, torch.float16, shape, _slice(noise, shape, index)))
    write_weights(path, entries, {}, verify=False)


def _slice(noise: Any, shape: tuple[int, ...], index: int) -> Callable[[], Any]:
    import math

    return lambda: noise[index : index + math.prod(shape)].reshape(shape)


def measures(base: Path, folder: Path) -> dict[str, Callable[[], object]]:
    """What is timed, by name; each gives back what it made, so that freeing it is not counted."""
    import torch
    from safetensors.torch import load_file, save_file

    from dreambooth.trainer.convert import canonical_state, convert, export_single_file, load_model
    from dreambooth.trainer.weights.base import file_sha256

    out = folder / "out.safetensors"
    diffusers_folder = folder / "out"
    held = load_model(base, dtype=torch.float16)
    trained = {name: canonical_state(name, held.components[name]) for name in ("unet", "text_encoder")}

    def floor() -> object:
        tensors = load_file(base)
        save_file(tensors, out)
        return tensors

    return {
        "safetensors read + write": floor,
        "to float16 modules": lambda: load_model(base, dtype=torch.float16),
        "to a diffusers folder": lambda: convert(base, diffusers_folder, overwrite=True),
        "modules to a verified file": lambda: export_single_file(
            out,
            held,
            trained,
            output_dtype=torch.float16,
            metadata={"dreambooth.base_sha256": "-"},
            overwrite=True,
        ),
        "folder to a verified file": lambda: convert(diffusers_folder, out, overwrite=True),
        "sha256 of the file": lambda: file_sha256(base),
    }


def timed(measure: Callable[[], object]) -> float:
    os.sync()
    start = time.perf_counter()
    made = measure()
    seconds = time.perf_counter() - start
    del made
    return seconds


def all_keys_right(base: Path, result: Path) -> bool:
    """Whether the written file holds the base's tensors, bit for bit, under the base's names."""
    import torch
    from safetensors import safe_open

    with safe_open(base, "pt") as one, safe_open(result, "pt") as other:
        names = list(one.keys())
        return set(names) == set(other.keys()) and all(
            torch.equal(one.get_tensor(name).view(torch.int16), other.get_tensor(name).view(torch.int16))
            for name in names
        )


def peak_mib(base: Path, dst: Path, threads: int) -> float:
    """Peak resident memory of a `convert` above the interpreter with its libraries, in MiB."""
    code = PEAK.format(root=str(ROOT), threads=threads, src=str(base), dst=str(dst))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / KIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("benchmark-files"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    base = arguments.folder / "full-size-sd15.safetensors"
    if not base.exists():
        make_full_size(base)
    found: dict[str, list[float]] = {}
    todo = measures(base, arguments.folder)
    for _ in range(arguments.rounds):
        for name, measure in todo.items():
            found.setdefault(name, []).append(timed(measure))
    medians = {name: statistics.median(values) for name, values in found.items()}
    floor = medians["safetensors read + write"]
    for name, seconds in medians.items():
        print(f"{name:<28} {seconds:6.2f} s  {seconds / floor:5.2f}x")
    print(f"all keys right: {all_keys_right(base, arguments.folder / 'out.safetensors')}")
    for dst in (arguments.folder / "out", arguments.folder / "out.safetensors"):
        print(f"peak RSS of convert to {dst.name}: {peak_mib(base, dst, arguments.threads):.0f} MiB above")
    print(json.dumps({name: [round(value, 2) for value in values] for name, values in found.items()}))
    shutil.rmtree(arguments.folder / "out")
    (arguments.folder / "out.safetensors").unlink()


if __name__ == "__main__":
    main()
