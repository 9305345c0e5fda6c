from pathlib import Path

import pytest
from PIL import Image

from dreambooth.shared.concepts import Concept
from dreambooth.shared.errors import InputError
from dreambooth.trainer.data.survey import ClassImage, check_prompts, class_dir_name, survey


def photos(folder: Path, count: int = 2, captions: list[str] | None = None) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (12, 8), (number, 0, 0)).save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}.txt").write_text(captions[number])
    return str(folder)


def look(*concepts: Concept, prior: bool = True, number: int = 3, **options):
    return survey(concepts, prior=prior, num_class_images=number, **options)


def refused(*concepts: Concept, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        look(*concepts, **options)
    return caught.value


def sks(tmp_path: Path, **changes) -> Concept:
    values = {
        "instance_prompt": "photo of sks dog",
        "class_prompt": "photo of dog",
        "instance_data_dir": photos(tmp_path / "sks"),
        "class_data_dir": str(tmp_path / "dogs"),
    }
    return Concept(**{**values, **changes})


def test_existing_class_images_are_used_and_only_the_missing_ones_asked_for(tmp_path):
    concept = sks(tmp_path)
    found = look(concept)
    assert (found.instance_count, found.warnings) == (2, ())
    [folder] = found.class_folders()
    assert (folder.folder, folder.found, folder.missing) == (tmp_path / "dogs", 0, 3)
    assert folder.prompts == (ClassImage("photo of dog", None),) * 3
    photos(tmp_path / "dogs", 1)
    [folder] = look(concept).class_folders()
    assert (folder.found, folder.missing) == (1, 2)
    photos(tmp_path / "dogs", 5)
    found = look(concept)
    assert [image.path.name for image in found.concepts[0].class_images] == ["0.png", "1.png", "2.png"]
    assert found.class_folders()[0].missing == 0


def test_without_prior_preservation_class_folders_are_not_looked_at(tmp_path):
    photos(tmp_path / "dogs", 1)
    found = look(sks(tmp_path, class_prompt=""), prior=False)
    assert found.concepts[0].class_images == ()
    assert found.class_folders() == []


def test_class_images_without_a_folder_go_where_the_run_keeps_them(tmp_path):
    concept = sks(tmp_path, class_data_dir="")
    [folder] = look(concept, class_root=tmp_path / "root").class_folders()
    assert folder.folder == tmp_path / "root" / class_dir_name(concept)
    assert class_dir_name(concept).startswith("photo-of-dog-")
    assert class_dir_name(concept) != class_dir_name(sks(tmp_path, class_negative_prompt="blurred"))
    assert refused(concept).where == "concept 1, class_data_dir"


def test_one_class_folder_may_serve_several_concepts_with_the_same_prompt(tmp_path):
    first = sks(tmp_path, num_class_images=2)
    second = sks(tmp_path, instance_data_dir=photos(tmp_path / "zwx"), num_class_images=4)
    second.class_data_dir = str(tmp_path / "zwx" / ".." / "dogs")
    [folder] = look(first, second).class_folders()
    assert folder.missing == 4


def test_a_concepts_own_count_wins_and_per_image_counts_are_multiplied(tmp_path):
    first = sks(tmp_path, num_class_images_per=5)
    second = sks(tmp_path, num_class_images=0)
    found = look(first, second)
    assert [entry.class_wanted for entry in found.concepts] == [10, 0]
    assert found.concepts[1].class_dir is None


@pytest.mark.parametrize(
    ("changes", "where", "says"),
    [
        ({"class_prompt": ""}, "concept 2, class_prompt", "empty"),
        ({"instance_data_dir": ""}, "concept 2, instance_data_dir", "empty"),
        ({"instance_data_dir": "nowhere"}, "concept 2, instance_data_dir", "no such folder"),
        ({"instance_data_dir": __file__}, "concept 2, instance_data_dir", "not a folder"),
        ({"class_data_dir": __file__}, "concept 2, class_data_dir", "not a folder"),
        ({"class_prompt": "photo of a cat"}, "concept 2, class_data_dir", "another class prompt"),
        ({"class_negative_prompt": "blur"}, "concept 2, class_data_dir", "another class prompt"),
        ({"instance_prompt": ""}, "concept 2, instance_prompt", "it is empty, and no photo has a caption"),
        ({"instance_prompt": "[filewords]"}, "concept 2, instance_prompt", "no caption for 0.png, 1.png"),
    ],
)
def test_what_is_wrong_with_a_concept_is_said_with_its_number_and_key(tmp_path, changes, where, says):
    error = refused(sks(tmp_path), sks(tmp_path, **changes))
    assert error.where == where
    assert says in error.what
    assert error.remedy


def test_a_folder_of_class_images_that_is_named_has_some_where_none_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, says in (("dgos", "there is no such folder: "), ("empty", "there are no images in ")):
        concept = sks(tmp_path, class_data_dir=str(tmp_path / folder))
        error = refused(concept, makes_class_images=False)
        assert (error.what, error.setting) == (says + concept.class_data_dir, "concepts[0].class_data_dir")
        assert "or leave it empty" in error.remedy
    assert look(sks(tmp_path, class_data_dir=""), makes_class_images=False).concepts[0].class_dir is None
    photos(tmp_path / "dogs", 2)
    assert len(look(sks(tmp_path), makes_class_images=False).concepts[0].class_images) == 2


def test_a_forgotten_prompt_does_not_make_captions_of_the_photos_names(tmp_path):
    folder = tmp_path / "named"
    folder.mkdir()
    Image.new("RGB", (12, 8)).save(folder / "my holidays.png")
    forgotten = sks(tmp_path, instance_prompt="", instance_data_dir=str(folder))
    with pytest.raises(InputError) as caught:
        check_prompts(look(forgotten))
    assert caught.value.where == "concept 1, instance_prompt"
    assert caught.value.setting == "concepts[0].instance_prompt"
    assert all(way in caught.value.remedy for way in ("ohwx", ".txt", "[filewords]"))
    for meant in ({"instance_prompt": "[filewords]"}, {"instance_token": "sks"}):
        check_prompts(
            look(sks(tmp_path, **{"instance_prompt": "", "instance_data_dir": str(folder), **meant}))
        )
    (folder / "my holidays.txt").write_text("a dog")
    check_prompts(look(forgotten))


def test_a_folder_without_images_names_what_there_is_instead(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "photo.HEIC").write_bytes(b"")
    error = refused(sks(tmp_path, instance_data_dir=str(tmp_path / "empty")))
    assert error.where == "concept 1, instance_data_dir"
    assert "no images" in error.what and ".heic" in error.what


@pytest.mark.parametrize("class_dir", ["sks/class", ".", "sks"])
def test_class_images_may_not_lie_among_the_photos(tmp_path, class_dir):
    error = refused(sks(tmp_path, class_data_dir=str(tmp_path / class_dir)))
    assert error.where == "concept 1, class_data_dir"
    assert "subfolders" in error.what


def test_no_concepts_and_no_class_images_are_refused(tmp_path):
    assert refused().where == "concepts"
    error = refused(sks(tmp_path), number=0)
    assert (error.where, "prior_loss_weight: 0" in error.remedy) == ("num_class_images", True)


def test_all_bad_images_are_in_one_message_or_left_out(tmp_path):
    concept = sks(tmp_path)
    photos(tmp_path / "dogs", 4)
    bad = [tmp_path / "sks" / "broken.png", tmp_path / "dogs" / "0.png"]
    for path in bad:
        path.write_bytes(b"x")
    error = refused(concept)
    assert all(str(path) in error.what for path in bad)
    found = look(concept, allow_bad_images=True)
    assert [len(found.warnings), found.instance_count] == [2, 2]
    assert all(str(path) in warning for path, warning in zip(bad, found.warnings, strict=True))
    # the next good one takes the bad one's place, so that none is made for it again and again
    assert [image.path.name for image in found.concepts[0].class_images] == ["1.png", "2.png", "3.png"]


def test_a_concept_with_nothing_but_bad_images_is_refused_even_so(tmp_path):
    concept = sks(tmp_path)
    for path in (tmp_path / "sks").iterdir():
        path.write_bytes(b"x")
    assert "no image in the folder can be used" in refused(concept, allow_bad_images=True).what


def test_captions_that_are_not_used_are_a_warning(tmp_path):
    photos(tmp_path / "sks", 2, ["a", "b"])
    [warning] = look(sks(tmp_path)).warnings
    assert "concept 1" in warning and "[filewords]" in warning
    assert look(sks(tmp_path, instance_prompt="photo of sks dog, [filewords]")).warnings == ()


def test_class_images_to_make_take_turns_with_the_photos_captions(tmp_path):
    photos(tmp_path / "sks", 2, ["sks dog on grass", "a dog in snow"])
    concept = sks(tmp_path, instance_prompt="[filewords]", class_prompt="photo of [filewords]")
    concept.instance_token, concept.class_token = "sks", "dog"
    [folder] = look(concept).class_folders()
    assert [image.prompt for image in folder.prompts] == [
        "photo of dog on grass",
        "photo of a dog in snow",
        "photo of dog on grass",
    ]
    # what is written beside them gives the same prompt when they are found again
    photos(tmp_path / "dogs", 3, [str(image.caption) for image in folder.prompts])
    entry = look(concept).concepts[0]
    assert [entry.class_prompt(image) for image in entry.class_images] == [
        image.prompt for image in folder.prompts
    ]


def test_class_images_without_words_are_refused(tmp_path):
    photos(tmp_path / "sks", 2, ["a dog", "a dog"])
    photos(tmp_path / "dogs", 1)
    error = refused(sks(tmp_path, class_prompt="[filewords]"))
    assert error.where == "concept 1, class_prompt"
    assert "0.png" in error.what
