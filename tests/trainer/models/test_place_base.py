from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dreambooth.shared.errors import InputError
from dreambooth.trainer.models.place_base import BASE, BASE_YAML, CLIP_CONFIG, place_base, write_yaml_for


def version(yaml: Path) -> str:
    return OmegaConf.load(yaml).model.params.cond_stage_config.params.version


def test_the_placed_base_stands_beside_a_yaml_that_names_its_clip_folder(tmp_path: Path) -> None:
    folder = tmp_path / "Modelle für alle"
    placed = place_base(folder, stem="tiny")
    assert placed == folder / "tiny.safetensors"
    assert placed.read_bytes() == BASE.read_bytes()
    clip = Path(version(folder / "tiny.yaml"))
    assert clip == folder / "tiny-clip"
    assert (clip / "config.json").read_bytes() == CLIP_CONFIG.read_bytes()
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= {path.name for path in clip.iterdir()}


def test_a_host_finds_tokenizer_and_config_in_the_clip_folder(tmp_path: Path) -> None:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    clip = version(place_base(tmp_path).with_suffix(".yaml"))
    assert CLIPTextConfig.from_pretrained(clip).hidden_size == 64
    ids = CLIPTokenizer.from_pretrained(clip)("photo of a sks dog")["input_ids"]
    assert ids == [49406, 1125, 539, 320, 48136, 1929, 49407]


def test_placing_it_twice_changes_nothing(tmp_path: Path) -> None:
    placed = place_base(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (placed, *(tmp_path / f"{BASE.stem}-clip").iterdir())}
    place_base(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_file_of_that_name_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "tiny.safetensors").write_bytes(b"somebody's work")
    with pytest.raises(InputError, match="another file"):
        place_base(tmp_path, stem="tiny")
    assert (tmp_path / "tiny.safetensors").read_bytes() == b"somebody's work"


def test_a_stem_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        place_base(tmp_path, stem="../tiny")


def test_a_result_of_the_placed_base_keeps_its_yamls_folder(tmp_path: Path) -> None:
    placed = place_base(tmp_path)
    beside = write_yaml_for(tmp_path / "result.safetensors", placed.with_suffix(".yaml"), tmp_path / "other")
    assert beside.read_bytes() == placed.with_suffix(".yaml").read_bytes()


def test_a_result_of_the_bases_own_file_gets_the_folder_it_is_given(tmp_path: Path) -> None:
    beside = write_yaml_for(tmp_path / "result.safetensors", BASE_YAML, tmp_path / "clip ü")
    assert beside == tmp_path / "result.yaml"
    assert Path(version(beside)) == tmp_path / "clip ü"
