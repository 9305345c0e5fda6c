"""The old extension's settings: every one of its names is taken over or named, none is lost in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dreambooth.shared.config import load_settings, to_mapping
from dreambooth.shared.db_config import from_db_config, is_db_config
from dreambooth.shared.errors import InputError

CONCEPT = {
    "instance_prompt": "photo of sks dog", "class_prompt": "photo of dog", "instance_data_dir": "photos",
    "class_data_dir": "", "num_class_images_per": 5, "is_valid": True, "n_save_sample": 1, "sample_seed": -1,
}  # fmt: skip
# all 106 names with their defaults
STRINGS = dict.fromkeys(
    [
        "concepts_path", "custom_model_name", "lora_model_name", "model_dir", "model_name", "model_path",
        "pretrained_model_name_or_path", "pretrained_vae_name_or_path", "sanity_prompt",
        "shared_diffusers_path", "snapshot", "src",
    ],
    "",
) | {
    "attention": "xformers", "lr_scheduler": "constant_with_warmup", "mixed_precision": "fp16", "model_type": "v1x",
    "noise_scheduler": "DDPM", "optimizer": "8bit AdamW", "scheduler": "ddim",
}  # fmt: skip
ON = dict.fromkeys(
    [
        "cache_latents",
        "full_mixed_precision",
        "gradient_checkpointing",
        "gradient_set_to_none",
        "input_pertubation",
        "pad_tokens",
        "save_ckpt_after",
        "save_ckpt_during",
        "save_ema",
        "save_lora_after",
        "save_lora_during",
        "save_lora_for_extra_net",
        "save_safetensors",
        "shuffle_tags",
        "split_loss",
        "train_unet",
        "train_unfrozen",
        "use_ema",
    ],
    True,
)
OFF = dict.fromkeys(
    [
        "deterministic",
        "disable_class_matching",
        "disable_logging",
        "ema_predict",
        "freeze_clip_normalization",
        "half_model",
        "has_ema",
        "hflip",
        "infer_ema",
        "lora_use_buggy_requires_grad",
        "use_dream",
        "freeze_spectral_norm",
        "prior_loss_scale",
        "save_ckpt_cancel",
        "save_lora_cancel",
        "save_state_after",
        "save_state_cancel",
        "save_state_during",
        "strict_tokens",
        "dynamic_img_norm",
        "train_imagic",
        "use_concepts",
        "use_lora",
        "use_lora_extended",
        "use_subdir",
        "v2",
    ],
    False,
)
NUMBERS = {
    "clip_skip": 1, "epoch": 0, "epoch_pause_frequency": 0, "epoch_pause_time": 0, "gradient_accumulation_steps": 1,
    "graph_smoothing": 50, "initial_revision": 0, "lifetime_revision": 0, "lora_txt_rank": 4, "lora_unet_rank": 4,
    "lr_cycles": 1, "lr_warmup_steps": 500, "max_token_length": 75, "num_train_epochs": 100, "prior_loss_target": 100,
    "resolution": 512, "revision": 0, "sample_batch_size": 1, "sanity_seed": 420420, "save_embedding_every": 25,
    "save_preview_every": 5, "train_batch_size": 1, "weight_decay": 0.01, "learning_rate": 2e-6,
    "learning_rate_min": 1e-6, "lora_learning_rate": 1e-4, "lora_txt_learning_rate": 5e-5, "txt_learning_rate": 5e-6,
    "lora_weight": 0.8, "lr_factor": 0.5, "lr_power": 1.0, "lr_scale_pos": 0.5, "min_snr_gamma": 0.0,
    "dream_detail_preservation": 0.5, "offset_noise": 0.0, "prior_loss_weight": 0.75, "prior_loss_weight_min": 0.1,
    "stop_text_encoder": 1.0, "tenc_weight_decay": 0.01, "tenc_grad_clip_norm": 0.0, "tomesd": 0.0,
}  # fmt: skip
DEFAULTS = {**STRINGS, **ON, **OFF, **NUMBERS, "use_shared_src": [False], "concepts_list": []}


def written(folder: Path, **values) -> Path:
    path = folder / "db_config.json"
    content = {
        **DEFAULTS,
        "src": "models/base.ckpt",
        "model_name": "my dog",
        "concepts_list": [CONCEPT],
        **values,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_whole_file_becomes_settings_and_a_list_of_the_rest(tmp_path) -> None:
    assert len(DEFAULTS) == 106
    settings = load_settings(
        written(tmp_path, hflip=True, clip_skip=2, half_model=True, max_token_length=150)
    )
    flat = to_mapping(settings)
    assert {name: flat[name] for name in (
        "model", "output_name", "resolution", "learning_rate", "text_encoder_learning_rate", "train_text_encoder",
        "optimizer", "lr_scheduler", "lr_warmup_steps", "random_flip", "clip_skip", "output_dtype", "max_prompt_chunks",
        "steps_per_image", "prior_loss_weight", "mixed_precision", "class_sampler", "use_ema", "shuffle_tags",
    )} == {
        "model": str(tmp_path / "models" / "base.ckpt"), "output_name": "my dog", "resolution": 512,
        "learning_rate": 2e-6, "text_encoder_learning_rate": 5e-6, "train_text_encoder": True,
        "optimizer": "adamw8bit", "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 500, "random_flip": True,
        "clip_skip": 2, "output_dtype": "float16", "max_prompt_chunks": 2, "steps_per_image": 100,
        "prior_loss_weight": 0.75, "mixed_precision": "fp16", "class_sampler": "ddim", "use_ema": True,
        "shuffle_tags": True,
    }  # fmt: skip
    (concept,) = settings.concepts.concepts
    assert concept.instance_data_dir == str(tmp_path / "photos") and concept.num_class_images_per == 5
    assert {"n_save_sample", "sample_seed", "graph_smoothing", "lora_unet_rank"} <= set(settings.not_taken)


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_one_of_its_names_is_taken_over_or_named(name) -> None:
    changed = {
        **DEFAULTS, "src": "a.ckpt", "model_name": "a", "concepts_list": [CONCEPT], "use_concepts": False,
        "pretrained_model_name_or_path": "working",
    }  # fmt: skip
    told = from_db_config(changed)
    without = from_db_config({key: value for key, value in changed.items() if key != name})
    named = name in told.not_taken
    looked_at_together = {
        "pretrained_model_name_or_path",
        "custom_model_name",
        "concepts_path",
        "use_concepts",
    }
    empty = changed[name] == ""
    assert named or told.values != without.values or name in looked_at_together or empty


def test_what_somebody_had_changed_is_named_first() -> None:
    told = from_db_config({**DEFAULTS, "use_dream": True, "tomesd": 0.5, "lora_weight": 0.8})
    assert set(told.not_taken[:2]) == {"use_dream", "tomesd"}
    assert told.not_taken.index("lora_weight") > 2


def test_choices_that_cannot_be_had_here_are_named_with_their_value() -> None:
    told = from_db_config(
        {**DEFAULTS, "optimizer": "Sophia", "lr_scheduler": "rex", "scheduler": "DEISMultistep"}
    )
    assert told.not_taken[:3] == ["optimizer (Sophia)", "lr_scheduler (rex)", "scheduler (DEISMultistep)"]
    assert not {"optimizer", "lr_scheduler", "class_sampler"} & told.values.keys()


@pytest.mark.parametrize(
    ("older", "expected"),
    [
        ({"not_cache_latents": True}, {"cache_latents": "false"}),
        ({"use_8bit_adam": True}, {"optimizer": "adamw8bit"}),
        ({"use_8bit_adam": False}, {"optimizer": "adamw"}),
        ({"optimizer": "8Bit Adam"}, {"optimizer": "adamw8bit"}),
        ({"optimizer": "Paged 8bit AdamW"}, {"optimizer": "pagedadamw8bit"}),
        ({"optimizer": "AdamW Dadaptation"}, {"optimizer": "dadaptadam"}),
        ({"adam_weight_decay": 0.02}, {"adam_weight_decay": "0.02"}),
        ({"adamw_weight_decay": 0.03}, {"adam_weight_decay": "0.03"}),
        ({"train_text_encoder": False}, {"train_text_encoder": "false"}),
        ({"train_text_encoder": True}, {"train_text_encoder": "true", "text_encoder_stop": "1"}),
        ({"stop_text_encoder": 0.35}, {"train_text_encoder": "true", "text_encoder_stop": "0.35"}),
        ({"db_learning_rate": 1e-6, "db_resolution": 768}, {"learning_rate": "1e-06", "resolution": "768"}),
    ],
)
def test_older_names_mean_what_they_meant(older, expected) -> None:
    assert from_db_config(older).values == expected


def test_a_lora_takes_its_rank_and_its_own_rates() -> None:
    given = {**DEFAULTS, "use_lora": True, "lora_unet_rank": 16, "lora_txt_learning_rate": 2e-5}
    told = from_db_config(given)
    assert told.values["output_kind"] == "lora" and told.values["rank"] == "16"
    assert (told.values["learning_rate"], told.values["text_encoder_learning_rate"]) == ("0.0001", "2e-05")
    assert not {"use_lora", "lora_unet_rank", "lora_learning_rate"} & set(told.not_taken)
    assert {"lora_txt_rank", "lora_weight"} <= set(told.not_taken)
    without = from_db_config({**given, "use_lora": False})
    assert without.values["learning_rate"] == "2e-06" and without.values["output_kind"] == "checkpoint"
    assert "lora_unet_rank" in without.not_taken and "rank" not in without.values


def test_older_names_without_a_meaning_are_reported_by_their_later_name() -> None:
    assert set(from_db_config({"total_steps": 5, "lora_rank": 8, "enable_tomesd": True}).not_taken) == {
        "revision", "lora_unet_rank", "tomesd",
    }  # fmt: skip


def test_numbered_concepts_become_a_list_in_their_order() -> None:
    told = from_db_config(
        {
            "c2_instance_prompt": "second", "c1_instance_prompt": "first", "c1_num_class_images_per": 3,
            "c1_instance_data_dir": "a", "c2_instance_data_dir": "b",
        }
    )  # fmt: skip
    assert [concept["instance_prompt"] for concept in told.values["concepts"]] == ["first", "second"]
    assert "prior_loss_weight" not in told.values and told.not_taken == []


def test_concepts_that_ask_for_no_class_images_are_trained_without_them() -> None:
    told = from_db_config(
        {"concepts_list": [{**CONCEPT, "num_class_images_per": 0}], "prior_loss_weight": 0.75}
    )
    assert told.values["prior_loss_weight"] == "0"
    asked = from_db_config(
        {"concepts_list": [{**CONCEPT, "num_class_images": 50}], "prior_loss_weight": 0.75}
    )
    assert asked.values["prior_loss_weight"] == "0.75"


def test_a_concepts_file_wins_where_it_was_asked_for() -> None:
    given = {"concepts_path": "list.json", "use_concepts": True, "concepts_list": [CONCEPT]}
    assert from_db_config(given).values == {"concepts": "list.json"}


def test_windows_paths_with_single_backslashes_are_read(tmp_path) -> None:
    text = json.dumps({**DEFAULTS, "concepts_list": [CONCEPT]}).replace(
        '"src": ""', r'"src": "C:\models\base.ckpt"'
    )
    (tmp_path / "db_config.json").write_text(text)
    assert load_settings(tmp_path / "db_config.json").model.model.endswith(r"C:\models\base.ckpt")


def test_overrides_win_and_a_wrong_value_names_our_setting(tmp_path) -> None:
    path = written(tmp_path)
    assert load_settings(path, ["resolution=256"]).images.resolution == 256
    with pytest.raises(InputError) as refused:
        load_settings(written(tmp_path, resolution=-3))
    assert refused.value.setting == "resolution"


def test_a_file_of_ours_is_none_of_theirs() -> None:
    assert is_db_config(DEFAULTS) and is_db_config({"db_model_name": "x", "db_half_model": True})
    assert not is_db_config(to_mapping(load_settings(None)))
    assert not is_db_config({})
