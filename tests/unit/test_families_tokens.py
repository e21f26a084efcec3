"""Token counts equal those of the bases' own tokenizers, with the base loaded or from its folder alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onbrand.families import tokens
from onbrand.families.bases import base_source, recommended
from onbrand.families.spec import SPECS, with_family_defaults
from onbrand.families.tokens import Cut
from onbrand.services.data_checks import DataSample, DataTarget, examine

TEXTS = [
    "",
    "a photo of a red circle",
    "zilgo " * 5,
    "It's Ünïcödé, 42 times!  \n and\tspaces",
    "word " * 29,
    "word " * 31,
]
TEXTS += ["a red circle " * 20, "日本語の文", "<|endoftext|> twice <|endoftext|>"]


@pytest.fixture(params=["sd15", "sdxl", "flux"])
def folder(request) -> Path:
    return Path(base_source(request.param, {}))


def by_its_own_tokenizers(family, text):
    """The token counts by each of the loaded pipeline's tokenizers."""
    found = {name: getattr(family.pipeline, name, None) for name in tokens.NAMES}
    return {name: len(each(text).input_ids) for name, each in found.items() if each is not None}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_as_many_tokens_as_the_bases_own_tokenizers_make_of_it(family, text):
    wanted = [Cut(name, num, 32) for name, num in by_its_own_tokenizers(family, text).items() if num > 32]
    assert family.text_lengths.cuts(text) == wanted
    source = Path(base_source(family.spec.name, {}))
    assert tokens.of_folder(source, recommended(family.spec.name, source)).cuts(text) == wanted


def test_counting_does_not_change_what_is_encoded(sd15):
    import torch

    before = sd15.encode_prompts(["word " * 40])["text"]
    sd15.text_lengths.cuts("word " * 40)
    assert torch.equal(before, sd15.encode_prompts(["word " * 40])["text"])


def test_a_clip_tokenizer_in_two_files_counts_as_in_one(tmp_path):
    source = Path(base_source("sd15", {})) / "tokenizer"
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    made = tmp_path / "tokenizer"
    made.mkdir()
    (made / "tokenizer_config.json").write_text((source / "tokenizer_config.json").read_text())
    (made / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (made / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    advice = with_family_defaults("sd15", {})
    one, two = tokens.of_folder(source.parent, advice), tokens.of_folder(tmp_path, advice)
    assert [one.cuts(text) for text in TEXTS] == [two.cuts(text) for text in TEXTS]
    assert any(one.cuts(text) for text in TEXTS)


def test_t5_reads_what_the_base_says_and_512_where_it_says_nothing(flux):
    text = "circle " * 600
    by_default = tokens.of_pipeline(flux.pipeline, with_family_defaults("flux", {}))
    assert by_default.cuts(text)[1:] == [Cut("tokenizer_2", 601, 512)]
    assert flux.text_lengths.cuts(text)[1:] == [Cut("tokenizer_2", 601, 32)]


def test_a_base_that_is_not_here_or_not_readable_counts_nothing(tmp_path):
    assert tokens.at_hand("sd15", {"sd15": "somebody/has-no-such-base"}) is None
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text("{")
    assert tokens.of_folder(tmp_path, with_family_defaults("sd15", {})).cuts("word " * 100) == []


def test_a_caption_that_is_cut_is_a_finding_with_its_numbers(folder):
    lengths = tokens.at_hand(next(name for name in SPECS if f"/{name}" in str(folder)), {})
    captions = ["photo of [brand] logo", "photo of [brand] logo " + "on a wall " * 20]
    pictures = [DataSample(f"asset-{n}", f"logo-{n}.png", caption, {}) for n, caption in enumerate(captions)]
    findings = examine(pictures, DataTarget(64, "zilgo", 64, lengths))
    [found] = [each for each in findings if each.code == "caption_cut"]
    assert (found.level, found.file) == ("warning", "logo-1.png")
    assert "tokens, of which the base reads 32" in found.message
    assert "wall" not in found.message
