"""What there is to learn from: each concept's images, checked, and the class images that are still to be made."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from dreambooth.shared.concepts import Concept, class_image_count
from dreambooth.shared.errors import InputError, concerning
from dreambooth.shared.presets import RARE_WORDS
from dreambooth.shared.problems import Problems
from dreambooth.trainer.data.captions import Tokens, caption_file, caption_of, needs_caption, prompt_for
from dreambooth.trainer.data.images import SUFFIXES, Probe, bad_images_error, find_images, probe_all

_ANOTHER_FOLDER = "Give each its own folder."


@dataclass(frozen=True)
class ConceptImages:
    """One concept with its images. `class_images` are the existing ones that are used, at most `class_wanted`."""

    number: int  # counted from 1, as messages do
    concept: Concept
    instance: tuple[Probe, ...]
    class_dir: Path | None  # None: no prior preservation for this concept
    class_images: tuple[Probe, ...]
    class_wanted: int

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.concept.instance_token, self.concept.class_token)

    def instance_prompt(self, image: Probe) -> str:
        """The prompt of an instance image before it varies. Raises `InputError` on an unreadable caption."""
        return _prompt(self.concept.instance_prompt, image, self.tokens, is_class=False)

    def class_prompt(self, image: Probe) -> str:
        """The prompt of an existing class image before it varies. Raises `InputError` on an unreadable caption."""
        return _prompt(self.concept.class_prompt, image, self.tokens, is_class=True)


@dataclass(frozen=True)
class ClassImage:
    """A class image to be made: `caption` is what belongs beside it in a .txt where the class prompt has
    [filewords], so that it is read back to the same prompt."""

    prompt: str
    caption: str | None


@dataclass(frozen=True)
class ClassFolder:
    """A folder of class images and what is wanted in it; concepts with one prompt may share it."""

    folder: Path
    concept: Concept
    found: int
    prompts: tuple[ClassImage, ...]  # of all images wanted, by index; those from `found` on are to be made

    @property
    def missing(self) -> int:
        return max(0, len(self.prompts) - self.found)


@dataclass(frozen=True)
class Survey:
    """All concepts with their images, and what was left out or looks unintended."""

    concepts: tuple[ConceptImages, ...]
    warnings: tuple[str, ...]

    @property
    def instance_count(self) -> int:
        """Instance images, without repeats."""
        return sum(len(entry.instance) for entry in self.concepts)

    def class_folders(self) -> list[ClassFolder]:
        """The folders of class images, each once, with the prompts of all images wanted there."""
        widest: dict[Path, ConceptImages] = {}
        for entry in self.concepts:
            if entry.class_dir is not None:
                place = _real(entry.class_dir)
                widest[place] = max(widest.get(place, entry), entry, key=lambda known: known.class_wanted)
        return [_class_folder(entry) for entry in widest.values()]


def survey(
    concepts: Sequence[Concept],
    *,
    prior: bool,
    num_class_images: int,
    allow_bad_images: bool = False,
    class_root: Path | None = None,
    makes_class_images: bool = True,
) -> Survey:
    """Looks at every concept's folders. Nothing is written.

    `prior`: with class images; those of a concept without class_data_dir lie under `class_root`. Where none are made
    (`makes_class_images`), those in class_data_dir are used, all that there are.
    Raises `InputError` naming the concept's number and the key, or listing all images that cannot be used.
    """
    if not concepts:
        raise InputError(
            "there is nothing to learn", where="concepts", remedy="Give at least one concept with images."
        )
    wanted = _all_paths(concepts)
    counts = [
        (
            class_image_count(concept, len(paths), num_class_images)
            if makes_class_images
            else _there(number, concept)
        )
        if prior
        else 0
        for number, (concept, paths) in enumerate(zip(concepts, wanted, strict=True), 1)
    ]
    if prior and makes_class_images and not any(counts):
        raise InputError(
            "prior preservation is on, but no concept asks for class images",
            where="num_class_images",
            remedy="Set num_class_images, or prior_loss_weight: 0 to train without it.",
        )
    folders = [
        _class_dir(number, concept, class_root) if count else None
        for number, (concept, count) in enumerate(zip(concepts, counts, strict=True), 1)
    ]
    _check_folders(concepts, folders)
    found, bad = [], dict[str, str]()
    for number, (concept, paths, folder, count) in enumerate(
        zip(concepts, wanted, folders, counts, strict=True), 1
    ):
        instance, bad_instance = probe_all(paths)
        with concerning(setting_name(number, "class_data_dir")):
            class_paths = _class_paths(number, folder) if folder else []
        class_images, bad_class = probe_all(class_paths, limit=count)
        found.append(ConceptImages(number, concept, tuple(instance), folder, tuple(class_images), count))
        bad.update(dict.fromkeys(bad_instance, setting_name(number, "instance_data_dir")))
        bad.update(dict.fromkeys(bad_class, setting_name(number, "class_data_dir")))
    if bad and not allow_bad_images:
        with concerning(next(iter(bad.values()))):
            raise bad_images_error(list(bad))
    warnings = [f"image left out: {reason}" for reason in bad]
    problems = Problems()
    for entry in found:
        with problems.kept(), concerning(setting_name(entry.number, "instance_data_dir")):
            warnings += _check_captions(entry)
    problems.tell()
    return Survey(tuple(found), tuple(warnings))


def check_prompts(found: Survey) -> None:
    """Every concept says what its photos show, in its prompt or in captions that were written: names of files are taken
    where [filewords] asks for them, and not because a prompt was forgotten. Raises `InputError`."""
    problems = Problems()
    for entry in found.concepts:
        if not entry.concept.instance_token:
            problems.ask(_check_said, entry)
    problems.tell()


def setting_name(number: int, key: str) -> str:
    """A concept's setting as a form knows it: `number` is counted from 1, the name from 0."""
    return f"concepts[{number - 1}].{key}"


