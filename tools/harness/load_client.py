"""A brand's admin over HTTP: publishes, deletes and generates, and repeats a call after 429 or 503.

`publish` also does a worker's part: it sends a file with a training job's ticket.
"""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from onbrand.brand import Ticket
from onbrand.internal.client import SystemClient
from onbrand.secrets_file import Secrets
from tools.harness.colour_adapters import Paint

ENDED = ("completed", "failed", "canceled")
PATIENCE_SECONDS, LOOK_SECONDS, WAIT_SECONDS = 300.0, 0.3, 30
_PASSWORD = "a long enough password"
_NOT_NOW = (429, 503)
_CUT_OFF_SECONDS = 1.0


@dataclass
class Manners:
    """The platform's responses: `statuses` of all, and those that are errors.

    Args:
        may_be_cut_off: the run kills the ingress. Ray's proxy then answers requests in progress with a bare 5xx, or the
            connection breaks; such requests are repeated.
    """

    may_be_cut_off: bool = False
    statuses: Counter[int] = field(default_factory=Counter)
    retried: int = 0
    cut_off: int = 0
    unclean: list[str] = field(default_factory=list)

    def note(self, what: str, answer: httpx.Response) -> float | None:
        """Seconds after which to repeat the call, or None. Records a 5xx other than a clean 503."""
        self.statuses[answer.status_code] += 1
        if answer.status_code in _NOT_NOW and is_clean(answer):
            self.retried += 1
            return float(answer.headers["retry-after"])
        if answer.status_code >= 500 and self.may_be_cut_off and not is_ours(answer):
            self.cut_off += 1
            return _CUT_OFF_SECONDS
        if answer.status_code in _NOT_NOW or answer.status_code >= 500:
            self.unclean.append(f"{what}: {answer.status_code} {answer.text[:200]}")
        return None


def is_clean(answer: httpx.Response) -> bool:
    """Whether the platform wrote this refusal and says when to retry."""
    return is_ours(answer) and answer.headers.get("retry-after", "").isdigit()


def is_ours(answer: httpx.Response) -> bool:
    """Whether the platform wrote this refusal, not Ray's proxy."""
    return answer.headers.get("content-type", "").startswith("application/problem+json")


@dataclass(frozen=True, slots=True)
class Drawn:
    """A stored image."""

    row: Mapping[str, Any]
    data: bytes = field(repr=False)

    @property
    def pixels_HWC(self) -> np.ndarray:
        """0 to 255."""
        with Image.open(io.BytesIO(self.data)) as picture:
            return np.asarray(picture.convert("RGB"), dtype=int)


