"""Blocks that are left out of a count change nothing of what is counted, and the model is whole again after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_sdxl
import torch
from checkpoints import write
from ldm_layout import tensors

from dreambooth.shared.config import load_settings
from dreambooth.trainer.machine import DTYPES, Machine
from dreambooth.trainer.memory import passes
from dreambooth.trainer.memory.models import in_training, sharing
from dreambooth.trainer.memory.repeats import shortened
from dreambooth.trainer.planning.plan import Plan, make_plan

ROW = 6  # transformer blocks after each other


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = replace(tiny_sdxl.LAYOUT, depths=(1, 2, ROW))
    return write(tmp_path_factory.mktemp("deep") / "deep.safetensors", tensors(layout, dtype=torch.float16))


def planned(model: Path, folder: Path, precision: str = "bf16", **values: Any) -> Plan:
    plan = make_plan(load_settings(tiny.config(folder, model=str(model), optimizer="adamw", **values)))
    return replace(plan, machine=Machine(torch.device("cuda"), "a card", precision, "sdpa", precision))


def dtypes_of(plan: Plan) -> dict[str, torch.dtype]:
    """As a run loads them."""
    narrow = plan.machine.compute_dtype
    weights = DTYPES[plan.settings.training.weights_dtype]
    whole = plan.adapter is None
    return {name: weights if whole and name in plan.trained else narrow for name in plan.base.configs}


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_checkpointing": "no"},
        {"gradient_checkpointing": "yes"},
        {"gradient_checkpointing": "4"},
        {"gradient_checkpointing": "13"},
        {"gradient_checkpointing": "yes", "train_text_encoder": False},
        {"gradient_checkpointing": "yes", "weights_dtype": "bfloat16", "mixed_precision": "bf16"},
        {"gradient_checkpointing": "no", "weights_dtype": "bfloat16", "mixed_precision": "bf16"},
        {"gradient_checkpointing": "no", "output_kind": "lora"},
        {"gradient_checkpointing": "yes", "output_kind": "lora", "train_text_encoder": False},
        {"gradient_checkpointing": "yes", "output_kind": "lora", "base_precision": "int8"},
        {"gradient_checkpointing": "9", "output_kind": "lycoris", "adapter": "loha"},
        {"gradient_checkpointing": "no", "precision": "no"},
    ],
    ids=lambda settings: ", ".join(f"{name} {value}" for name, value in settings.items()),
)
def test_a_count_without_blocks_that_repeat_says_what_the_whole_one_says(
    settings: dict[str, Any], deep: Path, tmp_path: Path
) -> None:
    plan = planned(deep, tmp_path, **settings)
    with sharing():
        short, long = (
            passes.training_step(plan, dtypes_of(plan), (128, 128), every_block=whole)
            for whole in (False, True)
        )
    assert short == long


def test_what_is_left_out_is_there_again(deep: Path, tmp_path: Path) -> None:
    plan = planned(deep, tmp_path)
    denoiser = in_training(plan, dtypes_of(plan))
    before = dict(denoiser.named_modules())
    with shortened(denoiser, set()) as rows:
        assert [row.more for row in rows] == [ROW - 3] * len(rows) and len(rows) >= 2
        assert len(dict(denoiser.named_modules())) < len(before)
    assert dict(denoiser.named_modules()) == before


def test_blocks_of_other_forms_are_not_taken_for_each_other(deep: Path, tmp_path: Path) -> None:
    plan = planned(deep, tmp_path)
    denoiser = in_training(plan, dtypes_of(plan))
    for row in (module for module in denoiser.modules() if isinstance(module, torch.nn.ModuleList)):
        if len(row) == ROW:
            row[2].requires_grad_(False)
    with shortened(denoiser, set()) as rows:
        assert rows == []
