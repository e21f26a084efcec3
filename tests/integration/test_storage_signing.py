"""Links in the hands of a stranger, on a local directory and on a real S3, allow what was signed and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from onbrand.errors import Conflict, InvalidInput, NotFound
from onbrand.storage import layout
from onbrand.storage.layout import Key, incoming_file
from onbrand.storage.links import LINK_SECONDS_MAX, Announced, UploadLink
from onbrand.storage.store import BrandStore
from tests.stores import Place

LOGO = layout.training_image("acme", "logo", 1, "png")
INCOMING = incoming_file("training-data", "acme", "0f1e2d3c-0000-4000-8000-000000000001")
OTHER_INCOMING = incoming_file("training-data", "acme", "0f1e2d3c-0000-4000-8000-000000000002")
SECRET_LOGO = layout.training_image("globex", "logo", 1, "png")
DATA = b"\x89PNG what was announced" * 50
WHAT = Announced("image/png", len(DATA), hashlib.sha256(DATA).hexdigest())
PLACES = ["local", "s3", "s3-put"]
REFUSED = (400, 401, 403, 404, 405, 409, 411, 412, 413, 415, 422)


@pytest.fixture
def acme(place: Place) -> Iterator[BrandStore]:
    """ACME's part of a store that holds a secret of GLOBEX."""
    place.store.brand("globex").write(SECRET_LOGO, b"globex's canary")
    yield place.store.brand("acme")
    assert place.store.brand("globex").read(SECRET_LOGO) == b"globex's canary"
    place.empty()


# Links to get


def with_param(link: str, name: str, change: Callable[[str], str]) -> str:
    url = httpx.URL(link)
    return str(url.copy_set_param(name, change(url.params[name])))


def other_digit(text: str) -> str:
    return ("0" if text[0] != "0" else "1") + text[1:]


def longer(seconds: str) -> str:
    return str(int(seconds) + 60)


def names(place: Place) -> dict[str, str]:
    """The names of a link's parts in the two stores."""
    if place.name == "local":
        return {"expires": "expires", "signature": "signature"}
    return {"expires": "X-Amz-Expires", "signature": "X-Amz-Signature"}


GET_TAMPERS: dict[str, Callable[[Place, str], str]] = {
    "another file of the brand": lambda place, link: link.replace("logo-001", "logo-002"),
    "another brand": lambda place, link: link.replace("/acme/", "/globex/"),
    "another bucket": lambda place, link: link.replace("training-data", "models"),
    "a later end": lambda place, link: with_param(link, names(place)["expires"], longer),
    "another signature": lambda place, link: with_param(link, names(place)["signature"], other_digit),
    "no signature": lambda place, link: str(httpx.URL(link).copy_remove_param(names(place)["signature"])),
    "no question": lambda place, link: link.split("?")[0],
    "dots": lambda place, link: link.replace("/acme/", "/acme/x/%2e%2e/"),
}


def test_a_link_opens_its_object_for_a_stranger(acme: BrandStore, place: Place) -> None:
    acme.write(LOGO, DATA, "image/png")
    answer = place.stranger.get(acme.link(LOGO, 60))
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"] == 'inline; filename="logo-001.png"'
    assert answer.headers["cache-control"].startswith("private, max-age=")


@pytest.mark.parametrize("tamper", GET_TAMPERS)
def test_a_link_with_anything_changed_is_refused(acme: BrandStore, place: Place, tamper: str) -> None:
    for name in ("logo-001.png", "logo-002.png", "x/logo-001.png"):
        acme.write(Key("training-data", f"acme/{name}"), DATA)
        acme.write(Key("models", f"acme/{name}"), DATA)
    link = acme.link(LOGO, 60)
    changed = GET_TAMPERS[tamper](place, link)
    assert changed != link
    answer = place.stranger.get(changed)
    assert answer.status_code in (401, 403), answer.text
    assert DATA not in answer.content


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "HEAD", "PATCH"])
def test_a_link_to_get_is_good_for_no_other_method(acme: BrandStore, place: Place, method: str) -> None:
    acme.write(LOGO, DATA)
    answer = place.stranger.request(method, acme.link(LOGO, 60), content=b"mine now")
    assert answer.status_code in REFUSED
    assert acme.read(LOGO) == DATA


def test_a_link_ends(acme: BrandStore, place: Place) -> None:
    acme.write(LOGO, DATA)
    link = acme.link(LOGO, 1)
    assert until_refused(lambda: place.stranger.get(link)).status_code in (401, 403)


