"""How fast a full-size checkpoint comes in and goes out, against safetensors' own read and write of the same file.

    python benchmarks/convert.py [FOLDER] [--family sd1|sdxl] [--forms] [--rounds 3] [--threads 2]

Makes a file of the size of Stable Diffusion 1.5 (2.13 GB, float16, random weights) or XL (6.9 GB) in FOLDER once, then
measures in turn, each round, each in a process of its own that has imported everything, and prints medians and ratios.
Before each measure the memory is filled and what is still free touched (free memory of a virtual machine may have been
given back to its host, and then costs up to five times as much to take), what is read is read once, and the disk is
synced. Ours sync what they write, safetensors does not: its second row does, so that both wait for the same disk, and
the last column is against that one. FOLDER needs six times the file's size, with `--forms` (from file to folder and
back, no modules) four times, and memory two and a half times. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ldm_layout import FULL_SD1, FULL_SDXL, Layout, shapes  # noqa: E402

FAMILIES = {
    "sd1": ("full-size-sd15.safetensors", FULL_SD1),
    "sdxl": ("full-size-sdxl.safetensors", FULL_SDXL),
}
KIB = 1 << 10
PAGE = 4096
HUGE = 1 << 21
NOTHING = bytes(HUGE)
PEAK = r"""
import re, sys
sys.path.insert(0, {root!r})
import torch, diffusers.models.unets.unet_2d_condition
import dreambooth.trainer.models.write_folder, tokenizers
from dreambooth.trainer.models.convert import convert
torch.set_num_threads({threads})
resident = lambda what: int(re.search(rf"{{what}}:\s+(\d+)", open("/proc/self/status").read()).group(1))
before = resident("VmRSS")
convert({src!r}, {dst!r}, overwrite=True)
print(resident("VmHWM") - before)
"""


def make_full_size(path: Path, layout: Layout) -> None:
    """A checkpoint with the names and shapes of the published one, and random weights in float16."""
    import torch

    from dreambooth.trainer.weights import Entry, write_weights

    wanted = shapes(layout)
    torch.manual_seed(0)
    noise = (torch.randn(max(map(math.prod, wanted.values())) + len(wanted)) * 0.02).half()
    entries = [
        Entry(name, torch.float16, shape, _slice(noise, shape, index))
        for index, (name, shape) in enumerate(wanted.items())
    ]
    write_weights(path, entries, {}, verify=False)


def _slice(noise: Any, shape: tuple[int, ...], index: int) -> Callable[[], Any]:
    return lambda: noise[index : index + math.prod(shape)].reshape(shape)


def prepare_floor(base: Path, folder: Path) -> Callable[[], object]:
    from safetensors.torch import load_file, save_file

    out = folder / "floor.safetensors"
    out.unlink(missing_ok=True)

    def floor() -> object:
        tensors = load_file(base)
        save_file(tensors, out)
        return tensors

    return floor


def prepare_synced_floor(base: Path, folder: Path) -> Callable[[], object]:
    floor = prepare_floor(base, folder)

    def synced_floor() -> object:
        tensors = floor()
        with (folder / "floor.safetensors").open("rb+") as file:
            os.fsync(file.fileno())
        return tensors

    return synced_floor


def prepare_modules(base: Path, folder: Path) -> Callable[[], object]:
    import torch

    from dreambooth.trainer.models.convert import load_model

    return lambda: load_model(base, dtype=torch.float16)


def prepare_mapped(base: Path, folder: Path) -> Callable[[], object]:
    import torch

    from dreambooth.trainer.models.convert import load_model

    def load_and_look() -> object:
        model = load_model(base, dtype=torch.float16, mapped=True)
        for module in model.components.values():
            for weight in module.parameters():  # every page is fetched, so that nothing is left for later
                weight.view(-1)[:: PAGE // weight.element_size()].sum()
        return model

    return load_and_look


def prepare_folder(base: Path, folder: Path) -> Callable[[], object]:
    from dreambooth.trainer.models.convert import convert

    shutil.rmtree(folder / "out", ignore_errors=True)
    return lambda: convert(base, folder / "out")


def prepare_export(base: Path, folder: Path) -> Callable[[], object]:
    import torch

    from dreambooth.trainer.models.convert import canonical_state, export_single_file, load_model

    out = folder / "out.safetensors"
    out.unlink(missing_ok=True)
    held = load_model(base, dtype=torch.float16)
    trained = {name: canonical_state(name, module) for name, module in held.components.items()}
    metadata = {"dreambooth.base_sha256": "not counted here"}
    held.base_sha256 = ""
    return lambda: export_single_file(
        out, held, trained, output_dtype=torch.float16, metadata=metadata, overwrite=False
    )


def unhashed(
    prepare: Callable[[Path, Path], Callable[[], object]],
) -> Callable[[Path, Path], Callable[[], object]]:
    """The same measure with a hash that costs nothing."""

    class Unhashed:
        def update(self, data: object) -> None:
            pass

        def hexdigest(self) -> str:
            return ""

    def prepared(base: Path, folder: Path) -> Callable[[], object]:
        import hashlib

        setattr(hashlib, "sha256", Unhashed)  # noqa: B010
        return prepare(base, folder)

    return prepared


def prepare_back(base: Path, folder: Path) -> Callable[[], object]:
    from dreambooth.trainer.models.convert import convert

    (folder / "back.safetensors").unlink(missing_ok=True)
    return lambda: convert(folder / "out", folder / "back.safetensors")


def prepare_hash(base: Path, folder: Path) -> Callable[[], object]:
    from dreambooth.trainer.weights.base import file_sha256

    return lambda: file_sha256(base)


FLOOR = "safetensors read + write"
SYNCED = "... and on the disk"
FROM_FOLDER = ("folder to a verified file", "... its hash left out")
FORMS = (FLOOR, SYNCED, "to a diffusers folder", "folder to a verified file", "... its hash left out")
MEASURES: dict[str, Callable[[Path, Path], Callable[[], object]]] = {
    FLOOR: prepare_floor,
    SYNCED: prepare_synced_floor,
    "to float16 modules, copied": prepare_modules,
    "to float16 modules, mapped": prepare_mapped,
    "to a diffusers folder": prepare_folder,
    "modules to a verified file": prepare_export,
    "... its hash apart": unhashed(prepare_export),
    "folder to a verified file": prepare_back,
    "... its hash left out": unhashed(prepare_back),
    "sha256 of the file": prepare_hash,
}


def read_once(path: Path, least_free: float = 0.0) -> None:
    """Reads a file into the system's memory, until less than this share of the memory is free."""
    held = bytearray(1 << 22)
    with path.open("rb", buffering=0) as file:
        while free_share() > least_free and file.readinto(held):
            pass


