"""Layer patterns select the layers that PEFT selects, without a trial of each."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from peft.utils.other import get_pattern_key

from onbrand.lora_names import LoraSettings


def settings(patterns: dict[str, float]) -> LoraSettings:
    return LoraSettings(r=4, lora_alpha=-1.0, rank_pattern={}, alpha_pattern=patterns, use_rslora=False)


@pytest.mark.parametrize("seed", range(50))
def test_the_pattern_is_the_one_that_peft_takes(seed: int) -> None:
    chance = random.Random(seed)

    def name(least: int = 1) -> str:
        return ".".join(chance.choice(["a", "b", "ab", "a_b", "0"]) for _ in range(chance.randint(least, 4)))

    patterns = {chance.choice(["", "", "^"]) + name() + chance.choice(["", "", "."]): float(n) for n in range(30)}
    patterns |= {"..": 50.0, "a.b": 51.0}
    for path in {name() for _ in range(100)}:
        said = patterns.get(get_pattern_key(list(patterns), path), -1.0)
        assert settings(patterns).scale(path, 1) == said, path


def test_thousands_of_patterns_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As files have that were made with an alpha for each layer: `re` keeps 512 expressions, and compiles the rest."""
    compiled: list[Any] = []
    known = re._compile  # type: ignore[attr-defined]

    def counting(pattern: Any, flags: Any) -> Any:
        compiled.append(pattern)
        return known(pattern, flags)

    monkeypatch.setattr(re, "_compile", counting)
    names = [f"mid_block.attentions.0.transformer_blocks.{n}.attn1.to_q" for n in range(1500)]
    of_file = settings({name: float(n) for n, name in enumerate(names)})
    assert [of_file.scale(name, 1) for name in names] == [float(n) for n in range(1500)]
    assert compiled == []
