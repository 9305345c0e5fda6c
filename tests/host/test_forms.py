"""The form: checked, completed with the WebUI's folders, saved as YAML, remembered."""

from __future__ import annotations

import json

import pytest

from dreambooth.host import forms
from dreambooth.host.answers import Forbidden
from dreambooth.shared.config import CONCEPT_PATHS, PATHS, load_settings
from dreambooth.shared.errors import InputError

FORM = {
    "resolution": 64, "learning_rate": 5e-6, "train_text_encoder": True, "mixed_precision": "no", "output_name": "001",
    "optimizer_args": {"x": 1}, "validation_prompt": "${x} 照片: 'a'",
    "concepts": [{"instance_prompt": "photo of ohwx dog", "class_prompt": None, "instance_data_dir": "", "repeats": 2}],
}  # fmt: skip


@pytest.fixture
def places(tmp_path):
    def make(free: bool = True) -> forms.Places:
        return forms.Places(
            data=tmp_path, photos=tmp_path / "photos", runs=tmp_path / "runs",
            checkpoints=tmp_path / "models", loras=tmp_path / "loras",
            models=[tmp_path / "models"], free=free,
        )  # fmt: skip

    return make


def test_a_saved_form_is_what_train_takes_and_means_the_same(tmp_path):
    (tmp_path / "form.yaml").write_text(forms.to_yaml(FORM), encoding="utf-8")
    assert load_settings(tmp_path / "form.yaml") == forms.check(FORM)


def test_a_saved_form_names_only_what_it_says():
    text = forms.to_yaml(
        {"resolution": 64, "vae": None, "concepts": [{"instance_prompt": "x", "class_prompt": ""}]}
    )
    assert text == "concepts:\n- instance_prompt: x\nresolution: 64\n"


@pytest.mark.parametrize(
    ("form", "where"),
    [
        ({"train_batch_size": 0}, "train_batch_size"),
        ({"resolution": "wide"}, "resolution"),
        ({"resolution": [1]}, "resolution"),
        ({"optimizer": "sgd9"}, "optimizer"),
        ({"concepts": [{"instance_prompt": "x", "repeats": 0}]}, "concepts[0].repeats"),
        ({"concepts": [{"instance_prompt": "x"}, {"instance_prompt": []}]}, "concepts[1].instance_prompt"),
        ({"concepts": [7]}, "concepts"),
    ],
)
def test_what_is_wrong_is_said_of_its_field(form, where):
    with pytest.raises(InputError) as told:
        forms.check(form)
    assert told.value.as_json()["where"] == where


def test_a_setting_that_there_is_not_is_said():
    with pytest.raises(InputError, match="resolutoin"):
        forms.check({"resolutoin": 3})


def test_the_webuis_folders_are_filled_in(places, tmp_path):
    made = forms.complete({"concepts": [{"instance_data_dir": "mine"}], "runs_dir": "/elsewhere"}, places())
    assert made["output_dir"] == str(tmp_path / "models")
    assert made["runs_dir"] == str(tmp_path / "runs")
    assert made["concepts"][0]["instance_data_dir"] == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("kind", "folder"), [("checkpoint", "models"), ("lora", "loras"), ("lycoris", "loras")]
)
def test_a_result_goes_where_the_webui_looks_for_its_kind(places, tmp_path, kind, folder):
    assert forms.complete({"output_kind": kind}, places())["output_dir"] == str(tmp_path / folder)


def every_path() -> list[str]:
    return [
        *sorted(PATHS - {"runs_dir"}),
        *(f"concepts[0].{name}" for name in sorted(CONCEPT_PATHS)),
        "concepts",
    ]


def with_path(setting: str, path: str) -> dict:
    if setting.startswith("concepts["):
        return {"concepts": [{setting.partition(".")[2]: path}]}
    return {setting: path}


@pytest.mark.parametrize("setting", every_path())
def test_where_paths_may_not_be_chosen_each_path_of_the_form_is_held_to_our_folders(
    places, tmp_path, setting
):
    for path in (str(tmp_path), "/etc/passwd", "photos/../../x", "../x"):
        with pytest.raises(Forbidden) as told:
            forms.complete(with_path(setting, path), places(free=False))
        assert told.value.as_json()["where"] == setting
    models = {"model": "models/a", "vae": "models/a", "output_dir": "models", "init_from": "loras/a"}
    own = models.get(setting, "photos/a")
    forms.complete(with_path(setting, own), places(free=False))


@pytest.mark.parametrize("setting", every_path())
@pytest.mark.parametrize("path", ["//server/share", r"\\server\share", "http://x/y", "/dev/zero", "a\0b"])
def test_no_path_of_the_form_leads_to_another_machine_or_a_device(places, setting, path):
    with pytest.raises(InputError) as told:
        forms.complete(with_path(setting, path), places())
    assert told.value.as_json()["where"] == setting


def test_the_last_form_is_remembered_right_or_wrong(tmp_path):
    last = forms.LastForm(tmp_path / "data" / "form.json")
    assert last.load() is None
    kept = forms.Kept(
        {"resolution": "wrong", "concepts": [{"instance_prompt": "x"}]}, "style", ("resolution",), "sd1"
    )
    last.save(kept)
    assert last.load() == kept


def test_a_form_from_when_a_choice_was_yes_or_no_is_drawn_as_it_was(tmp_path) -> None:
    path = tmp_path / "form.json"
    path.write_text('{"gradient_checkpointing": true, "use_ema": true, "concepts": []}', encoding="utf-8")
    found = {"gradient_checkpointing": "yes", "use_ema": True, "concepts": []}
    assert forms.LastForm(path).load() == forms.Kept(found)


def test_names_of_another_version_are_forgotten(tmp_path):
    last = forms.LastForm(tmp_path / "form.json")
    form = {"resolution": 64, "gone": 1, "concepts": [{"instance_prompt": "x", "n_save_sample": 1}, 7]}
    last.save(forms.Kept(form, "gone", ("gone", "rank")))
    assert last.load() == forms.Kept(
        {"resolution": 64, "concepts": [{"instance_prompt": "x"}]}, typed=("rank",)
    )


BROKEN = ["", "[]", "{", "null", "[" * 10_000, '{"concepts": 7}', '{"page": {"typed": [[]], "preset": 7}}']


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_last_form_is_as_none(tmp_path, content):
    (tmp_path / "form.json").write_text(content)
    assert forms.LastForm(tmp_path / "form.json").load() in (None, forms.Kept({"concepts": []}))


def test_a_form_has_a_name_as_a_file():
    assert forms.name_of({"output_name": "my dog"}) == "my dog"
    assert forms.name_of({"output_name": 7}) == forms.name_of({}) == "dreambooth"


def test_a_form_is_plain_json(places):
    assert json.loads(json.dumps(forms.complete(FORM, places())))["resolution"] == 64
