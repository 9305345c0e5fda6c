"""Which family a checkpoint belongs to, and what its UNet predicts.

The family is told by its text encoders' names and the first convolution's channels. Nothing in the tensors'
names tells epsilon from v: that is told, in this order, by the setting, a `.yaml` beside the file, metadata, the
marker tensors `v_pred` and `ztsnr`, and for SD2 by running the UNet. For SDXL those tensors come before metadata,
since it is by them that other programs use such a file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families import FAMILIES, PREDICTION_TYPES, Family, Identified, PredictionType
from dreambooth.trainer.families.kinds import CHECKPOINT, refusal
from dreambooth.trainer.families.ldm_yaml import Stated
from dreambooth.trainer.families.names import UNET_PREFIX, text_mark, text_prefix, text_tensors
from dreambooth.trainer.weights.base import WeightFile

FIRST_CONVOLUTION = UNET_PREFIX + "input_blocks.0.0.weight"
V_MARK, ZERO_SNR_MARK, SCHEDULE = "v_pred", "ztsnr", "alphas_cumprod"
METADATA_VALUES: dict[str, PredictionType] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
}
KOHYA_VERSIONS: dict[str, PredictionType] = {
    "sd_v1": "epsilon",
    "sd_v2": "epsilon",
    "sd_v1_v": "v_prediction",
    "sd_v2_v": "v_prediction",
}

MARKS = (V_MARK, ZERO_SNR_MARK)

Probe = Callable[[], PredictionType]
Told = tuple[PredictionType, str]


def family_of(weights: WeightFile) -> Family:
    """The family that a checkpoint's tensors belong to.

    Raises InputError if it is none that can be used; it names what the file is and says what to do.
    """
    first = weights.tensors.get(FIRST_CONVOLUTION)
    channels = first.shape[1] if first and len(first.shape) == 4 else None
    problem = refusal(weights, channels)
    if problem is not None:
        raise problem
    families = [family for family in FAMILIES.values() if family.in_channels == channels]
    for has in (_has_text_encoders, _has_some_of_each):
        for family in families:
            if has(family, weights.tensors):
                return family
    raise InputError(
        f"its UNet takes {channels} channels, as no known Stable Diffusion does",
        where=str(weights.path),
        remedy=CHECKPOINT,
    )


def _has_text_encoders(family: Family, names: Collection[str]) -> bool:
    return all(text_mark(part, text_prefix(part, names)) in names for part in family.text_encoders)


def _has_some_of_each(family: Family, names: Collection[str]) -> bool:
    """Of an incomplete file: it is told later, with what is missing."""
    return all(any(name in names for name in text_tensors(part, names)) for part in family.text_encoders)


def identify(
    weights: WeightFile,
    prediction_type: str = "auto",
    *,
    stated: Stated | None = None,
    probe: Probe | None = None,
) -> Identified:
    """Family and prediction type of a checkpoint, and how they were told.

    `prediction_type` other than "auto" wins over everything. `stated` is what stands beside the file; `probe`
    runs the UNet and is only asked for SD2, when nothing else tells. Raises InputError.
    """
    family = family_of(weights)
    if prediction_type not in ("auto", *PREDICTION_TYPES):
        raise InputError(
            f"{prediction_type!r} is no prediction type",
            where="prediction_type",
            remedy="use auto, epsilon or v_prediction",
        )
    found, told_by = (
        _from_setting(prediction_type)
        or _from_stated(stated)
        or (_from_marks(weights.tensors) if family.marked else None)
        or _from_metadata(weights)
        or _from_marks(weights.tensors)
        or _from_probe(family, probe)
        or _from_family(family)
    )
    return Identified(family, found, told_by, _zero_terminal_snr(weights, stated))


def told_by_file(weights: WeightFile, stated: Stated | None) -> Told | None:
    """The prediction type that a file states, and where; None if it says nothing (a UNet that is asked may still)."""
    return _from_stated(stated) or _from_metadata(weights) or _from_marks(weights.tensors)


def marks_of(identified: Identified) -> tuple[str, ...]:
    """The marker tensors by which other programs know what a checkpoint predicts, where its family has them."""
    if not identified.family.marked or identified.prediction_type == "epsilon":
        return ()
    return MARKS if identified.zero_terminal_snr else (V_MARK,)


def is_false_mark(name: str, identified: Identified) -> bool:
    """Whether a tensor is a marker that says something else of a checkpoint than what it is known to be."""
    return identified.family.marked and name in MARKS and name not in marks_of(identified)


def _from_setting(value: str) -> Told | None:
    for known in PREDICTION_TYPES:
        if value == known:
            return known, "the setting prediction_type says so"
    return None


def _from_stated(stated: Stated | None) -> Told | None:
    if stated is None or stated.prediction_type is None:
        return None
    return stated.prediction_type, stated.told_by


def _from_metadata(weights: WeightFile) -> Told | None:
    said = weights.metadata.get("modelspec.prediction_type", "").lower()
    if said in METADATA_VALUES:
        return METADATA_VALUES[said], "its metadata says so (modelspec.prediction_type)"
    version = weights.metadata.get("ss_base_model_version", "")
    if version in KOHYA_VERSIONS:
        return KOHYA_VERSIONS[version], f"its metadata says so (ss_base_model_version {version})"
    return None


def _from_marks(names: Collection[str]) -> Told | None:
    found = [mark for mark in (V_MARK, ZERO_SNR_MARK) if mark in names]
    # zero terminal SNR makes epsilon meaningless at the last timestep: such models predict v
    return ("v_prediction", f"it holds the marker tensor {found[0]}") if found else None


def _from_probe(family: Family, probe: Probe | None) -> Told | None:
    if not family.probed or probe is None:
        return None
    found = probe()
    what = "follows the noise" if found == "epsilon" else "does not follow the noise"
    return found, f"nothing in it says, but its UNet's output at the last timestep {what}"


def _from_family(family: Family) -> Told:
    return "epsilon", f"nothing in it says otherwise, and {family.title} predicts noise"


def _zero_terminal_snr(weights: WeightFile, stated: Stated | None) -> bool:
    if ZERO_SNR_MARK in weights.tensors or (stated is not None and stated.zero_terminal_snr):
        return True
    if weights.metadata.get("ss_zero_terminal_snr", "").lower() == "true":
        return True
    schedule = weights.tensors.get(SCHEDULE)
    if schedule is None or schedule.shape == () or 0 in schedule.shape:
        return False
    return float(weights.read(SCHEDULE).flatten()[-1]) < 1e-7
