from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreambooth.shared.concepts import Concept
from dreambooth.shared.config import (
    PATHS,
    build,
    dump_settings,
    groups,
    load_settings,
    read_mapping,
    read_notes,
    setting_fields,
    settings_from,
    to_mapping,
)
from dreambooth.shared.errors import InputError
from dreambooth.shared.settings import OPTIMIZERS, ConceptSettings, SavingSettings, Settings, TrainingSettings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where settings files lie; the working folder is another one."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    made = tmp_path / "my settings é"
    made.mkdir()
    return made


def load(folder: Path, content: str, *overrides: str, name: str = "config.yaml") -> dict[str, Any]:
    """All settings by name, from a file with this content."""
    (folder / name).write_text(content, encoding="utf-8")
    return to_mapping(load_settings(folder / name, overrides))


def problem(folder: Path, content: str, *overrides: str, name: str = "config.yaml") -> InputError:
    with pytest.raises(InputError) as error:
        load(folder, content, *overrides, name=name)
    assert error.value.remedy
    assert len(str(error.value)) < 500
    return error.value


# text is text


def test_text_means_what_it_says(folder: Path) -> None:
    found = load(
        folder,
        "mixed_precision: no\noutput_name: 001\nvalidation_prompt: a ${x} of ${oc.env:HOME}\n"
        "validation_negative_prompt: 1e3\nbackground: '#fff'\nreport_to: off\n",
    )
    assert found["mixed_precision"] == "no"
    assert found["output_name"] == "001"
    assert found["validation_prompt"] == "a ${x} of ${oc.env:HOME}"
    assert found["validation_negative_prompt"] == "1e3"
    assert found["background"] == "#fff"
    assert found["report_to"] == "off"


@pytest.mark.parametrize(
    "text",
    [
        "???",
        "${x}",
        "\\${x}",
        "\\\\${x}\\",
        "${",
        "$}",
        "a${x",
        "${a:${b}}",
        "'",
        '"',
        "true",
        "~",
        "null",
        " ",
        "",
        "é🐕",
        "a\nb",
    ],
)
def test_no_text_has_a_hidden_meaning(folder: Path, text: str) -> None:
    content = yaml.safe_dump({"validation_prompt": text, "optimizer_args": {"a": text}}, allow_unicode=True)
    found = load(folder, content)
    assert found["validation_prompt"] == text
    assert found["optimizer_args"] == {"a": text}
    assert load(folder, "", f"validation_prompt={text}")["validation_prompt"] == text
    assert build(SavingSettings, {"validation_prompt": text}, "test").validation_prompt == text


@pytest.mark.parametrize("text", ["null", "Null", "NULL", "~", ""])
def test_what_a_file_leaves_empty_keeps_its_default(folder: Path, text: str) -> None:
    known = {**setting_fields()}
    content = "".join(f"{name}: {text}\n" for name in known)
    assert load(folder, content) == to_mapping(Settings())


def test_json_null_keeps_the_default_too(folder: Path) -> None:
    content = json.dumps(dict.fromkeys(setting_fields()))
    assert load(folder, content, name="config.json") == to_mapping(Settings())


@pytest.mark.parametrize(
    "name", ["vae", "output_dir", "max_train_steps", "random_flip", "concepts", "optimizer_args"]
)
def test_null_in_an_override_takes_a_setting_back_to_its_default(folder: Path, name: str) -> None:
    assert load(folder, "", f"{name}=null") == to_mapping(Settings())


@pytest.mark.parametrize("name", ["learning_rate", "max_train_steps", "random_flip"])
def test_a_number_that_is_left_out_in_an_override_is_an_error(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"`{name}` is empty") as refused:
        load(folder, f"{name}: 1", f"{name}=")
    assert refused.value.setting == name and "null" in refused.value.remedy
    assert load(folder, "vae: a.ckpt", "vae=")["vae"] == "", "text may be empty"


