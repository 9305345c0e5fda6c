"""The command line: what it answers, with which exit code, and that wrong input leaves no trace."""

from __future__ import annotations

import collections
import importlib.util
import io
import json
import os
import pickle
import shutil
import signal
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import tiny
import torch
import translations
from PIL import Image
from safetensors.torch import save_file
from tiny import config, dreambooth, tree

from dreambooth import cli

Space = collections.namedtuple("Space", "total used free")


def one_message(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said, which is one message and nothing else."""
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    lines = said.err.rstrip("\n").split("\n")
    assert [line for line in lines if line.startswith("  What to do: ")] == lines[-1:], said.err
    return said.err


def concept(**values) -> dict:
    return {
        "instance_prompt": "photo of sks cat",
        "class_prompt": "photo of cat",
        "instance_data_dir": str(tiny.photos()),
        **values,
    }


# ---- wrong input: each case is a function from a folder to settings, and the words that its message has -------------


def no_such_model(folder: Path) -> dict:
    return {"model": str(folder / "nowhere.safetensors")}


def no_model_named(folder: Path) -> dict:
    return {"model": None}


def a_text_file_as_model(folder: Path) -> dict:
    path = folder / "model.safetensors"
    path.write_text("<html>404: not found</html>\n" * 40)
    return {"model": str(path)}


def a_truncated_model(folder: Path) -> dict:
    path = folder / "model.safetensors"
    path.write_bytes(tiny.base().read_bytes()[:-1000])
    return {"model": str(path)}


class _RunsCode:
    def __reduce__(self):
        return os.mkdir, ("code-was-run",)


def a_pickle_that_runs_code(folder: Path) -> dict:
    path = folder / "model.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": _RunsCode()}, protocol=2))
        archive.writestr("archive/version", "3\n")
    return {"model": str(path)}


def a_lora_as_model(folder: Path) -> dict:
    path = folder / "style.safetensors"
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(
        {f"{stem}.lora_up.weight": torch.zeros(8, 4), f"{stem}.lora_down.weight": torch.zeros(4, 8)}, path
    )
    return {"model": str(path)}


def a_family_that_is_not_supported(folder: Path) -> dict:
    path = folder / "xl.safetensors"
    names = (
        "conditioner.embedders.1.model.ln_final.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.encoder.conv_in.weight",
    )
    save_file({name: torch.zeros(4, 4, 3, 3) for name in names}, path)
    return {"model": str(path)}


def an_unknown_setting(folder: Path) -> dict:
    return {"learning_rat": "1e-6"}


def a_mistyped_setting(folder: Path) -> dict:
    return {"max_train_steps": "many"}


def a_value_out_of_range(folder: Path) -> dict:
    return {"text_encoder_stop": 1.5}


def an_empty_class_prompt(folder: Path) -> dict:
    return {"concepts": [concept(class_prompt="")]}


def a_folder_that_is_not_there(folder: Path) -> dict:
    return {"concepts": [concept(instance_data_dir=str(folder / "photoz"))]}


def a_folder_without_images(folder: Path) -> dict:
    (folder / "empty").mkdir()
    (folder / "empty" / "readme.txt").write_text("no photo")
    return {"concepts": [concept(instance_data_dir=str(folder / "empty"))]}


def photos_and(folder: Path, name: str, content: bytes) -> dict:
    photos = shutil.copytree(tiny.photos(), folder / "my photos")
    (photos / name).write_bytes(content)
    return {"concepts": [concept(instance_data_dir=str(photos))]}


def an_unreadable_image(folder: Path) -> dict:
    return photos_and(folder, "broken.png", b"this is no picture")


def a_truncated_image(folder: Path) -> dict:
    noise = Image.effect_noise((64, 64), 90)
    noise.save(folder / "whole.png")
    return photos_and(folder, "cut.png", (folder / "whole.png").read_bytes()[:1500])


def an_enormous_image(folder: Path) -> dict:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
    return photos_and(folder, "huge.png", png)


def broken_json(folder: Path) -> dict:
    path = folder / "concepts_list.json"
    path.write_text('[\n  {"instance_prompt": "sks cat"\n   "class_prompt": "cat"}\n]\n')
    return {"concepts": str(path)}


def two_prompts_for_one_class_folder(folder: Path) -> dict:
    shared = str(folder / "class")
    return {
        "concepts": [
            concept(class_data_dir=shared),
            concept(class_data_dir=shared, class_prompt="photo of dog"),
        ]
    }


def a_name_that_leaves_its_folder(folder: Path) -> dict:
    return {"output_name": "../sks"}


def an_absolute_name(folder: Path) -> dict:
    return {"output_name": str(folder / "sks")}


def a_device_on_windows(folder: Path) -> dict:
    return {"output_name": "con.v2"}


def a_character_that_windows_refuses(folder: Path) -> dict:
    return {"output_name": 'sks "best"'}


def a_name_that_ends_in_a_dot(folder: Path) -> dict:
    return {"output_name": "sks."}


def a_result_that_is_there(folder: Path) -> dict:
    (folder / "out").mkdir()
    (folder / "out" / "sks.safetensors").write_bytes(b"precious")
    return {}


def a_step_of_the_result_that_is_there(folder: Path) -> dict:
    (folder / "out").mkdir()
    (folder / "out" / "sks-2.safetensors").write_bytes(b"precious")
    return {"export_steps": 2}


def a_folder_with_the_result_s_name(folder: Path) -> dict:
    (folder / "out" / "sks.safetensors").mkdir(parents=True)
    return {"overwrite": True}


def an_output_folder_that_is_a_file(folder: Path) -> dict:
    (folder / "out").write_bytes(b"")
    return {}


def a_runs_folder_below_a_file(folder: Path) -> dict:
    (folder / "runs").write_bytes(b"")
    return {"runs_dir": str(folder / "runs" / "here")}


def nothing_to_train(folder: Path) -> dict:
    return {"train_unet": False, "train_text_encoder": False}


def no_concepts(folder: Path) -> dict:
    return {"concepts": []}


def an_unknown_tracker(folder: Path) -> dict:
    return {"report_to": "tensorbord"}


WRONG = [
    (no_such_model, ["nowhere.safetensors"]),
    (no_model_named, ["model"]),
    (a_text_file_as_model, ["model.safetensors"]),
    (a_truncated_model, ["model.safetensors", "truncated"]),
    (a_pickle_that_runs_code, ["model.ckpt", "mkdir"]),
    (a_lora_as_model, ["style.safetensors", "LoRA"]),
    (a_family_that_is_not_supported, ["xl.safetensors", "XL"]),
    (an_unknown_setting, ["learning_rat", "learning_rate"]),
    (a_mistyped_setting, ["max_train_steps", "many", "whole number"]),
    (a_value_out_of_range, ["text_encoder_stop", "1.5", "0 to 1"]),
    (an_empty_class_prompt, ["class_prompt", "prior_loss_weight: 0"]),
    (a_folder_that_is_not_there, ["instance_data_dir", "photoz"]),
    (a_folder_without_images, ["instance_data_dir", "empty", ".txt", "png"]),
    (an_unreadable_image, ["broken.png", "allow_bad_images"]),
    (a_truncated_image, ["cut.png", "allow_bad_images"]),
    (an_enormous_image, ["huge.png", "million pixels", "allow_bad_images"]),
    (broken_json, ["concepts_list.json", "line 3", "column"]),
    (two_prompts_for_one_class_folder, ["class_data_dir", "class"]),
    (a_name_that_leaves_its_folder, ["output_name", "../sks"]),
    (an_absolute_name, ["output_name"]),
    (a_device_on_windows, ["output_name", "con.v2", "Windows"]),
    (a_character_that_windows_refuses, ["output_name", "sks"]),
    (a_name_that_ends_in_a_dot, ["output_name", "sks."]),
    (a_result_that_is_there, ["output_name", "sks.safetensors", "overwrite: yes"]),
    (a_step_of_the_result_that_is_there, ["output_name", "sks-2.safetensors", "overwrite: yes"]),
    (a_folder_with_the_result_s_name, ["output_name", "sks.safetensors", "folder"]),
    (an_output_folder_that_is_a_file, ["output_dir", "out"]),
    (a_runs_folder_below_a_file, ["runs_dir", "runs"]),
    (nothing_to_train, ["train_unet"]),
    (no_concepts, ["concepts"]),
    (an_unknown_tracker, ["report_to", "tensorbord", "tensorboard"]),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), WRONG, ids=[make.__name__ for make, _ in WRONG])
def test_wrong_input_is_one_message_exit_code_2_and_nothing_written(
    make, words, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = config(tmp_path, **make(tmp_path))
    before = tree(tmp_path)
    assert dreambooth("train", settings) == 2
    message = one_message(capsys)
    for word in words:
        assert word in message
    assert tree(tmp_path) == before
    assert dreambooth("plan", settings) == 2, "the plan finds what the training would find"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learning_rat=1", ["learning_rat", "learning_rate"]),
        ("resolution=big", ["resolution", "big"]),
        ("resolution=2049", ["resolution", "2049", "2048"]),
        ("seed", ["seed", "name=value"]),
    ],
)
def test_a_wrong_override_is_said_of_the_command_line(override, words, tmp_path, capsys) -> None:
    settings = config(tmp_path)
    before = tree(tmp_path)
    assert dreambooth("train", settings, override) == 2
    message = one_message(capsys)
    assert "command line" in message
    for word in words:
        assert word in message
    assert tree(tmp_path) == before


def test_too_little_room_is_told_before_anything_is_written(tmp_path, capsys, monkeypatch) -> None:
    settings = config(tmp_path)
    before = tree(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(10**9, 10**9 - 10**6, 10**6))
    assert dreambooth("train", settings) == 2
    message = one_message(capsys)
    assert "1 MB free" in message and str(tmp_path) in message
    assert tree(tmp_path) == before


def test_a_tracker_that_is_not_installed_is_told_before_anything_is_written(
    tmp_path, capsys, monkeypatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else real(name, *rest)
    )
    settings = config(tmp_path, report_to="tensorboard, wandb")
    before = tree(tmp_path)
    assert dreambooth("train", settings) == 2
    message = one_message(capsys)
    assert message.startswith("report_to: the package wandb") and "pip install wandb" in message
    assert tree(tmp_path) == before


def test_ctrl_c_while_the_plan_is_made_leaves_nothing(tmp_path, capsys, monkeypatch) -> None:
    from dreambooth.trainer.planning import plan

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "planned_files", interrupted)
    settings = config(tmp_path)
    before = tree(tmp_path)
    assert dreambooth("train", settings) == 1
    assert capsys.readouterr().err == "Interrupted.\n"
    assert tree(tmp_path) == before


def test_a_conversion_that_is_terminated_leaves_nothing_and_says_so(tmp_path, capsys, monkeypatch) -> None:
    from dreambooth.trainer.weights.sink import Sink

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Sink, "finish", lambda self: signal.raise_signal(signal.SIGTERM))
    for name in ("a.safetensors", "folder"):
        assert dreambooth("convert", tiny.base(), tmp_path / name) == 1
        assert capsys.readouterr().err == "Interrupted.\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("make", [an_unreadable_image, a_truncated_image, an_enormous_image])
def test_bad_images_are_named_and_left_out_where_they_are_allowed(make, tmp_path, capsys) -> None:
    settings = config(tmp_path, **make(tmp_path), allow_bad_images=True)
    assert dreambooth("plan", settings, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["images"] == 3
    (note,) = [note for note in plan["notes"] if "left out" in note]
    assert {"broken.png", "cut.png", "huge.png"} & set(note.replace("/", " ").replace(":", " ").split())


def test_concepts_json_with_comments_trailing_commas_and_backslashes_is_taken(tmp_path, capsys) -> None:
    windows_path = str(tiny.photos()).replace("/", "\\") if os.name == "nt" else str(tiny.photos())
    (tmp_path / "concepts_list.json").write_text(
        f'[ // mine\n {{"instance_prompt": "sks cat", "class_prompt": "cat", /* here */\n'
        f'  "instance_data_dir": "{windows_path}",\n "class_data_dir": "C:\\nowhere\\sks",}},\n]\n'
    )
    assert dreambooth("plan", config(tmp_path, concepts=str(tmp_path / "concepts_list.json")), "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 3


def test_a_plan_in_json_says_what_is_wrong_as_json(tmp_path, capsys) -> None:
    assert dreambooth("plan", config(tmp_path, model=str(tmp_path / "nowhere.ckpt")), "--json") == 2
    said = capsys.readouterr()
    assert said.err == ""
    error = json.loads(said.out)["error"]
    assert "nowhere.ckpt" in error["where"] + error["text"] and error["remedy"]


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (no_such_model, "model"), (a_lora_as_model, "model"), (a_truncated_model, "model"),
        (lambda folder: {"use_ema_weights": True}, "use_ema_weights"),
        (lambda folder: {"resolution": "big"}, "resolution"),
        (lambda folder: {"resolution": 7}, "resolution"),
        (lambda folder: {"optimizer_args": ["x"]}, "optimizer_args"),
        (lambda folder: {"background": "no colour"}, "background"),
        (lambda folder: {"output_name": "../x"}, "output_name"),
        (lambda folder: {"concepts": []}, "concepts"),
        (lambda folder: {"concepts": str(folder / "nowhere.json")}, "concepts"),
        (broken_json, "concepts"),
        (lambda folder: {"concepts": [concept(), concept(instance_data_dir="/no/where")]}, "concepts[1].instance_data_dir"),
        (lambda folder: {"concepts": [concept(repeats="often")]}, "concepts[0].repeats"),
        (lambda folder: {"concepts": [concept(class_prompt="")]}, "concepts[0].class_prompt"),
        (lambda folder: {"concepts": [concept(class_data_dir=str(tiny.photos()))]}, "concepts[0].class_data_dir"),
        (lambda folder: {"concepts": [concept(class_data_dir=str(tiny.base()))]}, "concepts[0].class_data_dir"),
        (an_unreadable_image, "concepts[0].instance_data_dir"),
    ],
)  # fmt: skip
def test_an_error_of_the_plan_names_the_setting_that_a_form_shows_it_beside(
    make, settings, tmp_path, capsys
) -> None:
    path = config(tmp_path, **make(tmp_path))
    assert dreambooth("plan", path, "--json") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["where"] == settings and error["remedy"]
    assert str(path) not in error["text"], "the form goes without saying"


@pytest.mark.parametrize(
    "make",
    [an_unreadable_image, an_empty_class_prompt, no_such_model, a_result_that_is_there, nothing_to_train,
     lambda folder: {"resolution": 7}],
)  # fmt: skip
def test_what_is_wrong_hides_no_remark_on_the_photos(make, tmp_path, capsys) -> None:
    assert dreambooth("plan", config(tmp_path, **make(tmp_path)), "--json") == 2
    (facts,) = json.loads(capsys.readouterr().out)["concepts"]
    assert facts["images"] == 3 and facts["rare_token_count"] >= 1
    assert any(remark["text"].startswith("3 photos: with 10") for remark in facts["advice"])


def test_a_concept_of_which_nothing_can_be_told_keeps_its_place_among_the_remarks(tmp_path, capsys) -> None:
    concepts = [concept(instance_data_dir="/no/where"), concept()]
    assert dreambooth("plan", config(tmp_path, concepts=concepts), "--json") == 2
    nothing, facts = json.loads(capsys.readouterr().out)["concepts"]
    assert nothing == {} and facts["images"] == 3


def a_name_that_another_run_has(folder: Path) -> dict:
    assert dreambooth("train", config(folder)) == 0
    return {"max_train_steps": 3}


def a_rate_out_of_range(folder: Path) -> dict:
    return {"learning_rate": -1}


COMMON = [
    *(make for make, _ in WRONG),
    *(a_name_that_another_run_has, a_rate_out_of_range),
    lambda folder: {"resolution": 7},
    lambda folder: {"resolution": 70},
    lambda folder: {"resolution": 5000},
    lambda folder: {"prior_loss_weight": 1, "num_class_images": 0},
    lambda folder: {"background": "no colour"},
    lambda folder: {"use_ema_weights": True},
    lambda folder: {"vae": str(folder / "no.vae.pt")},
    lambda folder: {"clip_skip": 40},
    lambda folder: {"optimizer": "adamw9bit"},
    lambda folder: {"optimizer_args": {"weight": "1"}},
    lambda folder: {"lr_scheduler": "slow"},
    lambda folder: {"mixed_precision": "fp16"},
    lambda folder: {"train_unet": False, "train_text_encoder": True, "text_encoder_stop": 0.5},
    lambda folder: {"output_kind": "lora", "rank": 500},
    lambda folder: {"output_kind": "lora", "target_blocks": "nose"},
    lambda folder: {"output_kind": "lora", "init_from": str(folder / "no.safetensors")},
    lambda folder: {"prior": "base_prediction"},
    lambda folder: {"snr_gamma": "high"},
    lambda folder: {"concepts": [concept(class_data_dir=str(tiny.photos()))]},
    lambda folder: {"concepts": [concept(instance_prompt="[filewords]")]},
    lambda folder: {"concepts": [concept(instance_prompt="")]},
    lambda folder: {"concepts": [concept(repeats="often")]},
    lambda folder: {"concepts": [concept(repeats=0)]},
    lambda folder: {"concepts": [concept(instance_data_dir="")]},
    lambda folder: {"concepts": str(folder / "nowhere.json")},
    lambda folder: {"sample_prompts": ["photo of sks cat"], "sample_size": "big"},
]


@pytest.mark.parametrize("make", COMMON)
def test_what_a_form_is_refused_for_most_often_is_said_in_chinese_too(
    make, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = config(tmp_path, **make(tmp_path))
    capsys.readouterr()
    assert dreambooth("plan", path, "--json") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    known = translations.table()
    missing = [
        *translations.untranslated(error["text"], known),
        *translations.untranslated(error["remedy"], known),
    ]
    assert missing == []


def test_the_small_base_is_put_into_a_folder_and_never_over_another_file(tmp_path, capsys) -> None:
    folder = tmp_path / "models" / "Stable-diffusion"
    assert dreambooth("base", folder) == 0
    placed = folder / "small-base.safetensors"
    assert str(placed) in capsys.readouterr().out and placed.with_suffix(".yaml").exists()
    assert dreambooth("base", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(placed)}
    placed.write_bytes(b"mine")
    assert dreambooth("base", folder, "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"]["where"] == str(placed)
    assert placed.read_bytes() == b"mine"


def test_inspect_answers_in_json_also_what_is_wrong(tmp_path, capsys) -> None:
    assert dreambooth("inspect", tiny.base(), "--json", "--no-hash") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["family_name"] == "sd1" and "sha256" not in found
    assert dreambooth("inspect", tmp_path / "nowhere.ckpt", "--json") == 2
    said = capsys.readouterr()
    assert said.err == "" and "nowhere.ckpt" in json.loads(said.out)["error"]["where"]


def test_a_plan_writes_nothing(tmp_path, capsys) -> None:
    settings = config(tmp_path)
    before = tree(tmp_path)
    assert dreambooth("plan", settings) == 0
    assert tree(tmp_path) == before
    assert "4 steps" in capsys.readouterr().out


def test_wrong_usage_is_one_message_and_exit_code_2(capsys) -> None:
    for arguments in (["train"], ["fly"], ["export", "run", "--step", "two"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        assert "python3 -m dreambooth" in (message := one_message(capsys)) and "  --help" not in message


@pytest.mark.parametrize("command", ["resume", "stop", "export"])
def test_a_run_that_is_not_there_is_named(command, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("DREAMBOOTH_RUNS_DIR", str(tmp_path / "runs"))
    assert dreambooth(command, "nobody's run") == 2
    message = one_message(capsys)
    assert "nobody's run" in message and str(tmp_path / "runs") in message


def test_a_folder_without_runs_has_none(tmp_path, capsys) -> None:
    assert dreambooth("runs", tmp_path / "nowhere") == 0
    assert "no runs" in capsys.readouterr().out


def test_stopping_a_run_that_does_not_run_says_so(tmp_path, capsys) -> None:
    (tmp_path / "sks").mkdir()
    (tmp_path / "sks" / "config.yaml").write_text("seed: 1\n")
    assert dreambooth("stop", tmp_path / "sks") == 0
    assert "not running" in capsys.readouterr().out
    assert not list((tmp_path / "sks").glob("commands/*"))


def test_a_message_that_nobody_reads_any_more_still_has_its_exit_code(tmp_path, monkeypatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    assert dreambooth("plan", tmp_path / "nowhere.yaml") == 2
