"""What is said about each image: its caption, the prompt made from it, and how that prompt varies.

Captions come from `name.txt`, `name.png.txt` or `name.caption` beside `name.png`, else from the file's name. In a
prompt `[filewords]` stands for the caption; a prompt without it is used as it is for every image; an empty prompt is
the caption itself (native training). The token rules are sd_dreambooth_extension's
(dreambooth/utils/image_utils.py, FilenameTextGetter.create_text), except that the instance token is put before the
class token instead of in its place, as the DreamBooth paper (https://arxiv.org/abs/2208.12242, section 3.1:
"a [identifier] [class noun]") has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dreambooth.shared.text_files import read_text
from dreambooth.trainer.draws import below, unit, words

FILEWORDS = "[filewords]"
_LEADING_NUMBERS = re.compile(r"^(?:\d+[-_\s]+)+")  # not the 1 of "1girl"
_TRAILING_NUMBER = re.compile(r"\s*(?:\(\d+\)|[-_\s]\d+)$")
# what cameras, phones and downloads call a picture, which says nothing of what it shows
_CAMERA_NAMES = ("img", "image", "dsc", "dscn", "dscf", "pxl", "mvimg", "gopr", "p", "photo", "picture")
_NO_CAPTION = frozenset((*_CAMERA_NAMES, "screenshot"))
_HASH = re.compile(r"(?=\D*\d)[0-9a-fA-F-]{8,}")
_FILEWORDS = re.compile(re.escape(FILEWORDS), re.IGNORECASE)


@dataclass(frozen=True)
class Tokens:
    """The words that name the subject and its class; empty where no rule is wanted."""

    instance: str = ""
    class_: str = ""


@dataclass(frozen=True)
class Variation:
    """How prompts vary from step to step.

    `dropout` is the probability of the empty prompt; with `shuffle_tags` what lies between commas changes its order,
    except the first `keep_tokens`.
    """

    dropout: float = 0.0
    shuffle_tags: bool = False
    keep_tokens: int = 0


def caption_file(image: Path) -> Path | None:
    """The file that holds an image's caption, if there is one."""
    beside = (image.with_suffix(".txt"), image.with_name(image.name + ".txt"), image.with_suffix(".caption"))
    return next((path for path in beside if path.is_file()), None)


def caption_of(image: Path) -> str:
    """The caption of an image, "" if neither a file nor its name holds one. Raises `InputError` on unreadable text."""
    written = caption_file(image)
    return tidy(read_text(written)) if written else caption_in_name(image.stem)


def caption_in_name(stem: str) -> str:
    """A file name without its numbering; "" where it is nothing but a number or a camera's name for it."""
    letters = re.findall(r"[^\W\d_]+", stem.lower())
    if _HASH.fullmatch(stem) or _NO_CAPTION.issuperset(letters):
        return ""
    text = _LEADING_NUMBERS.sub("", stem)
    return tidy(_TRAILING_NUMBER.sub("", text).replace("_", " "))


def tidy(text: str) -> str:
    r"""One line, single spaces, no empty tags, brackets without the WebUI's backslashes (`\(`)."""
    text = re.sub(r"\\([()\[\]])", r"\1", text)
    text = re.sub(r"\s+", " ", text)
    return re.sub(r" ?,(?: ?,)+", ",", text).strip(" ,")


def needs_caption(prompt: str) -> bool:
    """Whether a prompt is different for each image."""
    return not prompt or bool(_FILEWORDS.search(prompt))


def prompt_for(prompt: str, caption: str, tokens: Tokens, *, is_class: bool) -> str:
    """The prompt of one image, before it varies."""
    if not needs_caption(prompt):
        return prompt
    text = tidy(_FILEWORDS.sub(lambda _: caption, prompt)) if prompt else caption
    named = _class_prompt(text, tokens) if is_class else _instance_prompt(text, tokens)
    return tidy(named)


def varied(prompt: str, variation: Variation, seed: int) -> str:
    """The prompt as a sample with this seed sees it. A pure function."""
    if variation.dropout and unit(words(seed, "dropout")[0]) < variation.dropout:
        return ""
    if not variation.shuffle_tags:
        return prompt
    tags = [tag.strip() for tag in prompt.split(",")]
    kept, rest = tags[: variation.keep_tokens], tags[variation.keep_tokens :]
    # a seed is used once, so that remembering its order as `shuffled` does would only fill memory
    for place in range(len(rest) - 1, 0, -1):
        other = below(words(seed, "tags", place)[0], place + 1)
        rest[place], rest[other] = rest[other], rest[place]
    return ", ".join([*kept, *rest])


def _word(token: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(token)}(?!\w)", re.IGNORECASE)


def _instance_prompt(text: str, tokens: Tokens) -> str:
    """The instance token is there, before the class token where that is there too."""
    if not tokens.instance or _word(tokens.instance).search(text):
        return text
    if not tokens.class_:
        return f"{tokens.instance}, {text}"
    both = f"{tokens.instance} {tokens.class_}"
    if not _word(tokens.class_).search(text):
        return f"{both}, {text}"
    with_article = rf"(?<!\w)(?:(?:an?|the)\s+)?{re.escape(tokens.class_)}(?!\w)"
    return re.sub(with_article, lambda _: both, text, flags=re.IGNORECASE)


def _class_prompt(text: str, tokens: Tokens) -> str:
    """The class token is there, the instance token is not."""
    if tokens.instance:
        has_class = bool(tokens.class_) and bool(_word(tokens.class_).search(text))
        text = _word(tokens.instance).sub("" if has_class else tokens.class_, text)
    if tokens.class_ and not _word(tokens.class_).search(text):
        text = f"{tokens.class_}, {text}"
    return text