@pytest.mark.parametrize("text", ["a\\0b", "\\0"])
def test_a_nul_is_refused_by_name(folder: Path, text: str) -> None:
    for name in ("model", "output_name"):
        assert f"`{name}`" in problem(folder, f'{name}: "{text}"').what
    assert "`optimizer_args`" in problem(folder, f'optimizer_args: {{a: "{text}"}}').what
    error = problem(
        folder, f'concepts: [{{instance_prompt: a}}, {{instance_prompt: b, class_prompt: "{text}"}}]'
    )
    assert "`class_prompt`" in error.what and error.where.endswith("concept 2")


# numbers, truth values, choices


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5", 5), ("1e3", 1000), ("100.0", 100), ("1_000", 1000), (" 7 ", 7), ("+3", 3), ("007", 7),
        ("9007199254740992", 2**53), ("9007199254740991", 2**53 - 1),
    ],
)  # fmt: skip
def test_whole_numbers_are_read_as_people_write_them(folder: Path, text: str, number: int) -> None:
    assert load(folder, f"class_seed: '{text}'")["class_seed"] == number
    assert load(folder, "", f"class_seed={text}")["class_seed"] == number
    assert type(load(folder, f"class_seed: {text}")["class_seed"]) is int


@pytest.mark.parametrize(
    "text",
    ["-1", "1.5", "many", "nan", "inf", "-inf", "1e400", "1e300", "9007199254740993", "9" * 400, "9" * 5000, "0x10", "1,000",
     "true", "yes", "${x}", "???", "5 steps", "²", "--5", "[1]"],
)  # fmt: skip
def test_what_is_no_whole_number_in_range_is_an_error_that_names_the_key(folder: Path, text: str) -> None:
    error = problem(folder, f"class_seed: '{text}'")
    assert "`class_seed`" in error.what
    assert error.where == str(folder / "config.yaml")
    large = "from 0 to 9007199254740992" if error.what.endswith("too large") else "of at least 0"
    assert error.remedy == f"give a whole number {large}"
    assert error.what.endswith("too large") == (text[0] == "9" or text in ("1e400", "1e300"))
    if text.isascii() and text.isdigit():
        in_json = problem(folder, f'{{"class_seed": {text}}}', name="config.json")
        assert in_json.remedy.startswith("give a whole number")


@pytest.mark.parametrize(
    ("text", "number"),
    [("2e-6", 2e-6), ("1E-3", 1e-3), (".5", 0.5), ("0", 0.0), (" 1 ", 1.0), ("5e-324", 5e-324)],
)
def test_numbers_are_read_exactly(folder: Path, text: str, number: float) -> None:
    found = load(folder, f"learning_rate: '{text}'")["learning_rate"]
    assert found == number and type(found) is float
    assert load(folder, f'{{"learning_rate": {number!r}}}', name="config.json")["learning_rate"] == number


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-1e-9", "1.01", "1e999", "fast", "1,5", "${x}", "???", "true", "0x1p-3"]
)
def test_what_is_no_number_in_range_is_an_error_that_says_the_range(folder: Path, text: str) -> None:
    error = problem(folder, f"learning_rate: '{text}'")
    assert "`learning_rate`" in error.what
    assert error.remedy == "give a number from 0 to 1"


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "-1"])
def test_a_number_without_an_upper_limit_is_finite_all_the_same(folder: Path, text: str) -> None:
    assert problem(folder, f"max_grad_norm: {text}").remedy == "give a number of at least 0"


@pytest.mark.parametrize(
    ("text", "truth"),
    [("yes", True), ("No", False), ("TRUE", True), ("false", False), ("on", True), ("off", False), ("1", True), ("0", False),
     (" yes ", True), ("y", True), ("n", False)],
)  # fmt: skip
def test_yes_and_no_in_any_form(folder: Path, text: str, truth: bool) -> None:
    for name in ("train_unet", "overwrite"):
        assert load(folder, f"{name}: '{text}'")[name] is truth
        assert load(folder, "", f"{name}={text}")[name] is truth


