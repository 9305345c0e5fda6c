"""Names of results: whose they are, what is in their way, and whether there is room for them."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from translations import table, untranslated

from dreambooth.shared.config import settings_from
from dreambooth.shared.errors import InputError
from dreambooth.trainer.saving import outputs
from dreambooth.trainer.saving.outputs import (
    Outputs,
    PlannedFile,
    check_room,
    claim,
    claimant,
    outputs_of,
    release,
    remove_half_written,
    size_text,
    volumes,
)

Space = collections.namedtuple("Space", "total used free")


@pytest.fixture
def made(tmp_path) -> Outputs:
    return Outputs(tmp_path / "out", "sks", ".safetensors")


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "runs" / "sks").mkdir(parents=True)
    return tmp_path / "runs" / "sks"


def settings(folder: Path, **values: str):
    given = {"model": str(folder / "models" / "base v1.5.ckpt"), "output_dir": str(folder / "out"), **values}
    return settings_from(given, where="test")


def test_names_follow_kind_format_and_step(tmp_path) -> None:
    named = outputs_of(settings(tmp_path, output_name="sks"))
    assert named.final == tmp_path / "out" / "sks.safetensors"
    assert named.at_step(20) == tmp_path / "out" / "sks-20.safetensors"
    assert outputs_of(settings(tmp_path, output_name="sks", output_format="ckpt")).final.name == "sks.ckpt"
    assert (
        outputs_of(settings(tmp_path, output_name="v1.5 é", output_kind="diffusers")).final.name == "v1.5 é"
    )


def test_a_result_without_a_name_gets_the_model_s_beside_it_with_a_number_if_it_is_taken(tmp_path) -> None:
    (tmp_path / "models").mkdir()
    unnamed = settings(tmp_path, output_dir="")
    first = outputs_of(unnamed)
    assert first.final == tmp_path / "models" / "base v1.5-dreambooth.safetensors"
    first.final.touch()
    assert outputs_of(unnamed).name == "base v1.5-dreambooth-2"
    (tmp_path / "run").mkdir()
    claim(outputs_of(unnamed), tmp_path / "run")
    assert outputs_of(unnamed).name == "base v1.5-dreambooth-3"


@pytest.mark.parametrize(
    "name",
    [
        "../sks", "/etc/sks", "a/b", "a\\b", "..", ".", ".hidden", "con", "NUL.v1", "com1", "a:b", "a?", "sks ",
        "sks.", "a\nb", "x" * 201,
    ],
)  # fmt: skip
def test_a_name_that_is_no_file_name_somewhere_or_leaves_its_folder_is_refused(name, tmp_path) -> None:
    with pytest.raises(InputError) as refused:
        outputs_of(settings(tmp_path, output_name=name))
    assert refused.value.where == "output_name" and refused.value.remedy


@pytest.mark.parametrize(
    ("name", "values", "written"),
    [
        ("sks.safetensors", {}, "sks.safetensors"),
        ("sks.SafeTensors", {"output_kind": "lora"}, "sks.safetensors"),
        ("sks.ckpt", {"output_format": "ckpt"}, "sks.ckpt"),
        ("sks.v2", {}, "sks.v2.safetensors"),
        ("sks.v2", {"output_kind": "diffusers"}, "sks.v2"),
    ],
)
def test_an_ending_that_is_written_anyway_may_stand_in_the_name(name, values, written, tmp_path) -> None:
    assert outputs_of(settings(tmp_path, output_name=name, **values)).final.name == written


@pytest.mark.parametrize(
    ("name", "values", "why", "remedy"),
    [
        ("sks.ckpt", {}, "a .safetensors file", "leave the ending out, or set output_format: ckpt"),
        ("sks.CKPT", {"output_kind": "lora"}, "a .safetensors file", "leave the ending out"),
        ("sks.safetensors", {"output_kind": "diffusers"}, "a folder", "leave the ending out"),
    ],
)
def test_another_ending_than_the_results_is_refused(name, values, why, remedy, tmp_path) -> None:
    with pytest.raises(InputError) as refused:
        outputs_of(settings(tmp_path, output_name=name, **values))
    assert refused.value.what.endswith(f", and the result is {why}") and refused.value.remedy == remedy
    assert refused.value.where == "output_name"
    assert untranslated(refused.value.what, table()) == untranslated(remedy, table()) == []


@pytest.mark.parametrize("name", [".safetensors", "sks .safetensors", "con.safetensors"])
def test_what_is_no_name_without_its_ending_is_refused(name, tmp_path) -> None:
    with pytest.raises(InputError, match=r"dot or a space|device"):
        outputs_of(settings(tmp_path, output_name=name))


def test_a_run_that_goes_on_keeps_a_name_that_has_an_ending(tmp_path) -> None:
    """Of an earlier version, which wrote it twice."""
    found = outputs_of(settings(tmp_path, output_name="sks.safetensors"), run=tmp_path / "run")
    assert found.final.name == "sks.safetensors.safetensors"


def test_what_is_there_is_never_replaced_unasked(made, tmp_path) -> None:
    made.folder.mkdir()
    for taken, values in (
        (made.final, {}),
        (made.at_step(10), {"export_steps": "5", "max_train_steps": "11"}),
    ):
        taken.touch()
        with pytest.raises(InputError, match=taken.name) as refused:
            outputs_of(settings(tmp_path, output_name="sks", **values))
        assert "overwrite: yes" in refused.value.remedy
        assert outputs_of(settings(tmp_path, output_name="sks", overwrite="yes", **values)) == made
        taken.unlink()


def test_only_the_steps_that_would_be_written_are_in_the_way(made, tmp_path) -> None:
    made.folder.mkdir()
    for name in (
        "sks-10.ckpt",
        "sks-x.safetensors",
        "sks-7.safetensors",
        "sks-15.safetensors",
        "other-10.safetensors",
    ):
        (made.folder / name).touch()
    given = settings(tmp_path, output_name="sks", export_steps="5", max_train_steps="15")
    assert outputs_of(given) == made


@pytest.mark.parametrize("read", ["model", "vae", "init_from"])
@pytest.mark.parametrize("way", ["its path", "a link", "a step", "a resumed run"])
def test_no_result_takes_the_place_of_what_the_run_reads(read, way, made, run, tmp_path) -> None:
    if way == "a link" and os.name == "nt":
        pytest.skip("links need rights on Windows")
    step = {"export_steps": "5", "max_train_steps": "11"} if way == "a step" else {}
    written = made.at_step(10) if step else made.final
    made.folder.mkdir()
    own = tmp_path / "own.safetensors"
    (own if way == "a link" else written).write_bytes(b"weights")
    if way == "a link":
        written.symlink_to(own)
    kind = {"output_kind": "lora", "init_from": str(own if way == "a link" else written)}
    values = kind if read == "init_from" else {read: str(own if way == "a link" else written)}
    with pytest.raises(InputError, match=f"{written.name} would take the place of") as refused:
        outputs_of(
            settings(tmp_path, output_name="sks", overwrite="yes", **step, **values),
            run=run if way == "a resumed run" else None,
        )
    assert refused.value.where == "output_name" and str(refused.value).count("\n") == 1
    other = settings(tmp_path, output_name="other", overwrite="yes", **step, **values)
    assert outputs_of(other).name == "other"


def test_a_result_may_lie_beside_an_adapters_files_and_not_in_their_place(made, tmp_path) -> None:
    made.folder.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json", "sks.safetensors"):
        (made.folder / name).touch()
    given = {"output_kind": "lora", "init_from": str(made.folder), "overwrite": "yes"}
    assert outputs_of(settings(tmp_path, output_name="sks", **given)) == made
    with pytest.raises(InputError, match="the adapter that this run goes on from"):
        outputs_of(settings(tmp_path, output_name="adapter_model", **given))


def test_no_result_lies_in_a_model_s_folder_or_is_a_folder_around_photos(made, tmp_path) -> None:
    (made.folder / "unet").mkdir(parents=True)
    part = made.folder / "unet" / "diffusion_pytorch_model.safetensors"
    part.touch()
    given = {"model": str(made.folder), "output_dir": str(part.parent), "output_name": part.stem}
    with pytest.raises(InputError, match="the model that this run begins with"):
        outputs_of(settings(tmp_path, overwrite="yes", **given))
    folder = {"output_kind": "diffusers", "output_name": "unet", "overwrite": "yes"}
    photos = [{"instance_prompt": "sks", "instance_data_dir": str(part.parent)}]
    plain = settings(tmp_path, **folder)
    with_photos = dataclasses.replace(
        plain, concepts=settings_from({"concepts": photos}, where="test").concepts
    )
    with pytest.raises(InputError, match="images of this run"):
        outputs_of(with_photos)


def test_letters_case_is_left_to_the_file_system(made, monkeypatch, tmp_path) -> None:
    """A file system that sees none takes `sks-10` for `SKS-10`, as macOS's and Windows' do."""
    made.folder.mkdir()
    taken = made.folder / "SKS-10.safetensors"
    taken.write_bytes(b"weights")
    given = {"model": str(taken), "output_name": "sks", "overwrite": "yes"}
    steps = {"export_steps": "5", "max_train_steps": "11"}
    if not made.at_step(10).exists():
        assert outputs_of(settings(tmp_path, **given, **steps)) == made
        made.at_step(10).hardlink_to(taken)  # one file under both names
    with pytest.raises(InputError, match="the model that this run begins with"):
        outputs_of(settings(tmp_path, **given, **steps))


def test_a_claim_holds_against_all_but_its_own_run(made, run, tmp_path) -> None:
    claim(made, run)
    assert claimant(made) == run
    claim(made, run)  # its next life
    for values in ({}, {"overwrite": "yes"}):
        with pytest.raises(InputError) as refused:
            outputs_of(settings(tmp_path, output_name="sks", **values))
        assert refused.value.where == "output_name"
        assert str(run) in refused.value.remedy and "delete" in refused.value.remedy
    assert outputs_of(settings(tmp_path, output_name="sks"), run=run) == made
    other = run.with_name("sks-2")
    other.mkdir()
    for refuse in (
        lambda: claim(made, other),
        lambda: outputs_of(settings(tmp_path, output_name="sks"), run=other),
    ):
        with pytest.raises(InputError, match="sks"):
            refuse()
    assert claimant(made) == run


def test_a_deleted_run_and_a_released_claim_free_the_name(made, run, tmp_path) -> None:
    claim(made, run)
    shutil.rmtree(run)
    assert claimant(made) is None
    assert outputs_of(settings(tmp_path, output_name="sks")) == made
    run.mkdir()
    claim(made, run)
    release(made)
    release(made)
    assert claimant(made) is None and list(made.folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run": 3}', b"\xff\xfe"])
def test_a_torn_claim_is_none(content, made, run) -> None:
    made.folder.mkdir()
    made.claim.write_bytes(content)
    assert claimant(made) is None
    claim(made, run)
    assert json.loads(made.claim.read_bytes()) == {"run": str(run)}


def test_what_is_removed_of_a_killed_process_is_said_with_its_size(tmp_path) -> None:
    (tmp_path / ".sks-0123abcd.tmp" / "unet").mkdir(parents=True)  # a diffusers folder
    (tmp_path / ".sks-0123abcd.tmp" / "unet" / "weights").write_bytes(bytes(1500))
    (tmp_path / ".sks-0123abcd.tmp.lock").touch()
    said: list[str] = []
    remove_half_written(tmp_path, said.append)
    assert said == ["removed .sks-0123abcd.tmp (1.5 kB), which a killed process had left half written"]
    assert untranslated(said[0], table()) == []
    remove_half_written(tmp_path, said.append)
    assert len(said) == 1 and list(tmp_path.iterdir()) == []


def test_room_is_counted_once_for_each_disk_and_without_what_is_there(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(1000, 0, 1000))
    files = [
        PlannedFile(tmp_path / "a" / "b.safetensors", 300, "one"),
        PlannedFile(tmp_path / "state", 500, "states", there=200),
        PlannedFile(tmp_path / "c", 100, "shrunk", there=900),
    ]
    (found,) = volumes(files)
    assert (found.needed, found.free, found.path) == (600, 1000, tmp_path)
    assert check_room(files) == [found]
    with pytest.raises(InputError, match=r"1 kB free, and this run needs 1\.1 kB") as refused:
        check_room([*files, dataclasses.replace(files[0], size=500)])
    assert refused.value.where == str(tmp_path)


def test_two_disks_are_two_volumes(tmp_path, monkeypatch) -> None:
    there = {"one": 300, "two": 5}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(0, 0, there[path.name]))
    monkeypatch.setattr(outputs, "existing_parent", lambda path: _Disk(path.parts[-2]))
    files = [
        PlannedFile(Path("one/a"), 10, ""),
        PlannedFile(Path("two/b"), 4, ""),
        PlannedFile(Path("one/c"), 20, ""),
    ]
    assert [(volume.needed, volume.free) for volume in volumes(files)] == [(30, 300), (4, 5)]


class _Disk:
    """A path on a disk of its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def is_dir(self) -> bool:
        return True

    def stat(self):
        return collections.namedtuple("Stat", "st_dev")(self.name)


def test_sizes_are_told_with_three_digits() -> None:
    assert [size_text(size) for size in (0, 999, 1000, 23_437_022, 2_132_625_574)] == [
        "0 bytes", "999 bytes", "1 kB", "23.4 MB", "2.13 GB",
    ]  # fmt: skip
