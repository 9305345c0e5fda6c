import re
import shutil
from dataclasses import replace

import pytest
import torch
from checkpoints import same, write
from ldm_layout import TINY_SD1, TINY_SD2, TINY_SDXL, tensors

from dreambooth.shared.errors import DreamboothError, InputError
from dreambooth.trainer.adapters.merging import Request
from dreambooth.trainer.families.names import ema_name
from dreambooth.trainer.models.convert import convert
from dreambooth.trainer.weights import open_weights
from dreambooth.trainer.weights.sink import Sink

UNET = "model.diffusion_model."
LAYOUTS = {
    "sd1": TINY_SD1,
    "sd1-inpaint": replace(TINY_SD1, in_channels=9),
    "sd2": TINY_SD2,
    "sd2-inpaint": replace(TINY_SD2, in_channels=9),
    "sdxl": TINY_SDXL,
}


def real(layout, dtype=torch.float16):
    """A file as they are found: odd order, mixed dtypes, extras, averaged weights."""
    weights = tensors(layout, dtype=dtype)
    names = sorted(weights, reverse=True)
    found = {name: weights[name] for name in names}
    found[UNET + "out.2.weight"] = found[UNET + "out.2.weight"].float()
    found["first_stage_model.quant_conv.bias"] = found["first_stage_model.quant_conv.bias"].bfloat16()
    found |= {
        "model_ema.decay": torch.tensor(0.9999),
        **{ema_name(name): weights[name].float() for name in names if name.startswith(UNET)},
        "logvar": torch.zeros(1000),
        "nobody.knows": torch.tensor([1, 2], dtype=torch.uint8),
    }
    return found


def unchanged(path, weights):
    found = open_weights(path)
    return list(found.tensors) == list(weights) and all(
        same(found.read(name), value) for name, value in weights.items()
    )


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_file_to_folder_to_file_is_equal_bit_for_bit(tmp_path, family, suffix):
    weights = real(LAYOUTS[family])
    path = write(
        tmp_path / f"a{suffix}", weights, {"key": "value"}, {"global_step": 9} if suffix == ".ckpt" else None
    )
    there = convert(path, tmp_path / "folder", prediction_type="epsilon")
    assert there.identified.family.name == family and there.files == (tmp_path / "folder",)
    back = convert(tmp_path / "folder", tmp_path / f"b{suffix}")
    assert back.identified.family.name == family and unchanged(back.files[0], weights)
    found = open_weights(back.files[0])
    assert found.metadata["key"] == "value"
    assert found.extras == ({"global_step": 9} if suffix == ".ckpt" else {})


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_prediction_type_survives_every_form(tmp_path, family, prediction_type):
    path = write(tmp_path / "a.safetensors", tensors(LAYOUTS[family]))
    first = convert(path, tmp_path / "folder", prediction_type=prediction_type)
    second = convert(tmp_path / "folder", tmp_path / "b.ckpt")
    third = convert(tmp_path / "b.ckpt", tmp_path / "c.safetensors")
    for report in (first, second, third):
        assert report.identified.prediction_type == prediction_type
    assert "scheduler" in second.identified.told_by
    assert (tmp_path / "c.yaml").exists() == (family == "sd2" or prediction_type == "v_prediction")