def test_the_type_of_an_answer_is_not_the_strangers_to_choose(acme: BrandStore, place: Place) -> None:
    acme.write(LOGO, b"<script>", "text/html")
    link = acme.link(LOGO, 60)
    assert place.stranger.get(link).headers["content-type"] == "image/png"
    answer = place.stranger.get(str(httpx.URL(link).copy_set_param("response-content-type", "text/html")))
    assert answer.status_code == 403 or answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize("key", [layout.model_file("acme", "flux", 1), layout.document("acme", "guidelines", "pdf")])
def test_what_is_no_picture_is_saved_and_never_shown(acme: BrandStore, place: Place, key: Key) -> None:
    acme.write(key, DATA, "text/html")
    answer = place.stranger.get(acme.link(key, 60))
    assert answer.content == DATA
    assert answer.headers["content-disposition"] == f'attachment; filename="{key.filename}"'
    assert "html" not in answer.headers["content-type"]
    if place.name == "local":
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; sandbox")
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("seconds", [0, -1, LINK_SECONDS_MAX + 1, 7 * 24 * 3600])
def test_no_link_lives_longer_than_an_hour(acme: BrandStore, seconds: int) -> None:
    with pytest.raises(InvalidInput, match="3600"):
        acme.link(LOGO, seconds)
    with pytest.raises(InvalidInput, match="3600"):
        acme.upload_link(INCOMING, WHAT, seconds)


def test_nothing_is_served_of_what_arrived(acme: BrandStore, place: Place) -> None:
    acme.write(INCOMING, DATA)
    with pytest.raises(NotFound):
        acme.link(INCOMING, 60)
    bare = acme.link(LOGO, 60).replace(LOGO.name, INCOMING.name)
    assert place.stranger.get(bare).status_code in (401, 403)


# Links to upload


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_a_link_takes_what_was_announced(acme: BrandStore, place: Place) -> None:
    answer = place.send(acme.upload_link(INCOMING, WHAT, 60), DATA)
    assert answer.is_success, answer.text
    assert acme.read(INCOMING) == DATA


def test_a_link_says_when_it_ends(acme: BrandStore) -> None:
    link = acme.upload_link(INCOMING, WHAT, 60)
    assert 50 < link.expires_at.timestamp() - time.time() <= 60


def test_a_link_does_not_show_itself(acme: BrandStore) -> None:
    assert "ignature" not in repr(acme.upload_link(INCOMING, WHAT, 60))


def policy_with(link: UploadLink, change: Callable[[dict[str, Any]], None]) -> dict[str, str]:
    """The form's policy with a change, and the signature of the original one."""
    policy = json.loads(base64.b64decode(link.fields["policy"]))
    change(policy)
    return {"policy": base64.b64encode(json.dumps(policy).encode()).decode()}


def widen(policy: dict[str, Any]) -> None:
    policy["conditions"] = [
        ["content-length-range", 1, 10**9] if each[0] == "content-length-range" else each
        for each in policy["conditions"]
        if isinstance(each, list)
    ] + [each for each in policy["conditions"] if isinstance(each, dict)]


def prolong(policy: dict[str, Any]) -> None:
    policy["expiration"] = "2099-01-01T00:00:00Z"


