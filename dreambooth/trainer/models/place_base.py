"""Put the small base, or a result made from it, where a program built on LDM (the WebUI) can load it.

Such a program reads the sizes of a checkpoint that is not of the usual ones from a `.yaml` of the same stem,
and the text encoder's from a folder that this yaml names: only whoever places the file knows its path.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from dreambooth.shared.errors import InputError
from dreambooth.shared.paths import check_file_name, check_writable, write_whole
from dreambooth.trainer.models.tokenizer import write_tokenizer_folder

ASSETS = Path(__file__).resolve().parents[2] / "assets"
BASE = ASSETS / "base" / "small-base.safetensors"
BASE_YAML = BASE.with_suffix(".yaml")
CLIP_CONFIG = ASSETS / "base" / "clip" / "config.json"
PLACEHOLDER = '"@CLIP_CONFIG_FOLDER@"'


def place_base(dst_folder: Path, *, stem: str = BASE.stem, clip_folder: Path | None = None) -> Path:
    """Copy the small base into `dst_folder` as `stem`.safetensors with its yaml, and return its path.

    The text encoder's config and tokenizer go into `clip_folder`, by default `stem`-clip beside the file. What
    is there already and the same is left alone. Raises InputError if another file has the name, or the folder cannot
    be written.
    """
    check_file_name(stem, setting="stem")
    check_writable(dst_folder, setting="folder")
    placed = dst_folder / f"{stem}.safetensors"
    clip_folder = clip_folder or dst_folder / f"{stem}-clip"
    if placed.exists() and placed.read_bytes() != BASE.read_bytes():
        raise InputError(
            "another file has this name",
            where=str(placed),
            remedy="choose another folder, or move that file away",
        )
    dst_folder.mkdir(parents=True, exist_ok=True)
    write_clip_folder(clip_folder)
    if not placed.exists():
        _copy_whole(BASE, placed)
    write_yaml_for(placed, BASE_YAML, clip_folder)
    return placed


def clip_folder_of(path: Path) -> Path:
    """Where the text encoder's config and tokenizer stand for all files of a folder that are made from the small base."""
    return path.absolute().with_name(f"{BASE.stem}-clip")


def write_yaml_for(path: Path, base_yaml: Path, clip_folder: Path) -> Path:
    """Write the yaml that belongs beside the checkpoint `path`, made from its base's, and return its path.

    The small base's own yaml names no folder: it gets `clip_folder`, absolute. Any other is copied as it is.
    """
    beside = path.with_suffix(".yaml")
    write_whole(beside, with_clip_folder(base_yaml.read_text(encoding="utf-8"), clip_folder).encode())
    return beside


def with_clip_folder(text: str, clip_folder: Path) -> str:
    """The small base's yaml with the folder that it needs; any other's text as it is."""
    folder = json.dumps(clip_folder.absolute().as_posix(), ensure_ascii=False)  # a JSON text is a YAML text
    return text.replace(PLACEHOLDER, folder)


def write_clip_folder(folder: Path) -> None:
    """Write the small base's text encoder's config and CLIP's tokenizer, as transformers reads them."""
    if not (folder / CLIP_CONFIG.name).exists():  # the config is written last: with it, all is there
        write_tokenizer_folder(folder)
        write_whole(folder / CLIP_CONFIG.name, CLIP_CONFIG.read_bytes())


def _copy_whole(source: Path, target: Path) -> None:
    part = target.with_name(f"{target.name}.partial")
    shutil.copyfile(source, part)
    part.replace(target)
