"""Files and runs as forms; what could not be taken over is named."""

from __future__ import annotations

import json

import pytest

from dreambooth.host import forms
from dreambooth.host.opening import open_content, open_path, open_run
from dreambooth.shared.config import dump_settings, settings_from
from dreambooth.shared.errors import InputError
from dreambooth.shared.runfolder import create_run

CONCEPT = {
    "instance_prompt": "photo of ohwx dog",
    "class_prompt": "photo of dog",
    "instance_data_dir": "/photos/dog",
}


def test_a_concepts_list_becomes_concepts():
    opened = open_content(json.dumps([{**CONCEPT, "n_save_sample": 4}, CONCEPT]), "concepts_list.json")
    assert opened.form == {"concepts": [CONCEPT, CONCEPT]}
    assert opened.not_taken == ["n_save_sample"]


STRANGE = {**CONCEPT, "weird_key": 1, "model_dir": "/x", "max_steps": -1, "num_class_images": 7}
TAKEN = {**CONCEPT, "num_class_images": 7}


@pytest.mark.parametrize(
    "content",
    [
        [STRANGE],
        {"concepts_list": [STRANGE]},
        {"concepts": [STRANGE]},
        STRANGE,
        {"model_name": "dog", "num_train_epochs": 9, "lifetime_revision": 0, "concepts_list": [STRANGE]},
    ],
    ids=["a list", "the old name alone", "a form", "one concept", "db_config"],
)
def test_names_of_a_concept_that_mean_nothing_here_are_named_and_keep_nothing_out(content):
    opened = open_content(json.dumps(content), "x.json")
    assert opened.form["concepts"] == [TAKEN]
    assert {"weird_key", "model_dir", "max_steps"} <= set(opened.not_taken)


def test_what_is_no_concept_in_a_list_is_still_refused():
    with pytest.raises(InputError, match="expected an object"):
        open_content('["dog"]', "x.json")


def test_a_notebooks_list_with_windows_paths_is_read():
    text = '\ufeff# mine\nconcepts_list = [\n {"instance_prompt": "x", "instance_data_dir": "C:\\new\\photos",},\n]'
    assert open_content(text, "x.py").form == {
        "concepts": [{"instance_prompt": "x", "instance_data_dir": "C:\\new\\photos"}]
    }


def test_relative_folders_of_a_list_are_relative_to_its_own_folder(tmp_path):
    (tmp_path / "list.json").write_text('[{"instance_prompt": "x", "instance_data_dir": "dog"}]')
    concept = open_path(tmp_path / "list.json").form["concepts"][0]
    assert concept["instance_data_dir"] == str(tmp_path / "dog")


def test_a_saved_form_comes_back_as_it_was():
    form = {
        "resolution": 64,
        "learning_rate": 5e-6,
        "use_ema": True,
        "mixed_precision": "no",
        "concepts": [CONCEPT],
    }
    assert open_content(forms.to_yaml(form), "x.yaml").form == form


def test_json_settings_are_read_too():
    assert open_content('{"resolution": 64, "use_ema": true}', "x.json").form == {
        "resolution": 64,
        "use_ema": True,
    }


def test_one_value_that_cannot_be_is_named_and_keeps_no_other_out():
    opened = open_content("resolution: 64\nlearning_rate: fast\nfoo: 1\nseed: 7\n", "x.yaml")
    assert opened.form == {"resolution": 64, "seed": 7}
    assert opened.not_taken[1] == "foo"
    assert "learning_rate" in opened.not_taken[0]


def test_the_old_extensions_settings_are_taken_over_and_the_rest_is_named():
    old = {
        "model_name": "dog", "num_train_epochs": 100, "concepts_list": [CONCEPT], "resolution": 256,
        "graph_smoothing": 50.0, "epoch_pause_frequency": 3.0, "lifetime_revision": 0, "use_ema": True,
    }  # fmt: skip
    opened = open_content(json.dumps(old), "db_config.json")
    assert opened.form["resolution"] == 256
    assert opened.form["use_ema"] is True
    assert opened.form["concepts"][0]["instance_prompt"] == "photo of ohwx dog"
    assert "epoch_pause_frequency" in opened.not_taken
    forms.check(opened.form)


def test_an_earlier_run_gives_its_settings_without_its_folder_and_notes(tmp_path):
    settings = settings_from(
        {"resolution": "64", "runs_dir": str(tmp_path), "concepts": [CONCEPT]}, where="x"
    )
    run = create_run(tmp_path, "dog", dump_settings(settings, {"versions": {"torch": "2"}}))
    assert open_run(run).form == {"resolution": 64, "concepts": [CONCEPT]}
    assert open_run(run).not_taken == []


def test_a_run_is_opened_as_it_was_asked_for_and_what_was_left_open_is_open_again(tmp_path):
    asked = settings_from({"resolution": "64", "concepts": [CONCEPT]}, where="x")
    resolved = {"resolution": "64", "learning_rate": "2e-6", "optimizer": "adamw", "max_train_steps": "300"}
    config = dump_settings(settings_from({**resolved, "concepts": [CONCEPT]}, where="x"))
    run = create_run(tmp_path, "dog", config, dump_settings(asked))
    assert open_run(run).form == {"resolution": 64, "concepts": [CONCEPT]}
    older = create_run(tmp_path, "dog", config)
    assert open_run(older).form["max_train_steps"] == 300


@pytest.mark.parametrize(
    "text",
    ["", "- a\n- b", "[", '[{"instance_prompt": 7}]', "just words", "a: [", "foo: 1", "\0", "x" * 2_000_000],
)
def test_what_is_no_settings_is_said_in_one_sentence_that_names_the_file(text):
    with pytest.raises(InputError) as told:
        open_content(text, "mine.yaml")
    assert "mine.yaml" in told.value.where
    assert "dreambooth-open-" not in str(told.value)


def test_only_files_of_text_are_opened(tmp_path):
    (tmp_path / "x.json").write_bytes(bytes(range(256)) * 10)
    for path in (tmp_path, tmp_path / "none", tmp_path / "x.json"):
        with pytest.raises(InputError):
            open_path(path)
