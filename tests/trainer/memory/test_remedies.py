"""What is left to give up is named as settings, and what is so already is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dreambooth.shared.settings import ModelSettings, ResultSettings, Settings, TrainingSettings
from dreambooth.trainer.memory.remedies import what_a_plan_leaves, what_a_run_leaves


def given(**values: Any) -> Settings:
    return Settings(training=replace(TrainingSettings(gradient_checkpointing="no"), **values))


def test_a_run_names_what_its_settings_leave() -> None:
    said = what_a_run_leaves(given(optimizer="adamw", train_text_encoder=False, weights_dtype="float32"))
    assert said == (
        "optimizer: adamw8bit, fused_backward: yes, weights_dtype: bfloat16, output_kind: lora, a smaller resolution"
    )
    small = replace(
        given(optimizer="adamw8bit", train_text_encoder=False),
        result=ResultSettings(output_kind="lora"),
        model=ModelSettings(base_precision="int8"),
    )
    assert what_a_run_leaves(small) == "a smaller resolution"
    assert what_a_run_leaves(replace(small, model=ModelSettings(base_precision="full"))).startswith(
        "base_precision"
    )


def test_a_plan_names_what_the_user_has_fixed() -> None:
    asked = given(optimizer="adamw", use_ema=True)
    said = what_a_plan_leaves(asked, asked)
    assert said == (
        "use optimizer, gradient_checkpointing: auto, train_text_encoder: no, use_ema: no, output_kind: lora, or a smaller "
        "resolution"
    )
    left = given(gradient_checkpointing="auto", train_text_encoder=False)
    chosen = replace(left, result=ResultSettings(output_kind="lora"))
    assert what_a_plan_leaves(chosen, left) == "use a smaller resolution"
