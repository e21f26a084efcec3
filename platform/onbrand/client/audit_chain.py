"""Verifies the hash chain of a brand's audit record from its lines, without trust in the platform.

Every line's hash covers its fields and the hash of the line before. A line that was changed, removed, inserted or
moved breaks the chain. To detect lines that are missing at the end, compare with a head that was kept elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from onbrand.client.errors import InvalidArgument
from onbrand.client.objects import AuditEvent

_FORM = "onbrand-audit-1"
_HEAD = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Head:
    """Number and hash of a record's last line, written ``12:9f86d0...``. A kept head anchors later checks."""

    seq: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read ``seq:hash``. Raises InvalidArgument."""
        found = _HEAD.fullmatch(text.strip())
        if found is None:
            raise InvalidArgument("a head is a number, a colon and 64 hex digits, as 'onbrand audit verify' prints it")
        return cls(int(found.group(1)), found.group(2))

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of verifying one brand's record.

    Args:
        num_events: the number of valid lines before the first fault.
        head: the last valid line; None without one.
        fault: the first fault, or None.
    """

    brand_id: str
    num_events: int
    head: Head | None
    fault: str | None = None

    @property
    def holds(self) -> bool:
        return self.fault is None


def check_chain(brand_id: str, lines: Iterable[AuditEvent], anchor: Head | None = None) -> Verdict:
    """Verify the record from its first line; stop at the first fault.

    Args:
        lines: the brand's lines, oldest first.
        anchor: the head of an earlier check, which the record must still contain.
    """
    head: Head | None = None
    for line in lines:
        fault = _fault_of(brand_id, line, head) or _fault_of_anchor(line, anchor)
        if fault is not None:
            return Verdict(brand_id, head.seq if head else 0, head, f"line {line.seq}: {fault}")
        head = Head(line.seq, line.hash)
    last = head.seq if head else 0
    if anchor is not None and last < anchor.seq:
        fault = f"the record ends at line {last}, but had {anchor.seq} lines when it was last seen"
        return Verdict(brand_id, last, head, fault)
    return Verdict(brand_id, last, head)


def hash_of(line: AuditEvent) -> str:
    """The correct hash (hex) of a line, from its fields and the hash of the line before."""
    fields = [
        _FORM,
        line.brand_id,
        str(line.seq),
        line.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        line.actor,
        line.user_id,
        line.credential,
        line.action,
        _as_postgres(line.detail),
        line.prev,
    ]
    return hashlib.sha256(b"".join(map(_netstring, fields))).hexdigest()


def _fault_of(brand_id: str, line: AuditEvent, before: Head | None) -> str | None:
    expected = before.seq + 1 if before else 1
    if line.brand_id != brand_id:
        return "it belongs to another brand"
    if line.seq > expected:
        return f"lines {expected} to {line.seq - 1} are missing"
    if line.seq < expected:
        return "it is there twice, or out of its order"
    if line.prev != (before.hash if before else None):
        return "it does not follow from the line before: that one was exchanged, or this one was put in"
    if line.hash != hash_of(line):
        return "it is not what was written"
    return None


def _fault_of_anchor(line: AuditEvent, anchor: Head | None) -> str | None:
    if anchor is not None and line.seq == anchor.seq and line.hash != anchor.hash:
        return "it is not the line that was seen before: the record was written anew"
    return None


def _netstring(field: str | None) -> bytes:
    if field is None:
        return b"~,"
    data = field.encode()
    return b"%d:%s," % (len(data), data)


def _as_postgres(detail: Mapping[str, Any]) -> str:
    """`detail` as PostgreSQL prints a jsonb of plain values: keys sorted by length, then by bytes."""
    ordered = {name: detail[name] for name in sorted(detail, key=lambda name: (len(name.encode()), name.encode()))}
    return json.dumps(ordered, ensure_ascii=False)
