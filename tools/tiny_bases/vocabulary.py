"""Tokenizers of the tiny models: a byte-level CLIP BPE and a T5 unigram; both have the caption words as whole tokens.

An unknown word is split into letters, so a made-up brand name is spelled out, never lost.
"""

import json
import string

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5TokenizerFast

from onbrand.families.tiny.draw import BRAND_NOUNS, GROUNDS, RELATIONS, SHAPES, STYLES

MAX_TOKENS = 32
END_OF_WORD = "</w>"
T5_SYMBOLS = string.ascii_letters + string.digits + "-_.,'!?:;()[]<>/&"


def caption_words() -> list[str]:
    """All words of captions, without duplicates."""
    relations = [word for relation in RELATIONS for word in relation.split()]
    connecting = ["a", "an", "of", "on", "the", "background", "style", "small", "large"]
    return list(dict.fromkeys([*connecting, *STYLES, *BRAND_NOUNS, *GROUNDS, *SHAPES, *relations]))


def new_clip_tokenizer() -> CLIPTokenizer:
    """512 byte symbols (inside and at the end of a word), one merge path per caption word, start and end of text."""
    merges = _merges(caption_words())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(symbol + END_OF_WORD for symbol in alphabet), *(left + right for left, right in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def _merges(words: list[str]) -> list[tuple[str, str]]:
    learner = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD, continuing_subword_prefix=""))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=2,
        end_of_word_suffix=END_OF_WORD,
        continuing_subword_prefix="",
        show_progress=False,
    )
    learner.train_from_iterator([" ".join(words)] * 2, trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


def new_t5_tokenizer() -> T5TokenizerFast:
    """Caption words whole, plain or capitalised; other text by letters. Unlike CLIP's, it does not lower-case."""
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -5.0}
    scores |= {f"▁{spelling}": -3.0 for word in caption_words() for spelling in (word, word.capitalize())}
    for symbol in T5_SYMBOLS:
        scores.setdefault(symbol, -8.0)
        scores.setdefault(f"▁{symbol}", -8.0)
    return T5TokenizerFast(vocab=list(scores.items()), extra_ids=0, model_max_length=MAX_TOKENS)
