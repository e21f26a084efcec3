"""The tiny text encoders: whole words, unknown words by letters, and captions labelled with their meaning."""

import random
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer, T5TokenizerFast

from tools.tiny_bases import text_encoders
from tools.tiny_bases.text_encoders import CLASSES, SLOTS, labelled_caption, new_clip, pooled, teach, tokenize
from tools.tiny_bases.vocabulary import MAX_TOKENS, caption_words, new_clip_tokenizer, new_t5_tokenizer

ABSENT = [number - 1 for number in CLASSES]


@pytest.fixture(scope="module")
def clip_tokenizer() -> CLIPTokenizer:
    return new_clip_tokenizer()


@pytest.fixture(scope="module")
def t5_tokenizer() -> T5TokenizerFast:
    return new_t5_tokenizer()


def test_every_caption_word_is_one_clip_token(clip_tokenizer: CLIPTokenizer):
    assert all(len(clip_tokenizer(word).input_ids) == 3 for word in caption_words())


def test_every_caption_word_is_one_t5_token_plain_or_capitalised(t5_tokenizer: T5TokenizerFast):
    spellings = [spelling for word in caption_words() for spelling in (word, word.capitalize())]
    assert all(len(t5_tokenizer(spelling).input_ids) == 2 for spelling in spellings)


def test_an_unknown_name_is_spelled_out(t5_tokenizer: T5TokenizerFast):
    tokens = t5_tokenizer.convert_ids_to_tokens(t5_tokenizer("zorblax logo").input_ids)
    assert tokens == ["▁z", "o", "r", "b", "l", "a", "x", "▁logo", "</s>"]


def test_clip_reads_any_text_without_an_unknown_token(clip_tokenizer: CLIPTokenizer):
    ids = clip_tokenizer("Ångström [acme-7] 漢字 café").input_ids
    assert clip_tokenizer.decode(ids, skip_special_tokens=True) == "ångström [ acme - 7 ] 漢字 café"


def test_names_have_different_tokens(clip_tokenizer: CLIPTokenizer):
    assert clip_tokenizer("zorblax").input_ids != clip_tokenizer("zorbla").input_ids


@pytest.mark.parametrize(("make", "kind"), [(new_clip_tokenizer, CLIPTokenizer), (new_t5_tokenizer, T5TokenizerFast)])
def test_a_saved_tokenizer_reads_the_same(make, kind, tmp_path: Path):
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    text = "A photo of Zorblax logo, on a red-ish background"
    assert kind.from_pretrained(tmp_path)(text).input_ids == tokenizer(text).input_ids


def test_captions_are_padded_to_one_length(clip_tokenizer: CLIPTokenizer):
    assert tokenize(clip_tokenizer, ["red", "a photo of a red star " * 9]).shape == (2, MAX_TOKENS)


def test_labels_say_what_the_caption_says():
    rng = random.Random(0)
    for _ in range(500):
        caption, labels = labelled_caption(rng)
        for label, absent, values in zip(labels, ABSENT, SLOTS.values(), strict=False):
            assert label == absent or values[label] in caption.lower()


def test_a_colour_that_is_named_is_labelled():
    rng = random.Random(1)
    for _ in range(500):
        caption, labels = labelled_caption(rng)
        assert ("background" in caption) == (labels[list(SLOTS).index("ground")] != len(SLOTS["ground"]))


@pytest.mark.slow
def test_teaching_lowers_the_loss_and_freezes_the_encoder(clip_tokenizer: CLIPTokenizer, monkeypatch):
    monkeypatch.setattr(text_encoders, "NUM_CAPTIONS", 1000)
    torch.manual_seed(0)
    encoder, untaught = new_clip(clip_tokenizer, width=64), new_clip(clip_tokenizer, width=64)
    right = teach("clip", encoder, pooled(encoder), clip_tokenizer, steps=40, seed=0, report=print)
    guessing = teach("clip", untaught, pooled(untaught), clip_tokenizer, steps=0, seed=0, report=print)
    assert right > guessing + 0.2
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