@dataclass
class LoadClient:
    """A brand and its admin."""

    brand_id: str
    user_id: str
    http: httpx.AsyncClient
    manners: Manners
    asset_id: str = ""

    @classmethod
    async def join(cls, url: str, manners: Manners) -> LoadClient:
        """Sign up, create a brand, upload an image."""
        name = f"chaos-{uuid.uuid4().hex[:10]}"
        http = httpx.AsyncClient(base_url=url, timeout=120, trust_env=False)
        account = {"email": f"{name}@example.com", "password": _PASSWORD}
        user = (await http.post("/v1/users", json=account)).raise_for_status().json()
        token = (await http.post("/v1/tokens", json=account)).raise_for_status().json()["access_token"]
        http.headers["authorization"] = f"Bearer {token}"
        joined = cls(name, user["id"], http, manners)
        (await http.post("/v1/brands", json={"id": name, "name": name.title()})).raise_for_status()
        files = [("files", ("logo.png", _plain_png(), "image/png"))]
        joined.asset_id = (await joined.call("POST", "/assets", 201, files=files)).json()["data"][0]["id"]
        return joined

    async def call(self, method: str, path: str, *expected: int, **parts: Any) -> httpx.Response:
        """Send a request within the brand, and repeat it until a response. Raises AssertionError for other statuses."""
        headers = {"idempotency-key": uuid.uuid4().hex, **parts.pop("headers", {})} if method == "POST" else {}
        address = path if path.startswith("http") else f"/v1/brands/{self.brand_id}{path}"
        what = f"{method} {path.partition('?')[0]}"
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                answer = await self._sent(method, address, headers=headers, **parts)
                seconds = _CUT_OFF_SECONDS if answer is None else self.manners.note(what, answer)
                if answer is not None and seconds is None:
                    break
                await asyncio.sleep(seconds or 0)
        assert answer.status_code in (expected or (200,)), f"{what}: {answer.status_code} {answer.text[:300]}"
        return answer

    async def _sent(self, method: str, address: str, **parts: Any) -> httpx.Response | None:
        """The response; None if the connection was cut off and that is allowed."""
        try:
            return await self.http.request(method, address, **parts)
        except httpx.TransportError:
            if not self.manners.may_be_cut_off:
                raise
            self.manners.cut_off += 1
            return None

    async def publish(self, paint: Paint, system_url: str, secrets: Secrets, base_revision: str) -> str:
        """Complete a new training job with the adapter `paint`, as a worker does. Returns the model's name."""
        body = {"name": "chaos", "model_type": "sd15", "training_asset_ids": [self.asset_id]}
        job_id = (await self.call("POST", "/training-jobs", 201, json=body)).json()["id"]
        ticket = Ticket.issue(self.brand_id, job_id, self.user_id, "training", 600).sign(secrets.tickets)
        facts = {"rank": paint.rank, "trigger_word": "zorgle", "base_revision": base_revision, "metrics": {}}

        def hand_in() -> str:
            with SystemClient(system_url, ticket) as worker:
                return worker.publish(paint.data, facts).name

        return await asyncio.to_thread(hand_in)

    async def delete(self, model: str) -> None:
        """Delete a model. A call that is repeated after a lost response may give 404."""
        await self.call("DELETE", f"/models/{model}", 204, *([404] if self.manners.may_be_cut_off else []))

    async def ask(self, options: Mapping[str, Any], cancel_after: float | None = None) -> dict[str, Any] | None:
        """Create a generation and wait for its end; None if its model gives 404.

        Args:
            cancel_after: seconds after which to cancel it, unless it has ended.
        """
        headers = {"prefer": f"wait={WAIT_SECONDS}"} if cancel_after is None else {}
        answer = await self.call("POST", "/generations", 201, 202, 404, json=options, headers=headers)
        if answer.status_code == 404:
            return None
        generation: dict[str, Any] = answer.json()
        if cancel_after is not None:
            await asyncio.sleep(cancel_after)
            await self.call("POST", f"/generations/{generation['id']}/cancel", 200, 409)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while generation["status"] not in ENDED:
                await asyncio.sleep(LOOK_SECONDS)
                generation = (await self.call("GET", f"/generations/{generation['id']}")).json()
        return generation

    async def drawn(self, generation: Mapping[str, Any]) -> list[Drawn]:
        """The generation's images, read from the store."""
        found = []
        for image in generation["images"]:
            link = (await self.call("GET", f"/images/{image['id']}/content")).json()["url"]
            found.append(Drawn(image, (await self.call("GET", link)).content))
        return found

    async def told(self, generation: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Kind and data of every event of an ended generation."""
        text = (await self.call("GET", f"/generations/{generation['id']}/events")).text
        blocks = [
            dict(line.split(": ", 1) for line in block.splitlines() if ": " in line) for block in text.split("\n\n")
        ]
        return [(block["event"], json.loads(block["data"])) for block in blocks if "event" in block]

    async def generations(self) -> list[dict[str, Any]]:
        """All generations of the brand, page by page."""
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = (await self.call("GET", f"/generations?limit=100{cursor}")).json()
            found += page["data"]
            if not page["has_more"]:
                return found
            cursor = f"&cursor={page['next_cursor']}"


def secrets_of(data_dir: Path) -> Secrets:
    """The platform's secrets, read as its processes read them."""
    return Secrets(**json.loads((data_dir / "secrets.json").read_text()))


def _plain_png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 120, 150)).save(out, "PNG")
    return out.getvalue()
