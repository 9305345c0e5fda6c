"""What this machine can do, each thing tried rather than assumed, and what to do about what it cannot."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from dreambooth import allocator, environment, pins, torchbuild
from dreambooth.shared.errors import DreamboothError
from dreambooth.shared.paths import default_runs_dir
from dreambooth.trainer import arithmetic, eightbit
from dreambooth.trainer.models import attention
from dreambooth.trainer.optim.optimizer_class import install_command, is_installed
from dreambooth.trainer.optim.optimizer_table import TABLE

GOOD, NOTE, BAD = "ok", "note", "bad"
_GIB = 1024**3
# A run on SD1.5 with its states and exports; below this a run is likely to end for want of room.
_DISK_GIB = 10.0
_MEMORY_GIB = 8.0
_KERNELS = ("flash", "mem_efficient", "cudnn", "math")


class Finding(NamedTuple):
    """One thing that was looked at: `state` is "ok", "note" (fine, worth knowing) or "bad"; `remedy` what to do."""

    topic: str
    state: str
    text: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Looks at everything that a training needs; takes some seconds, since what can be tried is tried."""
    return [finding for topic, check in CHECKS for finding in _look(topic, check)]


def render(findings: Iterable[Finding]) -> str:
    """The findings as lines to read, the remedy under what needs one."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<4}  {finding.topic:<13} {finding.text}")
        if finding.remedy:
            lines.append(f"{'':<20}What to do: {finding.remedy}")
    return "\n".join(lines)


def _look(topic: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """A check that breaks is a finding, not the examination's end: broken libraries are what it is for."""
    try:
        return check()
    except (ImportError, AttributeError, OSError, RuntimeError, ValueError, DreamboothError) as error:
        text = (
            f"cannot be examined: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
        return [Finding(topic, BAD, text, _ANEW)]


_ANEW = f"delete the folder {environment.ENVIRONMENTS} and repeat: the environment is made anew"


def _environment() -> list[Finding]:
    python = f"Python {sys.version.split()[0]}, {sys.executable}"
    found = environment.whole(Path(sys.prefix))
    if not found:
        return [Finding("environment", GOOD, f"{python}, used as it is")]
    made = f"{python}, made {found.stamp['made']}"
    notes = [Finding("environment", NOTE, str(note)) for note in found.stamp["notes"]]
    return [Finding("environment", GOOD, made), *notes]


def _libraries() -> list[Finding]:
    missing = environment.lacking()
    names = ("torch", "diffusers", "transformers", "accelerate", "numpy", "pillow", "omegaconf")
    versions = ", ".join(f"{name} {_version(name)}" for name in names)
    if missing:
        remedy = f"{_ANEW}; or set {environment.PYTHON_VARIABLE} to another Python"
        return [Finding("libraries", BAD, f"{versions}; not fitting: {', '.join(missing)}", remedy)]
    return [Finding("libraries", GOOD, versions)]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _torch() -> list[Finding]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    found = [Finding("torch", GOOD, f"{torch.__version__}, {build}, {threads}")]
    listed = torchbuild.cards()
    if torch.cuda.is_available():
        cards = [_card(index, listed) for index in range(torch.cuda.device_count())]
        return [*found, *cards, Finding("card memory", GOOD, allocator.said(os.environ))]
    if not listed:
        return [*found, Finding("card", NOTE, "there is no NVIDIA card: training runs on the processor")]
    names = ", ".join(f"{card.name} (driver {_dotted(card.driver)})" for card in listed)
    if torch.version.cuda:
        remedy = "update the NVIDIA driver; see that CUDA_VISIBLE_DEVICES does not hide the card"
    else:
        tag = torchbuild.cuda_tag(listed)
        remedy = f"set {environment.TORCH_VARIABLE}={tag} and repeat: an environment with that torch is made"
    return [*found, Finding("card", BAD, f"{names} is there and torch cannot use it", remedy)]


def _dotted(version: pins.Version) -> str:
    return ".".join(map(str, version))


def _card(index: int, listed: list[torchbuild.Card]) -> Finding:
    import torch

    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    free, total = (value / _GIB for value in torch.cuda.mem_get_info(index))
    driver = next((f", driver {_dotted(card.driver)}" for card in listed if card.name == name), "")
    bf16 = "bf16" if capability >= (8, 0) else "no bf16: use mixed_precision: fp16"
    text = f"{index}: {name}, {free:.1f} of {total:.1f} GiB free, capability {_dotted(capability)}, {bf16}{driver}"
    supported = torch.cuda.get_arch_list()
    if supported and not any(
        arch.startswith(("sm_", "compute_")) and _reaches(arch, capability) for arch in supported
    ):
        remedy = (
            f"set {environment.TORCH_VARIABLE} to a build for it (cu126 for cards before 2018) and repeat"
        )
        return Finding("card", BAD, f"{text}; this torch has no code for it ({', '.join(supported)})", remedy)
    return Finding("card", GOOD, text)


def _reaches(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code for `arch` (sm_86, compute_90 …) runs on the card: the same major, a minor not above; or PTX."""
    kind, _, number = arch.partition("_")
    digits = "".join(character for character in number if character.isdigit())
    built = (int(digits[:-1]), int(digits[-1]))
    return built <= capability and (kind == "compute" or built[0] == capability[0])


def _attention() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        text = "sdpa, torch's own kernels for the processor"
        return [Finding("attention", GOOD, text), *_xformers()]
    working = [name for name in _KERNELS if _sdpa_works(name)]
    text = f"sdpa works with its kernels {', '.join(working)}"
    if set(working) & {"flash", "mem_efficient", "cudnn"}:
        return [Finding("attention", GOOD, text), *_xformers()]
    return [Finding("attention", BAD, text, "expect several times the memory; update torch"), *_xformers()]


def _sdpa_works(kernel: str) -> bool:
    """Whether this kernel alone can do fp16 attention as SD1's UNet asks it (8 heads of 40), forward and backward."""
    import warnings

    import torch

    backends = torch.backends.cuda
    known = [name for name in _KERNELS if hasattr(backends, f"enable_{name}_sdp")]
    before = {name: getattr(backends, f"{name}_sdp_enabled")() for name in known}
    query = torch.randn(1, 8, 64, 40, device="cuda", dtype=torch.float16, requires_grad=True)
    try:
        for name in known:
            getattr(backends, f"enable_{name}_sdp")(name == kernel)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a kernel that cannot says why, once for each of its conditions
            result = torch.nn.functional.scaled_dot_product_attention(query, query, query)
        torch.autograd.backward(result.sum())
    except RuntimeError:
        return False
    finally:
        for name, on in before.items():
            getattr(backends, f"enable_{name}_sdp")(on)
    return kernel in known


def _xformers() -> list[Finding]:
    import torch

    if not attention.is_installed():
        return [Finding("attention", NOTE, "xformers is not installed; attention: auto takes sdpa")]
    if not torch.cuda.is_available():
        return [Finding("attention", NOTE, f"xformers {_version('xformers')} needs a card")]
    fault = attention.xformers_fault()
    if not fault:
        return [Finding("attention", GOOD, f"xformers {_version('xformers')} works")]
    text = f"xformers {_version('xformers')} does not work: {fault}"
    return [
        Finding("attention", NOTE, text, "use attention: sdpa, or the xformers that was built for this torch")
    ]


def _arithmetic() -> list[Finding]:
    """What of the device's faster arithmetic a run uses by default."""
    from dreambooth.trainer.machine import PRECISIONS, auto_precision, choose_device

    device = choose_device()
    precision = auto_precision(device)
    mixed = "float32" if precision == "no" else f"{precision} mixed precision"
    used = [mixed, *arithmetic.summary(device, PRECISIONS[precision])]
    return [Finding("arithmetic", GOOD, "; ".join(used))]


def _memory() -> list[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB are free"
    if memory.available / _GIB < _MEMORY_GIB:
        remedy = f"SD1 and SD2 need about {_MEMORY_GIB:.0f} GiB: close what else runs"
        return [Finding("memory", NOTE, text, remedy)]
    return [Finding("memory", GOOD, text)]


def _disk() -> list[Finding]:
    runs = default_runs_dir()
    there = next(folder for folder in (runs, *runs.parents) if folder.exists())
    free = shutil.disk_usage(there).free / _GIB
    text = f"{free:.1f} GiB are free for runs, {runs}"
    if not os.access(there, os.W_OK):
        return [Finding("disk", BAD, f"{there} cannot be written", "name another folder: runs_dir")]
    if free < _DISK_GIB:
        return [Finding("disk", NOTE, text, "make room, or name a folder on another disk: runs_dir")]
    return [Finding("disk", GOOD, text)]


def _eight_bit() -> list[Finding]:
    verdict = eightbit.examine()
    return [Finding("8-bit AdamW", GOOD if verdict.works else NOTE, verdict.text, verdict.remedy)]


def _optimizers() -> list[Finding]:
    rows = TABLE.values()
    there = [row.name for row in rows if row.library is None or is_installed(row.library.name)]
    found = [Finding("optimizers", GOOD, ", ".join(there))]
    missing = dict.fromkeys(row.library for row in rows if row.library and row.name not in there)
    for library in missing:
        names = ", ".join(row.name for row in rows if row.library == library)
        text = f"{library.name} is not installed, for {names}"
        found.append(Finding("optimizers", NOTE, text, install_command(library)))
    return found


def _accelerate() -> list[Finding]:
    cache = (
        os.environ.get("HF_HOME")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    config = Path(cache) / "accelerate" / "default_config.yaml"
    if not config.exists():
        text = "no configuration, so one process; `accelerate config` makes one for several cards"
        return [Finding("accelerate", GOOD, text)]
    pairs = (line.split(":", 1) for line in config.read_text(encoding="utf-8").splitlines() if ":" in line)
    settings = {name.strip(): value.strip() for name, value in pairs}
    told = ", ".join(
        f"{name} {settings[name]}" for name in ("distributed_type", "num_processes") if name in settings
    )
    return [Finding("accelerate", GOOD, f"`accelerate launch` uses {config}: {told or 'nothing special'}")]


def _vocabulary() -> list[Finding]:
    from dreambooth.trainer.models.tokenizer import Tokenizer

    ids = Tokenizer()("photo of a sks dog")
    if ids != [1125, 539, 320, 48136, 1929]:
        return [Finding("vocabulary", BAD, f"CLIP's vocabulary reads a known prompt as {ids}", _ANEW)]
    return [Finding("vocabulary", GOOD, "CLIP's vocabulary is there and reads a known prompt as it should")]


CHECKS: tuple[tuple[str, Callable[[], list[Finding]]], ...] = (
    ("environment", _environment),
    ("libraries", _libraries),
    ("torch", _torch),
    ("attention", _attention),
    ("arithmetic", _arithmetic),
    ("memory", _memory),
    ("disk", _disk),
    ("8-bit AdamW", _eight_bit),
    ("optimizers", _optimizers),
    ("accelerate", _accelerate),
    ("vocabulary", _vocabulary),
)