V_SDXL = {**tensors(TINY_SDXL, dtype=torch.float16), "v_pred": torch.empty(0), "ztsnr": torch.empty(0)}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_marks_of_v_prediction_and_zero_terminal_snr_survive_every_form(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", V_SDXL)
    there = convert(path, tmp_path / "folder")
    back = convert(tmp_path / "folder", tmp_path / f"b{suffix}")
    assert unchanged(back.files[0], V_SDXL) and not [note for note in back.notes if "added" in note]
    for report in (there, back):
        assert report.identified.prediction_type == "v_prediction" and report.identified.zero_terminal_snr
    (beside,) = back.files[1:]
    assert beside == tmp_path / "b.yaml" and "VScaling" in beside.read_text()


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_v_sdxl_without_its_marks_gets_them_and_that_is_said(tmp_path, suffix):
    weights = tensors(TINY_SDXL)
    path = write(tmp_path / "a.safetensors", weights)
    report = convert(path, tmp_path / f"b{suffix}", prediction_type="v_prediction")
    found = open_weights(report.files[0])
    assert list(found.tensors) == [*weights, "v_pred"]
    assert any("added" in note and "v_pred" in note for note in report.notes)
    (tmp_path / "b.yaml").unlink()
    again = convert(report.files[0], tmp_path / "c.ckpt").identified
    assert again.prediction_type == "v_prediction"


def test_marks_that_are_not_true_are_left_out_and_that_is_said(tmp_path):
    path = write(tmp_path / "a.safetensors", V_SDXL)
    report = convert(path, tmp_path / "b.safetensors", prediction_type="epsilon")
    assert set(V_SDXL) - set(open_weights(report.files[0]).tensors) == {"v_pred", "ztsnr"}
    assert any("left out" in note and "v_pred, ztsnr" in note for note in report.notes)


def test_file_to_file_changes_the_format_alone(tmp_path):
    weights = real(TINY_SD2)
    path = write(tmp_path / "a.ckpt", weights, {"key": "value"}, {"epoch": 2})
    report = convert(path, tmp_path / "b.safetensors", prediction_type="v_prediction")
    assert unchanged(tmp_path / "b.safetensors", weights) and "no place for: epoch" in report.notes[0]
    convert(tmp_path / "b.safetensors", tmp_path / "c.ckpt")
    assert unchanged(tmp_path / "c.ckpt", weights)


def test_the_same_conversion_gives_the_same_bytes(tmp_path):
    path = write(tmp_path / "a.safetensors", tensors(TINY_SD1))
    one, other = convert(path, tmp_path / "b.safetensors"), convert(path, tmp_path / "c" / "b.safetensors")
    assert one.sha256 == other.sha256


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16])
def test_a_dtype_is_for_floating_point_weights_alone(tmp_path, dtype):
    weights = real(TINY_SD1, torch.float32)
    path = write(tmp_path / "a.safetensors", weights)
    wanted = torch.float16 if dtype == "float16" else dtype
    convert(path, tmp_path / "b.safetensors", dtype=dtype)
    convert(path, tmp_path / "folder", dtype=dtype)
    convert(tmp_path / "folder", tmp_path / "c.safetensors")
    kept = {"model_ema.decay", "logvar", "nobody.knows"}
    for place in ("b.safetensors", "c.safetensors"):
        found = open_weights(tmp_path / place)
        for name, value in weights.items():
            is_weight = (
                name.startswith((UNET, "first_stage", "cond_stage", "model_ema.")) and name not in kept
            )
            expected = value.to(wanted) if is_weight and value.is_floating_point() else value
            assert same(found.read(name), expected), name


def test_the_averaged_weights_take_the_unets_place_on_request(tmp_path):
    weights = tensors(TINY_SD1)
    averages = {ema_name(name): value + 1 for name, value in weights.items() if name.startswith(UNET)}
    path = write(tmp_path / "a.safetensors", weights | averages)
    convert(path, tmp_path / "b.safetensors", use_ema_weights=True)
    expected = {name: value + 1 if name.startswith(UNET) else value for name, value in weights.items()}
    assert unchanged(tmp_path / "b.safetensors", expected)
    with pytest.raises(InputError, match="no averaged"):
        convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", use_ema_weights=True)


def test_a_callback_in_a_ckpt_is_named_as_left_out(tmp_path):
    torch.save({"state_dict": tensors(TINY_SD1), "optimizer_states": [torch.ones(2)]}, tmp_path / "a.ckpt")
    report = convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert any("optimizer_states" in note for note in report.notes)


def test_a_ckpt_that_the_webui_would_refuse_is_said(tmp_path):
    path = write(tmp_path / "a.safetensors", tensors(TINY_SD1) | {"flag": torch.tensor([True])})
    assert any("'flag'" in note for note in convert(path, tmp_path / "b.ckpt").notes)


