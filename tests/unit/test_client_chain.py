"""The client's check of the audit chain finds every kind of tampering, and its position."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from onbrand.client import AuditEvent, Head
from onbrand.client.audit_chain import check_chain, hash_of
from onbrand.client.errors import InvalidArgument

START = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
Lines = list[AuditEvent]


def chained(num: int, brand_id: str = "acme", **fields: Any) -> Lines:
    """A valid audit log."""
    lines: Lines = []
    for seq in range(1, num + 1):
        line = AuditEvent(
            seq=seq,
            brand_id=brand_id,
            at=START + timedelta(seconds=seq),
            actor="user",
            user_id="11111111-2222-3333-4444-555555555555",
            action="asset.delete",
            detail={"asset_id": str(seq), "version": seq},
            prev=lines[-1].hash if lines else None,
            hash="",
        ).model_copy(update=fields)
        lines.append(line.model_copy(update={"hash": hash_of(line)}))
    return lines


def test_a_record_that_holds_gives_its_head() -> None:
    lines = chained(5)
    verdict = check_chain("acme", lines)
    assert (verdict.holds, verdict.num_events, verdict.head) == (True, 5, Head(5, lines[-1].hash))


def test_an_empty_record_holds() -> None:
    assert check_chain("acme", []).holds


CHANGES: dict[str, Any] = {
    "at": START,
    "actor": "system",
    "user_id": "99999999-2222-3333-4444-555555555555",
    "credential": "x",
    "action": "asset.upload",
    "detail": {"asset_id": "7", "version": 3},
}


@pytest.mark.parametrize("field", CHANGES)
@pytest.mark.parametrize("seq", [1, 3, 5])
def test_a_changed_line_is_found(field: str, seq: int) -> None:
    lines = chained(5)
    lines[seq - 1] = lines[seq - 1].model_copy(update={field: CHANGES[field]})
    verdict = check_chain("acme", lines)
    assert (verdict.holds, verdict.num_events) == (False, seq - 1)
    assert verdict.fault == f"line {seq}: it is not what was written"


def test_a_changed_line_that_was_hashed_anew_is_found_by_the_next() -> None:
    lines = chained(5)
    changed = lines[2].model_copy(update={"action": "asset.upload"})
    lines[2] = changed.model_copy(update={"hash": hash_of(changed)})
    verdict = check_chain("acme", lines)
    assert verdict.fault is not None
    assert verdict.fault.startswith("line 4: it does not follow")


def put_in(lines: Lines) -> None:
    another = lines[2].model_copy(update={"action": "asset.upload"})
    lines.insert(3, another.model_copy(update={"hash": hash_of(another)}))


def put_in_and_renumbered(lines: Lines) -> None:
    put_in(lines)
    for index, line in enumerate(lines):
        moved = line.model_copy(update={"seq": index + 1})
        lines[index] = moved.model_copy(update={"hash": hash_of(moved)})


def swapped(lines: Lines) -> None:
    lines[1], lines[2] = lines[2], lines[1]


def swapped_in_number(lines: Lines) -> None:
    swapped(lines)
    lines[1], lines[2] = lines[1].model_copy(update={"seq": 2}), lines[2].model_copy(update={"seq": 3})


TAMPERED: dict[str, tuple[Callable[[Lines], object], str]] = {
    "a line taken out": (lambda lines: lines.pop(2), "line 4: lines 3 to 3 are missing"),
    "the first lines taken out": (lambda lines: lines.pop(0), "line 2: lines 1 to 1 are missing"),
    "a line put in": (put_in, "line 3: it is there twice"),
    "a line put in, and all numbered and hashed anew": (put_in_and_renumbered, "it does not follow"),
    "two lines swapped": (swapped, "line 3: lines 2 to 2 are missing"),
    "two lines swapped, numbers and all": (swapped_in_number, "line 2: it does not follow"),
    "a line twice": (lambda lines: lines.insert(2, lines[1]), "line 2: it is there twice"),
    "another brand's line": (lambda lines: lines.append(chained(6, "globex")[5]), "line 6: it belongs to another"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_found(name: str) -> None:
    tamper, words = TAMPERED[name]
    lines = chained(5)
    tamper(lines)
    fault = check_chain("acme", lines).fault
    assert fault is not None
    assert words in fault


def test_lines_missing_at_the_end_are_found_by_a_head_that_was_kept() -> None:
    lines = chained(5)
    kept = check_chain("acme", lines).head
    assert check_chain("acme", lines[:3]).holds
    verdict = check_chain("acme", lines[:3], kept)
    assert verdict.fault == "the record ends at line 3, but had 5 lines when it was last seen"


def test_an_emptied_record_is_found_by_a_head_that_was_kept() -> None:
    assert not check_chain("acme", [], Head(1, "0" * 64)).holds


def test_a_record_written_anew_is_found_by_a_head_that_was_kept() -> None:
    kept = check_chain("acme", chained(3)).head
    verdict = check_chain("acme", chained(5, actor="system"), kept)
    assert verdict.fault is not None
    assert "line 3" in verdict.fault


def test_a_record_that_went_on_still_holds_the_head_that_was_kept() -> None:
    assert check_chain("acme", chained(9), check_chain("acme", chained(4)).head).holds


def test_fields_that_run_into_each_other_are_not_hashed_alike() -> None:
    (line,) = chained(1)
    moved = line.model_copy(update={"actor": "use", "user_id": f"r{line.user_id}"})
    assert hash_of(moved) != hash_of(line)
    assert hash_of(line.model_copy(update={"credential": ""})) != hash_of(line)


def test_a_head_is_written_and_read_alike() -> None:
    head = Head(12, "ab" * 32)
    assert Head.parse(f" {head}\n") == head


@pytest.mark.parametrize("text", ["", "12", "12:xyz", "0:" + "0" * 64, "-1:" + "0" * 64, "1:" + "0" * 63])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Head.parse(text)
