from __future__ import annotations

import dataclasses
import os
import time
from types import SimpleNamespace

import pytest
from PIL import Image
from sampling_models import tiny_model

from dreambooth.shared import paths
from dreambooth.shared.concepts import Concept
from dreambooth.shared.errors import DreamboothError, InputError
from dreambooth.shared.settings import PriorSettings
from dreambooth.trainer.data.survey import survey
from dreambooth.trainer.models.tokenizer import default_tokenizer
from dreambooth.trainer.sampling import class_images as subject
from dreambooth.trainer.sampling.class_images import (
    Recipe,
    image_seed,
    make_class_images,
    plan_class_images,
    recipe_of,
)
from dreambooth.trainer.sampling.pictures import content_digits

RECIPE = Recipe(resolution=64, batch_size=4, steps=2, guidance_scale=3.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = tiny_model()
    made.source = SimpleNamespace(path=tmp_path_factory.mktemp("base") / "base.safetensors")
    return made


@pytest.fixture
def concept(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(2):
        Image.new("RGB", (64, 64), (index, 0, 0)).save(photos / f"{index}.png")
        (photos / f"{index}.txt").write_text(f"sks dog number {index}")
    return Concept(
        instance_prompt="photo of sks dog",
        class_prompt="photo of a dog",
        instance_data_dir=str(photos),
        class_data_dir=str(tmp_path / "class"),
    )


def surveyed(concepts, wanted):
    concepts = concepts if isinstance(concepts, list) else [concepts]
    return survey(concepts, prior=True, num_class_images=wanted).class_folders()


def planned(concept, wanted, recipe=RECIPE):
    (folder,) = surveyed(concept, wanted)
    return plan_class_images(folder, recipe)


def made(model, concept, wanted, recipe=RECIPE, **options):
    plan = planned(concept, wanted, recipe)
    finished = make_class_images(model, default_tokenizer(), plan, **options)
    return finished, contents(plan.folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def indices(files):
    return sorted(int(name.split("-")[1]) for name in files)


def test_missing_images_are_made_and_then_there_is_nothing_to_make(model, concept):
    finished, files = made(model, concept, 6)
    assert finished
    assert indices(files) == list(range(6))
    again = planned(concept, 6)
    assert (again.groups, again.missing) == ((), frozenset())


def test_images_of_the_user_are_counted_first_also_in_subfolders(model, concept, tmp_path):
    deep = tmp_path / "class" / "holidays"
    deep.mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (80, 64), (0, index, 0)).save(deep / f"{index}.jpg")
    plan = planned(concept, 5)
    assert plan.missing == {0, 1}
    make_class_images(model, default_tokenizer(), plan)
    assert surveyed(concept, 5)[0].missing == 0
    assert len(list(deep.iterdir())) == 3


def test_two_runs_make_the_same_bytes_and_another_seed_other_pictures(model, concept, tmp_path):
    _, first = made(model, concept, 5)
    concept.class_data_dir = str(tmp_path / "second")
    _, second = made(model, concept, 5)
    concept.class_data_dir = str(tmp_path / "third")
    _, third = made(model, concept, 5, Recipe(64, 4, steps=2, guidance_scale=3.0, seed=1))
    assert first == second
    assert len(set(first.values())) == 5
    assert not set(first) & set(third)


@pytest.mark.parametrize("kept", [1, 3, 4, 6])
def test_an_interrupted_run_goes_on_to_the_same_bytes_and_leaves_what_is_there_alone(
    model, concept, tmp_path, kept
):
    _, whole = made(model, concept, 7)
    concept.class_data_dir = str(tmp_path / "interrupted")

    class Killed(Exception):
        pass

    def die(done, of, path):
        if done == kept:
            raise Killed

    with pytest.raises(Killed):
        made(model, concept, 7, on_image=die)
    folder = tmp_path / "interrupted"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == kept
    finished, files = made(model, concept, 7)
    assert finished
    assert files == whole
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())


def test_an_image_that_was_deleted_is_made_again_with_the_same_bytes(model, concept, tmp_path):
    _, whole = made(model, concept, 7)
    next((tmp_path / "class").glob("class-00002-*")).unlink()
    plan = planned(concept, 7)
    assert (plan.groups, plan.missing) == (((0, 1, 2, 3),), {2})
    _, files = made(model, concept, 7)
    assert files == whole


def test_more_images_are_added_to_those_that_are_there(model, concept):
    _, first = made(model, concept, 2)
    _, more = made(model, concept, 6)
    assert first.items() <= more.items()
    assert indices(more) == list(range(6))


def test_stopping_keeps_the_groups_that_were_done(model, concept):
    asked = []

    def should_stop():
        asked.append(None)
        return len(asked) > 3  # two steps a group: in the second group

    finished, files = made(model, concept, 7, should_stop=should_stop)
    assert not finished
    assert indices(files) == [0, 1, 2, 3]


def test_progress_is_told_after_each_file(model, concept):
    heard = []
    made(model, concept, 5, on_image=lambda done, of, path: heard.append((done, of, path.is_file())))
    assert heard == [(done, 5, True) for done in range(1, 6)]


def test_a_png_says_how_it_was_made_and_its_name_tells_its_content(model, concept, tmp_path):
    concept.class_negative_prompt = "blurry"
    _, files = made(model, concept, 1)
    (name,) = files
    seed = image_seed(0, "photo of a dog", 0)
    with Image.open(tmp_path / "class" / name) as image:
        assert image.size == (64, 64)
        assert image.text["parameters"] == (
            "photo of a dog\nNegative prompt: blurry\n"
            f"Steps: 2, Sampler: DPM++ 2M, CFG scale: 3, Seed: {seed}, Size: 64x64, Model: base"
        )
    assert name == f"class-00000-{content_digits(files[name])}.png"


def test_concepts_that_share_a_folder_and_a_prompt_share_their_images(concept):
    both = [concept, dataclasses.replace(concept, num_class_images=3)]
    (folder,) = surveyed(both, 5)
    assert plan_class_images(folder, RECIPE).missing == set(range(5))


def test_a_prompt_with_filewords_leaves_each_images_caption_beside_it(model, concept, tmp_path):
    concept.class_prompt, concept.instance_token, concept.class_token = "a [filewords]", "sks", "dog"
    plan = planned(concept, 3)
    make_class_images(model, default_tokenizer(), plan)
    images = sorted((tmp_path / "class").glob("*.png"))
    captions = [path.with_suffix(".txt").read_text() for path in images]
    assert captions == ["dog number 0", "dog number 1", "dog number 0"]
    found = survey([concept], prior=True, num_class_images=3).concepts[0]
    assert [found.class_prompt(image) for image in found.class_images] == [
        request.prompt for request in plan.requests
    ]


def test_a_concepts_own_values_come_before_the_runs(concept):
    concept.class_infer_steps, concept.class_guidance_scale = 9, 0.0
    first = planned(concept, 1).requests[0]
    assert (first.steps, first.guidance_scale) == (9, 0.0)


def test_the_runs_settings_become_a_recipe():
    prior = PriorSettings(
        class_infer_steps=7, class_sampler="ddim", class_seed=3, sample_batch_size=2, class_guidance_scale=1.5
    )
    assert recipe_of(prior, resolution=128, clip_skip=2) == Recipe(128, 2, 7, 1.5, "ddim", 3, 2)


def test_seeds_differ_by_index_prompt_and_class_seed():
    seeds = [image_seed(0, "a dog", index) for index in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert len({image_seed(0, "a dog", 0), image_seed(1, "a dog", 0), image_seed(0, "a cat", 0)}) == 3


def test_processes_share_whole_groups(model, concept, tmp_path):
    _, whole = made(model, concept, 10)
    concept.class_data_dir = str(tmp_path / "shared")
    plan = planned(concept, 10)
    shares = [plan.share(process, 2) for process in range(2)]
    assert [share.groups for share in shares] == [((0, 1, 2, 3), (8, 9)), ((4, 5, 6, 7),)]
    for share in reversed(shares):
        make_class_images(model, default_tokenizer(), share)
    assert contents(plan.folder) == whole


def test_what_a_killed_process_left_is_removed_but_not_what_one_is_writing(model, concept, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    old = folder / "class-00000-0123456789ab.png.k3_x9.partial"
    new = folder / "class-00001-0123456789ab.png.abcd.partial"
    other = folder / "notes.png.partial"
    for path in (old, new, other):
        path.write_bytes(b"")
    for path in (old, other):
        os.utime(path, (time.time() - 7200,) * 2)
    made(model, concept, 1)
    assert not old.exists()
    assert new.exists()
    assert other.exists()


def test_a_full_disk_ends_the_making_and_keeps_what_was_made(model, concept, monkeypatch):
    written = []

    def full_after_two(path, content):
        if len(written) == 2:
            raise DreamboothError("no space is left on the disk", where=str(path))
        written.append(path)
        paths.write_whole(path, content)

    monkeypatch.setattr(subject, "write_whole", full_after_two)
    with pytest.raises(DreamboothError, match="no space"):
        made(model, concept, 5)
    assert planned(concept, 5).missing == {2, 3, 4}


def test_a_resolution_that_cannot_be_is_refused_while_planning(concept):
    with pytest.raises(InputError, match="multiples of 8"):
        planned(concept, 1, Recipe(resolution=60, batch_size=1))


def test_a_folder_that_cannot_be_made_is_refused_while_planning_if_there_is_something_to_make(
    concept, tmp_path
):
    (tmp_path / "file").write_text("")
    (folder,) = surveyed(concept, 1)
    with pytest.raises(InputError, match="file, not a folder") as caught:
        plan_class_images(dataclasses.replace(folder, folder=tmp_path / "file" / "class"), RECIPE)
    assert caught.value.where == "class_data_dir"
    there = dataclasses.replace(folder, folder=tmp_path / "file" / "class", found=1)
    assert plan_class_images(there, RECIPE).missing == frozenset()
