"""Text encoders of the tiny models, trained to predict a caption's meaning, then frozen.

They predict the caption's slots (colour, shape, ground, ...) and letters of an unknown word. The letters give every
made-up brand name an embedding of its own, on which an adapter later relies.
"""

import random
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
)

from onbrand.families.tiny.draw import (
    BRAND_NOUNS,
    COLOURS,
    GROUNDS,
    LETTERS,
    RELATIONS,
    SHAPES,
    STYLES,
    random_scene,
    random_word,
    without_article,
)
from tools.tiny_bases.dataset import unknown_brand_caption, with_junk_word
from tools.tiny_bases.loop import cosine, must_be_finite, set_learning_rate
from tools.tiny_bases.vocabulary import MAX_TOKENS

SLOTS: dict[str, tuple[str, ...]] = {
    "style": STYLES,
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "ground": tuple(GROUNDS),
    "size": ("small", "large"),
    "relation": RELATIONS,
    "second_colour": tuple(COLOURS),
    "second_shape": SHAPES,
    "noun": BRAND_NOUNS,
}
NUM_LETTERS = 4
CLASSES = [len(values) + 1 for values in SLOTS.values()] + [len(LETTERS) + 1] * NUM_LETTERS  # the last one: absent
NUM_CAPTIONS, BATCH = 30_000, 96

Features = Callable[[Tensor], list[Tensor]]
Report = Callable[[str], None]


def new_clip(tokenizer: CLIPTokenizer, width: int = 128, layers: int = 2) -> CLIPTextModel:
    """An untrained CLIP text encoder."""
    return CLIPTextModel(_clip_config(tokenizer, width, layers))


