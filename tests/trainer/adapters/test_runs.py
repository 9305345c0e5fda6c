"""Whole runs of adapters: what they leave, that they go on to the same bits, and what is refused before they start."""

from __future__ import annotations

import functools
import json
import shutil
import signal
from pathlib import Path

import kohya
import models
import pytest
import tiny
import tiny_sdxl
import torch
from checkpoints import write
from safetensors.torch import load_file
from tiny import config, dreambooth, tree
from watching import at_event, events, is_finite, metadata, run_in, same_tensors

from dreambooth.trainer import control, run
from dreambooth.trainer.adapters.merging import Request
from dreambooth.trainer.models.convert import load_model
from dreambooth.trainer.saving.checkpoint import load_state

RANK = {"output_kind": "lora", "rank": 4, "learning_rate": 1e-2}
WAYS = {
    "lora": {"lora_dropout": 0.3, "use_ema": True, "target_blocks": "all"},
    "dora": {"adapter": "dora", "gradient_checkpointing": True, "text_encoder_stop": 0.5},
    "loha": {"adapter": "loha", "output_kind": "lycoris", "prior": "base_prediction", "text_encoder_stop": 0.5},
    "lokr": {"output_kind": "lycoris", "prior": "base_prediction", "gradient_accumulation_steps": 2},
    "bf16": {"mixed_precision": "bf16", "prior_loss_weight": 0, "shuffle_tags": True},
}  # fmt: skip


def adapter(folder: Path, **values: object) -> Path:
    return config(folder, **{**RANK, "num_class_images": 1, "train_batch_size": 1, **values})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A LoRA whose run went through without a stop, with its pictures."""
    folder = tmp_path_factory.mktemp("lora")
    assert (
        dreambooth("train", adapter(folder, num_validation_images=1, export_steps=2, output_dtype="float32"))
        == 0
    )
    return folder


def result(folder: Path) -> Path:
    return folder / "out" / "sks.safetensors"


@pytest.mark.parametrize("values", WAYS.values(), ids=WAYS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(values, tmp_path, monkeypatch) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert dreambooth("train", adapter(tmp_path / "whole", checkpointing_steps=2, **values)) == 0
    with monkeypatch.context() as patched:
        patched.setattr(run, "Inbox", functools.partial(control.Inbox, every=0.0))
        at_event(patched, "checkpoint", lambda found: found.order("stop"), step=2)
        assert dreambooth("train", adapter(tmp_path / "parts", checkpointing_steps=2, **values)) == 130
    assert load_state(run_in(tmp_path / "parts").states).progress.step == 3
    assert dreambooth("resume", run_in(tmp_path / "parts").path) == 0
    assert same_tensors(result(tmp_path / "whole"), result(tmp_path / "parts"))
    assert is_finite(result(tmp_path / "whole"))


def test_what_is_trained_is_said_before_and_after(finished) -> None:
    found = run_in(finished)
    (planned,) = events(found, "plan")
    assert planned["adapter"] == "LoRA of rank 4, alpha 4, on 76 layers (attention, feed-forward)"
    assert planned["trained"] == ["UNet", "text encoder"]
    assert planned["files"][0]["what"] == "the trained LoRA"
    assert planned["files"][0]["size"] == pytest.approx(result(finished).stat().st_size, abs=6000)
    state = sum(path.stat().st_size for path in (found.states / "step-4").iterdir())
    (states,) = [file["size"] for file in planned["files"] if file["path"].endswith("state")]
    assert state < states / 2 < 1.2 * state
    change = json.loads(found.result.read_bytes())["weight_change"]
    assert list(change) == ["unet", "text_encoder"] and all(
        1e-4 < part["relative"] < 1 for part in change.values()
    )
    assert [event["step"] for event in events(found, "sample")] == [0, 4]


def test_the_weights_change_is_that_of_the_written_file(finished) -> None:
    base = {name: tensor.float() for name, tensor in load_file(tiny.base()).items()}
    merged = load_model(tiny.base(), adapters=[Request(result(finished))], components=("text_encoder",))
    own = merged.components["text_encoder"].state_dict()
    prefix = "cond_stage_model.transformer.text_model."
    moved = length = 0.0
    for name, tensor in own.items():
        if (".self_attn." in name or ".mlp." in name) and name.endswith("weight"):
            moved += float((tensor - base[prefix + name]).pow(2).sum())
            length += float(base[prefix + name].pow(2).sum())
    said = json.loads(run_in(finished).result.read_bytes())["weight_change"]["text_encoder"]["relative"]
    assert said == pytest.approx((moved / length) ** 0.5, rel=1e-3)


def test_the_exported_step_and_the_state_give_files_under_their_own_names(finished, tmp_path) -> None:
    half = finished / "out" / "sks-2.safetensors"
    assert (
        metadata(half)["ss_output_name"] == "sks-2" and metadata(result(finished))["ss_output_name"] == "sks"
    )
    assert load_file(half).keys() == load_file(result(finished)).keys()
    assert not same_tensors(half, result(finished))


def test_the_file_is_what_the_state_holds_in_kohyas_names(finished) -> None:
    state = load_state(run_in(finished).states).weights
    found = load_file(result(finished))
    assert sum(len(tensors) for tensors in state.values()) == len(found) - len(found) // 3
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    flat = f"lora_unet_{path.replace('.', '_')}"
    for name in ("lora_down.weight", "lora_up.weight"):
        assert torch.equal(found[f"{flat}.{name}"], state["unet"][f"{path}.{name}"])
    assert float(found[f"{flat}.alpha"]) == 4


def test_training_goes_on_from_a_file(finished, tmp_path, capsys) -> None:
    values = {"init_from": result(finished), "rank": None, "learning_rate": 1e-12, "output_dtype": "float32"}
    assert (
        dreambooth(
            "train", adapter(tmp_path, **{name: value and str(value) for name, value in values.items()})
        )
        == 0
    )
    before, after = load_file(result(finished)), load_file(result(tmp_path))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=1e-6)
    assert metadata(result(tmp_path))["ss_network_dim"] == "4"


def stopped_from_a_file(finished: Path, folder: Path, monkeypatch, event: str, **fields: object) -> Path:
    """A run that began from a copy of the finished LoRA, and was stopped; gives the copy's path."""
    start = shutil.copy(result(finished), folder / "start.safetensors")
    base = shutil.copy(tiny.base(), folder / "base.safetensors")
    values = {"model": str(base), "init_from": str(start), "rank": None, "prior_loss_weight": 0}
    with monkeypatch.context() as patched:
        at_event(patched, event, lambda found: signal.raise_signal(signal.SIGINT), **fields)
        assert dreambooth("train", adapter(folder, checkpointing_steps=2, **values)) == 130
    return Path(start)


