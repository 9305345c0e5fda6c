"""Why an 8-bit step failed and what helps: from the surroundings where they show it, else from what was said.

The texts are those of the reports that came of each cause; what bitsandbytes prints changed with its versions.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from dreambooth import pins
from dreambooth.trainer.eightbit.binaries import TITLES, Choice, binaries
from dreambooth.trainer.eightbit.probe import Step
from dreambooth.trainer.eightbit.surroundings import NAME, Surroundings
from dreambooth.trainer.pip_command import pip_install

# The first with libraries for Windows.
FIRST_FOR_WINDOWS: pins.Version = (0, 43)
# The last whose wheels have code for Maxwell (capability 5).
LAST_FOR_MAXWELL = "0.47.0"
OTHERWISE = "use optimizer: adafactor (the least memory) or adamw"


class Reason(NamedTuple):
    """A cause's name, what is wrong in words, and what to do ("": nothing but another optimizer)."""

    cause: str
    text: str
    remedy: str = ""


class _Sign(NamedTuple):
    """A text that tells a cause."""

    pattern: str
    cause: str
    text: str
    remedy: str


_SIGNS = (
    _Sign(r"No module named '?bitsandbytes", "missing", "bitsandbytes is not installed", "{install}"),
    _Sign(
        r"out of memory",
        "memory",
        "the card has no room for one small step",
        "close what else uses the card",
    ),
    _Sign(
        r"no kernel image is available|is not compatible with the current PyTorch",
        "architecture",
        "it has no code for this card{card}",
        "{reinstall}",
    ),
    _Sign(
        r"argument of type 'WindowsPath' is not iterable|libcudart\.so not found|CUDASetup|evaluate_cuda_setup|"
        r"cuda_setup[/\\]|CUDA[ _]SETUP:",
        "old_loader",
        "it looks for CUDA as the versions before 0.44 did, which knew nothing of this system",
        "{clean}{reinstall}",
    ),
    _Sign(
        r"(?:Configured|No compatible) \w+ binary|Required library version not found|Could not find the bitsandbytes",
        "no_binary",
        "it has no library that works with {runtime}",
        "{reinstall}",
    ),
    _Sign(
        r"or one of its dependencies|cannot open shared object file|WinError 126|Missing dependency",
        "dependencies",
        "its library{binary} does not find those of {runtime} that it is made for",
        "{reinstall}",
    ),
    _Sign(
        r"undefined symbol|function '\w+' not found|symbol not found",
        "mismatch",
        "its library{binary} does not fit the rest of it",
        "{reinstall}",
    ),
    _Sign(
        r"compiled without GPU support|str2optimizer\w+|CPU-only version|"
        r"native library functionality but it's not available|CUDA Setup failed",
        "no_binary",
        "none of its libraries could be loaded for {runtime}",
        "{reinstall}",
    ),
)


def reason_of(around: Surroundings, choice: Choice, step: Step) -> Reason:
    """Why a step failed. What can be seen in the folder comes before what was said."""
    for look in (_missing, _stale, _too_old, _in_the_way):
        if reason := look(around, choice):
            return reason
    for sign in _SIGNS:
        if re.search(sign.pattern, step.said, re.IGNORECASE):
            return Reason(sign.cause, *(_filled(text, around, choice) for text in (sign.text, sign.remedy)))
    if step.code is None:
        return Reason("timeout", "a step did not end")
    if step.died:
        return Reason("died", f"the process died (code {step.code})", _filled("{reinstall}", around, choice))
    if step.code == 0:
        return _wrong(step)
    return Reason("unknown", "a step failed")


def _wrong(step: Step) -> Reason:
    if not step.seen.get("eight_bit"):
        return Reason("not_8bit", "it keeps its state in more than 8 bits")
    return Reason("wrong_step", "it steps, and the step is wrong")


def _missing(around: Surroundings, choice: Choice) -> Reason | None:
    if around.installed:
        return None
    if around.platform == "darwin":
        return Reason("apple", "bitsandbytes has nothing for training on a Mac")
    return Reason("missing", "bitsandbytes is not installed", _filled("{install}", around, choice))


