"""The plan: its numbers by closed forms, what it says of what was chosen, and that it is read like a page."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import tiny
import tiny_sdxl
import torch
from tiny import config, dreambooth, tree

from dreambooth.shared.config import load_settings
from dreambooth.shared.errors import InputError
from dreambooth.shared.events import SCHEMA
from dreambooth.shared.problems import SeveralErrors
from dreambooth.trainer.planning import plan as plans
from dreambooth.trainer.planning import plan_settings
from dreambooth.trainer.planning.expected import Expected
from dreambooth.trainer.planning.plan import make_plan


def planned(folder: Path, **values):
    return make_plan(load_settings(config(folder, **values)))


def concepts(folder: Path, *counts_and_repeats: tuple[int, int]) -> list[dict]:
    return [
        {
            "instance_prompt": f"photo of sks{number}",
            "class_prompt": f"thing {number}",
            "instance_data_dir": str(tiny.write_photos(folder / f"photos {number}", count)),
            "repeats": repeats,
        }
        for number, (count, repeats) in enumerate(counts_and_repeats)
    ]


@pytest.mark.parametrize(
    ("counts", "batch", "accumulation", "per_image"),
    [([(3, 1)], 1, 1, 100), ([(3, 1)], 2, 1, 7), ([(3, 4), (5, 1)], 4, 3, 10), ([(1, 1)], 8, 1, 1)],
)
def test_steps_come_from_steps_per_image_and_a_step_is_a_whole_batch(
    counts, batch, accumulation, per_image, tmp_path
) -> None:
    found = planned(
        tmp_path,
        concepts=concepts(tmp_path, *counts),
        train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        steps_per_image=per_image,
        max_train_steps=0,
    )
    drawn = sum(count * repeats for count, repeats in counts)
    assert found.batch == batch * accumulation
    assert found.steps == max(1, math.ceil(per_image * drawn / (batch * accumulation)))
    assert found.epochs == pytest.approx(found.steps * batch * accumulation / drawn)
    assert found.settings.training.max_train_steps == found.steps, "the run's settings say it"
    assert found.survey.instance_count == sum(count for count, _ in counts)


def test_max_train_steps_wins(tmp_path) -> None:
    found = planned(tmp_path, max_train_steps=17, steps_per_image=100)
    assert found.steps == 17 and found.epochs == pytest.approx(17 / 3)


@pytest.mark.parametrize(("stop", "step"), [(1.0, 10), (0.5, 5), (0.35, 4), (0.0, 0)])
def test_the_text_encoder_stops_at_its_fraction_of_the_steps(stop, step, tmp_path) -> None:
    found = planned(tmp_path, max_train_steps=10, text_encoder_stop=stop)
    assert found.text_encoder_stop == step
    assert list(found.trained) == (["unet", "text_encoder"] if step else ["unet"])


def test_class_images_are_counted_before_any_is_made(tmp_path) -> None:
    have = tiny.write_photos(tmp_path / "class", 2)
    two = concepts(tmp_path, (2, 1), (1, 1))
    two[0] |= {"class_data_dir": str(have), "num_class_images": 5}
    found = planned(tmp_path, concepts=two, num_class_images=3)
    event = found.as_event()
    assert (event["class_images"], event["class_images_to_make"]) == (2, 3 + 3)
    without = planned(tmp_path, concepts=two, prior_loss_weight=0).as_event()
    assert (without["class_images"], without["class_images_to_make"]) == (0, 0)


def test_the_event_has_every_field_of_the_schema_in_plain_json(tmp_path) -> None:
    event = planned(tmp_path, export_steps=2).as_event()
    assert set(SCHEMA["plan"]) <= event.keys()
    assert json.loads(json.dumps(event)) == event
    assert event["images"] == 3 and event["buckets"] == {"64x64": 3}
    assert event["trained"] == ["UNet", "text encoder"]
    assert event["disk_needed"] == sum(file["size"] for file in event["files"]) <= event["disk_free"]
    assert event["output"] == str(tmp_path / "out" / "sks.safetensors")


def test_buckets_count_the_images_of_each_shape(tmp_path) -> None:
    wide = tiny.write_photos(tmp_path / "photos", 2)
    with plans_image(wide / "photo 0.png") as image:
        image.resize((128, 64)).save(wide / "wide.png")
    one = [{"instance_prompt": "sks", "instance_data_dir": str(wide)}]
    counts = planned(
        tmp_path, concepts=one, prior_loss_weight=0, aspect_ratio_buckets=True, resolution=256
    ).as_event()["buckets"]
    assert sum(counts.values()) == 3 and len(counts) == 2
    assert all(
        int(width) % 8 == int(height) % 8 == 0 for width, height in (size.split("x") for size in counts)
    )


def plans_image(path: Path):
    from PIL import Image

    return Image.open(path)


def test_the_text_names_what_will_happen_with_its_numbers(tmp_path, capsys) -> None:
    settings = config(
        tmp_path, train_batch_size=2, gradient_accumulation_steps=3, max_train_steps=5, export_steps=2
    )
    assert dreambooth("plan", settings) == 0
    text = capsys.readouterr().out
    for pattern in (
        rf"Model +{re.escape(str(tiny.base()))}",
        r"Stable Diffusion 1\.x, predicts epsilon \(.+\)",
        r"Images +3 \(3 at 64x64\); 0 class images found, 2 to be made( in bf16)?\n",
        r"Training +5 steps of 2 × 3 images and as many of the class, 10 epochs",
        r"UNet \(0\.\d+M\), text encoder \(1\.59M\); adamw, learning rate 0\.001",
        rf"Writes +{re.escape(str(tmp_path / 'out' / 'sks.safetensors'))}  \(the trained checkpoint, 5\.\d+ MB\)",
        r"Writes +\S+sks-4\.safetensors  \(step 4, ",
        r"Writes +\S+state  \(states to go on from, 2 at most, \d+(\.\d+)? MB\)",
        r"Disk +\d+(\.\d+)? MB needed, \S+ [GM]B free at ",
    ):
        assert re.search(pattern, text), f"{pattern} in\n{text}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "learning rate 0.001"),
        ({"text_encoder_learning_rate": 1e-5}, "learning rate 0.001, of the text encoder 1e-05"),
        ({"train_text_encoder": False, "text_encoder_learning_rate": 1e-5}, "learning rate 0.001"),
        ({"train_unet": False, "text_encoder_learning_rate": 1e-5}, "learning rate 1e-05"),
    ],
)
def test_the_text_names_the_rate_of_what_is_trained(given, said, tmp_path) -> None:
    assert f"adamw, {said}" in planned(tmp_path, optimizer="adamw", **given).text().splitlines()[4]


def test_what_was_chosen_or_left_out_is_a_note(tmp_path) -> None:
    tensors = tiny.tensors()
    tensors |= {
        f"model_ema.{name.replace('.', '')}": tensor.clone() for name, tensor in list(tensors.items())[:2]
    }
    tiny.save(tensors, tmp_path / "with ema.safetensors")
    (tmp_path / "list.json").write_text(
        json.dumps([{**concepts(tmp_path, (1, 1))[0], "save_sample_prompt": "x", "max_steps": 5}])
    )
    notes = "\n".join(
        planned(
            tmp_path,
            model=str(tmp_path / "with ema.safetensors"),
            concepts=str(tmp_path / "list.json"),
            aspect_ratio_buckets=True,
        ).notes
    )
    for words in ("EMA", "save_sample_prompt", "aspect_ratio_buckets"):
        assert words in notes
    assert torch.cuda.is_available() or "CPU" in notes


def test_a_prediction_type_against_what_the_file_says_is_a_note(tmp_path) -> None:
    stated = tiny.write_checkpoint(
        tmp_path / "a.safetensors", metadata={"modelspec.prediction_type": "epsilon"}
    )
    for asked, noted in (("v_prediction", 1), ("epsilon", 0), ("auto", 0)):
        notes = planned(tmp_path, model=str(stated), prediction_type=asked).notes
        found = [note for note in notes if note.startswith(f"prediction_type: {asked} is set")]
        assert len(found) == noted
        assert all("epsilon (its metadata says so" in note for note in found)
    silent = planned(tmp_path, prediction_type="v_prediction").notes
    assert not any("is set, but" in note for note in silent), "the file says nothing"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr_warmup_steps": 2}, "lr_warmup_steps has no effect with lr_scheduler: constant"),
        ({"lr_warmup_steps": 9, "lr_scheduler": "cosine"}, "never reaches its value: it rises for 9 steps"),
        ({"lr_warmup_steps": 2, "lr_scheduler": "cosine"}, None),
        ({"keep_tokens": 1}, "keep_tokens has no effect"),
        ({"rank": 8, "clip_rank": True}, "the whole model is trained and no adapter: `rank`, `clip_rank`"),
        ({"lora_alpha": 8, "lora_dropout": 0.1}, "and no adapter: `lora_alpha`, `lora_dropout`"),
        ({"lora_dropout": 0.1, "rank": 8, "output_kind": "lora"}, None),
        ({"keep_tokens": 1, "shuffle_tags": True}, None),
        ({"text_encoder_stop": 0.5, "train_text_encoder": False}, "text_encoder_stop has no effect"),
        ({"text_encoder_stop": 0.5}, None),
        (
            {"prior": "base_prediction", "output_kind": "lora", "num_class_images": 50},
            "num_class_images has no effect with prior: base_prediction",
        ),
        ({"prior": "base_prediction", "output_kind": "lora", "num_class_images": 100}, None),
        ({"train_text_encoder": False}, None),
    ],
)
def test_a_setting_that_the_others_leave_without_effect_is_a_note(given, said, tmp_path) -> None:
    notes = planned(tmp_path, max_train_steps=9, **given).notes
    found = [note for note in notes if "no effect" in note or "never reaches" in note]
    assert len(found) == (said is not None) and all(said in note for note in found)


@pytest.mark.parametrize(
    ("stated", "noted"),
    [
        ('{"concepts": [{"instance_prompt": "photo of sks cat"}], "resolution": 64}', True),
        ("{", False),
        ("[]", False),
        ('{"concepts": [3]}', False),
    ],
)
def test_a_base_that_is_a_training_s_own_result_is_a_note(stated, noted, tmp_path) -> None:
    base = tiny.write_checkpoint(tmp_path / "a.safetensors", metadata={"dreambooth.settings": stated})
    found = [note for note in planned(tmp_path, model=str(base)).notes if "result of a training" in note]
    assert len(found) == noted and all("`photo of sks cat`" in note for note in found)


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, []), (6 * 86_400, []), (30 * 86_400, ["about 30 days"])]
)
def test_a_training_of_weeks_is_a_note(seconds, said, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(plans, "expect", lambda *_, **__: Expected(seconds, "a guess"))
    found = [note for note in planned(tmp_path).notes if "days" in note]
    assert len(found) == len(said) and all(words in note for words, note in zip(said, found, strict=True))


def test_a_yaml_in_the_result_s_way_is_found_before_the_training(tmp_path) -> None:
    base = shutil.copy(tiny.base(), tmp_path / "base.safetensors")
    tiny.write_yaml(base.with_suffix(".yaml"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sks.yaml").write_text("precious: yes\n")
    with pytest.raises(InputError, match="yaml"):
        planned(tmp_path, model=str(base))
    assert planned(tmp_path).outputs.name == "sks", "a base without one writes none"


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"train_unet": False, "train_text_encoder": False}, "train_unet"),
        ({"train_unet": False, "text_encoder_stop": 0}, "text_encoder_stop"),
        ({"train_unet": False, "text_encoder_stop": 0.5}, "text_encoder_stop"),
        ({"report_to": "tensorboard, wandb"}, "report_to"),
        ({"clip_skip": 3}, "clip_skip"),
        ({"background": "no colour"}, "background"),
        ({"vae": "nowhere.safetensors"}, "vae"),
        ({"mixed_precision": "fp16"}, "mixed_precision"),
    ],
)
def test_settings_that_make_no_sense_together_name_their_key(values, where, tmp_path) -> None:
    if where == "mixed_precision" and torch.cuda.is_available():
        pytest.skip("a card can do it")
    before = tree(tmp_path)
    with pytest.raises(InputError) as refused:
        planned(tmp_path, **values)
    assert where in refused.value.where and refused.value.remedy
    assert tree(tmp_path).keys() - before.keys() == {"config.yaml"}


def test_a_plan_made_elsewhere_for_several_processes_counts_all_of_them(tmp_path) -> None:
    settings = load_settings(config(tmp_path, max_train_steps=0, steps_per_image=8, train_batch_size=2))
    found = make_plan(settings, processes=3)
    assert found.batch == 6 and found.steps == 4


def test_class_folders_of_two_models_are_apart_and_of_one_model_are_the_same(tmp_path) -> None:
    other = tiny.write_checkpoint(tmp_path / "tiny.safetensors", seed=2)
    roots = {
        plan_settings.class_root(found.settings, found.base)
        for found in (planned(tmp_path), planned(tmp_path))
    }
    roots |= {
        plan_settings.class_root(found.settings, found.base)
        for found in [planned(tmp_path, model=str(other))]
    }
    assert len(roots) == 2 and all(root.parent == tmp_path / "runs" / "class_images" for root in roots)


@pytest.mark.parametrize(("said", "side"), [("64x64", 64), ("128x64", 88), ("96", 96), ("9000x9000", 2048)])
def test_without_a_resolution_it_is_the_size_that_the_model_was_made_for(tmp_path, said, side):
    from safetensors.torch import load_file, save_file

    told = tmp_path / "told.safetensors"
    save_file(load_file(tiny.base()), told, {"modelspec.resolution": said})
    assert planned(tmp_path, model=str(told), resolution=None).settings.images.resolution == side


def test_a_resolution_of_a_few_pixels_is_refused(tmp_path):
    with pytest.raises(InputError, match="too few") as caught:
        planned(tmp_path, resolution=56)
    assert caught.value.where == "resolution"


def test_a_run_that_began_with_file_names_for_captions_goes_on_while_a_new_one_is_refused(tmp_path) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    for number, photo in enumerate(sorted(tiny.photos().glob("*.*"))[:2]):
        (folder / f"grey cat {'lying' if number else 'sitting'}{photo.suffix}").write_bytes(
            photo.read_bytes()
        )
    concepts = [{"instance_prompt": "", "instance_data_dir": str(folder)}]
    settings = load_settings(tiny.config(tmp_path, concepts=concepts, prior_loss_weight=0))
    with pytest.raises(InputError, match="no photo has a caption"):
        make_plan(settings)
    (tmp_path / "runs" / "old").mkdir(parents=True)
    assert make_plan(settings, run=tmp_path / "runs" / "old").survey.instance_count == 2


def test_what_is_wrong_in_several_places_is_said_at_once_one_message_each(tmp_path, capsys) -> None:
    own = concepts(tmp_path, (2, 1), (1, 1))
    own[0]["instance_data_dir"] = str(tmp_path / "nope")
    own[1]["instance_data_dir"] = str(tmp_path / "neither")
    path = config(tmp_path, concepts=own, resolution=17, output_name="a/b")
    assert dreambooth("plan", str(path)) == 2
    said = capsys.readouterr().err.splitlines()
    places = ["resolution", "concept 1, instance_data_dir", "concept 2, instance_data_dir", "output_name"]
    assert [line.partition(": ")[0] for line in said[::2]] == places
    assert all(line.startswith("  What to do: ") for line in said[1::2])
    assert dreambooth("plan", str(path), "--json") == 2
    told = json.loads(capsys.readouterr().out)
    concept_fields = [f"concepts[{index}].instance_data_dir" for index in (0, 1)]
    assert [one["where"] for one in told["problems"]] == ["resolution", *concept_fields, "output_name"]
    assert told["error"] == told["problems"][0]


def test_without_a_model_what_does_not_rest_on_it_is_looked_at_all_the_same(tmp_path) -> None:
    wrong = {"model": str(tmp_path / "gone.safetensors"), "output_name": "a/b", "background": "no colour"}
    with pytest.raises(SeveralErrors) as told:
        planned(tmp_path, **wrong)
    fields = [error.as_json()["where"] for error in told.value.errors]
    assert fields == ["model", "background", "output_name"]
    assert str(told.value).count("What to do") == 3


def test_photos_that_no_prompt_describes_are_said_beside_a_name_that_cannot_be(tmp_path) -> None:
    own = concepts(tmp_path, (2, 1), (1, 1))
    for one in own:
        one["instance_prompt"] = ""
    with pytest.raises(SeveralErrors) as told:
        planned(tmp_path, concepts=own, output_name="a/b")
    fields = [error.as_json()["where"] for error in told.value.errors]
    assert fields == ["concepts[0].instance_prompt", "concepts[1].instance_prompt", "output_name"]


@pytest.mark.parametrize("kind", ["lora", "checkpoint"])
def test_a_tensor_of_another_shape_is_refused_before_anything_is_written(kind, tmp_path, capsys) -> None:
    tensors = tiny.tensors()
    name = next(name for name in tensors if name.endswith("attn1.to_q.weight"))
    tensors[name] = tensors[name][:, :-1].contiguous()
    path = tiny.save(tensors, tmp_path / "bad.safetensors")
    settings = config(tmp_path, model=str(path), output_kind=kind)
    before = tree(tmp_path)
    for command in ("plan", "train"):
        assert dreambooth(command, settings) == 2
        said = capsys.readouterr()
        assert f"{path}: {name!r} has the shape (32, 31), not (32, 32)" in said.err and not said.out
    assert tree(tmp_path) == before


def test_another_vae_is_named_with_what_it_is_from_and_one_of_another_family_is_refused(tmp_path) -> None:
    assert (
        not re.search("^VAE ", planned(tmp_path).text(), re.MULTILINE)
        and planned(tmp_path).as_event()["vae"] == ""
    )
    whole = planned(tmp_path, vae=str(tiny.base()))
    assert f"\nVAE        {tiny.base()} (from Stable Diffusion 1.x)\n" in whole.text()
    own = {name: tensor for name, tensor in tiny.tensors().items() if name.startswith("first_stage_model.")}
    alone = tiny.save(own, tmp_path / "alone.safetensors")
    assert planned(tmp_path, vae=str(alone)).as_event()["vae"] == (
        f"{alone} (its file does not tell of which family it is)"
    )
    with pytest.raises(
        InputError, match=r"from Stable Diffusion XL, whose latents are scaled by 0\.13025"
    ) as caught:
        planned(tmp_path, vae=str(tiny_sdxl.base()))
    assert caught.value.where == "vae"
