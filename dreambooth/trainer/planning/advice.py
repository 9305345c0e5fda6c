"""What a careful friend would say of a concept before it is trained. Nothing here keeps anybody from training."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dreambooth.shared.presets import RARE_WORDS
from dreambooth.trainer.data.buckets import Size
from dreambooth.trainer.data.captions import caption_file, needs_caption
from dreambooth.trainer.data.images import Probe
from dreambooth.trainer.data.looks import Look, alike
from dreambooth.trainer.data.survey import ConceptImages
from dreambooth.trainer.models.text import tokens_cut
from dreambooth.trainer.models.tokenizer import Tokenizer

Level = Literal["note", "warning"]
# The paper (arXiv 2208.12242, section 3.1) gets by with 3 to 5 photos of a thing; for a face trainers ask for ten and
# more (see the sources of shared/presets.py), and more give variety to anything.
FEW, VERY_FEW = 10, 3
ENLARGED = 1.1
# CLIP's tokens are merges in order of frequency: a word that is a single token of a low number was seen often, and a
# rare one (sks: 47624) hardly ever. The paper takes its identifiers from the rarest (section 3.2).
MERGES_FROM, RARE_FROM = 512, 45_000
MANY_PIECES = 4
_WORD = re.compile(r"[^\W_]+")
_FILEWORDS = re.compile(r"\[filewords\]", re.IGNORECASE)


@dataclass(frozen=True)
class Advice:
    """One remark; `files` are those it is about, relative to the concept's folder."""

    level: Level
    text: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Surroundings:
    """What a concept is looked at with: the sizes that its images are brought to by content id, glances at them, and
    the longest prompt in chunks of 75 tokens."""

    targets: Mapping[str, Size]
    looks: Mapping[str, Look]
    tokenizer: Tokenizer
    max_chunks: int


@dataclass(frozen=True)
class Words:
    """The words of the instance prompt that are the subject's own, as far as they can be told."""

    rare: tuple[str, ...]
    known: tuple[str, ...] = ()

    @property
    def token(self) -> str:
        return " ".join(self.rare or self.known)


def concept_facts(entry: ConceptImages, around: Surroundings) -> dict[str, Any]:
    """A concept as the page shows it, in plain JSON values."""
    words, prompts = own_words(entry, around.tokenizer), _prompts(entry)
    return {
        "instance_prompt": entry.concept.instance_prompt,
        "class_prompt": entry.concept.class_prompt,
        "images": len(entry.instance),
        "class_images": len(entry.class_images),
        "class_images_to_make": max(0, entry.class_wanted - len(entry.class_images)),
        "instance_tokens": max(around.tokenizer.count(prompt) for prompt in prompts.values()),
        "rare_token": words.token,
        "rare_token_count": around.tokenizer.count(words.token) if words.token else 0,
        "advice": [vars(remark) | {"files": list(remark.files)} for remark in advise(entry, around)],
    }


def advise(entry: ConceptImages, around: Surroundings) -> list[Advice]:
    """All remarks on a concept, the photos' first."""
    return [
        *_few(entry),
        *_small(entry, around.targets),
        *_blurred(entry, around.looks),
        *_alike(entry, around.looks),
        *_without_caption(entry),
        *_words(entry, around.tokenizer),
        *_too_long(entry, around),
        *_among_the_class(entry),
    ]


def own_words(entry: ConceptImages, tokenizer: Tokenizer) -> Words:
    """The words that name the subject: the instance token, else those that the class prompt has not.

    Without a class prompt only rare ones can be told. A word is known where it is one token among the more frequent.
    One that stands once more than in the class prompt ("photo of dog dog") was meant as the subject's own too.
    """
    concept = entry.concept
    given = _word_list(concept.instance_token)
    said = _words_of(_FILEWORDS.sub(" ", concept.instance_prompt))
    of_the_class = [] if given else _words_of(concept.class_prompt)
    own = given or [word for word in dict.fromkeys(said) if said.count(word) > of_the_class.count(word)]
    rare = tuple(word for word in own if frequency_rank(tokenizer, word) is None)
    known = tuple(word for word in own if word not in rare)
    if given or of_the_class:
        return Words(rare, known)
    rare = tuple(word for word in rare if tokenizer.count(word) == 1)
    doubled = tuple(word for word, after in itertools.pairwise(said) if word == after)
    return Words(rare, () if rare else doubled)


def frequency_rank(tokenizer: Tokenizer, word: str) -> int | None:
    """Where a word stands among CLIP's tokens by frequency, 1 the first; None if it is rare or of several pieces."""
    ids = tokenizer(word)
    if len(ids) != 1:
        return None
    rank = ids[0] - MERGES_FROM + 1
    return rank if rank < RARE_FROM else None