def test_a_run_that_has_a_state_needs_the_file_that_it_began_from_no_more(
    finished, tmp_path, monkeypatch, capsys
) -> None:
    for name in ("kept", "gone"):
        (tmp_path / name).mkdir()
        start = stopped_from_a_file(finished, tmp_path / name, monkeypatch, "checkpoint", step=2)
    start.unlink()
    base = start.with_name("base.safetensors")
    base.rename(tmp_path / "own")
    shutil.copy(tiny_sdxl.base(), base)
    capsys.readouterr()
    assert dreambooth("resume", run_in(tmp_path / "gone").path) == 2
    said = capsys.readouterr().err
    assert (
        f"\n{base}: this is not the model that the run began with" in f"\n{said}" and "init_from" not in said
    )
    (tmp_path / "own").replace(base)
    for name in ("kept", "gone"):
        assert dreambooth("resume", run_in(tmp_path / name).path) == 0
    assert same_tensors(result(tmp_path / "kept"), result(tmp_path / "gone"))
    result(tmp_path / "gone").unlink()
    assert dreambooth("export", run_in(tmp_path / "gone").path) == 0
    assert (
        load_file(tmp_path / "gone" / "out" / "sks-4.safetensors").keys()
        == load_file(result(finished)).keys()
    )


def test_a_run_without_a_state_says_which_setting_named_the_file_that_is_gone(
    finished, tmp_path, monkeypatch, capsys
) -> None:
    start = stopped_from_a_file(finished, tmp_path, monkeypatch, "phase", name="caching")
    start.unlink()
    assert dreambooth("resume", run_in(tmp_path).path) == 2
    assert f"init_from: there is no such file: {start}" in capsys.readouterr().err


