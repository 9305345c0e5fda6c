"""The metadata of a written file, after the modelspec standard (sai_model_spec 1.0.0) that the WebUI shows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone

from dreambooth.trainer.families import Identified
from dreambooth.trainer.weights import WeightFile

CARRIED = ("license", "author", "usage_hint", "tags", "resolution", "encoder_layer", "preprocessor")
DATED = "modelspec.date"
PREDICTION = "modelspec.prediction_type"


def modelspec(source: WeightFile, identified: Identified, *, title: str) -> dict[str, str]:
    """What is said of a file that was made from `source`: the standard's required keys, and what still holds
    of the base's own (its licence, its author, its resolution)."""
    carried = {
        key: source.metadata[key]
        for key in (f"modelspec.{name}" for name in CARRIED)
        if key in source.metadata
    }
    return {**required(identified, title=title), **carried}


def completed(metadata: Mapping[str, str], identified: Identified, *, title: str) -> dict[str, str]:
    """A file's own metadata, with the standard's required keys where they are missing (but for the date: a
    converted file is not a new one, and the same conversion gives the same bytes)."""
    added = {key: value for key, value in required(identified, title=title).items() if key != DATED}
    said = {key: added[key] for key in (PREDICTION,) if metadata.get(key, added[key]) != added[key]}
    return {
        **added,
        **metadata,
        **said,
    }  # a prediction type that was told is what the file now says of itself


def required(identified: Identified, *, title: str) -> dict[str, str]:
    """The keys that the standard requires, without the hash, which would need a second pass over the file."""
    family, is_v = identified.family, identified.prediction_type == "v_prediction"
    side = family.v_resolution if is_v else family.resolution
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": family.architecture_v if is_v else family.architecture,
        "modelspec.implementation": family.implementation,
        "modelspec.title": title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "v" if is_v else "epsilon",
        DATED: datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
