"""Makes bitsandbytes usable on this machine, or says exactly why it is not: everything about 8-bit optimizers.

`prepare` does before its import what it needs; `examine` proves an optimizer by a real step and gives the verdict that
the plan, `doctor` and the page show. What they look at is in surroundings.py, which library is right in binaries.py,
Windows' folders in folders.py, the step in probe.py, causes and remedies in reasons.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dreambooth.trainer.eightbit.binaries import Choice, choose
from dreambooth.trainer.eightbit.folders import add_dll_folders, dll_folders
from dreambooth.trainer.eightbit.probe import Step, take_step
from dreambooth.trainer.eightbit.reasons import OTHERWISE, reason_of
from dreambooth.trainer.eightbit.surroundings import NAME, Surroundings, look_around

ADAMW = "bitsandbytes.optim.AdamW8bit"


@dataclass(frozen=True)
class Verdict:
    """Whether an 8-bit optimizer works, what was seen, and what to do if it does not.

    `cause` names the reason for programs ("" if it works), `binary` the library that was chosen and `changes` what the
    environment's variables had to become for it (None: removed).
    """

    works: bool
    text: str
    remedy: str = ""
    cause: str = ""
    version: str = ""
    device: str = ""
    binary: str = ""
    changes: Mapping[str, str | None] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "changes": dict(self.changes)}


def prepare(environ: MutableMapping[str, str] | None = None) -> tuple[Surroundings, Choice]:
    """Names CUDA's folders to Windows and has bitsandbytes load the right library, before it is imported.

    Variables are changed only where it would take the wrong library, or none, by itself. To repeat it changes nothing.
    """
    environ = os.environ if environ is None else environ
    around = look_around()
    add_dll_folders(dll_folders(Path(torch.__file__).parent, around.cuda, environ))
    choice = choose(around, environ)
    for name, value in choice.changes.items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value
    return around, choice


def examine(target: str = ADAMW, *, device: str = "auto") -> Verdict:
    """Takes one real step of the class `target` on `device` (`auto`: the card if there is one) in a process of its own.

    What `prepare` changes, it changes for this process too: what worked there works here.
    """
    around, choice = prepare()
    if target.startswith(NAME) and not around.installed:
        return judge(around, choice, Step(1), target)
    return judge(around, choice, take_step(target, device), target)


def judge(around: Surroundings, choice: Choice, step: Step, target: str = ADAMW) -> Verdict:
    """The verdict on a step. A pure function."""
    title = target.partition(".")[0]
    if step.works:
        name = f"{title} {step.seen['version']} on {step.seen['device']}"
        how = f" ({choice.why})" if choice.why and around.cuda + around.hip and title == NAME else ""
        return Verdict(
            True,
            f"a real 8-bit step works, {name}{how}",
            version=str(step.seen["version"]),
            device=str(step.seen["device"]),
            binary=choice.binary,
            changes=choice.changes,
        )
    if title != NAME:
        last = _last_line(step.said)
        return Verdict(False, f"{title}'s 8-bit step failed: {last}", OTHERWISE, cause="unknown")
    reason = reason_of(around, choice, step)
    said = _last_line(step.said)
    quoted = f": {said}" if said and reason.cause not in ("missing", "timeout") else ""
    name = f"{title} {around.version_text}".strip()
    return Verdict(
        False,
        f"an 8-bit step of {name} failed, since {reason.text}{quoted}{_directml(around)}",
        f"{reason.remedy}; or {OTHERWISE}" if reason.remedy else OTHERWISE,
        cause=reason.cause,
        version=around.version_text,
        binary=choice.binary,
        changes=choice.changes,
    )


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.partition(":")[0]]
    return (errors or lines or [""])[-1]


def _directml(around: Surroundings) -> str:
    return "; it has nothing for DirectML" if around.directml else ""
