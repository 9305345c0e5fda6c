"""The sizes that a plan tells are those of the files that a run writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from optional import skip_without
from tiny import config, dreambooth
from watching import run_in

from dreambooth.shared.config import load_settings
from dreambooth.shared.settings import TrainingSettings
from dreambooth.trainer import eightbit
from dreambooth.trainer.eightbit import Verdict
from dreambooth.trainer.optim.optimizer_table import TABLE
from dreambooth.trainer.planning import sizes
from dreambooth.trainer.planning.plan import make_plan


def planned(settings: Path, *overrides: str) -> dict[str, sizes.PlannedFile]:
    """The plan's files by the first word of what they are."""
    return {file.what.split()[0]: file for file in make_plan(load_settings(settings, overrides)).files}


def bytes_in(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    "values",
    [
        {"train_text_encoder": False, "output_dtype": "float32", "random_flip": True},
        {"optimizer": "adamw8bit", "use_ema": True, "output_format": "ckpt"},
        {"optimizer": "adamwschedulefree", "train_text_encoder": False},
        {"optimizer": "adafactor", "train_text_encoder": False},
    ],
    ids=["unet", "8 bit", "an average of its own", "factored"],
)
def test_what_is_written_is_as_large_as_the_plan_said(values, tmp_path, monkeypatch) -> None:
    skip_without(values.get("optimizer", "adamw"))
    monkeypatch.setattr(eightbit, "examine", lambda *_, **__: Verdict(True, "not tried"))
    settings = config(tmp_path, max_train_steps=2, export_steps=1, **values)
    files = planned(settings)
    assert dreambooth("train", settings) == 0
    for name in ("the", "step"):
        assert files[name].size == pytest.approx(files[name].path.stat().st_size, rel=0.01)
    states = bytes_in(run_in(tmp_path).states)
    # torch writes some bytes around each tensor, older ones more: much beside weights as small as these
    assert files["states"].size / 2 == pytest.approx(states, rel=0.015), "two at most"
    cache = bytes_in(tmp_path / "runs" / "cache")
    assert cache <= files["encoded"].size <= 2.1 * cache, "at most: all images both ways"
    images = bytes_in(files["2"].path)
    assert images <= files["2"].size


def test_parameters_are_counted_from_the_shapes(tmp_path) -> None:
    base = make_plan(load_settings(config(tmp_path))).base
    own = tiny.tensors()
    for component, prefix in (("unet", "model.diffusion_model."), ("vae", "first_stage_model.")):
        assert sizes.parameters(base, component) == sum(
            own[name].numel() for name in own if name.startswith(prefix)
        )
    assert sizes.parameters(base, "text_encoder") == sum(
        own[name].numel()
        for name in own
        if name.startswith("cond_stage_model.") and "position_ids" not in name
    )


def test_an_optimizers_bytes_are_counted_tensor_by_tensor(tmp_path) -> None:
    base = make_plan(load_settings(config(tmp_path))).base
    shapes = [
        tuple(tensor.shape)
        for name, tensor in tiny.tensors().items()
        if name.startswith("model.diffusion_model.")
    ]
    assert sizes.optimizer_bytes(base, ["unet"], "adamw") == 8 * sizes.parameters(base, "unet")
    assert sizes.optimizer_bytes(base, [], "adamw") == 0
    for name in ("adafactor", "adamw8bit"):
        assert sizes.optimizer_bytes(base, ["unet"], name) == pytest.approx(
            sum(TABLE[name].bytes_of(shape) for shape in shapes)
        )


def test_the_largest_tensor_is_what_gradients_take_at_a_time(tmp_path) -> None:
    base = make_plan(load_settings(config(tmp_path))).base
    own = tiny.tensors()
    wanted = max(tensor.numel() for name, tensor in own.items() if name.startswith("model.diffusion_model."))
    assert sizes.largest_tensor(base, ["unet"]) == wanted < sizes.parameters(base, "unet")


def test_bfloat16_weights_are_half_as_large_in_a_state(tmp_path) -> None:
    base = make_plan(load_settings(config(tmp_path))).base
    count = sizes.parameters(base, "unet")
    wide, narrow = (
        sizes.state_bytes(base, {"unet": count}, TrainingSettings(weights_dtype=dtype))
        for dtype in ("float32", "bfloat16")
    )
    assert wide - narrow == 2 * count


def test_checkpoints_on_the_way_are_listed_or_where_there_are_many_summed(tmp_path) -> None:
    few = make_plan(load_settings(config(tmp_path), ["max_train_steps=10", "export_steps=4"]))
    one = sizes.checkpoint_bytes(few.base, tiny.torch.float16)
    on_the_way = [(file.path.name, file.size) for file in few.files if file.path.parent.name == "out"]
    assert on_the_way == [("sks.safetensors", one), ("sks-4.safetensors", one), ("sks-8.safetensors", one)]
    many = planned(config(tmp_path), "max_train_steps=1000", "export_steps=1")["999"]
    assert many.size == 999 * one and many.path.name == "sks-1.safetensors"


def test_a_million_exports_are_refused_for_their_room_at_once(tmp_path, capsys) -> None:
    settings = config(tmp_path)
    assert dreambooth("plan", settings, "max_train_steps=1000000000", "export_steps=1") == 2
    assert "free, and this run needs" in capsys.readouterr().err


def test_a_resumed_run_needs_only_what_is_not_there_yet(tmp_path) -> None:
    settings = config(tmp_path)
    assert dreambooth("train", settings) == 0
    run = run_in(tmp_path)
    fresh, resumed = (
        make_plan(load_settings(settings, ["overwrite=yes"]), run=place) for place in (None, run.path)
    )
    saved = bytes_in(run.states)
    assert fresh.volumes[0].needed - resumed.volumes[0].needed == saved


def test_what_a_killed_process_left_half_written_is_room_to_be_had(tmp_path) -> None:
    settings = load_settings(config(tmp_path))
    needed = make_plan(settings).volumes[0].needed
    (tmp_path / "out").mkdir()
    left = tmp_path / "out" / ".sks.safetensors-0123abcd.tmp"
    left.write_bytes(bytes(1000))
    left.with_name(f"{left.name}.lock").touch()
    assert needed - make_plan(settings).volumes[0].needed == 1000
    assert left.exists(), "a plan changes nothing"


def test_a_diffusers_folder_needs_room_twice_while_it_is_written(tmp_path) -> None:
    files = planned(config(tmp_path), "output_kind=diffusers")
    assert files["while"].size == files["the"].size
    assert files["while"].path.parent == tmp_path / "runs"