def _stale(around: Surroundings, choice: Choice) -> Reason | None:
    found = ", ".join(sorted(around.foreign) + sorted(around.aliases))
    if not found:
        return None
    text = f"files that are not its own lie in its folder {around.folder} ({found})"
    return Reason("stale_files", text, _filled("{clean}{reinstall}", around, choice))


def _too_old(around: Surroundings, choice: Choice) -> Reason | None:
    if around.platform != "win32" or not around.bitsandbytes or around.bitsandbytes >= FIRST_FOR_WINDOWS:
        return None
    text = f"bitsandbytes {around.version_text} has no libraries for Windows; 0.43 was the first that had"
    return Reason("too_old", text, _filled("{reinstall}", around, choice))


def _in_the_way(around: Surroundings, choice: Choice) -> Reason | None:
    texts = {
        "no_binary": "it has no library for this torch's {runtime}: it has {has}",
        "other_system": "its libraries are those of another operating system",
        "no_override": "it has no library for this torch's {runtime}, and this version cannot be told to take another",
        "card_too_old": "none of its libraries for this torch's {runtime} has code for a card as old as this one{card}",
        "card_too_new": "none of its libraries has code for a card as new as this one{card}",
    }
    if choice.trouble not in texts:
        return None
    text = _filled(texts[choice.trouble], around, choice)
    if choice.trouble == "card_too_old":
        return Reason(choice.trouble, text, _older(around))
    return Reason(choice.trouble, text, _filled("{reinstall}", around, choice))


def _older(around: Surroundings) -> str:
    """For a card that newer wheels left out; before Maxwell there is none."""
    if around.capability < (5, 0) or around.bitsandbytes <= pins.version(LAST_FOR_MAXWELL):
        return ""
    return pip_install("--force-reinstall", "--no-deps", f"{NAME}=={LAST_FOR_MAXWELL}")


def _filled(template: str, around: Surroundings, choice: Choice) -> str:
    runtime = _runtime(around)
    card = f" ({around.card}, capability {'.'.join(map(str, around.capability))})" if around.card else ""
    return template.format(
        install=pip_install("--no-deps", _requirement()),
        reinstall=_reinstall(around),
        clean=f"delete the folder {around.folder}, then " if _is_to_go(around) else "",
        runtime=runtime,
        binary=f" {choice.binary}" if choice.binary else "",
        has=_libraries(around),
        card=card,
    )


def _libraries(around: Surroundings) -> str:
    """`those for CUDA 11.8, 12.1 and ROCm 6.2`, or `none`."""
    found: dict[str, list[str]] = {}
    for binary in sorted(
        binaries(around.files, around.platform), key=lambda binary: (binary.kind, binary.version)
    ):
        versions = found.setdefault(TITLES[binary.kind], [])
        text = ".".join(map(str, binary.version))
        versions += [text] if text not in versions else []
    listed = " and ".join(f"{title} {', '.join(versions)}" for title, versions in found.items())
    return f"those for {listed}" if listed else "none"


def _is_to_go(around: Surroundings) -> bool:
    """pip leaves what it did not bring. The WebUI's folder stays as it is: what is installed here lies before it."""
    return bool(around.foreign or around.aliases) and around.own_folder


def _runtime(around: Surroundings) -> str:
    if around.hip:
        return f"ROCm {'.'.join(map(str, around.hip))}"
    return f"CUDA {'.'.join(map(str, around.cuda))}" if around.cuda else "the processor"


def _reinstall(around: Surroundings) -> str:
    """To the version that was tried beside this torch. Where that is there and whole already: to a newer one, if it is
    the newest that was tried, else nothing helps."""
    pinned = pins.set_for(torch.__version__).get(NAME, "")
    whole = not (around.foreign or around.aliases)
    if not whole or around.bitsandbytes < pins.version(pinned):
        return f"reinstall it: {pip_install('--force-reinstall', '--no-deps', _requirement())}"
    if pinned != pins.read(pins.EIGHT_BIT).get(NAME):  # a newer one needs a newer torch
        return ""
    return f"a newer version may help: {pip_install('--upgrade', '--no-deps', NAME)}"


def _requirement() -> str:
    """The version that was tried beside this torch, as pip takes it."""
    pinned = pins.set_for(torch.__version__).get(NAME)
    return f"{NAME}=={pinned}" if pinned else NAME