def _words_of(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _word_list(text: str) -> list[str]:
    return list(dict.fromkeys(_words_of(text)))


def _prompts(entry: ConceptImages) -> dict[Probe, str]:
    return {image: entry.instance_prompt(image) for image in entry.instance}


def _names(entry: ConceptImages, images: Iterable[Probe]) -> tuple[str, ...]:
    return tuple(_name(entry, image) for image in images)


def _name(entry: ConceptImages, image: Probe) -> str:
    return image.path.relative_to(entry.concept.instance_data_dir).as_posix()


def _photos(count: int) -> str:
    return "1 photo" if count == 1 else f"{count} photos"


def _few(entry: ConceptImages) -> list[Advice]:
    count = len({image.content_id for image in entry.instance})
    if count >= FEW:
        return []
    level: Level = "warning" if count < VERY_FEW else "note"
    return [Advice(level, f"{_photos(count)}: with {FEW} to 20 different ones the likeness is better")]


def _small(entry: ConceptImages, targets: Mapping[str, Size]) -> list[Advice]:
    factors = {image: _enlarged(image.size, targets[image.content_id]) for image in entry.instance}
    small = [image for image, factor in factors.items() if factor > ENLARGED]
    if not small:
        return []
    most = max(factors.values())
    text = (
        f"{_photos(len(small))} smaller than what is trained at: enlarged up to {most:.2g} times, and so soft"
    )
    return [Advice("warning" if most > 1.5 else "note", text, _names(entry, small))]


def _enlarged(size: Size, target: Size) -> float:
    return max(target[0] / size[0], target[1] / size[1])


def _blurred(entry: ConceptImages, looks: Mapping[str, Look]) -> list[Advice]:
    blurred = [image for image in entry.instance if _is_blurred(looks.get(image.content_id))]
    if not blurred:
        return []
    what = "looks" if len(blurred) == 1 else "look"
    text = (
        f"{_photos(len(blurred))} {what} blurred: what is not sharp in the photos will not be in the pictures"
    )
    return [Advice("warning", text, _names(entry, blurred))]


def _is_blurred(look: Look | None) -> bool:
    return look is not None and look.is_blurred


def _alike(entry: ConceptImages, looks: Mapping[str, Look]) -> list[Advice]:
    remarks = []
    for group in alike(entry.instance, looks):
        same = len({image.content_id for image in group}) == 1
        text = (
            f"{_photos(len(group))} are {'the same file' if same else 'nearly the same'}: "
            "the model may learn the photo instead of the subject"
        )
        remarks.append(Advice("warning", text, _names(entry, group)))
    return remarks


def _without_caption(entry: ConceptImages) -> list[Advice]:
    if not needs_caption(entry.concept.instance_prompt):
        return []
    silent = [image for image in entry.instance if caption_file(image.path) is None]
    if not silent or len(silent) == len(entry.instance):
        return []
    text = f"{_photos(len(silent))} without a caption file, where others have one: the file's name is used instead"
    return [Advice("warning", text, _names(entry, silent))]


def _words(entry: ConceptImages, tokenizer: Tokenizer) -> list[Advice]:
    concept = entry.concept
    if concept.class_prompt and _plain(concept.class_prompt) == _plain(concept.instance_prompt):
        return [
            Advice(
                "warning",
                "the class prompt is the instance prompt: leave the subject's own word out of it, or what is learned of "
                "the subject is held back as what must not change",
            )
        ]
    words = own_words(entry, tokenizer)
    if words.rare:
        return _in_pieces(words.rare, tokenizer)
    if words.known:
        return [_known(words.known, tokenizer)]
    if needs_caption(concept.instance_prompt) and not concept.class_prompt:
        return []  # captions alone: what they call the subject is theirs to say
    return [
        Advice(
            "warning",
            f"no word of the instance prompt is the subject's own: put a rare one in, such as {RARE_WORDS[0]}",
        )
    ]


def _plain(prompt: str) -> str:
    return " ".join(prompt.lower().split())


def _known(words: Sequence[str], tokenizer: Tokenizer) -> Advice:
    told = " and ".join(
        f"`{word}` is one token, number {frequency_rank(tokenizer, word)} of CLIP's 48894 by frequency"
        for word in words
    )
    return Advice(
        "warning",
        f"the subject's word is one that the model knows ({told}): what it means already is mixed in; a rare one such as "
        f"{RARE_WORDS[0]} has nothing to unlearn",
    )


def _in_pieces(words: Sequence[str], tokenizer: Tokenizer) -> list[Advice]:
    return [
        Advice("note", f"`{word}` is {count} tokens: a word of one token is learned more easily")
        for word in words
        if (count := tokenizer.count(word)) >= MANY_PIECES
    ]


def _too_long(entry: ConceptImages, around: Surroundings) -> list[Advice]:
    long = [
        image
        for image, prompt in _prompts(entry).items()
        if tokens_cut(around.tokenizer, prompt, around.max_chunks)
    ]
    if not long:
        return []
    text = (
        f"the prompt of {_photos(len(long))} is longer than {75 * around.max_chunks} tokens, and its end is not seen: "
        "raise max_prompt_chunks or shorten it"
    )
    return [Advice("warning", text, _names(entry, long))]


def _among_the_class(entry: ConceptImages) -> list[Advice]:
    of_the_class = {image.content_id for image in entry.class_images}
    both = [image for image in entry.instance if image.content_id in of_the_class]
    if not both:
        return []
    text = f"{_photos(len(both))} also among the class images: the subject is taught as what must not change"
    return [Advice("warning", text, _names(entry, both))]