@pytest.mark.parametrize("text", ["maybe", "2", "-1", "1.0", "12", "nan", "${x}", "???", "yess", "[yes]"])
def test_what_is_neither_yes_nor_no_is_an_error(folder: Path, text: str) -> None:
    error = problem(folder, f"train_unet: '{text}'")
    assert "`train_unet`" in error.what and error.remedy == "give yes or no"


def test_a_choice_is_taken_in_any_case_and_its_spelling_is_ours(folder: Path) -> None:
    assert load(folder, "optimizer: AdamW8bit\ncrop: ' RANDOM '\nmixed_precision: No") | {} == load(
        folder, "optimizer: adamw8bit\ncrop: random\nmixed_precision: no"
    )


@pytest.mark.parametrize("text", ["sgd", "''", "adam w", "adamw 8bit", "k" * 3000])
def test_another_choice_is_an_error_that_lists_them(folder: Path, text: str) -> None:
    error = problem(folder, f"optimizer: {text}")
    assert "`optimizer`" in error.what
    assert error.remedy == f"choose one of {', '.join(('auto', *OPTIMIZERS))} or a class's import path"
    assert "auto, adamw, adamw8bit, " in error.remedy


@pytest.mark.parametrize("text", ["torch.optim.SGD", "came_pytorch.CAME", "_a.B9"])
def test_beside_its_choices_a_setting_may_take_what_it_says(folder: Path, text: str) -> None:
    assert load(folder, f"optimizer: {text}")["optimizer"] == text


@pytest.mark.parametrize(
    "text", ["torch.", ".SGD", "torch..SGD", "torch.optim.SGD()", "a b.c", "9.x", "a.b\nc"]
)
def test_what_only_looks_like_it_is_refused(folder: Path, text: str) -> None:
    assert "`optimizer`" in problem(folder, f"optimizer: {yaml.safe_dump(text)}").what


@pytest.mark.parametrize("content", ["[1, 2]", "{a: 1}", "[]", "{}"])
@pytest.mark.parametrize(
    "name", ["max_train_steps", "learning_rate", "train_unet", "output_name", "crop", "model"]
)
def test_a_list_where_one_value_is_wanted_is_an_error(folder: Path, name: str, content: str) -> None:
    assert f"`{name}` takes one value" in problem(folder, f"{name}: {content}").what
    assert "`seed` takes one value" in problem(folder, '{"seed": [1]}', name="config.json").what


@pytest.mark.parametrize("name", ["target_blocks", "report_to"])
def test_what_names_several_things_may_be_a_list(folder: Path, name: str) -> None:
    assert load(folder, f"{name}: [a, b.1]")[name] == "a, b.1"
    assert load(folder, f"{name}:\n- a\n- b.1")[name] == "a, b.1"
    assert load(folder, f"{name}: []")[name] == ""
    assert load(folder, "", f"{name}=[a, b.1]")[name] == "a, b.1"
    assert load(folder, f"{name}: a, b.1")[name] == "a, b.1"
    for wrong in ("[a, [b]]", "[a, {b: 1}]", "[a, ~]"):
        assert problem(folder, f"{name}: {wrong}").what == f"`{name}` takes one value, not a list"
    assert problem(folder, f"{name}: {{a: b}}").what == f"`{name}` takes one value, not names with values"


@pytest.mark.parametrize("content", ["5", "[a]", "{a: [1]}", "{a: {b: 1}}", "'{a: 1}'"])
def test_names_with_values_are_wanted_where_they_are_wanted(folder: Path, content: str) -> None:
    assert "`optimizer_args`" in problem(folder, f"optimizer_args: {content}").what


def test_names_with_values_are_text_and_may_be_given_on_the_command_line(folder: Path) -> None:
    expected = {"betas": "0.9, 0.99", "a.b": "no", "c": ""}
    content = "{betas: '0.9, 0.99', a.b: no, c: ~}"
    assert load(folder, f"optimizer_args: {content}")["optimizer_args"] == expected
    assert load(folder, "", f"optimizer_args={content}")["optimizer_args"] == expected
    assert "command line, optimizer_args" in problem(folder, "", "optimizer_args={a: 1").where