def free_share() -> float:
    """The share of the machine's memory that holds nothing, not even a file's old pages."""
    found = dict(re.findall(r"(Mem\w+):\s+(\d+)", Path("/proc/meminfo").read_text()))
    return int(found["MemFree"]) / int(found["MemTotal"])


def fill_memory(folder: Path) -> None:
    """Leaves little memory that holds nothing, by reading an empty file of the memory's size."""
    path = folder / "nothing.bin"
    with path.open("wb") as file:
        file.truncate(os.sysconf("SC_PHYS_PAGES") * PAGE)
    read_once(path, least_free=0.12)


def touch_free_memory() -> None:
    """Makes the host of a virtual machine give what is still free back, by writing to nearly all of it.

    Three times, for the system frees more while little is free.
    """
    for _ in range(3):
        size = int(free_share() * os.sysconf("SC_PHYS_PAGES") * PAGE * 0.9) // HUGE * HUGE
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
            held.madvise(mmap.MADV_HUGEPAGE)  # files get their memory in as large pieces
            for start in range(0, size, HUGE):
                held[start : start + HUGE] = NOTHING


def timed(name: str, base: Path, folder: Path) -> tuple[float, float]:
    """Seconds on the clock and of the processor, in a process that has done nothing else."""
    measure = MEASURES[name](base, folder)
    (folder / "floor.safetensors").unlink(missing_ok=True)
    fill_memory(folder)
    for path in (folder / "out").rglob("*.safetensors") if name in FROM_FOLDER else (base,):
        read_once(path)
    os.sync()
    touch_free_memory()
    start, worked = time.perf_counter(), time.process_time()
    made = measure()
    seconds = time.perf_counter() - start, time.process_time() - worked
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
    parser.add_argument("--family", choices=FAMILIES, default="sd1")
    parser.add_argument("--forms", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    name, layout = FAMILIES[arguments.family]
    base = arguments.folder / name
    if not base.exists():
        make_full_size(base, layout)
    measures = FORMS if arguments.forms else tuple(MEASURES)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in measures}
    import_everything()
    for _ in range(arguments.rounds):
        for name in measures:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                found[name].append(pool.apply(timed, (name, base, arguments.folder)))
    clock, work = (
        {name: statistics.median(pair[i] for pair in found[name]) for name in found} for i in (0, 1)
    )
    for name in measures:
        ratios = f"{clock[name] / clock[FLOOR]:5.2f}x  {work[name] / work[FLOOR]:5.2f}x  {clock[name] / clock[SYNCED]:5.2f}x"
        print(f"{name:<28} {clock[name]:6.2f} s on the clock, {work[name]:5.2f} s of processors  {ratios}")
    for result in ("back",) if arguments.forms else ("out", "back"):
        print(
            f"all keys right in {result}: {all_keys_right(base, arguments.folder / f'{result}.safetensors')}"
        )
    for left in ("floor.safetensors", "nothing.bin"):
        (arguments.folder / left).unlink(missing_ok=True)
    for name in ("again", "again.safetensors"):
        dst = arguments.folder / name
        print(f"peak RSS of convert to {name}: {peak_mib(base, dst, arguments.threads):.0f} MiB above")
        shutil.rmtree(dst) if dst.is_dir() else dst.unlink()
    print(json.dumps({name: [round(pair[0], 2) for pair in pairs] for name, pairs in found.items()}))


def import_everything() -> None:
    """What every process of the trainer has imported before it loads; nothing is computed here."""
    import diffusers.models.autoencoders.autoencoder_kl
    import diffusers.models.unets.unet_2d_condition  # noqa: F401
    import safetensors.torch  # noqa: F401

    import dreambooth.trainer.models.convert
    import dreambooth.trainer.models.write_folder  # noqa: F401


if __name__ == "__main__":
    main()
