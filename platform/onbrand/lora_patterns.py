"""PEFT's layer patterns (`alpha_pattern`): find a layer's pattern by look-up instead of a scan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Dots = tuple[int, ...]
"""Positions of the dots in a name."""


class LayerPatterns:
    """Values by pattern. The first matching pattern counts, as in `peft.utils.get_pattern_key`.

    A pattern matches a path that ends with it, from the start or after a dot; a leading `^` requires the whole path. A
    dot in it matches any character, as in PEFT's regular expressions.

    Args:
        values: by patterns of letters, digits, `_` and `.`, optionally with a leading `^`.
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        self._places: dict[str, tuple[int, float]] = {}
        self._dots: dict[int, set[Dots]] = {}
        """Positions of the dots in patterns, by pattern length."""
        for place, (pattern, value) in enumerate(values.items()):
            self._places[pattern] = (place, value)
            name = pattern.removeprefix("^")
            self._dots.setdefault(len(name), set()).add(_dots_of(name))

    def of(self, path: str, otherwise: float) -> float:
        """The value for a layer, or `otherwise` if no pattern matches."""
        return min(self._found(path), key=lambda found: found[0], default=(0, otherwise))[1]

    def _found(self, path: str) -> Iterator[tuple[int, float]]:
        for start in [0, *(dot + 1 for dot in _dots_of(path))]:
            for dots in self._dots.get(len(path) - start, ()):
                name = _dotted(path[start:], dots)
                for pattern in (name, f"^{name}") if start == 0 else (name,):
                    if pattern in self._places:
                        yield self._places[pattern]


def _dots_of(name: str) -> Dots:
    return tuple(place for place, letter in enumerate(name) if letter == ".")


def _dotted(name: str, dots: Dots) -> str:
    letters = list(name)
    for place in dots:
        letters[place] = "."
    return "".join(letters)