def test_values_that_are_no_text_are_taken_as_they_are(folder: Path) -> None:
    values = {
        "max_train_steps": 5,
        "learning_rate": 1e-5,
        "random_flip": True,
        "output_name": 12,
        "vae": None,
    }
    found = to_mapping(settings_from(values, where="page"))
    assert found["max_train_steps"] == 5 and found["learning_rate"] == 1e-5 and found["random_flip"] is True
    assert found["output_name"] == "12" and found["vae"] == ""
    for values in (
        {"max_train_steps": True},
        {"max_train_steps": 10**400},
        {"learning_rate": float("nan")},
        {"concepts": 5},
    ):
        with pytest.raises(InputError):
            settings_from(values, where="page")


# unknown names


@pytest.mark.parametrize(
    ("name", "near"),
    [("max_train_step", "max_train_steps"), ("learning-rate", "learning_rate"), ("lr_schedular", "lr_scheduler"),
     ("Resolution", "resolution"), ("--seed", "seed"), ("train_textencoder", "train_text_encoder"),
     ("lora_rank", "rank"), ("unet_learning_rate", "learning_rate"), ("prior_weight", "prior_loss_weight"),
     ("vae-path", "vae")],
)  # fmt: skip
def test_an_unknown_name_is_an_error_that_names_the_nearest(folder: Path, name: str, near: str) -> None:
    for error in (problem(folder, f"{name}: 1"), problem(folder, f'{{"{name}": 1}}', name="config.json")):
        assert f"`{name}`" in error.what and error.where.startswith(str(folder))
        assert error.remedy == f"did you mean `{near}`?"
    assert problem(folder, "", f"{name}=1").where == "command line"


@pytest.mark.parametrize("name", ["zzzz", "<<", "''", "null", "k" * 300, "'ключ'"])
def test_a_name_like_no_other_is_an_error_all_the_same(folder: Path, name: str) -> None:
    assert "there is no setting" in problem(folder, f"{name}: 1").what


def test_a_group_in_a_file_is_told_that_names_stand_at_the_top(folder: Path) -> None:
    error = problem(folder, "training:\n  max_train_steps: 5\n")
    assert "`training`" in error.what and "top level" in error.remedy


def test_notes_of_a_run_are_no_settings_and_read_apart(folder: Path) -> None:
    path = folder / "config.yaml"
    notes = {"versions": {"torch": "2.13.0"}, "run": {"id": "0012", "created": "2026-11-20"}}
    path.write_text(dump_settings(Settings(), notes), encoding="utf-8")
    assert load_settings(path) == Settings()
    assert read_notes(path, "run") == notes["run"]
    assert read_notes(path, "versions") == notes["versions"]
    path.write_text("seed: 1\n")
    assert read_notes(path, "run") == {}
    assert "`run`" in problem(folder, "run: 5").what
    with pytest.raises(ValueError, match="nothing"):
        dump_settings(Settings(), {"nothing": {}})


# overrides


def test_overrides_win_and_the_last_of_two_wins(folder: Path) -> None:
    found = load(folder, "seed: 1\nresolution: 256\n", "seed=2", "seed=3")
    assert (found["seed"], found["resolution"]) == (3, 256)


def test_an_override_ends_its_name_at_the_first_equals_sign(folder: Path) -> None:
    assert load(folder, "", "validation_prompt=a=b == c")["validation_prompt"] == "a=b == c"
    assert load(folder, "", " validation_prompt =  a ")["validation_prompt"] == "  a "
    assert load(folder, "", "validation_prompt={a: 1}")["validation_prompt"] == "{a: 1}"


