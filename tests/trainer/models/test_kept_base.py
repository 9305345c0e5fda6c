"""A run goes on with the model that it began with, wherever its file lies, and with no other one."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import tiny
import tiny_sdxl
import torch
import yaml
from tiny import config, dreambooth, tree
from watching import at_event, run_in

from dreambooth.shared.runfolder import RunFolder
from dreambooth.trainer.models.convert import convert
from dreambooth.trainer.models.kept_base import FILE, content_hash
from dreambooth.trainer.weights import open_weights


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The folder of a run that was stopped after its second step; its model is a file of its own."""
    folder = tmp_path_factory.mktemp("stopped")
    base = shutil.copy(tiny.base(), folder / "base.safetensors")
    with pytest.MonkeyPatch.context() as patched:
        at_event(patched, "checkpoint", lambda found: signal.raise_signal(signal.SIGINT), step=2)
        settings = config(folder, model=str(base), prior_loss_weight=0, checkpointing_steps=2)
        assert dreambooth("train", settings) == 130
    return folder


@pytest.fixture
def halfway(stopped, tmp_path) -> RunFolder:
    """That run, in a place of its own."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    found = run_in(tmp_path)
    for path in (
        found.config,
        *(tmp_path / "out").iterdir(),
    ):  # beside the settings the name that is kept for it
        path.write_text(
            path.read_text(encoding="utf-8").replace(str(stopped), str(tmp_path)), encoding="utf-8"
        )
    return found


def base_of(run: RunFolder) -> Path:
    return run.path.parents[1] / "base.safetensors"


def change_config(run: RunFolder, **values: object) -> None:
    said = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    run.config.write_text(yaml.safe_dump(said | values), encoding="utf-8")


@pytest.mark.parametrize("command", ["resume", "export"])
def test_another_model_of_the_same_shapes_is_refused_before_anything_is_done(
    command, halfway, capsys
) -> None:
    tiny.write_checkpoint(base_of(halfway), seed=2)
    before = tree(halfway.path)
    capsys.readouterr()
    assert dreambooth(command, halfway.path) == 2
    said = capsys.readouterr()
    assert said.err == (
        f"{base_of(halfway)}: this is not the model that the run began with: its weights are not the same\n"
        "  What to do: put the model file and config.yaml back as they were when the run began, or start a new run\n"
    )
    assert said.out == "" and tree(halfway.path) == before | {"lock": tree(halfway.path)["lock"]}


@pytest.mark.parametrize(
    ("swap", "told"),
    [
        (
            lambda base: shutil.copy(tiny_sdxl.base(), base),
            "it is Stable Diffusion XL, and that was Stable Diffusion 1.x",
        ),
        (
            lambda base: tiny.save(tiny.tensors(), base, {"modelspec.prediction_type": "v"}),
            "it predicts v_prediction, and that predicted epsilon",
        ),
        (
            lambda base: tiny.save(tiny.tensors(), base, {"ss_zero_terminal_snr": "True"}),
            "only one of them has a noise schedule with zero terminal SNR",
        ),
    ],
)
def test_it_is_said_in_what_the_other_model_differs(swap, told, halfway, capsys) -> None:
    swap(base_of(halfway))
    for command in ("resume", "export"):
        assert dreambooth(command, halfway.path) == 2
        assert f"this is not the model that the run began with: {told}\n" in capsys.readouterr().err


def test_the_same_model_goes_on_from_another_place_and_in_another_form(halfway, capsys) -> None:
    convert(base_of(halfway), moved := base_of(halfway).with_name("moved.ckpt"))
    base_of(halfway).unlink()
    change_config(halfway, model=str(moved))
    assert dreambooth("export", halfway.path) == 0
    assert dreambooth("resume", halfway.path) == 0


def test_a_run_that_is_older_than_this_goes_on_with_what_is_there(halfway, capsys) -> None:
    (halfway.path / FILE).unlink()
    tiny.write_checkpoint(base_of(halfway), seed=2)
    assert dreambooth("resume", halfway.path) == 0


def test_another_vae_than_the_run_began_with_is_refused(halfway, capsys) -> None:
    change_config(
        halfway, vae=str(tiny.write_checkpoint(base_of(halfway).with_name("vae.safetensors"), seed=3))
    )
    assert dreambooth("resume", halfway.path) == 2
    assert "vae.safetensors: the run began with the model's own VAE" in capsys.readouterr().err


def test_one_tensor_that_differs_makes_another_hash_and_neither_order_nor_metadata_does(tmp_path) -> None:
    torch.manual_seed(1)
    tensors = {name: torch.randn(90, 70) for name in "abc"} | {
        "scalar": torch.tensor(1.0),
        "none": torch.empty(0),
    }

    def hashed(name: str, found: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> str:
        file = open_weights(tiny.save(found, tmp_path / f"{name}.safetensors", metadata))
        return content_hash(file, found)

    first = hashed("first", tensors)
    assert first == hashed("turned", dict(reversed(tensors.items())), {"title": "another"})
    for name in ("a", "scalar"):
        assert first != hashed("moved", tensors | {name: tensors[name] * 1.01})
    assert first != hashed("shaped", tensors | {"b": tensors["b"].reshape(70, 90)})
    assert first != hashed("halved", tensors | {"c": tensors["c"].half()})
