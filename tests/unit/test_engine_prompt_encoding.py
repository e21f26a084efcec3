"""Waiting prompts are encoded in one batch only where a check showed equal bits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from onbrand.engine.preparation import grouped
from onbrand.engine.prompt_encoding import MOST_AT_ONCE, Encoder, PromptPair
from onbrand.families.family import Conditioning


class Texts:
    """A family whose text encoders return a prompt's length; with `drift` a batch of several rounds differently."""

    device = torch.device("cpu")

    def __init__(self, drift: float = 0.0) -> None:
        self._drift, self.sizes = drift, []

    def text_encoders(self) -> list:
        return []

    def encode_prompts(self, prompts) -> Conditioning:
        self.sizes.append(len(prompts))
        if "bad" in prompts:
            raise RuntimeError("cannot be read")
        drift = self._drift if len(prompts) > 2 else 0.0
        return Conditioning({"text": torch.tensor([[len(prompt) + drift] for prompt in prompts])})

    def encode_pairs(self, prompts, negatives) -> tuple[Conditioning, Conditioning]:
        both = self.encode_prompts([*prompts, *(negative or "" for negative in negatives)])
        return both.rows(slice(len(prompts))), both.rows(slice(len(prompts), None))


def guided(*prompts: str) -> list[PromptPair]:
    return [PromptPair(prompt, "not", True) for prompt in prompts]


def lengths(found) -> list[tuple[float, float]]:
    return [(float(positive["text"]), float(negative["text"])) for positive, negative in found]


def test_the_first_of_a_number_are_encoded_both_ways_and_the_next_at_once():
    family = Texts()
    encoder = Encoder(family)
    for _ in range(2):
        assert lengths(encoder.branches(guided("a", "bb", "ccc"))) == [(1, 3), (2, 3), (3, 3)]
    assert family.sizes == [6, 2, 2, 2, 6]


def test_where_a_bit_changes_they_are_encoded_one_by_one():
    family = Texts(drift=0.5)
    encoder = Encoder(family)
    for _ in range(2):
        assert lengths(encoder.branches(guided("a", "bb"))) == [(1, 3), (2, 3)]
    assert family.sizes == [4, 2, 2, 2, 2]


def test_without_guidance_there_is_no_negative_branch():
    encoder = Encoder(Texts())
    found = encoder.branches([PromptPair("a", None, False), PromptPair("bb", "not", False)])
    assert [(float(positive["text"]), negative) for positive, negative in found] == [(1, None), (2, None)]


def test_one_that_cannot_be_encoded_is_told_and_the_others_are():
    first, broken, last = Encoder(Texts()).branches(guided("a", "bad", "ccc"))
    assert lengths([first, last]) == [(1, 3), (3, 3)]
    assert isinstance(broken, RuntimeError)


def test_on_a_gpu_they_are_encoded_one_by_one():
    family = Texts()
    there = SimpleNamespace(
        device=torch.device("cuda"), text_encoders=family.text_encoders, encode_pairs=family.encode_pairs
    )
    assert lengths(Encoder(there).branches(guided("a", "bb"))) == [(1, 3), (2, 3)]
    assert family.sizes == [2, 2]


@pytest.mark.parametrize("num", [2, 3, 8])
def test_a_request_gets_the_bits_it_gets_alone(family, num: int) -> None:
    encoder = Encoder(family)
    asked = guided(*(f"a {'very ' * n}blue circle" for n in range(num)))
    encoder.branches(asked)
    for each, found in zip(asked, encoder.branches(asked), strict=True):
        (alone,) = encoder.branches([each])
        for branch, same in zip(alone, found, strict=True):
            assert branch.tensors.keys() == same.tensors.keys()
            assert all(torch.equal(branch[name], same[name]) for name in branch.tensors)


def job(name: str, guided: bool = True, exclusive: bool = False):
    request = SimpleNamespace(parameters=SimpleNamespace(exclusive=exclusive))
    return SimpleNamespace(name=name, request=request, plan=SimpleNamespace(guided=guided))


def test_who_asked_to_be_alone_is_encoded_alone_and_guidance_is_not_mixed():
    jobs = [job("a"), job("b", guided=False), job("c", exclusive=True), job("d"), job("e", guided=False)]
    groups = [[each.name for each in group] for group in grouped(jobs)]
    assert groups == [["a", "d"], ["b", "e"], ["c"]]


def test_a_group_has_no_more_than_may_wait_for_each_other():
    groups = grouped([job(str(n)) for n in range(2 * MOST_AT_ONCE + 1)])
    assert list(map(len, groups)) == [MOST_AT_ONCE, MOST_AT_ONCE, 1]