@pytest.mark.parametrize("text", ["max_train_steps", "=5", "", " = ", "5"])
def test_an_override_without_name_or_value_is_an_error(folder: Path, text: str) -> None:
    assert "write name=value" in problem(folder, "", text).remedy


@pytest.mark.parametrize("text", ["seed=x", "sead=1", "crop=left", "train_unet=maybe", "rotation=90"])
def test_what_is_wrong_in_an_override_is_said_of_the_command_line(folder: Path, text: str) -> None:
    assert problem(folder, "resolution: 64", text).where.startswith("command line")
    assert problem(folder, text.replace("=", ": ", 1), "resolution=64").where.startswith(str(folder))


def test_what_is_wrong_in_a_concept_on_the_command_line_is_said_of_it(folder: Path) -> None:
    with pytest.raises(InputError, match="command line, concept 1"):
        load(folder, "seed: 1", "concepts=[{repeats: 0}]")


def test_settings_come_from_overrides_alone_too(folder: Path) -> None:
    assert load_settings(None, ["seed=5"]).training.seed == 5
    assert load_settings(None) == Settings()
    with pytest.raises(InputError) as error:
        load_settings(None, ["seed=x"])
    assert error.value.where == "command line"


# paths


def test_relative_paths_are_relative_to_the_file_and_in_overrides_to_the_working_folder(folder: Path) -> None:
    content = "model: models/v1 5.ckpt\nvae: ../é.ckpt\noutput_dir: .\n"
    found = load(folder, content, "output_dir=out put", "runs_dir=../runs")
    assert found["model"] == str(folder / "models" / "v1 5.ckpt")
    assert found["vae"] == str(folder.parent / "é.ckpt"), "as people would write it"
    assert found["output_dir"] == str(Path.cwd() / "out put")
    assert found["runs_dir"] == str(Path.cwd().parent / "runs")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_two_dots_behind_a_link_stay_since_they_lead_elsewhere(folder: Path) -> None:
    (folder / "far" / "away").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "far" / "away")
    found = load(folder, "model: link/../a.ckpt\nvae: far/../b.ckpt\n")
    assert found["model"] == str(folder / "link" / ".." / "a.ckpt")
    assert found["vae"] == str(folder / "b.ckpt")


def test_a_file_named_by_a_relative_path_resolves_paths_alike(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "config.yaml").write_text("model: a.ckpt\n")
    monkeypatch.chdir(folder.parent)
    assert load_settings(Path(folder.name) / "config.yaml").model.model == str(folder / "a.ckpt")


