"""Counts the tokens of a text, and the tokens that a base reads of it: the rest is cut off, and reported.

Free of torch: the web tier uses it too, if the base is on its machine. Encoding itself is in `families.family`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from onbrand.families import bases
from onbrand.families.spec import Recommended

NAMES = ("tokenizer", "tokenizer_2")
"""The tokenizers' names in a diffusers pipeline."""
T5_TOKENS = 512
"""Tokens that FLUX' T5 reads if neither request nor base say it."""
_CLIP_MARKS = 2
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # as in CLIP's code
)


@dataclass(frozen=True, slots=True)
class Cut:
    """A text that is longer than the part that is read.

    Args:
        tokenizer: its name in a diffusers pipeline.
        tokens: number of tokens of the text, begin and end marks included.
        read: number of tokens that are read, marks included.
    """

    tokenizer: str
    tokens: int
    read: int

    def as_json(self) -> dict[str, str | int]:
        """Plain JSON, as in receipts."""
        return {"tokenizer": self.tokenizer, "tokens": self.tokens, "read": self.read}


@dataclass(frozen=True, slots=True)
class _Reader:
    name: str
    tokenizer: Tokenizer
    most: int
    num_marks: int = 0


class TextLengths:
    """Counts tokens as a base's tokenizers do. Thread-safe."""

    def __init__(self, readers: Iterable[_Reader]) -> None:
        self._readers = list(readers)

    def cuts(self, text: str) -> list[Cut]:
        """One `Cut` for each tokenizer of the base that cuts this text; empty: all of it is read."""
        counted = [(reader, len(reader.tokenizer.encode(text).ids) + reader.num_marks) for reader in self._readers]
        return [Cut(reader.name, tokens, reader.most) for reader, tokens in counted if tokens > reader.most]


def of_pipeline(pipeline: object, recommended: Recommended) -> TextLengths:
    """Token counts of a loaded base. Copies its tokenizers, because the pipeline resets their truncation at every
    call."""
    readers = []
    for name in NAMES:
        tokenizer = getattr(pipeline, name, None)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            most = _most(type(tokenizer).__name__, int(tokenizer.model_max_length), recommended)  # type: ignore[union-attr]
            readers.append(_Reader(name, _uncut(Tokenizer.from_str(backend.to_str())), most))
    return TextLengths(readers)


def of_folder(folder: Path, recommended: Recommended) -> TextLengths:
    """Token counts of the base in `folder`; tokenizers of unknown formats are left out."""
    return TextLengths(reader for name in NAMES if (reader := _read(folder / name, recommended)) is not None)


def at_hand(family: str, sources: dict[Any, str]) -> TextLengths | None:
    """Token counts of the configured base of `family` if it is on this machine, else None; fetches nothing."""
    folder = bases.folder_at_hand(bases.base_source(family, sources))
    return None if folder is None else of_folder(folder, bases.recommended(family, folder))


def _read(folder: Path, recommended: Recommended) -> _Reader | None:
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        most = _most(str(config["tokenizer_class"]), int(config["model_max_length"]), recommended)
        if (folder / "tokenizer.json").is_file():
            return _Reader(folder.name, _uncut(Tokenizer.from_file(str(folder / "tokenizer.json"))), most)
        if (folder / "vocab.json").is_file():
            return _Reader(folder.name, _clip(folder), most, _CLIP_MARKS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _most(kind: str, model_max_length: int, recommended: Recommended) -> int:
    """Most tokens read: for T5 the base's number, for CLIP its number of positions."""
    return recommended.max_sequence_length or T5_TOKENS if kind.startswith("T5") else model_max_length


def _uncut(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _clip(folder: Path) -> Tokenizer:
    """CLIP's tokenizer from a folder with vocabulary and merges files, without marks."""
    bpe = models.BPE.from_file(
        str(folder / "vocab.json"), str(folder / "merges.txt"), end_of_word_suffix="</w>", unk_token="<|endoftext|>"
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer
