"""The counts of a JSON body before it is parsed, and the field that exceeds them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from onbrand.api.http.concurrency_limits import ConcurrencyLimits
from onbrand.api.http.json_bodies import NAME_BYTES, must_be_few_values, must_have_known_fields, parsed
from onbrand.errors import InvalidInput, TooLarge, TooManyRequests


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    one: Inner | None = None
    many: tuple[Inner, ...] | None = None
    free: dict[str, Any] = {}


@pytest.mark.parametrize(
    "body",
    [[1] * 100, {f"k{n}": n for n in range(50)}, [[[]]] * 40, {"a": ["b,c"] * 99}, [{"a": 1}] * 50],
    ids=["a list", "an object", "lists", "texts", "objects"],
)
def test_more_values_than_the_limit_are_counted(body: Any) -> None:
    data = json.dumps(body).encode()
    must_be_few_values(data, 200, 8)
    with pytest.raises(TooLarge, match="98"):
        must_be_few_values(data, 98, 8)


@pytest.mark.parametrize("text", ["[{,:" * 50, '"' * 50, "\\" * 50, '\\"[' * 50, "\u2028{\U0001f600" * 50])
def test_marks_inside_texts_count_for_nothing(text: str) -> None:
    must_be_few_values(json.dumps({"prompt": text}).encode(), 3, 2)
    must_be_few_values(json.dumps({"prompt": text}, ensure_ascii=False).encode(), 3, 2)


@pytest.mark.parametrize("data", [b'"' * 2**18, b'\\"' * 2**18, b'"' + b'\\"' * 2**18, b'"\\' * 2**18, b"[" * 2**18])
def test_a_body_made_to_be_hard_to_read_is_read_once(data: bytes) -> None:
    """A pattern that goes back would take minutes; the suite's timeout is the bound."""
    for _ in range(20):
        try:
            must_be_few_values(b"," * 20 + data, 19, 2)
        except TooLarge:
            continue


def test_levels_are_counted_where_brackets_close_too() -> None:
    must_be_few_values(b"[" + b"[[]]," * 99 + b"1]", 1000, 3)
    with pytest.raises(TooLarge, match="2 levels"):
        must_be_few_values(b"[" + b"[[]]," * 99 + b"1]", 1000, 2)


@pytest.mark.parametrize("template", ['{"%s": 1}', '{"a": [{"b": 1, "%s" \n: [0, 0]}]}', '[{"%s": {}}]'])
def test_names_are_bounded_and_texts_are_not(template: str) -> None:
    text = template % ("a" * NAME_BYTES)
    must_be_few_values(text.encode(), 20, 8)
    must_be_few_values(json.dumps({"prompt": "a" * 2**20}).encode(), 20, 8)
    for long in ("a" * (NAME_BYTES + 1), '\\"' * (NAME_BYTES // 2) + "a", "\U0001f600" * (NAME_BYTES // 4 + 1)):
        with pytest.raises(TooLarge, match=f"name of more than {NAME_BYTES}"):
            must_be_few_values((template % long).encode(), 20, 8)


def test_a_field_of_a_form_is_counted_before_it_is_parsed() -> None:
    assert parsed('{"a": [1]}', "metadata", 20, 8) == {"a": [1]}
    for text in (json.dumps([0] * 30), "[" * 9 + "]" * 9, json.dumps({"a" * 900: 0})):
        with pytest.raises(TooLarge, match=r"^metadata ") as refused:
            parsed(text, "metadata", 20, 8)
        assert refused.value.param == "metadata"
    for text in ("", "{", '"\x00"', "1" * 5000):
        with pytest.raises(InvalidInput, match=r"^metadata is not"):
            parsed(text, "metadata", 20, 8)


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"two": 1}, "two"),
        ({"one": {"name": "a", "x": 1}}, "one.x"),
        ({"many": [{"name": "a"}, {"name": "a", "y": 1}]}, "many.1.y"),
    ],
)
def test_an_unknown_field_is_named_at_any_level(sent: Any, param: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        must_have_known_fields(Outer, sent)
    assert refused.value.param == param


@pytest.mark.parametrize("sent", [{}, {"free": {"any": 1}}, {"one": 3}, {"many": {"name": "a"}}, [], None, "text", 7])
def test_what_is_wrong_otherwise_is_left_to_validation(sent: Any) -> None:
    must_have_known_fields(Outer, sent)


def test_shares_are_held_by_key_and_given_back_whatever_happens() -> None:
    shares = ConcurrencyLimits(1, "things")
    with shares.held("a"), shares.held("b"):
        assert (shares.num_held("a"), len(shares)) == (1, 2)
        with pytest.raises(TooManyRequests, match="1 things"), shares.held("a"):
            pass
    with pytest.raises(ZeroDivisionError), shares.held("a"):
        raise ZeroDivisionError
    assert (shares.num_held("a"), len(shares)) == (0, 0)