def test_absolute_paths_stay_and_home_is_the_users(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    found = load(folder, f"model: '{folder / 'a.ckpt'}'\nvae: ~/b.ckpt\noutput_dir: ~nobody.here/x\n")
    assert found["model"] == str(folder / "a.ckpt")
    assert found["vae"] == str(folder / "b.ckpt")
    assert found["output_dir"] == str(folder / "~nobody.here" / "x")


def test_windows_paths_in_json_may_have_single_backslashes(folder: Path) -> None:
    content = (
        '{"model": "C:\\models\\new.ckpt", "concepts": [{"instance_data_dir": "D:\\neue\\bilder\\"}]} // mine'
    )
    found = load(folder, content, name="config.json")
    # as it was written on other systems too, where messages name it
    assert found["model"] == "C:\\models\\new.ckpt"
    assert found["concepts"][0]["instance_data_dir"].startswith("D:\\neue\\bilder")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows' file names are Unicode")
def test_a_path_that_is_no_unicode_survives_the_way_through_a_file(folder: Path) -> None:
    settings = load_settings(None, ["model=/models/\udcff.ckpt"])
    assert settings.model.model == "/models/\udcff.ckpt"
    assert load(folder, dump_settings(settings))["model"] == "/models/\udcff.ckpt"


# concepts

ENTRY = "{instance_prompt: photo of sks dog, class_prompt: photo of dog, instance_data_dir: photos/my dog}"


@pytest.mark.parametrize("content", [f"concepts: {ENTRY}", f"concepts: [{ENTRY}]", f"concepts:\n- {ENTRY}\n"])
def test_concepts_stand_in_the_file_as_a_list_or_as_one(folder: Path, content: str) -> None:
    [concept] = load_settings_of(folder, content).concepts.concepts
    assert concept == Concept(
        instance_prompt="photo of sks dog",
        class_prompt="photo of dog",
        instance_data_dir=str(folder / "photos/my dog"),
    )


def load_settings_of(folder: Path, content: str, *overrides: str) -> Settings:
    (folder / "config.yaml").write_text(content, encoding="utf-8")
    return load_settings(folder / "config.yaml", overrides)


def test_concepts_may_be_given_on_the_command_line(folder: Path) -> None:
    [concept] = load_settings_of(folder, "concepts: not there.json", f"concepts=[{ENTRY}]").concepts.concepts
    assert concept.instance_data_dir == str(Path.cwd() / "photos/my dog")


def test_concepts_are_read_from_the_file_that_is_named(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "concepts_list.json").write_text(
        '[{"instance_prompt": "sks", "instance_data_dir": "photos", "max_steps": 5}, {}]'
    )
    settings = load_settings_of(folder, "concepts: sub/concepts_list.json")
    assert [concept.instance_data_dir for concept in settings.concepts.concepts] == [
        str(folder / "sub" / "photos")
    ]
    assert settings.not_taken == ("max_steps", "concept 2, which is empty")
    (folder / "home.json").write_text('[{"instance_data_dir": "~nobody.here/x"}]')
    [concept] = load_settings_of(folder, "concepts: home.json").concepts.concepts
    assert concept.instance_data_dir == str(folder / "~nobody.here" / "x")
    named = str(folder / "sub" / "concepts_list.json")
    assert load_settings_of(folder, "", f"concepts={named}") == settings


@pytest.mark.parametrize("content", ["", "concepts:", "concepts: []", "concepts: ''", "concepts: ~"])
def test_no_concepts_are_none(folder: Path, content: str) -> None:
    assert load(folder, content)["concepts"] == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[a]", "concept 1"), ("[~]", "concept 1"), (f"[{ENTRY}, [a]]", "concept 2"),
        ("[{instance_prmpt: a}]", "instance_prompt"),
        ("[{instance_prompt: [a]}]", "instance_prompt"), ("[{instance_prompt: {a: b}}]", "instance_prompt"),
        ("[{instance_prompt: a, repeats: nan}]", "repeats"), ("[{instance_prompt: a, repeats: 0}]", "repeats"),
        ("[{instance_prompt: a, num_class_images: many}]", "num_class_images"), ("{}", "no concepts"),
        ("[{}]", "no concepts"), ("5", "no such concepts file"), ("nowhere.json", "nowhere.json"),
    ],
)  # fmt: skip
def test_concepts_that_are_none_are_errors_that_name_the_number_and_the_key(
    folder: Path, content: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        load(folder, f"concepts: {content}")


def test_a_concept_may_leave_values_empty(folder: Path) -> None:
    entry = (
        "{instance_prompt: a, class_prompt: ~, num_class_images: , repeats: '', class_guidance_scale: null}"
    )
    assert load_settings_of(folder, f"concepts: [{entry}]").concepts.concepts == [
        Concept(instance_prompt="a")
    ]


# there and back

NASTY = [
    "", "no", "001", "1e3", "null", "~", "???", "${x}", "\\${y}", "a: b", "- a", "# no comment", "'", '"', "{", "[x]", "*a",
    "&a", "!t", "%", "@", "`", "a\nb", "a\n\n b\n", "\ttab", "ends ", " begins", "é🐕 名", "\u2028\x85\xa0\ufeff", "\\n",
    "C:\\new", "=", "<<", "word " * 400, "x" * 3000, "\x7f\x1b", "\r\n", "---", "...", "yes", "0x1F", "12:30:45",
    "2026-11-20", ".inf", ".",
]  # fmt: skip


def random_value(item: dataclasses.Field[Any], dice: random.Random) -> Any:
    about = item.metadata
    if about.get("choices"):
        return dice.choice(about["choices"])
    kind = str(item.type).split(" ")[0]
    low = about.get("minimum") or 0
    high = about.get("maximum") if about.get("maximum") is not None else 2**53
    if kind == "bool":
        return dice.random() < 0.5
    if kind == "int":
        return dice.choice([int(low), int(high), dice.randint(int(low), int(high))])
    if kind == "float":
        return float(
            dice.choice([low, high, dice.uniform(low, high), min(high, low + 10 ** dice.uniform(-12, 0))])
        )
    if kind.startswith("dict"):
        return {dice.choice(NASTY[1:]): dice.choice(NASTY) for _ in range(dice.randint(0, 4))}
    text = dice.choice(NASTY) + dice.choice(NASTY)
    if item.name in PATHS or item.name.endswith("_dir"):
        return (
            str(Path("/folder", dice.choice(["a b", "é", "no", "x${y}", "~", "#"])).absolute())
            if text
            else ""
        )
    return text


def random_concept(dice: random.Random) -> Concept:
    values = {item.name: random_value(item, dice) for item in dataclasses.fields(Concept)}
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = value.strip()  # concepts are read without blanks around
    numbers = {"num_class_images": None, "num_class_images_per": dice.randint(0, 10**8), "class_guidance_scale": 7.25,
               "class_infer_steps": 7, "repeats": dice.randint(1, 100)}  # fmt: skip
    return Concept(**{**values, **numbers, "instance_prompt": f"sks {values['instance_prompt']}".strip()})


def random_settings(dice: random.Random) -> Settings:
    made: dict[str, Any] = {}
    for group, cls in groups().items():
        if cls is ConceptSettings:
            made[group] = cls(concepts=[random_concept(dice) for _ in range(dice.randint(0, 3))])
        else:
            made[group] = cls(**{item.name: random_value(item, dice) for item in dataclasses.fields(cls)})
    return Settings(**made)


@pytest.mark.parametrize("seed", range(25))
def test_what_is_dumped_is_loaded_to_the_same_settings(folder: Path, seed: int) -> None:
    settings = random_settings(random.Random(seed))
    path = folder / "config.yaml"
    path.write_bytes(dump_settings(settings, {"versions": {"torch": "2.13.0"}}).encode())
    assert load_settings(path) == settings
    assert repr(load_settings(path)) == repr(settings), "equal numbers of another type would do harm later"


def test_defaults_are_dumped_in_the_pages_order_and_loaded_again(folder: Path) -> None:
    text = dump_settings(Settings())
    assert list(yaml.safe_load(text)) == list(setting_fields())
    assert load(folder, text) == to_mapping(Settings())
    assert "mixed_precision: auto" in text


def test_settings_go_through_json_too(folder: Path) -> None:
    settings = random_settings(random.Random(99))
    text = json.dumps(to_mapping(settings) | {"concepts": []})
    settings = dataclasses.replace(settings, concepts=ConceptSettings())
    assert load(folder, text, name="config.json") == to_mapping(settings)


def test_read_mapping_keeps_everything_as_text(folder: Path) -> None:
    (folder / "a.yaml").write_text("seed: 007\nconcepts: [{repeats: 2}]\n")
    assert read_mapping(folder / "a.yaml") == {"seed": "007", "concepts": [{"repeats": "2"}]}


def test_building_one_group_names_its_prefix(folder: Path) -> None:
    assert build(TrainingSettings, {"seed": "5"}, "page").seed == 5
    with pytest.raises(InputError, match=r"`training\.seed`"):
        build(TrainingSettings, {"seed": "x"}, "page", prefix="training.")
    with pytest.raises(InputError, match=r"`training\.seed`"):
        build(TrainingSettings, {"seed": "-1"}, "page", prefix="training.")