Sent = tuple[bytes, dict[str, Any]]
LOCAL_TAMPERS: dict[str, Callable[[UploadLink], Sent]] = {
    "another upload": lambda link: (DATA, {"url": link.url.replace("000001", "000002")}),
    "no incoming file": lambda link: (DATA, {"url": link.url.replace(INCOMING.name, LOGO.name)}),
    "another brand": lambda link: (DATA, {"url": link.url.replace("/acme/", "/globex/")}),
    "another bucket": lambda link: (DATA, {"url": link.url.replace("training-data", "models")}),
    "another type": lambda link: (DATA, {"content_type": "text/html"}),
    "another type in the link too": lambda link: (
        DATA,
        {"content_type": "text/html", "url": with_param(link.url, "type", lambda _: "text/html")},
    ),
    "a byte less": lambda link: (DATA[:-1], {}),
    "a byte more": lambda link: (DATA + b"!", {}),
    "a byte more in the link too": lambda link: (
        DATA + b"!",
        {"url": with_param(link.url, "bytes", lambda n: str(int(n) + 1))},
    ),
    "no bytes": lambda link: (b"", {}),
    "no hash in the link": lambda link: (DATA, {"url": with_param(link.url, "sha256", lambda _: "")}),
    "a later end": lambda link: (DATA, {"url": with_param(link.url, "expires", longer)}),
    "another signature": lambda link: (DATA, {"url": with_param(link.url, "signature", other_digit)}),
    "no question": lambda link: (DATA, {"url": link.url.split("?")[0]}),
    "POST": lambda link: (DATA, {"method": "POST"}),
    "PATCH": lambda link: (DATA, {"method": "PATCH"}),
}  # fmt: skip
S3_TAMPERS: dict[str, Callable[[UploadLink], Sent]] = {
    "another upload": lambda link: (DATA, {"fields": {"key": OTHER_INCOMING.name}}),
    "no incoming file": lambda link: (DATA, {"fields": {"key": LOGO.name}}),
    "another brand": lambda link: (DATA, {"fields": {"key": INCOMING.name.replace("acme", "globex")}}),
    "a name of the sender's": lambda link: (DATA, {"fields": {"key": "acme/${filename}"}}),
    "another bucket": lambda link: (DATA, {"url": link.url.replace("training-data", "models")}),
    "another type": lambda link: (DATA, {"content_type": "text/html"}),
    "a byte less": lambda link: (DATA[:-1], {}),
    "a byte more": lambda link: (DATA + b"!", {}),
    "a byte more in the policy too": lambda link: (DATA + b"!", {"fields": policy_with(link, widen)}),
    "no bytes": lambda link: (b"", {}),
    "a later end": lambda link: (DATA, {"fields": policy_with(link, prolong)}),
    "another signature": lambda link: (
        DATA,
        {"fields": {"x-amz-signature": other_digit(link.fields["x-amz-signature"])}},
    ),
    "an access list": lambda link: (DATA, {"fields": {"acl": "public-read"}}),
    "a redirection": lambda link: (DATA, {"fields": {"success_action_redirect": "https://example.test"}}),
    "metadata": lambda link: (DATA, {"fields": {"x-amz-meta-a": "1"}}),
    "PUT": lambda link: (DATA, {"method": "PUT", "url": f"{link.url}/{INCOMING.name}"}),
}


def other_header(name: str, value: str) -> Callable[[UploadLink], Sent]:
    return lambda link: (DATA, {"headers": {name: value}})


PUT_TAMPERS: dict[str, Callable[[UploadLink], Sent]] = {
    "another upload": LOCAL_TAMPERS["another upload"],
    "no incoming file": LOCAL_TAMPERS["no incoming file"],
    "another brand": LOCAL_TAMPERS["another brand"],
    "another bucket": LOCAL_TAMPERS["another bucket"],
    "another type": LOCAL_TAMPERS["another type"],
    "a byte less": LOCAL_TAMPERS["a byte less"],
    "a byte more": LOCAL_TAMPERS["a byte more"],
    "no bytes": LOCAL_TAMPERS["no bytes"],
    "another hash": other_header("x-amz-checksum-sha256", base64.b64encode(bytes(32)).decode()),
    "another hash and other bytes": lambda link: (
        b"?" * len(DATA),
        {
            "headers": {
                "x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(b"?" * len(DATA)).digest()).decode()
            }
        },
    ),
    "again and again": other_header("If-None-Match", "no"),
    "a later end": lambda link: (DATA, {"url": with_param(link.url, "X-Amz-Expires", longer)}),
    "another signature": lambda link: (DATA, {"url": with_param(link.url, "X-Amz-Signature", other_digit)}),
    "fewer signed headers": lambda link: (
        DATA,
        {"url": with_param(link.url, "X-Amz-SignedHeaders", lambda said: said.replace("content-length;", ""))},
    ),
    "no question": lambda link: (DATA, {"url": link.url.split("?")[0]}),
    "a part of many": lambda link: (DATA, {"url": f"{link.url}&partNumber=1&uploadId=1"}),
    "its rights": lambda link: (DATA, {"url": f"{link.url}&acl"}),
    "POST": lambda link: (DATA, {"method": "POST"}),
    "an access list": other_header("x-amz-acl", "public-read"),
    "metadata": other_header("x-amz-meta-a", "1"),
}  # fmt: skip
TAMPERS = {"local": LOCAL_TAMPERS, "s3": S3_TAMPERS, "s3-put": PUT_TAMPERS}


