"""Results: how far the weights moved, whose file it is, and what a checkpoint says of itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file
from watching import raw, sha256

from dreambooth.shared.config import settings_from
from dreambooth.shared.errors import InputError
from dreambooth.trainer.models.convert import canonical_state, load_model
from dreambooth.trainer.models.place_base import BASE
from dreambooth.trainer.saving import results
from dreambooth.trainer.saving.outputs import RUN_ID_KEY
from dreambooth.trainer.saving.results import WeightChange


@pytest.fixture(scope="module")
def base():
    return load_model(tiny.base(), components=())


@pytest.fixture(scope="module")
def weights():
    """The tiny checkpoint's text encoder, float32, by canonical name."""
    model = load_model(tiny.base(), components=("text_encoder",))
    return canonical_state("text_encoder", model.components["text_encoder"])


def settings(**values: str):
    return settings_from({"model": str(tiny.base()), "learning_rate": "1e-6", **values}, where="test")


def write(path, base, trained, run_id="this run", **values: str):
    given = settings(**values)
    about = results.metadata(given, run_id)
    return results.write_checkpoint(path, base, trained, given, about, scratch=path.parent)


# ---- how far the weights moved -------------------------------------------------------------------------------------


def test_the_change_is_the_length_of_the_difference_over_the_base_s(base, weights) -> None:
    moved = {name: tensor + 0.25 for name, tensor in weights.items()}
    found = results.weight_change(base, {"text_encoder": moved}, torch.float32)["text_encoder"]
    own = load_file(tiny.base())
    plain = [
        own[name].double()
        for name in own
        if name.startswith("cond_stage_model") and "position_ids" not in name
    ]
    count = sum(tensor.numel() for tensor in plain)
    expected = math.sqrt(count * 0.25**2 / sum(float(tensor.square().sum()) for tensor in plain))
    assert found.relative == pytest.approx(expected, rel=1e-6)
    assert found.changed == 1.0


def test_only_what_the_written_dtype_can_hold_counts(base, weights) -> None:
    nudged = {name: tensor * (1 + 4e-4) for name, tensor in weights.items()}
    seen = {
        dtype: results.weight_change(base, {"text_encoder": nudged}, dtype)["text_encoder"].changed
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    assert seen[torch.float32] > 0.9
    assert 0.2 < seen[torch.float16] < 0.8, "its steps are 0.05 to 0.1 percent: about half are rounded up"
    assert 0.0 < seen[torch.bfloat16] < 0.3, "its steps are eight times as wide"


def test_nothing_changed_is_told_from_a_little(base, weights) -> None:
    same = results.weight_change(base, {"text_encoder": weights}, torch.float16)
    assert same == {"text_encoder": WeightChange(0.0, 0.0)} and results.is_unchanged(same)
    one = {name: tensor.clone() for name, tensor in weights.items()}
    one["final_layer_norm.weight"][3] *= 1.01
    little = results.weight_change(
        base, {"text_encoder": one, "unet": {}} | {"unet": unet_state()}, torch.float16
    )
    assert little["unet"].changed == 0
    assert little["text_encoder"].changed == pytest.approx(1 / sum(t.numel() for t in weights.values()))
    assert not results.is_unchanged(little), "one component that learned is enough"
    assert json.loads(json.dumps(results.as_plain(little)))["unet"] == {"relative": 0.0, "changed": 0.0}


def unet_state():
    return canonical_state("unet", load_model(tiny.base(), components=("unet",)).components["unet"])


def test_an_export_takes_the_averages_where_there_are_some() -> None:
    a, b, c = (torch.full((2,), float(number)) for number in range(3))
    state = SimpleNamespace(
        weights={"unet": {"x": a, "y": b}, "text_encoder": {"z": c}}, averages={"unet": {"x": c}}
    )
    assert results.trained_of(state) == {"unet": {"x": c, "y": b}, "text_encoder": {"z": c}}


# ---- whose file it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sks.safetensors", {}),
        ("sks.ckpt", {"output_format": "ckpt"}),
        ("sks", {"output_kind": "diffusers"}),
    ],
)
def test_a_run_knows_its_own_file_in_every_form(name, values, base, weights, tmp_path) -> None:
    path = tmp_path / name
    write(path, base, {"text_encoder": weights}, **values)
    assert results.belongs_to_run(path, "this run")
    assert not results.belongs_to_run(path, "another run")
    moved = {key: tensor + 1 for key, tensor in weights.items()}
    write(path, base, {"text_encoder": moved}, **values)  # its own: the next life's export
    assert results.weight_change(load_model(path, components=()), {"text_encoder": moved}, torch.float16)[
        "text_encoder"
    ].changed < 1e-3  # fmt: skip
    with pytest.raises(InputError) as refused:
        write(path, base, {"text_encoder": weights}, run_id="another run", **values)
    assert str(path) in refused.value.what and "resume" in refused.value.remedy
    write(path, base, {"text_encoder": weights}, run_id="another run", overwrite="yes", **values)
    assert results.belongs_to_run(path, "another run")
    assert [found.name for found in tmp_path.iterdir()] == [name], "nothing is left beside it"


