"""The SDK with scripted responses: retries, errors, pages, events, captions. tests/integration has real responses."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

import onbrand.client as sdk
from onbrand.client.events import read_events
from onbrand.client.files import as_captions

Handler = Callable[[httpx.Request], httpx.Response]


def client_of(handler: Handler, **options: int) -> sdk.Onbrand:
    return sdk.Onbrand("http://test", "token", transport=httpx.MockTransport(handler), **options)


def test_it_imports_nothing_heavy_and_nothing_else_of_onbrand(repository: Path) -> None:
    code = (
        "import json, sys, onbrand.client;"
        "print(json.dumps([m for m in sys.modules if m.partition('.')[0] in ('torch', 'ray', 'onbrand')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository / "platform",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = [name for name in json.loads(done.stdout) if name != "onbrand"]
    assert loaded
    assert all(name.startswith("onbrand.client") for name in loaded)


def test_a_post_is_repeated_with_the_same_key_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    seen: list[tuple[str, bytes]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((request.headers["idempotency-key"], request.content))
        if len(seen) < 3:
            return httpx.Response(503, headers={"retry-after": "0"})
        return httpx.Response(201, json={"object": "list", "data": []})

    client_of(handler).upload_training_images("acme", [("a.png", b"1")], "photo of [brand]")
    assert len(seen) == 3
    assert len(set(seen)) == 1


def test_a_delete_is_not_repeated_after_an_answer() -> None:
    num_seen = 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal num_seen
        num_seen += 1
        return httpx.Response(503)

    with pytest.raises(sdk.Unavailable):
        client_of(handler).assets.delete("acme", "1")
    assert num_seen == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, sdk.NotLoggedIn), (403, sdk.RoleTooLow), (404, sdk.NotFound), (409, sdk.Conflict), (413, sdk.TooLarge),
     (415, sdk.UnsupportedMedia), (422, sdk.InvalidInput), (429, sdk.TooManyRequests), (500, sdk.PlatformFailed)],
)  # fmt: skip
def test_a_status_is_a_class(status: int, kind: type[sdk.RequestRefused]) -> None:
    body = {"detail": "why", "code": "c", "param": "steps", "request_id": "r"}
    client = client_of(lambda request: httpx.Response(status, json=body), max_retries=0)
    with pytest.raises(kind) as caught:
        client.brands.get("acme")
    assert (caught.value.param, caught.value.request_id, str(caught.value)) == ("steps", "r", "why")
    assert pickle.loads(pickle.dumps(caught.value)).param == "steps"  # noqa: S301


def test_a_platform_that_is_not_there_is_said_with_its_address() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(sdk.ConnectionFailed, match="http://test"):
        client_of(handler, max_retries=0).brands.get("acme")


def test_lists_go_on_page_after_page() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        first = "cursor" not in request.url.params
        item = {"id": "acme" if first else "globex", "name": "x"}
        return httpx.Response(200, json={"data": [item], "has_more": first, "next_cursor": "c" if first else None})

    assert [brand.id for brand in client_of(handler).brands.list()] == ["acme", "globex"]


def test_a_brand_with_odd_characters_stays_one_segment() -> None:
    paths: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path)
        return httpx.Response(404, json={})

    with pytest.raises(sdk.NotFound):
        client_of(handler).models.get("acme", "../../globex")
    assert paths == [b"/v1/brands/acme/models/..%2F..%2Fglobex"]


def test_waiting_reports_every_change_and_ends_with_the_reason() -> None:
    states = iter([("pending", 0), ("training", 5), ("training", 5), ("failed", 5)])

    def handler(request: httpx.Request) -> httpx.Response:
        status, progress = next(states)
        body = {
            "id": "1",
            "brand_id": "acme",
            "name": "n",
            "model_type": "flux",
            "status": status,
            "progress": progress,
        }
        return httpx.Response(200, json=body | {"error": {"message": "loss is NaN"} if status == "failed" else None})

    seen: list[tuple[str, int]] = []
    job = client_of(handler).training_jobs.get("acme", "1")
    with pytest.raises(sdk.JobFailed, match="loss is NaN") as caught:
        job.wait(lambda job: seen.append((job.status, job.progress)))
    assert seen == [("pending", 0), ("training", 5), ("failed", 5)]
    assert caught.value.job.status == "failed"


def test_a_broken_event_stream_goes_on_after_the_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    asked: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("last-event-id"))
        first = 'id: 1\nevent: progress\ndata: {"progress": 5}\n\n'
        last = 'id: 2\nevent: status\ndata: {"status": "completed"}\n\n'
        return httpx.Response(200, text=first if len(asked) == 1 else last)

    events = list(client_of(handler).training_jobs.events("acme", "1"))
    assert [(event.id, event.kind) for event in events] == [(1, "progress"), (2, "status")]
    assert asked == [None, "1"]


def test_comments_and_half_events_are_skipped() -> None:
    lines = [": hello", "", "id: 1", "event: progress", 'data: {"a":', "data: 1}", "", "id: 2", "data: {"]
    assert [(event.id, event.data) for event in read_events(lines)] == [(1, {"a": 1})]


def test_a_preview_has_no_place_of_its_own_in_the_stream() -> None:
    """It comes without an id; going on after it is going on after the event before it."""
    lines = [
        "event: preview",
        "data: {}",
        "",
        "id: 4",
        "event: image",
        "data: {}",
        "",
        "event: preview",
        "data: {}",
        "",
    ]
    events = [(event.id, event.kind) for event in read_events(lines)]
    assert events == [(0, "preview"), (4, "image"), (4, "preview")]
    assert list(read_events(["id: x", "data: {}", ""])) == []


def test_captions_go_by_order_by_name_or_for_all() -> None:
    names = ["a.png", "b.png"]
    assert as_captions("x", names) == ["x", "x"]
    assert as_captions({"b.png": "x"}, names) == [None, "x"]
    assert as_captions(["x", None], names) == ["x", None]
    with pytest.raises(sdk.InvalidArgument):
        as_captions(["x"], names)
    with pytest.raises(sdk.InvalidArgument, match=r"c\.png"):
        as_captions({"c.png": "x"}, names)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(sdk.InvalidArgument, match=r"nowhere\.png"):
        client_of(lambda request: httpx.Response(500)).upload_training_images("acme", ["nowhere.png"])


def test_objects_do_not_print_prompts_tokens_or_links() -> None:
    things = (
        sdk.Generation(id="1", brand_id="a", status="pending", prompt="canary"),
        sdk.Token(access_token="canary"),
        sdk.Link(url="canary"),
        sdk.Onbrand("http://test", "canary"),
    )
    assert "canary" not in repr(things)
