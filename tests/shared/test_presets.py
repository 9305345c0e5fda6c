from __future__ import annotations

import importlib.util
import json

import pytest

from dreambooth.shared.config import setting_fields, settings_from
from dreambooth.shared.presets import GRADES, PRESETS, RARE_WORDS, Preset, as_json
from dreambooth.shared.settings import PriorSettings

each = pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)


@each
def test_a_preset_is_a_valid_config(preset: Preset) -> None:
    settings = settings_from(preset.settings, where=preset.name)
    for name, value in preset.settings.items():
        group, _ = setting_fields()[name]
        assert getattr(getattr(settings, group), name) == value


@each
def test_a_preset_fills_in_steps_rate_text_encoder_and_prior(preset: Preset) -> None:
    assert {"max_train_steps", "learning_rate", "train_text_encoder", "prior_loss_weight"} <= set(
        preset.settings
    )


@each
def test_every_variant_of_a_preset_is_a_valid_config_of_its_kinds(preset: Preset) -> None:
    for variant in preset.variants:
        for kind in variant.kinds:
            values = {**preset.settings, **variant.settings, "output_kind": kind}
            settings = settings_from(values, where=preset.name)
            assert settings.training.learning_rate == variant.settings["learning_rate"]
            assert variant.grade in GRADES and variant.source.url.startswith("https://")


@each
def test_adapters_and_sdxl_have_rates_of_their_own(preset: Preset) -> None:
    kinds = {(variant.family, kind) for variant in preset.variants for kind in variant.kinds}
    assert {("sdxl", "checkpoint"), ("", "lora")} <= kinds


def every_situation() -> list[tuple[str, dict]]:
    """Each preset's settings for each family and kind of result, as the page fills them in."""
    found = []
    for preset in PRESETS:
        for family in ("sd1", "sd2", "sdxl"):
            for kind in ("checkpoint", "diffusers", "lora", "lycoris"):
                fitting = (
                    one for one in preset.variants if family.startswith(one.family) and kind in one.kinds
                )
                variant = next(fitting, None)
                found.append(
                    (
                        f"{preset.name}, {family}, {kind}",
                        {**preset.settings, **(variant.settings if variant else {})},
                    )
                )
    return found


def test_class_images_are_filled_in_only_where_there_is_a_prior() -> None:
    for where, values in every_situation():
        if not values["prior_loss_weight"]:
            usual = PriorSettings().num_class_images
            assert values.get("num_class_images", usual) == usual, where


def test_a_quick_try_is_the_quickest_of_all_with_every_model_and_result_and_leaves_the_text_encoder_alone() -> (
    None
):
    situations = dict(every_situation())
    for where, quick in situations.items():
        if where.startswith("quick"):
            others = [
                values for name, values in situations.items() if name.split(",")[1:] == where.split(",")[1:]
            ]
            assert not quick["train_text_encoder"], where
            assert quick["max_train_steps"] == min(values["max_train_steps"] for values in others), where
            assert quick["learning_rate"] == max(values["learning_rate"] for values in others), where


@each
def test_a_preset_shows_what_it_rests_on(preset: Preset) -> None:
    assert preset.grade in GRADES and preset.evidence and preset.source.url.startswith("https://")


@each
def test_a_presets_help_speaks_of_making_class_images_only_where_some_are_made(preset: Preset) -> None:
    assert bool(preset.help_with_prior) == (preset.settings["prior_loss_weight"] > 0)
    assert "lass images" not in preset.help.replace("no class images", "")


@each
def test_a_presets_prompts_differ_and_have_a_class_where_there_is_a_prior(preset: Preset) -> None:
    instance = preset.instance_prompt.format(word=RARE_WORDS[0], kind=preset.kinds[0])
    class_ = preset.class_prompt.format(kind=preset.kinds[0])
    assert RARE_WORDS[0] in instance.split() and instance != class_
    assert RARE_WORDS[0] not in class_
    assert bool(class_) == (preset.settings["prior_loss_weight"] > 0)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "open_clip"))),
    reason="CLIP's vocabulary is beside the trainer's libraries",
)
@pytest.mark.parametrize("word", RARE_WORDS)
def test_a_rare_word_is_one_token(word: str) -> None:
    from dreambooth.trainer.models.tokenizer import default_tokenizer

    assert default_tokenizer().count(word) == 1


def test_names_are_unique_and_the_presets_plain_json() -> None:
    assert len({preset.name for preset in PRESETS}) == len(PRESETS)
    assert [entry["name"] for entry in json.loads(json.dumps(as_json()))] == [p.name for p in PRESETS]