def test_the_report_says_what_it_is_how_that_was_told_and_what_was_written(tmp_path):
    report = str(
        convert(
            write(tmp_path / "a.safetensors", tensors(TINY_SD2)),
            tmp_path / "b.safetensors",
            prediction_type="v_prediction",
        )
    )
    assert "Stable Diffusion 2.x, v_prediction: the setting prediction_type says so" in report
    assert f"wrote {tmp_path / 'b.safetensors'}" in report and f"wrote {tmp_path / 'b.yaml'}" in report
    assert re.search(r"sha256 [0-9a-f]{64}", report)


def test_nothing_is_replaced_unasked_and_nothing_but_a_model_when_asked(tmp_path):
    path = write(tmp_path / "a.safetensors", tensors(TINY_SD1))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"meow")
    with pytest.raises(InputError, match="no diffusers folder, so it is not replaced"):
        convert(path, tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"meow"
    convert(path, tmp_path / "folder")
    (tmp_path / "folder" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already") as refused:
        convert(path, tmp_path / "folder")
    assert "--overwrite" in refused.value.remedy
    assert (tmp_path / "folder" / "note.txt").exists()
    convert(path, tmp_path / "folder", overwrite=True)
    assert not (tmp_path / "folder" / "note.txt").exists()
    (tmp_path / "empty").mkdir()
    convert(path, tmp_path / "empty")
    with pytest.raises(InputError, match="exists already") as refused:
        convert(tmp_path / "folder", path)
    assert "--overwrite" in refused.value.remedy
    assert sorted(place.name for place in tmp_path.iterdir()) == [
        "a.safetensors",
        "empty",
        "folder",
        "photos",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("b.pt", "'.pt' names no format"),
        ("b.bin", "'.bin' names"),
        ("a.safetensors", "source itself"),
        ("b.safetensor", "'.safetensor' is nearly .safetensors"),
        ("b.Cpkt", "'.Cpkt' is nearly .ckpt"),
    ],
)
def test_a_destination_that_cannot_be_is_refused(tmp_path, name, expected):
    path = write(tmp_path / "a.safetensors", tensors(TINY_SD1))
    with pytest.raises(InputError, match=expected):
        convert(path, tmp_path / name, overwrite=True)


def test_neither_source_nor_adapter_is_ever_replaced_by_the_result(tmp_path):
    path = write(tmp_path / "a.safetensors", tensors(TINY_SD1))
    lora = write(tmp_path / "lora.safetensors", {"lora_unet_a.lora_down.weight": torch.ones(2, 2)})
    convert(path, tmp_path / "folder")
    (tmp_path / "link.safetensors").hardlink_to(lora)
    inside = tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors"
    before = {place: place.read_bytes() for place in (path, lora, inside)}
    for src, dst, said in (
        (path, path, "this is the source itself"),
        (path, lora, "this is the adapter itself"),
        (path, tmp_path / "link.safetensors", "this is the adapter itself"),
        (tmp_path / "folder", tmp_path / "folder", "this is the source itself"),
        (tmp_path / "folder", inside, "would change the source"),
        (inside, tmp_path / "folder", "would change the source"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            convert(src, dst, overwrite=True, adapters=[Request(lora)])
        assert refused.value.where == str(dst) and refused.value.remedy
    assert before == {place: place.read_bytes() for place in before}


def test_a_file_where_a_folder_should_be_is_said_and_not_met(tmp_path):
    path = write(tmp_path / "a.safetensors", tensors(TINY_SD1))
    for dst in (path / "b.safetensors", path / "b" / "c"):
        with pytest.raises(InputError, match="is a file, not a folder") as refused:
            convert(path, dst)
        assert refused.value.where == str(dst)
    (tmp_path / "b.ckpt").mkdir()
    with pytest.raises(InputError, match="this is a folder"):
        convert(path, tmp_path / "b.ckpt", overwrite=True)


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    path = write(tmp_path / "a.safetensors", tensors(TINY_SD1))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(100, 99, 1))
    for name in ("folder", "b.safetensors"):
        with pytest.raises(InputError, match=r"[\d.]+ (MB|kB) are to be written and 1 bytes are free"):
            convert(path, tmp_path / name)
    assert [place.name for place in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("layout", [TINY_SD1, TINY_SD2, TINY_SDXL])
def test_room_for_a_folder_is_room_for_all_its_files(layout, tmp_path, monkeypatch):
    path = write(tmp_path / "a.safetensors", tensors(layout))
    convert(path, tmp_path / "folder", prediction_type="epsilon")
    files = [file.stat().st_size for file in (tmp_path / "folder").rglob("*") if file.is_file()]
    for free in (sum(files) - 1, sum(files) + 4096 * len(files)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda place, free=free: shutil._ntuple_diskusage(1, 1, free)
        )
        if free < sum(files):
            with pytest.raises(InputError, match="are to be written and"):
                convert(path, tmp_path / "other", prediction_type="epsilon")
            assert not (tmp_path / "other").exists()
        else:
            convert(path, tmp_path / "other", prediction_type="epsilon")


def test_what_a_killed_process_left_beside_it_is_removed_before_room_is_looked_for(tmp_path, monkeypatch):
    path = write(tmp_path / "a.safetensors", tensors(TINY_SD1))
    (tmp_path / "b").mkdir()
    left = tmp_path / "b" / ".b.safetensors-0123abcd.tmp"
    left.write_bytes(bytes(1000))
    left.with_name(f"{left.name}.lock").touch()
    free = shutil.disk_usage
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda place: shutil._ntuple_diskusage(1, 1, 0) if left.exists() else free(place),
    )
    said = []
    convert(path, tmp_path / "b" / "b.safetensors", say=said.append)
    assert said == [f"removed {left.name} (1 kB), which a killed process had left half written"]
    assert [place.name for place in (tmp_path / "b").iterdir()] == ["b.safetensors"]


def test_a_disk_that_fills_up_leaves_the_old_folder_and_nothing_else(tmp_path, monkeypatch):
    path = write(tmp_path / "a.safetensors", tensors(TINY_SD1))
    convert(path, tmp_path / "folder")

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Sink, "finish", full)
    with pytest.raises(DreamboothError, match="disk is full"):
        convert(path, tmp_path / "folder", overwrite=True)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["a.safetensors", "folder"]
    monkeypatch.undo()
    assert convert(tmp_path / "folder", tmp_path / "b.safetensors").nbytes > 0


def test_what_is_no_checkpoint_is_refused_before_anything_is_written(tmp_path):
    path = write(tmp_path / "lora.safetensors", {"lora_unet_a.lora_down.weight": torch.ones(2, 2)})
    with pytest.raises(InputError, match="a LoRA"):
        convert(path, tmp_path / "folder")
    (tmp_path / "text.safetensors").write_text("hello " * 100)
    with pytest.raises(InputError, match="text file"):
        convert(tmp_path / "text.safetensors", tmp_path / "b.ckpt")
    with pytest.raises(InputError, match=r"no model_index\.json"):
        convert(tmp_path, tmp_path / "b.ckpt")
    with pytest.raises(InputError, match="no such model file"):
        convert(tmp_path / "nothing.ckpt", tmp_path / "b.ckpt")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["lora.safetensors", "text.safetensors"]


@pytest.mark.parametrize("target", ["copy.safetensors", "folder"])
def test_a_tensor_of_another_shape_is_refused_before_anything_is_written(target, tmp_path):
    weights = tensors(TINY_SD1)
    weights["model.diffusion_model.out.0.bias"] = torch.zeros(5)
    path = write(tmp_path / "a.safetensors", weights)
    with pytest.raises(InputError, match=r"out\.0\.bias' has the shape \(5,\), not \(32,\)"):
        convert(path, tmp_path / target)
    assert list(tmp_path.iterdir()) == [path]