def test_metadata_says_what_the_webui_shows(finished) -> None:
    said = metadata(result(finished))
    wanted = {
        "ss_base_model_version": "sd_v1", "ss_v2": "False", "ss_network_module": "networks.lora", "ss_network_dim": "4",
        "ss_network_alpha": "4", "ss_num_train_images": "3", "ss_num_reg_images": "1", "ss_steps": "4",
        "ss_sd_model_name": "tiny.safetensors", "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.resolution": "64x64", "ss_training_comment": "photo of sks cat", "ss_unet_lr": "0.01",
        "ss_text_encoder_lr": "0.005", "ss_mixed_precision": "no",
    }  # fmt: skip
    assert {name: said.get(name) for name in wanted} == wanted
    assert json.loads(said["ss_tag_frequency"]) == {"1_photos": {"photo of sks cat": 3}}
    assert str(tiny.photos()) not in " ".join(said.values()), "no folders of this machine"


def test_pictures_with_the_lora_are_those_of_the_merged_checkpoint(finished, tmp_path) -> None:
    draw = ("--steps", "2", "--size", "64")
    merged = tmp_path / "merged.safetensors"
    lora = str(result(finished))
    assert dreambooth("convert", tiny.base(), merged, "--lora", lora, "--dtype", "float32") == 0
    pictures = {"base": (tiny.base(),), "lora": (tiny.base(), "--lora", lora), "merged": (merged,),
                "half": (tiny.base(), "--lora", f"{lora}:0.5")}  # fmt: skip
    for name, (model, *more) in pictures.items():
        assert dreambooth("generate", model, "sks cat", "--out", tmp_path / f"{name}.png", *draw, *more) == 0
    seen = {name: _pixels(tmp_path / f"{name}.png") for name in pictures}
    assert float((seen["lora"] - seen["merged"]).abs().mean()) <= 1 / 255
    assert float((seen["lora"] - seen["base"]).abs().mean()) > 1
    assert float((seen["half"] - seen["base"]).abs().mean()) > 0


def _pixels(path: Path) -> torch.Tensor:
    import numpy
    from PIL import Image

    return torch.from_numpy(numpy.asarray(Image.open(path)).astype("float32"))


@pytest.mark.parametrize("family", ("sd1", "sd2", "sdxl"))
def test_merging_into_a_file_is_what_kohyas_convention_gives(family, tmp_path) -> None:
    base = models.base(tmp_path, family)
    _, path = models.trained(tmp_path, family, target_blocks="all")
    assert dreambooth("convert", base, tmp_path / "out.safetensors", "--lora", f"{path}:0.7",
                      "--prediction-type", "epsilon") == 0  # fmt: skip
    expected, _ = kohya.applied(models.weights(family), load_file(path), 0.7)
    found = load_file(tmp_path / "out.safetensors")
    assert metadata(tmp_path / "out.safetensors")["dreambooth.merged"] == "adapter.safetensors:0.7"
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-5)


def test_sdxl_is_trained_resumed_and_written_with_both_text_encoders(tmp_path, monkeypatch) -> None:
    values = {"model": str(tiny_sdxl.base("epsilon")), "prior": "base_prediction", "checkpointing_steps": 2}
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert dreambooth("train", adapter(tmp_path / "whole", **values)) == 0
    with monkeypatch.context() as patched:
        patched.setattr(run, "Inbox", functools.partial(control.Inbox, every=0.0))
        at_event(patched, "checkpoint", lambda found: found.order("stop"), step=2)
        assert dreambooth("train", adapter(tmp_path / "parts", **values)) == 130
    assert dreambooth("resume", run_in(tmp_path / "parts").path) == 0
    assert same_tensors(result(tmp_path / "whole"), result(tmp_path / "parts"))
    starts = {name.split("_")[1] for name in load_file(result(tmp_path / "whole"))}
    assert starts == {"unet", "te1", "te2"}
    assert metadata(result(tmp_path / "whole"))["ss_base_model_version"] == "sdxl_base_v1-0"


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_a_rank_above_a_layers_width_is_refused_and_lowered_where_that_is_asked_for(tmp_path, capsys) -> None:
    assert dreambooth("train", adapter(tmp_path, rank=40)) == 2
    said = capsys.readouterr().err
    assert "rank 40 is above the width 32" in said and "use at most 32, or set clip_rank" in said
    assert dreambooth("plan", adapter(tmp_path, rank=40, clip_rank=True)) == 0
    assert "rank 40 is lowered to the width of 76 narrower layers" in capsys.readouterr().out


