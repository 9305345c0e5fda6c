"""What the GPU benchmarks share: models of the real sizes with random weights, real runs stopped at their first step, and
watches that know that a card works behind the host's back.

`tiny` makes everything small enough for a processor, so that the harness is known to work before a card is lent.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

import torch  # noqa: E402
from convert import make_full_size  # noqa: E402
from ldm_layout import FULL_SD1, FULL_SDXL, TINY_SD1, TINY_SDXL, Layout  # noqa: E402

INSTANCE_PROMPT, CLASS_PROMPT = "photo of sks cat", "photo of cat"
PHOTOS = 5
WARM = 3
# Of one H200 (and about of one H100) in bf16, see `rate`
PEAK = 790e12


@dataclass(frozen=True)
class Family:
    """A model's layout and its small stand-in, the pixels it is trained at, and the arithmetic of one image's step in
    FLOP: of a full fine-tune, with all blocks computed twice, and with frozen weights."""

    layout: Layout
    small: Layout
    pixels: int
    full: float
    checkpointed: float
    frozen: float


FAMILIES = {
    "sd1": Family(FULL_SD1, TINY_SD1, 512, 2.41e12, 3.00e12, 1.73e12),
    "sdxl": Family(FULL_SDXL, TINY_SDXL, 1024, 20.2e12, 25.4e12, 14.2e12),
}
SMALL_PIXELS = 64


@dataclass(frozen=True)
class Bench:
    """A folder with all that runs need. Its device is the one that runs choose by themselves."""

    folder: Path
    tiny: bool

    def pixels(self, family: str) -> int:
        return SMALL_PIXELS if self.tiny else FAMILIES[family].pixels

    def model(self, family: str) -> Path:
        """The checkpoint: a single float16 file with random weights, made at the first call (2.1 or 6.9 GB)."""
        path = self.folder / f"{family}.safetensors"
        if not path.exists():
            small = replace(FAMILIES[family].small, vocabulary=49408, vae_multiples=(1, 1, 1, 1))
            make_full_size(path, small if self.tiny else FAMILIES[family].layout)
        return path

    def images(self, family: str, name: str) -> Path:
        """A folder of photos of noise, each of its own."""
        from PIL import Image

        folder, side = self.folder / f"{name} {family}", self.pixels(family)
        if not folder.exists():
            folder.mkdir()
            for number in range(PHOTOS):
                seeded = torch.Generator().manual_seed(number + 100 * (name == "class"))
                pixels = torch.randint(0, 256, (side, side, 3), generator=seeded, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
        return folder

    def settings(self, family: str, **changes: Any) -> dict[str, Any]:
        """A run's settings; without `changes` the defaults, its class images there."""
        out = Path(tempfile.mkdtemp(dir=self.folder))
        concept = {
            "instance_prompt": INSTANCE_PROMPT,
            "class_prompt": CLASS_PROMPT,
            "instance_data_dir": str(self.images(family, "photos")),
            "class_data_dir": str(self.images(family, "class")),
        }
        mapping: dict[str, Any] = {
            "model": str(self.model(family)),
            "output_name": "bench",
            "output_dir": str(out),
            "runs_dir": str(self.folder / "runs"),
            "resolution": self.pixels(family),
            "num_class_images": PHOTOS,
            "max_train_steps": 1000,
            "num_validation_images": 0,
            "concepts": [concept],
        }
        return mapping | changes


def device() -> torch.device:
    from dreambooth.trainer.machine import choose_device

    return choose_device()


def wait(where: torch.device) -> None:
    """Until the card has done all that it was given."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def in_run(settings: Mapping[str, Any], act: Callable[[Any, Any], Any]) -> Any:
    """`act(engine, plan)` in the place of a real run's training, with all that comes before it done as ever; what it gives.

    The run writes no result.
    """
    from dreambooth.shared.config import dump_settings, settings_from
    from dreambooth.shared.runfolder import create_run
    from dreambooth.trainer.planning.plan import make_plan
    from dreambooth.trainer.session import Session

    class Done(Exception):
        pass

    found: list[Any] = []

    class Stopped(Session):
        def _train(self, keeper: Any, engine: Any) -> None:
            # the engine itself: what steps down when memory runs out would hide that it did
            found.append(act(getattr(engine, "_engine", engine), self.plan))
            raise Done

    plan = make_plan(settings_from(settings, where="benchmark"))
    folder = create_run(Path(plan.settings.result.runs_dir), "bench", dump_settings(plan.settings, {}))
    with suppress(Done):
        Stopped(plan, folder, "bench", lambda event, **fields: None, None).run()
    return found[0]


@dataclass(frozen=True)
class Pace:
    """Seconds of a step, and of the host alone in giving it to the card."""

    step: float
    host: float


def pace(step: Callable[[], object], where: torch.device, *, steps: int) -> Pace:
    """The mean of `steps` steps that follow each other as in a run, after some others."""
    for _ in range(min(WARM, steps)):
        step()
    wait(where)
    began = time.perf_counter()
    given = []
    for _ in range(steps):
        before = time.perf_counter()
        step()
        given.append(time.perf_counter() - before)
    wait(where)
    return Pace((time.perf_counter() - began) / steps, statistics.median(given))


def counted(engine: Any) -> Callable[[], object]:
    """The engine's steps, one after the other."""
    numbers = iter(range(10**6))

    def step() -> object:
        losses = engine.step(next(numbers))
        assert losses is not None
        return losses

    return step


def reset_peak(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(where)


def peak_gb(where: torch.device) -> float:
    """GB that torch had reserved at most since `reset_peak`; without a card, what the process has."""
    if where.type == "cuda":
        return torch.cuda.max_memory_reserved(where) / 1e9
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e9


def rate(where: torch.device, side: int) -> float:
    """FLOP a second of a large bf16 matrix product: what the card can do today."""
    factor = torch.randn(side, side, device=where, dtype=torch.bfloat16)

    def product() -> torch.Tensor:
        return factor @ factor

    return 2 * side**3 / pace(product, where, steps=10).step


def title() -> str:
    """The machine and its versions, for the table's head."""
    import diffusers

    where = device()
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "the processor"
    return f"{name}, torch {torch.__version__}, diffusers {diffusers.__version__}, Python {sys.version.split()[0]}"


def free() -> None:
    """Gives back what the last measure held."""
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def bench(folder: Path | None, *, tiny: bool) -> Iterator[Bench]:
    """A bench in a named folder, which keeps the models for the next command, or in one that is removed."""
    print(f"# {title()}", flush=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield Bench(folder.absolute(), tiny)
        return
    with tempfile.TemporaryDirectory() as made:
        yield Bench(Path(made), tiny)


def note(row: Mapping[str, Any]) -> None:
    """One measure as a line of JSON, so that a table can be made again from a log."""
    print(json.dumps(dict(row)), flush=True)
