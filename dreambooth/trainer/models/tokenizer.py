"""CLIP's tokenizer: byte-level byte pair encoding over 49408 tokens (Radford et al. 2021, section 2.4).

The vocabulary comes with open_clip_torch, so nothing is downloaded and no version of transformers decides
what a prompt means. The engine is the `tokenizers` library, the rules are those of transformers'
CLIPTokenizer.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.shared.errors import DreamboothError

if TYPE_CHECKING:
    import tokenizers

START = "<|startoftext|>"
END = "<|endoftext|>"
MAX_LENGTH = 77
PAD_TOKENS = {"end": END, "0": "!"}

_VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
_BYTES = 256
_SPECIALS = 2
_VOCABULARY_SIZE = 49408
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

Merge = tuple[str, str]


class Tokenizer:
    """Text to token ids.

    `start`, `end` are the ids that frame a prompt, `comma` the id of a comma that ends a word. What a prompt
    is padded with is the text encoder's affair, see `dreambooth.trainer.models.text`.
    """

    def __init__(
        self, vocabulary: Mapping[str, int] | None = None, merges: Sequence[Merge] | None = None
    ) -> None:
        if vocabulary is None or merges is None:
            vocabulary, merges = _read_vocabulary()
        self._engine = _engine(vocabulary, merges)
        self.start = vocabulary[START]
        self.end = vocabulary[END]
        self.comma = vocabulary[",</w>"]
        self.size = len(vocabulary)

    def __call__(self, prompt: str) -> list[int]:
        """The ids of `prompt` without start and end, uncut."""
        return self._engine.encode(prompt, add_special_tokens=False).ids

    def count(self, prompt: str) -> int:
        """How many tokens `prompt` has, without start and end."""
        return len(self(prompt))


@lru_cache(maxsize=1)
def default_tokenizer() -> Tokenizer:
    """The tokenizer that every model of the known families uses; made once a process."""
    return Tokenizer()


def vocabulary() -> tuple[dict[str, int], list[Merge]]:
    """The tokens with their ids (49408) and the merges, most frequent first (48894)."""
    tokens, merges = _read_vocabulary()
    return dict(tokens), list(merges)


def write_tokenizer_folder(folder: Path, pad: str = "end") -> None:
    """Write the four files from which transformers' CLIPTokenizer.from_pretrained reads this tokenizer.

    `pad` is "end" for OpenAI's CLIP (SD1) or "0" for OpenCLIP (SD2), whose padding token is "!".
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _folder_files(pad).items():
        (folder / name).write_bytes(content)


def tokenizer_folder_bytes(pad: str = "end") -> list[int]:
    """The sizes of the files that `write_tokenizer_folder` writes."""
    return [len(content) for content in _folder_files(pad).values()]


def _folder_files(pad: str) -> dict[str, bytes]:
    """Bytes: Windows would otherwise write its own line ends."""
    tokens, merges = _read_vocabulary()
    special = {name: _added_token(text) for name, text in _special_tokens(pad).items()}
    settings = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": MAX_LENGTH,
        "tokenizer_class": "CLIPTokenizer",
        **{name: {"__type": "AddedToken", **token} for name, token in special.items()},
    }
    texts = {
        "vocab.json": _as_json(tokens),
        "merges.txt": "".join(["#version: 0.2\n", *(f"{left} {right}\n" for left, right in merges)]),
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
    }
    return {name: text.encode("utf-8") for name, text in texts.items()}


def _as_json(tokens: Mapping[str, int]) -> str:
    """As json.dumps writes it, which makes so many pairs on the way that Python looks through all of its objects for
    garbage: 0.2 s where torch and diffusers are loaded."""
    return "{" + ", ".join([f"{encode_basestring(text)}: {number}" for text, number in tokens.items()]) + "}"


def _special_tokens(pad: str) -> dict[str, str]:
    return {"bos_token": START, "eos_token": END, "pad_token": PAD_TOKENS[pad], "unk_token": END}


def _added_token(text: str) -> dict[str, Any]:
    return {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def _engine(vocabulary: Mapping[str, int], merges: Sequence[Merge]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    engine = tokenizers.Tokenizer(
        models.BPE(
            vocab=dict(vocabulary),
            merges=list(merges),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=END,
        )
    )
    engine.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True)
    engine.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    engine.add_special_tokens(
        [tokenizers.AddedToken(text, normalized=True, special=True) for text in (START, END)]
    )
    return engine


@lru_cache(maxsize=1)
def _read_vocabulary() -> tuple[Mapping[str, int], Sequence[Merge]]:
    """The file lists 262144 merges, most frequent first; CLIP uses as many as fill its vocabulary."""
    count = _VOCABULARY_SIZE - 2 * _BYTES - _SPECIALS
    with gzip.open(_vocabulary_path(), "rt", encoding="utf-8") as lines:
        next(lines)  # the version
        merges = [_merge(line) for line, _ in zip(lines, range(count), strict=False)]
    characters = list(_byte_characters().values())
    texts = [*characters, *(character + "</w>" for character in characters)]
    texts += [left + right for left, right in merges]
    texts += [START, END]
    return {text: index for index, text in enumerate(texts)}, merges


def _merge(line: str) -> Merge:
    left, right = line.split()
    return left, right


def _byte_characters() -> dict[int, str]:
    """Byte → the printable character that stands for it, in the order of their ids."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(_BYTES) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(_BYTES + index) for index, byte in enumerate(others)
    }


def _vocabulary_path() -> Path:
    """Found without importing open_clip, which would need torchvision."""
    found = importlib.util.find_spec("open_clip")
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / _VOCABULARY_FILE
        if path.is_file():
            return path
    raise DreamboothError(
        f"CLIP's vocabulary ({_VOCABULARY_FILE}) was not found in the package open_clip_torch.",
        remedy="install it into this environment with: pip install --no-deps open_clip_torch",
    )
