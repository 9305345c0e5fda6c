"""The small checkpoints that anybody can make are of the families that their names say, and can be trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from small_bases import write_bases

from dreambooth.trainer.models.inspection import inspect

FAMILIES = {
    "small-sdxl": ("sdxl", "epsilon"),
    "small-sdxl-v": ("sdxl", "v_prediction"),
    "small-sdxl-zsnr": ("sdxl", "v_prediction"),
    "small-sd1-inpainting": ("sd1-inpaint", "epsilon"),
    "small-sd2": ("sd2", None),  # random weights predict neither
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    return {path.stem: path for path in write_bases(tmp_path_factory.mktemp("bases") / "new")}


def test_each_is_what_its_name_says(bases) -> None:
    assert bases.keys() == FAMILIES.keys()
    for name, (family, prediction_type) in FAMILIES.items():
        found = inspect(bases[name], hashed=False)
        assert found.identified is not None and found.identified.family.name == family
        assert prediction_type in (None, found.identified.prediction_type)
        assert found.identified.zero_terminal_snr is (name == "small-sdxl-zsnr") and not found.missing


@pytest.mark.parametrize("name", ["small-sd2", "small-sdxl-zsnr"])
def test_they_can_be_trained(name, bases, tmp_path) -> None:
    values = {"model": str(bases[name]), "output_kind": "lora", "rank": 2, "max_train_steps": 1}
    assert tiny.dreambooth("train", tiny.config(tmp_path, prior_loss_weight=0, **values)) == 0
    assert (tmp_path / "out" / "sks.safetensors").is_file()
