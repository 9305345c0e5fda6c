"""What a run's model was when it began, by content: a run goes on with that one, wherever its file lies by now.

Of each tensor that is used a few kilobytes are looked at, which takes a blink where the whole file takes seconds: two
trainings of the same model, or two merges, differ in all of them. What a file only says of itself is no part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dreambooth.shared.errors import InputError
from dreambooth.shared.paths import write_json
from dreambooth.shared.settings import Settings
from dreambooth.trainer.families import FAMILIES
from dreambooth.trainer.models.loading import LoadedModel
from dreambooth.trainer.models.sources import open_vae
from dreambooth.trainer.weights.base import WeightFile, bytes_of

FILE = "base.json"
_FORMAT = 1
_SAMPLE = 4096
_REMEDY = "put the model file and config.yaml back as they were when the run began, or start a new run"


def known_by(settings: Settings, base: LoadedModel) -> dict[str, Any]:
    """By what a run's model and its other VAE (None: it has none) are known again, as plain JSON values."""
    bound = {binding.original for rows in base.description.bindings.values() for binding in rows}
    vae = open_vae(settings.model.vae) if settings.model.vae else None
    return {
        "format": _FORMAT,
        "family": base.identified.family.name,
        "prediction_type": base.identified.prediction_type,
        "zero_terminal_snr": base.identified.zero_terminal_snr,
        "weights": content_hash(base.source, bound),
        "vae": None if vae is None else content_hash(vae, vae.tensors),
    }


def keep_base(run: Path, known: dict[str, Any]) -> None:
    """Notes in a run's folder what it begins with."""
    write_json(run / FILE, known)


def check_base(run: Path, settings: Settings, base: LoadedModel) -> None:
    """Raises InputError if the model, or the other VAE, is not the one that the run began with. A run that is older than
    this check has nothing to be compared with, and goes on."""
    try:
        began = json.loads((run / FILE).read_bytes())
    except (OSError, ValueError):
        return
    if not isinstance(began, dict) or began.get("format") != _FORMAT:
        return
    now = known_by(settings, base)
    if problem := _difference(began, now):
        raise InputError(
            f"this is not the model that the run began with: {problem}",
            where=settings.model.model,
            setting="model",
            remedy=_REMEDY,
        )
    if began.get("vae") != now["vae"]:
        raise InputError(
            "this is not the VAE that the run began with"
            if began.get("vae") and now["vae"]
            else "the run began with another VAE than the model's own"
            if began.get("vae")
            else "the run began with the model's own VAE",
            where=settings.model.vae or "vae",
            setting="vae",
            remedy=_REMEDY,
        )


def _difference(began: dict[str, Any], now: dict[str, Any]) -> str:
    """What tells two models apart; empty if nothing does."""
    if began.get("family") != now["family"]:
        was = FAMILIES.get(str(began.get("family")))
        return f"it is {FAMILIES[now['family']].title}, and that was {was.title if was else 'another'}"
    if began.get("weights") != now["weights"]:
        return "its weights are not the same"
    if began.get("prediction_type") != now["prediction_type"]:
        return f"it predicts {now['prediction_type']}, and that predicted {began.get('prediction_type')}"
    if began.get("zero_terminal_snr") != now["zero_terminal_snr"]:
        return "only one of them has a noise schedule with zero terminal SNR"
    return ""


def content_hash(source: WeightFile, names: Iterable[str]) -> str:
    """A hash of these tensors, in whatever order and form of file they lie: of name, dtype, shape, and the bytes in the
    middle of each."""
    wanted = set(names)
    # read as they lie in the file, so that a disk never turns back
    found = {name: _sample(source, name) for name in source.tensors if name in wanted}
    digest = hashlib.sha256()
    for name in sorted(found):
        info = source.tensors[name]
        digest.update(repr((name, str(info.dtype), info.shape)).encode())
        digest.update(found[name])
    return digest.hexdigest()


def _sample(source: WeightFile, name: str) -> bytes:
    size = source.tensors[name].nbytes
    length = min(size, _SAMPLE)
    start = (size - length) // 2
    read = source.raw(name)
    if read is None:
        return bytes(bytes_of(source.read(name))[start : start + length])
    memory = bytearray(length)
    read(start, memoryview(memory))
    return bytes(memory)
