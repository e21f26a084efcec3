"""Server-Sent Events, read line by line (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from onbrand.client.objects import Event


def read_events(lines: Iterable[str]) -> Iterator[Event]:
    """The events of a stream; comments (heartbeats) and incomplete events are skipped."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and "data" in fields else value
        else:
            if "data" in fields and fields.get("id", "").isdigit():
                data = json.loads(fields["data"])
                yield Event(id=int(fields["id"]), kind=fields.get("event", "message"), data=data)
            fields = {}
