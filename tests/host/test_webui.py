"""The facade of the WebUI, held against the stand-in: each of the host's traps is stepped over."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import threading
from typing import Any

import pytest
import translations
from conftest import picture, write_safetensors

from dreambooth.shared.errors import DreamboothError, InputError


def facade() -> Any:
    return importlib.import_module("dreambooth.host.webui")


def sha256(path: Any) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# what there is


def test_the_checkpoints_say_which_is_selected_and_which_is_loaded(loaded):
    loaded()
    models = facade().checkpoints()
    assert [(one.name, one.selected, one.loaded) for one in models] == [
        ("a.safetensors", True, True),
        ("b.safetensors", False, False),
    ]
    assert facade().selected_checkpoint() == models[0]


def test_looking_loads_no_model(standin):
    webui = standin()
    webui.checkpoint("a")
    webui.sd_models.list_models()
    assert [one.loaded for one in facade().checkpoints()] == [False]
    assert facade().selected_checkpoint().name == "a.safetensors"
    assert webui.sd_models.model_data.sd_model is None


def test_a_webui_without_checkpoints_has_no_selected_one(standin):
    standin()
    assert facade().selected_checkpoint() is None


def test_vaes_are_listed_and_one_that_a_results_name_would_take_is_named(standin):
    webui = standin()
    write_safetensors(webui.data / "models" / "VAE" / "my-dog-something.vae.safetensors")
    webui.sd_vae.refresh_vae_list()
    assert [one.name for one in facade().vaes()] == ["my-dog-something.vae.safetensors"]
    assert facade().vae_that_takes("my-dog") == "my-dog-something.vae.safetensors"
    assert facade().vae_that_takes("my-cat") == ""


def test_places_follow_the_flags(standin, tmp_path):
    webui = standin("--ckpt-dir", str(tmp_path / "ckpt"), "--models-dir", str(tmp_path / "models"))
    assert facade().checkpoints_dir() == tmp_path / "ckpt"
    assert facade().lora_dir() == tmp_path / "models" / "Lora"
    assert facade().data_path() == webui.data
    assert facade().runs_dir() == webui.data / "dreambooth" / "runs"
    assert facade().photos_dir() == webui.data / "dreambooth" / "photos"


def test_the_webui_looks_for_checkpoints_also_beside_the_folder_of_its_flag(standin, tmp_path):
    webui = standin("--ckpt-dir", str(tmp_path / "ckpt"), "--lora-dir", str(tmp_path / "loras"))
    usual = webui.data / "models" / "Stable-diffusion"
    assert facade().listed_folders(adapters=False) == [tmp_path / "ckpt", usual]
    assert facade().listed_folders(adapters=True) == [tmp_path / "loras"]


def test_flags_hide_folders_and_name_the_cards_thrift(standin):
    standin("--medvram")
    assert facade().flags().paths_may_be_chosen and facade().flags().low_memory == "medvram"
    for flag in ("--hide-ui-dir-config", "--disable-extension-access", "--listen"):
        standin(flag)
        assert not facade().flags().paths_may_be_chosen


@pytest.mark.parametrize(
    ("flags", "visible", "expected"),
    [
        ((), None, {}),
        (("--device-id", "1"), None, {"CUDA_VISIBLE_DEVICES": "1"}),
        (("--device-id", "1"), "2,5", {"CUDA_VISIBLE_DEVICES": "5"}),
        (("--device-id", "0"), "GPU-aa, GPU-bb", {"CUDA_VISIBLE_DEVICES": "GPU-aa"}),
        (("--use-cpu", "all"), None, {"CUDA_VISIBLE_DEVICES": "-1"}),
    ],
)
def test_the_trainers_card_is_the_webuis(standin, monkeypatch, flags, visible, expected):
    standin(*flags)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert facade().device_environ() == expected


# settings


def test_our_section_of_settings_has_its_defaults_and_is_obeyed(standin):
    webui = standin()
    host = facade()
    assert host.options() == host.Options("", False, True)  # before the section was added
    host._add_options()
    assert host.options() == host.Options("", False, True)
    webui.shared.opts.data["dreambooth_trainer_runs_dir"] = str(webui.data / "elsewhere")
    webui.shared.opts.data["dreambooth_trainer_allow_generating"] = True
    assert host.runs_dir() == webui.data / "elsewhere"
    assert host.options().allow_generate_while_training


def test_a_folder_set_relatively_lies_below_the_webuis_data(standin):
    webui = standin()
    facade()._add_options()
    webui.shared.opts.data["dreambooth_trainer_runs_dir"] = "my runs"
    assert facade().runs_dir() == webui.data / "my runs"


def test_the_runs_folder_cannot_be_chosen_from_a_page_that_may_not_choose_folders(standin):
    webui = standin("--hide-ui-dir-config")
    facade()._add_options()
    assert not webui.shared.opts.set("dreambooth_trainer_runs_dir", "/")
    assert facade().options().runs_dir == ""


def test_every_label_of_our_settings_is_there_once(standin):
    webui = standin()
    facade()._add_options()
    labels = [info.label for info in webui.shared.opts.data_labels.values()]
    assert len(set(labels)) == len(labels)


def test_our_settings_and_their_explanations_are_translated_as_the_page_has_them(standin):
    webui = standin()
    facade()._add_options()
    ours = [info for name, info in webui.shared.opts.data_labels.items() if name.startswith("dreambooth")]
    texts = {text for info in ours for text in (info.label, re.sub(r"<[^>]*>", "", info.comment_after))}
    assert len(texts) == 6 and texts - translations.table().keys() == set()


# the card


@pytest.mark.parametrize("flags", [(), ("--medvram",), ("--lowvram",), ("--device-id", "0")])
def test_the_model_leaves_the_card_and_the_next_picture_brings_it_back(loaded, flags):
    webui = loaded(*flags)
    freed = facade().free_model()
    assert (freed.before_gb, freed.after_gb) == (6.0, 8.0)
    assert webui.sd_models.model_data.loaded_sd_models == [] and webui.shared.sd_model is None
    assert webui.sd_vae.base_vae is None
    assert "Model: a" in picture(webui)
    assert webui.devices.card.used_gb == 2.0


def test_models_that_are_kept_beside_the_current_one_leave_too(loaded):
    webui = loaded()
    other = webui.sd_models.Model(webui.sd_models.checkpoint_aliases["b"], "v1-inference.yaml")
    other.to(webui.devices.device)
    webui.sd_models.model_data.loaded_sd_models.append(other)
    assert facade().free_model().after_gb == 8.0


def test_freeing_twice_is_freeing_once(loaded):
    loaded()
    facade().free_model()
    assert facade().free_model() == facade().Freed(8.0, 8.0)


def test_what_a_plan_may_count_on_is_what_the_model_will_give_back(loaded):
    webui = loaded()
    assert facade().returned_bytes() == webui.devices.card.used_gb * 1024**3 > 0
    webui.shared.opts.data[facade().UNLOAD_MODEL] = False
    assert facade().returned_bytes() == 0


def test_without_a_card_there_is_no_figure(standin):
    webui = standin()
    assert facade().returned_bytes() == 0
    webui.checkpoint("a")
    webui.sd_models.list_models()
    assert webui.shared.sd_model
    assert facade().free_model() == facade().Freed(None, None)


def test_who_takes_the_card_is_told_before_anybody_else_can_use_it(loaded):
    webui = loaded()
    seen = []
    facade().free_model(taken=lambda: seen.append(webui.call_queue.queue_lock.acquire(blocking=False)))
    assert seen == [False]
    assert webui.call_queue.queue_lock.acquire(blocking=False)


def test_a_model_that_may_stay_stays(loaded):
    webui = loaded()
    taken = []
    facade().free_model(unload=False, taken=lambda: taken.append(True))
    assert taken == [True] and webui.shared.sd_model.device == webui.devices.device


def test_behind_a_long_generation_nothing_hangs(loaded):
    webui = loaded()
    began, done = threading.Event(), threading.Event()

    def generation() -> None:
        with webui.call_queue.queue_lock:
            began.set()
            done.wait(10)

    thread = threading.Thread(target=generation)
    thread.start()
    began.wait(10)
    with pytest.raises(DreamboothError, match="busy making pictures"):
        facade().free_model(patience=0.1)
    assert webui.shared.sd_model is not None
    done.set()
    thread.join()
    assert facade().free_model().after_gb == 8.0


# a new checkpoint


def test_a_new_checkpoint_is_loaded_and_stays_selected(loaded):
    webui = loaded()
    path = webui.checkpoint("new", b"nnnn")
    model = facade().load_checkpoint(path, sha256=sha256(path))
    assert model.name == "new.safetensors" and model.selected and model.loaded
    assert webui.shared.opts.sd_model_checkpoint == model.title
    assert "Model: new" in picture(webui)
    assert facade().selected_checkpoint().title == model.title


def test_the_same_name_with_new_content_is_loaded_anew(loaded):
    webui = loaded()
    path = webui.checkpoint("a", b"AAAA")
    os.utime(path, (2e9, 2e9))
    facade().load_checkpoint(path, sha256=sha256(path))
    assert webui.shared.sd_model.content == sha256(path)
    assert f"Model hash: {sha256(path)[:10]}" in picture(webui)


def test_the_same_file_is_not_loaded_twice(loaded, monkeypatch):
    webui = loaded()
    path = webui.data / "models" / "Stable-diffusion" / "a.safetensors"
    model = webui.shared.sd_model
    monkeypatch.setattr(webui.sd_models, "_read", lambda info: pytest.fail("it was read again"))
    facade().load_checkpoint(path, sha256=sha256(path))
    assert webui.shared.sd_model is model


def test_listing_after_the_selected_file_was_replaced_keeps_it_selected(loaded):
    webui = loaded()
    facade().load_checkpoint(webui.data / "models" / "Stable-diffusion" / "b.safetensors")
    os.utime(webui.checkpoint("b", b"BBBB"), (2e9, 2e9))
    facade().list_again()
    assert webui.sd_models.select_checkpoint().name == "b.safetensors"
    assert facade().selected_checkpoint().name == "b.safetensors"


@pytest.mark.parametrize("damage", ["torn", "text", "hash", "gone"])
def test_a_file_that_is_not_whole_never_reaches_the_webui(loaded, damage):
    webui = loaded()
    path = webui.checkpoint("new", b"nnnn")
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "text":
        path.write_text("<html>not found</html>")
    elif damage == "gone":
        path.unlink()
    with pytest.raises(InputError, match=r"new\.safetensors"):
        facade().load_checkpoint(path, sha256="0" * 64 if damage == "hash" else "")
    assert "Model: a" in picture(webui)


def test_a_whole_file_that_does_not_load_leaves_nothing_half_detached(loaded, monkeypatch):
    webui = loaded()
    path = webui.checkpoint("new", b"nnnn")

    def fail(info: Any) -> str:
        if info.filename == str(path):
            raise RuntimeError("no UNet in it")
        return read(info)

    read = webui.sd_models._read
    monkeypatch.setattr(webui.sd_models, "_read", fail)
    with pytest.raises(DreamboothError, match="could not load it: no UNet in it"):
        facade().load_checkpoint(path)
    assert "Model: a" in picture(webui)


def test_a_file_outside_the_folders_is_not_loaded(loaded, tmp_path):
    loaded()
    with pytest.raises(InputError, match="does not list"):
        facade().load_checkpoint(write_safetensors(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    "flags",
    [
        ("--freeze-settings",),
        ("--freeze-settings-in-sections", "sd"),
        ("--freeze-specific-settings", "sd_model_checkpoint"),
    ],
)
def test_frozen_settings_keep_their_checkpoint(loaded, flags):
    webui = loaded(*flags)
    with pytest.raises(DreamboothError, match="frozen"):
        facade().load_checkpoint(webui.data / "models" / "Stable-diffusion" / "b.safetensors")
    assert "Model: a" in picture(webui)