def class_dir_name(concept: Concept) -> str:
    """A folder name for class images that says and tells apart what they are made with."""
    words = re.sub(r"\W+", "-", concept.class_prompt).strip("-")[:40]
    made_with = "\n".join([concept.class_prompt, concept.class_negative_prompt])
    return f"{words or 'class'}-{sha256(made_with.encode()).hexdigest()[:8]}"


def _prompt(template: str, image: Probe, tokens: Tokens, *, is_class: bool) -> str:
    caption = caption_of(image.path) if needs_caption(template) else ""
    return prompt_for(template, caption, tokens, is_class=is_class)


def _all_paths(concepts: Sequence[Concept]) -> list[list[Path]]:
    """Each concept's images. Raises InputError with all folders that are wrong."""
    problems, found = Problems(), []
    for number, concept in enumerate(concepts, 1):
        with problems.kept(), concerning(setting_name(number, "instance_data_dir")):
            found.append(_instance_paths(number, concept))
    problems.tell()
    return found


def _instance_paths(number: int, concept: Concept) -> list[Path]:
    where = f"concept {number}, instance_data_dir"
    if not concept.instance_data_dir:
        raise InputError("it is empty", where=where, remedy="Name the folder that holds the photos.")
    folder = Path(concept.instance_data_dir)
    if not folder.is_dir():
        what = "it is not a folder" if folder.exists() else "there is no such folder"
        raise InputError(f"{what}: {folder}", where=where, remedy="Check the path.")
    paths = _found(folder, where)
    if not paths:
        others = sorted({path.suffix.lower() for path in folder.iterdir() if path.is_file()} - {""})
        hint = f" (there are {', '.join(others[:6])} files)" if others else ""
        raise InputError(
            f"there are no images in {folder}{hint}",
            where=where,
            remedy=f"Put {', '.join(sorted(suffix[1:] for suffix in SUFFIXES))} files there.",
        )
    return paths


def _found(folder: Path, where: str) -> list[Path]:
    try:
        os.listdir(folder)  # os.walk passes over a folder that it may not read
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror})", where=where) from error
    return find_images(folder)


def _there(number: int, concept: Concept) -> int:
    """How many class images a concept has that are to be used as they are; its prompt is needed in any case. Raises
    InputError for a folder that was named and has none, since none will be made."""
    _check_class_prompt(number, concept)
    if not concept.class_data_dir:
        return 0
    with concerning(setting_name(number, "class_data_dir")):
        folder = Path(concept.class_data_dir)
        found = len(_class_paths(number, folder))
        if not found:
            raise InputError(
                f"there are no images in {folder}"
                if folder.exists()
                else f"there is no such folder: {folder}",
                where=f"concept {number}, class_data_dir",
                remedy="Check the path, or leave it empty: with prior: base_prediction no class images are made.",
            )
        return found


def _check_class_prompt(number: int, concept: Concept) -> None:
    if not concept.class_prompt:
        raise InputError(
            "it is empty, but prior preservation is on",
            where=f"concept {number}, class_prompt",
            setting=setting_name(number, "class_prompt"),
            remedy="Describe the class (such as: photo of a dog), or set prior_loss_weight: 0.",
        )


def _class_dir(number: int, concept: Concept, class_root: Path | None) -> Path:
    _check_class_prompt(number, concept)
    if concept.class_data_dir:
        return Path(concept.class_data_dir)
    if class_root is None:
        raise InputError(
            "it is empty, but prior preservation is on",
            where=f"concept {number}, class_data_dir",
            setting=setting_name(number, "class_data_dir"),
            remedy="Name a folder for the class images.",
        )
    return class_root / class_dir_name(concept)


def _class_paths(number: int, folder: Path) -> list[Path]:
    where = f"concept {number}, class_data_dir"
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise InputError(f"it is not a folder: {folder}", where=where, remedy="Check the path.")
    return _found(folder, where)


def _check_folders(concepts: Sequence[Concept], class_dirs: Sequence[Path | None]) -> None:
    """No class folder has two prompts, or lies inside a folder of photos or around it."""
    prompts: dict[Path, tuple[int, Concept]] = {}
    for number, (concept, folder) in enumerate(zip(concepts, class_dirs, strict=True), 1):
        if folder is None:
            continue
        where = f"concept {number}, class_data_dir"
        place = _real(folder)
        first, other = prompts.setdefault(place, (number, concept))
        if (other.class_prompt, other.class_negative_prompt) != (
            concept.class_prompt,
            concept.class_negative_prompt,
        ):
            raise InputError(
                f"concept {first} has the same folder with another class prompt: {folder}",
                where=where,
                setting=setting_name(number, "class_data_dir"),
                remedy=_ANOTHER_FOLDER,
            )
        for photos_number, photos in enumerate(concepts, 1):
            photos_place = _real(Path(photos.instance_data_dir))
            if place == photos_place or place in photos_place.parents or photos_place in place.parents:
                raise InputError(
                    f"the class images' folder {folder} and concept {photos_number}'s folder of photos "
                    f"{photos.instance_data_dir} lie one in the other, and subfolders are read too",
                    where=where,
                    setting=setting_name(number, "class_data_dir"),
                    remedy=_ANOTHER_FOLDER,
                )


def _real(folder: Path) -> Path:
    return Path(os.path.normcase(os.path.realpath(folder)))


def _check_captions(entry: ConceptImages) -> list[str]:
    """Every image has something to be trained with; captions that are not used are a warning."""
    where = f"concept {entry.number}, instance_data_dir"
    if not entry.instance:
        raise InputError("no image in the folder can be used", where=where, remedy="Replace the images.")
    silent = [image for image in entry.instance if not entry.instance_prompt(image)]
    if len(silent) == len(entry.instance):
        _check_said(entry)
    _check_words(entry.number, "instance", silent)
    _check_words(entry.number, "class", [i for i in entry.class_images if not entry.class_prompt(i)])
    if not needs_caption(entry.concept.instance_prompt):
        written = sum(caption_file(image.path) is not None for image in entry.instance)
        if written:
            which = (
                "the caption beside 1 image is" if written == 1 else f"captions beside {written} images are"
            )
            return [
                f"concept {entry.number}: {which} not used, since instance_prompt "
                "is the same for all; put [filewords] into it to use them"
            ]
    return []


def _check_said(entry: ConceptImages) -> None:
    """Raises InputError where nobody wrote what the photos show."""
    if entry.concept.instance_prompt or any(caption_file(image.path) for image in entry.instance):
        return
    raise InputError(
        "it is empty, and no photo has a caption",
        where=f"concept {entry.number}, instance_prompt",
        setting=setting_name(entry.number, "instance_prompt"),
        remedy=f"Say what the photos show, with a rare word for the subject (such as: photo of {RARE_WORDS[0]} dog). Or put "
        "a .txt with its caption beside each photo; or write [filewords], if the photos' file names say it.",
    )


def _check_words(number: int, kind: str, silent: Sequence[Probe]) -> None:
    if silent:
        some = ", ".join(image.path.name for image in silent[:5]) + (", …" if len(silent) > 5 else "")
        raise InputError(
            f"there is no caption for {some}",
            where=f"concept {number}, {kind}_prompt",
            setting=setting_name(number, f"{kind}_prompt"),
            remedy=f"Put a .txt with the caption beside each image, or words into {kind}_prompt.",
        )


def _class_folder(entry: ConceptImages) -> ClassFolder:
    assert entry.class_dir is not None
    template = entry.concept.class_prompt
    if needs_caption(template):
        captions = [
            prompt_for("", caption_of(image.path), entry.tokens, is_class=True) for image in entry.instance
        ]
        made = [
            ClassImage(prompt_for(template, caption, entry.tokens, is_class=True), caption)
            for caption in captions
        ]
    else:
        made = [ClassImage(template, None)]
    prompts = tuple(made[index % len(made)] for index in range(entry.class_wanted))
    return ClassFolder(entry.class_dir, entry.concept, len(entry.class_images), prompts)
