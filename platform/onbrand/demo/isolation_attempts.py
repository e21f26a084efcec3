"""Attempts by a member of one brand to access another brand's objects over HTTP.

An attempt counts as refused only if the status is an expected refusal and the same request of the owner, if there is
one, succeeds: a request that fails for everyone proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from onbrand.client import Onbrand, RequestRefused
from onbrand.client.sendable import opened
from onbrand.demo.steps import DemoBrand

HIDDEN = frozenset({404})
NO_RIGHT = frozenset({401, 403, 404})
NOT_AN_INPUT = frozenset({404, 422})


@dataclass(frozen=True)
class Try:
    """One attempt to access another brand.

    Args:
        intrude: makes the intruder's request; returns the HTTP status.
        right: the statuses that count as a refusal.
        owner: makes the owner's request for the same object; returns the HTTP status. None if there is none.
    """

    name: str
    intrude: Callable[[], int]
    right: frozenset[int]
    owner: Callable[[], int] | None = None

    def is_refused(self) -> bool:
        """Make the attempt; whether it was refused and the owner's request succeeded."""
        return self.intrude() in self.right and (self.owner is None or self.owner() < 300)


def isolation_attempts(intruder: DemoBrand, victim: DemoBrand) -> list[Try]:
    """All attempts of `intruder` on `victim`'s objects; the victim needs a model and pictures."""
    return [
        *_reads(intruder, victim),
        *_writes(intruder, victim),
        *_files(intruder, victim),
        *_openai(intruder, victim),
    ]


def status_of(client: Onbrand, method: str, path: str, json: Any = None) -> int:
    """The HTTP status of one request."""
    try:
        return client.transport.send(method, path, json=json).status_code
    except RequestRefused as refusal:
        return refusal.status


def _reads(intruder: DemoBrand, victim: DemoBrand) -> list[Try]:
    there, mine = f"/v1/brands/{victim.brand_id}", f"/v1/brands/{intruder.brand_id}"
    paths = {
        "brand's row": there,
        "members": f"{there}/members",
        "list of pictures": f"{there}/assets",
        "picture's row": f"{there}/assets/{victim.assets[0].id}",
        "file link": f"{there}/assets/{victim.assets[0].id}/content",
        "job's row": f"{there}/training-jobs/{victim.job.id}",
        "model by name": f"{there}/models/{victim.published.name}",
        "model by id": f"{there}/models/{victim.published.id}",
        "model's download": f"{there}/models/{victim.published.id}/download",
        "generated image": f"{there}/images/{victim.images[0].id}",
        "generated image's link": f"{there}/images/{victim.images[0].id}/content",
    }
    through_own = {
        "picture's id in own brand": f"{mine}/assets/{victim.assets[0].id}",
        "job's id in own brand": f"{mine}/training-jobs/{victim.job.id}",
        "model's id in own brand": f"{mine}/models/{victim.published.id}",
        "image's id in own brand": f"{mine}/images/{victim.images[0].id}",
    }
    found = [_request(intruder, victim, name, "GET", path) for name, path in paths.items()]
    return found + [
        _request(intruder, victim, name, "GET", path, owners=path.replace(mine, there, 1))
        for name, path in through_own.items()
    ]


def _request(
    intruder: DemoBrand, victim: DemoBrand, name: str, method: str, path: str, body: Any = None, owners: str = ""
) -> Try:
    """A request that must find nothing; its owner makes it too, at `owners` if that is another path."""
    return Try(
        name,
        lambda: status_of(intruder.member, method, path, body),
        HIDDEN,
        lambda: status_of(victim.member, method, owners or path, body),
    )


def _writes(intruder: DemoBrand, victim: DemoBrand) -> list[Try]:
    there, mine = f"/v1/brands/{victim.brand_id}", f"/v1/brands/{intruder.brand_id}"
    stolen = {"model_type": victim.published.model_type, "training_asset_ids": [asset.id for asset in victim.assets]}
    drawing = {"prompt": "photo of [brand] logo", "model": victim.published.id}
    someone = {"email": f"max@{intruder.brand_id}.example", "role": "admin"}
    job, picture = victim.job.id, victim.assets[0].id
    wanted: list[tuple[str, str, str, Any, frozenset[int]]] = [
        ("job with the other's pictures", "POST", f"{mine}/training-jobs", stolen, NOT_AN_INPUT),
        ("job in the other brand", "POST", f"{there}/training-jobs", stolen, HIDDEN),
        ("generation with the other's model id", "POST", f"{mine}/generations", drawing, HIDDEN),
        ("generation in the other brand", "POST", f"{there}/generations", drawing, HIDDEN),
        ("becoming a member", "POST", f"{there}/members", someone, HIDDEN),
        ("canceling the other's job", "POST", f"{there}/training-jobs/{job}/cancel", None, HIDDEN),
        ("deleting the other's picture", "DELETE", f"{there}/assets/{picture}", None, HIDDEN),
        ("deleting it through the own brand", "DELETE", f"{mine}/assets/{picture}", None, HIDDEN),
    ]
    return [
        Try(name, lambda m=method, p=path, b=body: status_of(intruder.admin, m, p, b), right)  # type: ignore[misc]
        for name, method, path, body, right in wanted
    ]


def _files(intruder: DemoBrand, victim: DemoBrand) -> list[Try]:
    own = intruder.member.assets.link(intruder.brand_id, intruder.assets[0].id).url
    theirs = victim.member.assets.link(victim.brand_id, victim.assets[0].id).url
    forged = urlunsplit(urlsplit(own)._replace(path=urlsplit(theirs).path))
    bare = urlunsplit(urlsplit(theirs)._replace(query=""))
    return [
        Try("signed URL with a changed key", lambda: _got(forged), NO_RIGHT, lambda: _got(theirs)),
        Try("raw store key without a signature", lambda: _got(bare), NO_RIGHT, lambda: _got(theirs)),
    ]


def _got(url: str) -> int:
    with opened(url) as http:
        return http.get(url).status_code


def _openai(intruder: DemoBrand, victim: DemoBrand) -> list[Try]:
    name = f"{victim.brand_id}/{victim.published.name}"
    asked = {"model": name, "prompt": "photo of [brand] logo", "n": 1}
    return [
        _request(intruder, victim, "OpenAI face: a picture", "POST", "/v1/images/generations", asked),
        _request(intruder, victim, "OpenAI face: the model", "GET", f"/v1/models/{name}"),
        Try("no token at all", lambda: _got(f"{victim.member.base_url}/v1/brands/{victim.brand_id}"), frozenset({401})),
    ]