@pytest.mark.parametrize(
    ("place", "tamper"),
    [(place, name) for place, tampers in TAMPERS.items() for name in tampers],
    indirect=["place"],
)
def test_an_upload_with_anything_changed_is_refused(acme: BrandStore, place: Place, tamper: str) -> None:
    link = acme.upload_link(INCOMING, WHAT, 60)
    data, changed = TAMPERS[place.name][tamper](link)
    answer = place.send(link, data, **changed)
    assert answer.status_code in REFUSED, answer.text
    assert place.store.brand("globex").list("training-data") == [SECRET_LOGO]
    for bucket in layout.BUCKETS:
        assert acme.list(bucket) == []


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_an_upload_after_the_links_end_is_refused(acme: BrandStore, place: Place) -> None:
    link = acme.upload_link(INCOMING, WHAT, 1)
    end = time.time() + 1
    while time.time() <= end + 1:  # S3 counts whole seconds
        time.sleep(0.1)
    assert place.send(link, DATA).status_code in (401, 403)
    assert not acme.exists(INCOMING)


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_an_upload_link_opens_nothing(acme: BrandStore, place: Place) -> None:
    link = acme.upload_link(INCOMING, WHAT, 60)
    assert place.send(link, DATA).is_success
    for method in ("GET", "HEAD", "DELETE"):
        for url in (link.url, f"{link.url}/{INCOMING.name}"):
            assert place.stranger.request(method, url, params=dict(link.fields) or None).status_code in REFUSED
    assert acme.read(INCOMING) == DATA


def test_only_the_incoming_folder_takes_uploads(acme: BrandStore) -> None:
    for key in (LOGO, layout.model_file("acme", "flux", 1), Key("training-data", "acme/incoming-1.png")):
        with pytest.raises(NotFound):
            acme.upload_link(key, WHAT, 60)
        with pytest.raises(NotFound):
            acme.receive(key)


# What only one of the two can do wrong.


def test_a_link_is_used_once(local_place: Place) -> None:
    acme = local_place.store.brand("acme")
    link = acme.upload_link(INCOMING, Announced("image/png", len(DATA)), 60)
    assert local_place.send(link, DATA).status_code == 204
    answer = local_place.send(link, b"?" * len(DATA))
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert acme.read(INCOMING) == DATA


def test_of_two_who_send_at_once_one_is_kept_whole(local_place: Place) -> None:
    first, second = (local_place.store.brand("acme").receive(OTHER_INCOMING) for _ in range(2))
    first.write(b"first")
    second.write(b"second")
    second.keep()
    with pytest.raises(Conflict):
        first.keep()
    first.drop()
    second.drop()
    assert local_place.store.brand("acme").read(OTHER_INCOMING) == b"second"


def test_other_bytes_than_those_of_the_hash_are_refused_on_arrival(local_place: Place) -> None:
    answer = local_place.send(local_place.store.brand("acme").upload_link(OTHER_INCOMING, WHAT, 60), b"?" * len(DATA))
    assert answer.json()["param"] == "sha256"


@pytest.mark.parametrize("wrong", [{"Content-Length": None}, {"Content-Length": "1"}, {"Content-Type": None}])
def test_a_file_that_does_not_say_what_it_is_is_not_read(local_place: Place, wrong: dict[str, str | None]) -> None:
    link = local_place.store.brand("acme").upload_link(OTHER_INCOMING, WHAT, 60)
    headers = {name: value for name, value in {**link.headers, **wrong}.items() if value is not None}

    def never() -> Iterator[bytes]:
        yield b"x"
        raise AssertionError("the body was read")

    answer = local_place.stranger.put(link.url, content=never(), headers=headers)
    assert answer.status_code in (415, 422)


def test_a_file_that_lies_about_its_length_leaves_nothing(local_place: Place, tmp_path: Path) -> None:
    for data in (DATA[:-1], DATA + b"!"):
        link = local_place.store.brand("acme").upload_link(OTHER_INCOMING, WHAT, 60)
        answer = local_place.stranger.put(link.url, content=data, headers=dict(link.headers))
        assert answer.status_code in (413, 422)
    assert list((tmp_path / "objects/.drafts").iterdir()) == []
    assert local_place.store.brand("acme").list("training-data") == []


