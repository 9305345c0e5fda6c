"""Every family with every kind of adapter: trained, stopped, gone on with to the same bits, and written."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import write
from ldm_layout import TINY_SD1, TINY_SD2, TINY_SDXL, tensors
from safetensors.torch import load_file
from tiny import config, dreambooth
from watching import at_event, is_finite, metadata, run_in, same_tensors

from dreambooth.trainer import control, run
from dreambooth.trainer.adapters.kinds import KINDS

WHOLE = {"vocabulary": 49408, "vae_multiples": (1, 1, 1, 1)}
LAYOUTS = {
    "sd1": replace(TINY_SD1, **WHOLE),
    "sd1-inpaint": replace(TINY_SD1, **WHOLE, in_channels=9),
    "sd2": replace(TINY_SD2, **WHOLE),
    "sd2-inpaint": replace(TINY_SD2, **WHOLE, in_channels=9),
    "sdxl": replace(TINY_SDXL, **WHOLE),
}
VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", LAYOUTS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(family, kind, bases, tmp_path, monkeypatch) -> None:
    model = bases / f"{family}.safetensors"
    if not model.exists():
        write(model, tensors(LAYOUTS[family]))
    values = {
        "model": str(model), "prediction_type": "epsilon", "output_kind": KINDS[kind].result, "adapter": kind, "rank": 4,
        "target_blocks": "all", "prior": "base_prediction", "lora_dropout": 0.1, "checkpointing_steps": 1,
    }  # fmt: skip
    results = []
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        results.append(tmp_path / name / "out" / "sks.safetensors")
    assert dreambooth("train", config(tmp_path / "whole", **values)) == 0
    with monkeypatch.context() as patched:
        patched.setattr(run, "Inbox", functools.partial(control.Inbox, every=0.0))
        at_event(patched, "checkpoint", lambda found: found.order("stop"), step=1)
        assert dreambooth("train", config(tmp_path / "parts", **values)) == 130
    assert dreambooth("resume", run_in(tmp_path / "parts").path) == 0
    assert same_tensors(*results) and is_finite(results[0])
    said = metadata(results[0])
    assert said["ss_base_model_version"] == VERSIONS[family.partition("-")[0]]
    assert said["ss_v2"] == str(family.startswith("sd2"))
    assert {name.split("_")[0] for name in load_file(results[0])} == {"lora"}
