import re

import pytest
from checkpoints import described

from dreambooth.trainer.families import FAMILIES, Identified
from dreambooth.trainer.models.modelspec import completed, modelspec, required

REQUIRED = {
    f"modelspec.{name}"
    for name in (
        "sai_model_spec",
        "architecture",
        "implementation",
        "title",
        "date",
        "resolution",
        "prediction_type",
    )
}


@pytest.mark.parametrize(
    ("family", "prediction_type", "architecture", "resolution", "said"),
    [
        ("sd1", "epsilon", "stable-diffusion-v1", "512x512", "epsilon"),
        ("sd1", "v_prediction", "stable-diffusion-v1", "512x512", "v"),
        ("sd2", "epsilon", "stable-diffusion-v2-512", "512x512", "epsilon"),
        ("sd2", "v_prediction", "stable-diffusion-v2-768-v", "768x768", "v"),
        ("sd2-inpaint", "epsilon", "stable-diffusion-v2-inpainting", "512x512", "epsilon"),
    ],
)
def test_the_standards_keys_are_all_there(family, prediction_type, architecture, resolution, said):
    found = required(Identified(FAMILIES[family], prediction_type, ""), title="mine")
    assert set(found) == REQUIRED and found["modelspec.title"] == "mine"
    assert found["modelspec.sai_model_spec"] == "1.0.0"
    assert found["modelspec.architecture"] == architecture
    assert (found["modelspec.resolution"], found["modelspec.prediction_type"]) == (resolution, said)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["modelspec.date"])


def test_only_what_still_holds_of_the_base_is_carried_over():
    base = described(
        {},
        {"modelspec.license": "CC0", "modelspec.hash_sha256": "0x1", "modelspec.title": "base", "ss_x": "1"},
    )
    found = modelspec(base, Identified(FAMILIES["sd1"], "epsilon", ""), title="mine")
    assert found["modelspec.license"] == "CC0" and found["modelspec.title"] == "mine"
    assert set(found) == REQUIRED | {"modelspec.license"}


def test_a_converted_files_own_metadata_wins_and_no_date_is_added():
    found = completed(
        {"modelspec.title": "theirs", "x": "y"}, Identified(FAMILIES["sd1"], "epsilon", ""), title="mine"
    )
    assert found["modelspec.title"] == "theirs" and found["x"] == "y"
    assert set(found) == (REQUIRED - {"modelspec.date"}) | {"x"}