def test_all_files_of_a_result_are_listed_with_their_hashes(base, weights, tmp_path) -> None:
    single = write(tmp_path / "sks.safetensors", base, {"text_encoder": weights})
    assert results.files_of(single) == [{"path": str(single.path), "sha256": sha256(single.path)}]
    (tmp_path / "sks.yaml").write_text("x: 1")
    beside = dataclasses.replace(single, beside=(tmp_path / "sks.yaml",))
    assert results.files_of(beside)[1] == {
        "path": str(tmp_path / "sks.yaml"),
        "sha256": sha256(tmp_path / "sks.yaml"),
    }
    folder = write(tmp_path / "folder", base, {"text_encoder": weights}, output_kind="diffusers")
    listed = {Path(row["path"]): row["sha256"] for row in results.files_of(folder)}
    assert listed == {path: sha256(path) for path in (tmp_path / "folder").rglob("*") if path.is_file()}
    assert tmp_path / "folder" / "model_index.json" in listed


def test_a_folder_made_straight_from_the_small_base_leaves_nothing_beside_it(tmp_path) -> None:
    base = load_model(BASE, components=())
    write(tmp_path / "folder", base, {}, output_kind="diffusers")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_a_folder_s_hash_is_that_of_what_sha256sum_says_of_its_files(base, weights, tmp_path) -> None:
    folder = write(tmp_path / "folder", base, {"text_encoder": weights}, output_kind="diffusers")
    names = sorted(
        path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()
    )
    said = subprocess.run(["sha256sum", *names], cwd=folder.path, capture_output=True, check=True).stdout
    assert folder.sha256 == hashlib.sha256(said).hexdigest()


@pytest.mark.parametrize("content", [b"", b"precious", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_no_checkpoint_belongs_to_nobody(content, tmp_path) -> None:
    path = tmp_path / "sks.safetensors"
    path.write_bytes(content)
    assert not results.belongs_to_run(path, "this run")
    with pytest.raises(InputError):
        results.may_replace(path, "this run", overwrite=False)
    assert results.may_replace(path, "this run", overwrite=True)
    assert not results.may_replace(tmp_path / "nowhere.safetensors", "this run", overwrite=False)


def test_the_base_itself_is_not_the_run_s(base, tmp_path) -> None:
    path = shutil.copy(tiny.base(), tmp_path / "sks.safetensors")
    assert not results.belongs_to_run(path, "this run")


# ---- what it says of itself ----------------------------------------------------------------------------------------


def test_a_checkpoint_of_any_step_leaves_what_the_run_reads_as_it_is(base, weights, tmp_path) -> None:
    vae = shutil.copyfile(tiny.base(), tmp_path / "sks-7.safetensors")
    content = vae.read_bytes()
    with pytest.raises(InputError, match="would take the place of the VAE that this run uses"):
        write(vae, base, {"text_encoder": weights}, vae=str(vae), overwrite="yes")
    assert vae.read_bytes() == content and list(tmp_path.iterdir()) == [vae]


def test_metadata_has_the_settings_and_no_folder_of_this_machine(tmp_path) -> None:
    given = settings(output_dir=str(tmp_path), runs_dir=str(tmp_path / "runs"), vae=str(tmp_path / "a.vae"))
    given.concepts.concepts = [
        tiny_concept(
            instance_prompt="sks", instance_data_dir=str(tmp_path), class_data_dir=str(tmp_path / "class")
        )
    ]
    about = results.metadata(given, "the id")
    assert about[RUN_ID_KEY] == "the id" and str(tmp_path) not in json.dumps(about)
    said = json.loads(about["dreambooth.settings"])
    assert said["learning_rate"] == 1e-6 and said["concepts"][0]["instance_prompt"] == "sks"
    assert not {"model", "vae", "output_dir", "runs_dir"} & said.keys()


def tiny_concept(**values):
    from dreambooth.shared.concepts import Concept

    return Concept(**values)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_weights_take_the_chosen_dtype_and_nothing_else_does(dtype, base, weights, tmp_path) -> None:
    path = tmp_path / "deep" / "folder" / "sks.safetensors"
    written = write(path, base, {"text_encoder": weights}, output_dtype=dtype)
    assert written.nbytes == path.stat().st_size
    own, found = raw(tiny.base()), raw(path)
    name = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}[dtype]
    for key in own:
        is_weight = (
            key.startswith(("model.", "first_stage_model.", "cond_stage_model.")) and own[key][0] == "F16"
        )
        assert found[key][0] == (name if is_weight else own[key][0]), key
    for key in (
        "betas",
        "alphas_cumprod",
        "nobody.knows.this",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
    ):
        assert own[key] == found[key]