def test_s3_takes_no_orders_that_nobody_signed(s3_place: Place) -> None:
    """Ceph's gateway obeys these on a presigned PUT, whoever sends them: it copied another brand's object."""
    acme = s3_place.store.brand("acme")
    s3_place.store.brand("globex").write(SECRET_LOGO, b"globex's canary")
    bucket = s3_place.settings.objects_url.removeprefix("s3://") + "training-data"
    orders = {
        "x-amz-copy-source": f"/{bucket}/{SECRET_LOGO.name}",
        "x-amz-acl": "public-read",
        "x-amz-grant-read": 'uri="http://acs.amazonaws.com/groups/global/AllUsers"',
        "x-amz-website-redirect-location": "https://example.test",
        "x-amz-tagging": "a=b",
        "x-http-method-override": "DELETE",
    }
    link = acme.upload_link(INCOMING, WHAT, 60)
    for name, value in orders.items():
        assert s3_place.send(link, DATA, headers={name: value}).status_code == 204, name
        assert acme.read(INCOMING) == DATA, name
        assert s3_place.stranger.get(f"{s3_place.settings.s3_endpoint}/{bucket}/{INCOMING.name}").status_code == 403


def test_a_put_to_s3_takes_no_orders_that_nobody_signed(put_place: Place) -> None:
    acme = put_place.store.brand("acme")
    put_place.store.brand("globex").write(SECRET_LOGO, b"globex's canary")
    bucket = put_place.settings.objects_url.removeprefix("s3://") + "training-data"
    for name, value in {"x-amz-copy-source": f"/{bucket}/{SECRET_LOGO.name}", "x-amz-acl": "public-read"}.items():
        assert put_place.send(acme.upload_link(INCOMING, WHAT, 60), DATA, headers={name: value}).status_code == 403
        assert not acme.exists(INCOMING)


def test_a_put_to_s3_fills_its_key_once(put_place: Place) -> None:
    acme = put_place.store.brand("acme")
    link = acme.upload_link(INCOMING, Announced("image/png", len(DATA)), 60)
    assert put_place.send(link, DATA).is_success
    assert put_place.send(link, b"?" * len(DATA)).status_code == 412
    acme.write(INCOMING, b"")
    assert put_place.send(link, DATA).status_code == 412
    assert acme.read(INCOMING) == b""


def test_all_that_a_put_to_s3_says_is_signed(put_place: Place) -> None:
    link = put_place.store.brand("acme").upload_link(INCOMING, WHAT, 60)
    signed = httpx.URL(link.url).params["X-Amz-SignedHeaders"].split(";")
    assert sorted(signed) == sorted(["host", *(name.lower() for name in link.headers)])
    assert int(httpx.URL(link.url).params["X-Amz-Expires"]) == 60


SUBRESOURCES = ("acl", "tagging", "uploads", "versions", "versionId=null", "torrent", "partNumber=1", "x-id=PutObject")


@pytest.mark.parametrize("more", SUBRESOURCES)
def test_a_link_to_s3_opens_nothing_beside_its_object(s3_place: Place, more: str) -> None:
    acme = s3_place.store.brand("acme")
    acme.write(LOGO, DATA, "image/png")
    answer = s3_place.stranger.get(f"{acme.link(LOGO, 60)}&{more}")
    assert answer.status_code == 403, answer.text


def test_a_link_to_get_from_s3_takes_no_orders(s3_place: Place) -> None:
    acme = s3_place.store.brand("acme")
    acme.write(LOGO, DATA, "image/png")
    link = acme.link(LOGO, 60)
    for headers in ({"x-http-method-override": "DELETE"}, {"x-http-method-override": "PUT", "content-length": "0"}):
        assert s3_place.stranger.get(link, headers=headers).content == DATA
        assert s3_place.stranger.post(link, headers=headers).status_code == 403
    assert acme.read(LOGO) == DATA


def test_a_hash_goes_to_s3_with_the_form(s3_place: Place) -> None:
    link = s3_place.store.brand("acme").upload_link(INCOMING, WHAT, 60)
    digest = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    assert link.fields["x-amz-checksum-sha256"] == digest
    assert s3_place.send(link, DATA, fields={"x-amz-checksum-sha256": "AAAA"}).status_code in REFUSED


def test_s3_gives_nothing_without_a_link(s3_place: Place) -> None:
    acme = s3_place.store.brand("acme")
    acme.write(LOGO, DATA)
    assert s3_place.stranger.get(acme.link(LOGO, 60).split("?")[0]).status_code == 403


def until_refused(ask: Callable[[], httpx.Response]) -> httpx.Response:
    end = time.monotonic() + 10
    while (answer := ask()).is_success:
        assert time.monotonic() < end, "the link is still good long after its end"
        time.sleep(0.1)
    return answer
