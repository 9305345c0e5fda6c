from __future__ import annotations

import json
from collections import Counter

from dreambooth.host import fields
from dreambooth.shared.catalog import catalog, concept_catalog


def shown() -> list[str]:
    return [field["name"] for group in fields.groups() for field in group["fields"]]


def test_every_setting_stands_on_the_page_once_but_the_concepts_which_have_forms_of_their_own() -> None:
    assert Counter(shown()) == Counter({entry.name for entry in catalog()} - {"concepts"})


def test_what_a_newcomer_needs_is_in_sight() -> None:
    in_sight = {field["name"] for group in fields.groups() for field in group["fields"] if field["common"]}
    assert {"model", "vae", "output_name", "learning_rate", "max_train_steps", "num_class_images"} <= in_sight
    assert len(in_sight) < len(shown()) / 3


def test_every_setting_and_every_field_of_a_concept_has_a_label_and_a_help() -> None:
    for entry in [*catalog(), *concept_catalog()]:
        assert entry.label and entry.help.endswith("."), entry.name


def test_no_two_settings_have_one_label() -> None:
    labels = Counter(entry.label for entry in catalog())
    assert [label for label, count in labels.items() if count > 1] == []


def test_a_group_that_no_theme_knows_still_stands_on_the_page(monkeypatch) -> None:
    monkeypatch.setattr(fields, "THEMES", tuple(t for t in fields.THEMES if t.group != "captions"))
    monkeypatch.setattr(fields, "ORDER", tuple(name for name in fields.ORDER if name != "captions"))
    [captions] = [group for group in fields.groups() if group["name"] == "captions"]
    assert "caption_dropout" in [field["name"] for field in captions["fields"]]


def test_a_training_setting_that_no_theme_names_falls_to_the_last_theme_of_its_group() -> None:
    [training] = [group for group in fields.groups() if group["name"] == "training"]
    assert "learning_rate" in [field["name"] for field in training["fields"]]
    assert "optimizer" not in [field["name"] for field in training["fields"]]


def test_groups_and_concept_fields_are_plain_json() -> None:
    assert json.loads(json.dumps(fields.groups())) == fields.groups()
    assert json.loads(json.dumps(fields.concept_fields())) == fields.concept_fields()
