import json
from pathlib import Path

import pytest

from dreambooth.shared.concepts import Concept, ConceptsFile, class_image_count, concepts_from, read_concepts
from dreambooth.shared.errors import InputError

# the form that ShivamShrirao's notebook shows, which is Python, with its comments
NOTEBOOK = """# You can also add multiple concepts here. Try tweaking `--max_train_steps` accordingly.

concepts_list = [
    {
        "instance_prompt":      "photo of zwx dog",
        "class_prompt":         "photo of a dog",
        "instance_data_dir":    "/content/data/zwx",
        "class_data_dir":       "/content/data/dog"
    },
#     {
#         "instance_prompt":      "photo of ukj person",
#         "class_prompt":         "photo of a person",
#         "instance_data_dir":    "/content/data/ukj",
#         "class_data_dir":       "/content/data/person"
#     }
]

# `class_data_dir` contains regularization images
"""
# every name that sd_dreambooth_extension saves
EXTENSION = {
    "class_data_dir": "/c", "class_guidance_scale": 7.5, "class_infer_steps": 60, "class_negative_prompt": "blur",
    "class_prompt": "photo of dog", "class_token": "dog", "instance_data_dir": "/i",
    "instance_prompt": "photo of sks dog", "instance_token": "sks", "is_valid": True, "n_save_sample": 1,
    "num_class_images_per": 5, "sample_seed": -1, "save_guidance_scale": 7.5, "save_infer_steps": 20,
    "save_sample_negative_prompt": "", "save_sample_prompt": "", "save_sample_template": "",
}  # fmt: skip


def write(folder: Path, content: object, name: str = "concepts_list.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def absolute(path: str) -> str:
    return str(Path(path))


def test_the_list_of_a_notebook_is_read_as_it_stands(tmp_path):
    found = read_concepts(write(tmp_path, NOTEBOOK))
    [concept] = found.concepts
    assert (concept.instance_prompt, concept.class_prompt) == ("photo of zwx dog", "photo of a dog")
    assert Path(concept.instance_data_dir).parts[-3:] == ("content", "data", "zwx")
    assert concept == Concept(
        instance_prompt="photo of zwx dog",
        class_prompt="photo of a dog",
        instance_data_dir=concept.instance_data_dir,
        class_data_dir=concept.class_data_dir,
    )
    assert found.not_taken == []


def test_the_old_extensions_names_are_taken_or_listed(tmp_path):
    found = concepts_from([EXTENSION], where="here")
    assert found.concepts == [
        Concept(
            instance_prompt="photo of sks dog",
            class_prompt="photo of dog",
            class_negative_prompt="blur",
            instance_data_dir="/i",
            class_data_dir="/c",
            num_class_images_per=5,
            class_guidance_scale=7.5,
            class_infer_steps=60,
            instance_token="sks",
            class_token="dog",
        )
    ]
    taken = set(vars(found.concepts[0]))
    assert set(found.not_taken) == set(EXTENSION) - taken
    assert "save_sample_prompt" in found.not_taken


def test_old_and_older_names_are_known():
    found = concepts_from(
        [{"instance_data_dir": "x", "num_class_images": 200, "max_steps": -1}], where="here"
    )
    assert found == ConceptsFile([Concept(instance_data_dir="x", num_class_images=200)], ["max_steps"])


def test_one_object_without_a_list_is_one_concept(tmp_path):
    assert read_concepts(write(tmp_path, {"instance_prompt": "a"})).concepts == [Concept(instance_prompt="a")]


def test_unused_forms_of_the_old_extension_are_passed_over_and_said():
    found = concepts_from([{"instance_prompt": "a"}, {**dict.fromkeys(EXTENSION, ""), "is_valid": False} | {
        "class_guidance_scale": 7.5, "class_infer_steps": 60, "num_class_images_per": 0}], where="here")  # fmt: skip
    assert found.concepts == [Concept(instance_prompt="a")]
    assert "concept 2, which is empty" in found.not_taken


def test_relative_folders_are_relative_to_the_files_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    path = write(tmp_path / "data", [{"instance_data_dir": "photos/sks", "class_data_dir": "../dogs"}])
    [concept] = read_concepts(path.relative_to(tmp_path)).concepts
    assert Path(concept.instance_data_dir) == tmp_path / "data" / "photos" / "sks"
    assert Path(concept.class_data_dir) == tmp_path / "data" / ".." / "dogs"


def test_windows_paths_may_have_single_backslashes(tmp_path):
    text = r'[{"instance_data_dir": "C:\new\table", "class_data_dir": "D:\\dogs",}]'
    [concept] = read_concepts(write(tmp_path, text)).concepts
    assert concept.instance_data_dir == r"C:\new\table"
    assert concept.class_data_dir == r"D:\dogs"


def test_broken_json_is_refused_with_file_line_and_column(tmp_path):
    path = write(tmp_path, '[\n  {"instance_prompt": "a"\n   "class_prompt": "b"}\n]')
    with pytest.raises(InputError) as caught:
        read_concepts(path)
    assert caught.value.where == f"{path}, line 3, column 4"
    assert "expected ','" in caught.value.what


@pytest.mark.parametrize(
    ("entry", "where", "says"),
    [
        ({"instance_promt": "a"}, "here, concept 2", "instance_prompt"),
        ({"repeats": 0}, "here, concept 2, repeats", "at least 1"),
        ({"repeats": "many"}, "here, concept 2, repeats", "whole number"),
        ({"repeats": 1.5}, "here, concept 2, repeats", "whole number"),
        ({"repeats": True}, "here, concept 2, repeats", "whole number"),
        ({"num_class_images": -1}, "here, concept 2, num_class_images", "at least 0"),
        ({"num_class_images": float("nan")}, "here, concept 2, num_class_images", "at least 0"),
        ({"class_guidance_scale": []}, "here, concept 2, class_guidance_scale", "a number"),
        ({"instance_prompt": 3}, "here, concept 2, instance_prompt", "text"),
        ("photo of sks dog", "here, concept 2", "expected an object"),
    ],
)
def test_a_wrong_value_names_the_concept_and_the_key(entry, where, says):
    with pytest.raises(InputError) as caught:
        concepts_from([{"instance_prompt": "fine"}, entry], where="here")
    assert caught.value.where == where
    assert says in str(caught.value)


@pytest.mark.parametrize("value", [[], {}, "text", None, [{}]])
def test_a_file_without_concepts_is_refused(value):
    with pytest.raises(InputError, match="no concepts"):
        concepts_from(value, where="here")


def test_numbers_may_be_written_as_text_and_null_means_nothing_said():
    [concept] = concepts_from(
        [{"instance_prompt": " a ", "repeats": "3", "num_class_images": None}], where="h"
    ).concepts
    assert concept == Concept(instance_prompt="a", repeats=3, num_class_images=None)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such") as caught:
        read_concepts(tmp_path / "none.json")
    assert caught.value.where == str(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("concept", "count"),
    [
        (Concept(), 100),
        (Concept(num_class_images=7), 7),
        (Concept(num_class_images=0), 0),
        (Concept(num_class_images_per=5), 60),
        (Concept(num_class_images_per=5, num_class_images=7), 7),
    ],
)
def test_a_concepts_own_number_of_class_images_wins(concept, count):
    assert class_image_count(concept, 12, 100) == count