REFUSED = {
    "a whole model has no base beside it": ({"output_kind": "checkpoint", "prior": "base_prediction"}, "prior"),
    "a kind that is no lora": ({"adapter": "lokr"}, "lycoris"),
    "a kind without an adapter": ({"output_kind": "checkpoint", "adapter": "dora"}, "output_kind"),
    "a file to start from without an adapter": ({"output_kind": "checkpoint", "init_from": "x.safetensors"}, "init_from"),
    "an unknown layer": ({"target_blocks": "attention, toes"}, "toes"),
    "no layer but a comma": ({"target_blocks": " ,"}, "nothing is named"),
    "an unknown block": ({"target_blocks": "attention, up.7"}, "up.7"),
    "nothing of the text encoder": ({"target_blocks": "convolutions"}, "text encoder"),
    "a pickle": ({"output_format": "ckpt"}, "output_format"),
    "no such file": ({"init_from": "gone.safetensors"}, "gone.safetensors"),
    "a class without a prompt": (
        {"prior": "base_prediction", "concepts": [{"instance_prompt": "sks", "instance_data_dir": str(tiny.photos())}]},
        "class_prompt",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("values", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(values, said, tmp_path, capsys) -> None:
    wanted = adapter(tmp_path, **values)
    before = tree(tmp_path)
    assert dreambooth("train", wanted) == 2
    told = capsys.readouterr().err
    assert said in told and "What to do" in told and "Traceback" not in told
    assert tree(tmp_path) == before


def test_a_lora_of_another_family_is_refused_by_every_command(tmp_path, capsys) -> None:
    _, path = models.trained(tmp_path, "sdxl")
    commands = [
        ("train", adapter(tmp_path, init_from=str(path))),
        ("generate", tiny.base(), "cat", "--out", tmp_path / "cat.png", "--lora", str(path)),
        ("convert", tiny.base(), tmp_path / "merged.safetensors", "--lora", str(path)),
    ]
    before = tree(tmp_path)
    for command in commands:
        assert dreambooth(*command) == 2
        said = capsys.readouterr().err
        assert "Stable Diffusion XL" in said and "Stable Diffusion 1.x" in said and str(path) in said
    assert tree(tmp_path) == before


def test_a_lora_given_as_the_model_stays_refused(finished, tmp_path, capsys) -> None:
    assert dreambooth("train", adapter(tmp_path, model=str(result(finished)))) == 2
    assert "this is a LoRA" in capsys.readouterr().err


def test_a_lora_of_other_sizes_is_refused(tmp_path, capsys) -> None:
    _, path = models.trained(tmp_path, "sd1")
    assert dreambooth("generate", tiny.base(), "cat", "--out", tmp_path / "cat.png", "--lora", str(path)) == 2
    assert "does not fit the model" in capsys.readouterr().err


def test_an_adapter_that_learned_nothing_is_not_written(tmp_path, capsys) -> None:
    assert dreambooth("train", adapter(tmp_path, learning_rate=1e-30, adam_epsilon=1.0)) == 1
    assert "changed nothing" in capsys.readouterr().err
    assert not result(tmp_path).exists()


def test_a_file_with_a_foreign_part_is_refused_by_name(finished, tmp_path, capsys) -> None:
    tensors = load_file(result(finished))
    tensors["lora_unet_conv_in.diff"] = torch.zeros(1)
    path = write(tmp_path / "odd.safetensors", tensors)
    assert dreambooth("generate", tiny.base(), "cat", "--out", tmp_path / "cat.png", "--lora", str(path)) == 2
    assert "whole differences" in capsys.readouterr().err
