"""Parses Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from onbrand.client.objects import Event


def read_events(lines: Iterable[str]) -> Iterator[Event]:
    """The events of a stream, without comments (heartbeats) and incomplete events.

    An event without an id (a preview) gets the id of the event before it, so that resuming after it loses nothing.
    """
    fields: dict[str, str] = {}
    last = "0"
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and "data" in fields else value
        else:
            if "data" in fields and fields.get("id", last).isdigit():
                last = fields.get("id", last)
                data = json.loads(fields["data"])
                yield Event(id=int(last), kind=fields.get("event", "message"), data=data)
            fields = {}