def new_projecting_clip(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """An untrained CLIP text encoder with a projection, of width 128 with 3 layers."""
    return CLIPTextModelWithProjection(_clip_config(tokenizer, 128, 3))


def _clip_config(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=128,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,  # otherwise the pooled output is position 0
        pad_token_id=tokenizer.pad_token_id,
    )


def new_t5(tokenizer: PreTrainedTokenizerBase) -> T5EncoderModel:
    """An untrained T5 encoder."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


def pooled(encoder: CLIPTextModel) -> Features:
    """Features: the vector at the end of the text. SD 1.5 attends to it last, and FLUX is modulated by it."""
    return lambda ids: [encoder(ids).pooler_output]


def penultimate(encoder: CLIPTextModel) -> Features:
    """Features: the vector at the last position of the last but one layer, which SDXL reads."""
    return lambda ids: [encoder(ids, output_hidden_states=True).hidden_states[-2][:, -1]]


def penultimate_and_projected(encoder: CLIPTextModelWithProjection) -> Features:
    """Features: the projected text embedding, and `penultimate`."""

    def features(ids: Tensor) -> list[Tensor]:
        output = encoder(ids, output_hidden_states=True)
        return [output.text_embeds, output.hidden_states[-2][:, -1]]

    return features


def mean_of_tokens(encoder: T5EncoderModel) -> Features:
    """Features: the mean over all tokens."""
    return lambda ids: [encoder(ids)[0].mean(1)]


def labelled_caption(rng: random.Random) -> tuple[str, list[int]]:
    """A caption and its class per entry of CLASSES; a third have a word outside every vocabulary."""
    kind, word = rng.random(), random_word(rng)
    known: dict[str, str] = {}
    if kind < 0.2:
        caption, known = _brand_caption(rng, word)
    else:
        scene = random_scene(rng)
        caption = scene.caption()
        known = vars(scene if scene.names_ground else replace(scene, ground=""))
        if kind < 0.32:
            caption = with_junk_word(caption, rng, word)
        else:
            word = ""
    labels = [_class_of(known.get(slot, ""), values) for slot, values in SLOTS.items()]
    return _spelled_variously(caption, word, rng), labels + _letters_of(word)


def _brand_caption(rng: random.Random, word: str) -> tuple[str, dict[str, str]]:
    caption = unknown_brand_caption(rng, word)
    _, style, *_, noun = caption.split()
    if rng.random() < 0.6:
        return caption, {"style": style, "noun": noun}
    ground = rng.choice(list(GROUNDS))
    return f"{caption} on a {ground} background", {"style": style, "noun": noun, "ground": ground}


def _spelled_variously(caption: str, word: str, rng: random.Random) -> str:
    """The caption, sometimes without its article, with a capital first letter or a capitalised name."""
    caption = without_article(caption, rng)
    if word and rng.random() < 0.15:
        caption = caption.replace(word, word.capitalize())
    return caption[0].upper() + caption[1:] if rng.random() < 0.15 else caption


def _class_of(value: str, values: tuple[str, ...]) -> int:
    return values.index(value) if value else len(values)


def _letters_of(word: str) -> list[int]:
    """Classes of a word's first, second, middle and last letter."""
    if not word:
        return [len(LETTERS)] * NUM_LETTERS
    return [LETTERS.index(letter) for letter in (word[0], word[1], word[len(word) // 2], word[-1])]


def teach(
    name: str,
    encoder: nn.Module,
    features: Features,
    tokenizer: PreTrainedTokenizerBase,
    *,
    steps: int,
    seed: int,
    report: Report,
) -> float:
    """Train `encoder` in place and freeze it; returns the share of slots and letters that it then gets right."""
    torch.manual_seed(seed)
    ids_NL, labels_NS = _lesson(tokenizer, seed)
    _spread_embeddings(encoder)
    heads = nn.ModuleList(nn.Linear(f.shape[1], sum(CLASSES)) for f in features(ids_NL[:2]))
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    started = time.monotonic()
    for step in range(steps):
        set_learning_rate([optimizer], cosine(step / steps, warmup=(step + 1) / 30, floor=0.02))
        rows = torch.randint(len(ids_NL), (BATCH,))
        with torch.autocast("cpu", torch.bfloat16):
            guesses = [head(f) for head, f in zip(heads, features(ids_NL[rows]), strict=True)]
        loss = sum((_loss(guess.float(), labels_NS[rows]) for guess in guesses), torch.zeros(()))
        must_be_finite(loss, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 99:
            report(f"{name} {step + 1}/{steps} loss {loss.item():.3f} {time.monotonic() - started:.0f}s")
    encoder.eval().requires_grad_(False)
    return _accuracy(heads[0](features(ids_NL[:1000])[0]), labels_NS[:1000])


def _lesson(tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[Tensor, Tensor]:
    rng = random.Random(seed)
    captions, labels = zip(*(labelled_caption(rng) for _ in range(NUM_CAPTIONS)), strict=True)
    return tokenize(tokenizer, list(captions)), torch.tensor(labels)


def tokenize(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> Tensor:
    """Token ids (N, 32)."""
    padded = tokenizer(captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    return padded.input_ids


def _spread_embeddings(encoder: nn.Module) -> None:
    """Widen the embeddings: the default (std 0.02) hardly separates words in so short a training."""
    std = 1.0 if isinstance(encoder, T5EncoderModel) else 0.5
    for name, parameter in encoder.named_parameters():
        if ("embed" in name or "shared" in name) and "relative" not in name:
            nn.init.normal_(parameter, std=std)


def _loss(guesses: Tensor, labels_NS: Tensor) -> Tensor:
    pairs = zip(guesses.split(CLASSES, 1), labels_NS.T, strict=True)
    return torch.stack([functional.cross_entropy(guess, labels) for guess, labels in pairs]).sum()


@torch.no_grad()
def _accuracy(guesses: Tensor, labels_NS: Tensor) -> float:
    pairs = zip(guesses.split(CLASSES, 1), labels_NS.T, strict=True)
    return float(torch.stack([guess.argmax(1) == labels for guess, labels in pairs]).float().mean())
