import hashlib
import json

import pytest
import torch
from checkpoints import write
from ldm_layout import SMALL_SD1, TINY_SD1, TINY_SD2, TINY_SDXL, tensors

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families.names import ema_name
from dreambooth.trainer.models.convert import convert
from dreambooth.trainer.models.inspection import inspect, render

UNET = "model.diffusion_model."


def test_the_hashes_are_those_that_the_webui_shows(tmp_path):
    path = write(tmp_path / "a.safetensors", tensors(SMALL_SD1))
    content = path.read_bytes()
    assert len(content) > 0x110000
    found = inspect(path)
    assert found.sha256 == hashlib.sha256(content).hexdigest() and found.short_hash == found.sha256[:10]
    assert found.autov1 == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert found.nbytes == len(content)


def test_family_prediction_sizes_and_precision_are_told(tmp_path):
    weights = tensors(TINY_SD2, dtype=torch.float16)
    weights[UNET + "out.2.bias"] = weights[UNET + "out.2.bias"].float()
    path = write(tmp_path / "a.safetensors", weights, {"modelspec.prediction_type": "v", "note": "x" * 500})
    found = inspect(path)
    assert found.identified.family.name == "sd2" and found.identified.prediction_type == "v_prediction"
    assert [part.name for part in found.parts] == ["unet", "text_encoder", "vae"]
    unet = sum(value.numel() for name, value in weights.items() if name.startswith(UNET))
    assert found.parts[0].weights == unet and set(found.parts[0].precisions) == {"float16", "float32"}
    text = render(found)
    for expected in (
        "Stable Diffusion 2.x (sd2)",
        "v_prediction: its metadata says so",
        "widths 64, 128; 4 channels in; context 64; heads (1, 2)",
        "1 layers used, width 64, gelu",
        f"sha256         {found.sha256}",
        "x… (500 characters)",
        "averaged (EMA) no",
    ):
        assert expected in text
    assert str(found) == text and "odd" not in text and "missing" not in text


def test_both_text_encoders_of_sdxl_are_told(tmp_path):
    weights = {**tensors(TINY_SDXL), "v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    found = inspect(write(tmp_path / "a.safetensors", weights))
    assert [part.name for part in found.parts] == ["unet", "text_encoder", "text_encoder_2", "vae"]
    text = render(found)
    for expected in (
        "Stable Diffusion XL (sdxl)",
        "v_prediction: it holds the marker tensor v_pred",
        "zero terminal SNR",
        "2 layers used, width 32, quick_gelu",
        "2 layers used, width 64, gelu",
    ):
        assert expected in text
    assert "odd" not in text and "missing" not in text


def test_as_json_it_has_everything_in_plain_values_and_the_hash_only_where_asked(tmp_path):
    weights = tensors(TINY_SD2, dtype=torch.float16)
    weights[UNET + "out.2.bias"] = weights[UNET + "out.2.bias"].float()
    path = write(tmp_path / "a é.safetensors", weights, {"modelspec.prediction_type": "v"})
    found = json.loads(json.dumps(inspect(path).as_json()))
    assert (found["family"], found["family_name"]) == ("Stable Diffusion 2.x", "sd2")
    assert (found["prediction_type"], found["told_by"]) == (
        "v_prediction",
        "its metadata says so (modelspec.prediction_type)",
    )
    assert found["usable"] and found["problem"] == ""
    assert found["precision"] == "float16" and set(found["precisions"]) == {"float16", "float32"}
    assert found["path"] == str(path) and found["size"] == path.stat().st_size
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["short_hash"] == found["sha256"][:10]
    assert found["metadata"] == {"modelspec.prediction_type": "v"}
    assert [part["name"] for part in found["parts"]] == ["unet", "text_encoder", "vae"]
    quick = inspect(path, hashed=False).as_json()
    assert not {"sha256", "short_hash"} & quick.keys() and quick["family_name"] == "sd2"


def test_odd_and_missing_tensors_and_averages_are_listed(tmp_path):
    weights = tensors(TINY_SD1)
    del weights[UNET + "out.0.bias"]
    weights[UNET + "out.0.weight"] = torch.ones(5)
    weights |= {
        "nobody.knows": torch.ones(1),
        "model_ema.decay": torch.tensor(0.9),
        ema_name(UNET + "out.2.bias"): torch.ones(4),
        "logvar": torch.zeros(1000),
    }
    found = inspect(write(tmp_path / "a.ckpt", weights))
    assert found.format == "ckpt" and found.has_ema
    assert found.odd == ("nobody.knows",) and found.missing == (UNET + "out.0.bias",)
    text = render(found)
    assert "odd            1 tensors: nobody.knows" in text
    assert "missing        1 tensors: model.diffusion_model.out.0.bias" in text
    assert f"ill-shaped     1 tensors: {UNET}out.0.weight has the shape (5,), not (32,)" in text
    assert found.as_json()["ill_shaped"] == [f"{UNET}out.0.weight has the shape (5,), not (32,)"]
    assert "averaged (EMA) yes" in text


def test_a_file_of_tensors_that_cannot_be_used_is_still_described(tmp_path):
    path = write(
        tmp_path / "a.safetensors", {"lora_unet_x.lora_up.weight": torch.ones(2, 2).half()}, {"ss_steps": "5"}
    )
    found = inspect(path)
    assert found.identified is None and "a LoRA" in found.problem and not found.parts
    text = render(found)
    assert "not usable     this is a LoRA" in text and "float16 (1 tensors)" in text and "ss_steps: 5" in text


def test_a_folder_is_described_without_hashes(tmp_path):
    path = write(tmp_path / "a.safetensors", tensors(TINY_SD1))
    convert(path, tmp_path / "folder")
    found = inspect(tmp_path / "folder")
    assert found.format == "diffusers" and found.sha256 == found.autov1 == "" and not found.odd
    assert found.identified.family.name == "sd1" and "sha256" not in render(found)
    assert found.nbytes == sum(
        file.stat().st_size for file in (tmp_path / "folder").rglob("*") if file.is_file()
    )


def test_what_is_no_file_of_tensors_is_an_error(tmp_path):
    (tmp_path / "a.safetensors").write_text("hello " * 50)
    with pytest.raises(InputError, match="text file"):
        inspect(tmp_path / "a.safetensors")
