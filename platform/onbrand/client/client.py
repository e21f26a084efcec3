"""The client: methods for the five main steps, and resources for everything else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from onbrand.client import accounts, generations, members, monitor, objects, resources, uploads
from onbrand.client.errors import InvalidArgument
from onbrand.client.files import Captions, File, save_at
from onbrand.client.transport import Transport

BrandLike = str | accounts.Brand
_ANSWER_WITHIN = 30
_NAMED_BRANDS = 10


class Onbrand:
    """A client of one Onbrand platform.

    Args:
        base_url: the platform's address; defaults to ``ONBRAND_URL``, else ``http://127.0.0.1:8000``.
        token: a bearer token or an API key; defaults to ``ONBRAND_TOKEN``; None until `log_in`.
        timeout: seconds for one request.
        max_retries: how often a request is repeated if the platform is unreachable or busy.
        transport: an `httpx` transport, for tests.

    >>> client = Onbrand()
    >>> client.log_in("ada@acme.example", "correct horse")
    >>> brand = client.get_user_brand()
    >>> client.upload_training_images(brand, ["logo.png"], "photo of [brand] logo", object="logo")
    >>> job = client.create_training_job(brand, "flux").wait(progress=print)
    >>> generation = client.generate_image(brand, "photo of [brand] logo on a billboard", model="flux-lora-v1")
    >>> generation.images[0].download("billboard.png")

    Raises the exceptions of `onbrand.client.errors`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        token: str | None = None,
        *,
        timeout: float = 60.0,
        max_retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        url = base_url or os.environ.get("ONBRAND_URL") or "http://127.0.0.1:8000"
        held = token or os.environ.get("ONBRAND_TOKEN") or None
        self.base_url = url.rstrip("/")
        self.transport = Transport(self.base_url, held, timeout=timeout, max_retries=max_retries, transport=transport)
        self.users = resources.Users(self)
        self.tokens = resources.Tokens(self)
        self.brands = resources.Brands(self)
        self.members = members.Members(self)
        self.invitations = members.Invitations(self)
        self.keys = resources.Keys(self)
        self.assets = resources.Assets(self)
        self.training_jobs = resources.TrainingJobs(self)
        self.models = resources.Models(self)
        self.generations = generations.Generations(self)
        self.images = generations.Images(self)
        self.documents = resources.Documents(self)
        self.uploads = uploads.Uploads(self)
        self.audit_events = resources.AuditEvents(self)

    def __repr__(self) -> str:
        return f"Onbrand({self.base_url!r})"

    def __enter__(self) -> Onbrand:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the platform."""
        self.transport.close()

    @property
    def token(self) -> str | None:
        """The bearer token that requests carry."""
        return self.transport.token

    @token.setter
    def token(self, token: str | None) -> None:
        self.transport.token = token

    def log_in(self, email: str, password: str, brand: BrandLike | None = None) -> accounts.Token:
        """Log in and use the token from now on; with `brand` it is limited to that brand."""
        token = self.tokens.create(email, password, brand)
        self.token = token.access_token
        return token

    # the five steps

    def get_user_brand(self, brand_id: str | None = None) -> accounts.Brand:
        """The brand with `brand_id`, or the caller's only brand. Invitations that were not accepted do not count.

        Raises InvalidArgument without `brand_id` if the caller is in no brand or in several.
        """
        if brand_id is not None:
            return self.brands.get(brand_id)
        brands = list(islice(self.brands.list(), _NAMED_BRANDS + 1))
        if not brands:
            raise InvalidArgument(
                "you are in no brand; create one with client.brands.create(), or accept an invitation with "
                "client.invitations.accept()"
            )
        if len(brands) > 1:
            names = ", ".join(brand.id for brand in brands[:_NAMED_BRANDS])
            more = ", ..." if len(brands) > _NAMED_BRANDS else ""
            raise InvalidArgument(f"you are in several brands; name one: get_user_brand(id), of {names}{more}")
        return brands[0]

    def upload_training_images(
        self,
        brand: BrandLike,
        files: Iterable[File],
        captions: Captions = None,
        *,
        object: str = "other",
        metadata: Mapping[str, Any] | None = None,
    ) -> list[objects.Asset]:
        """Upload pictures with captions, all or none; see `Assets.upload`."""
        return self.assets.upload(brand, files, captions, object=object, metadata=metadata)

    def create_training_job(
        self,
        brand: BrandLike,
        model_type: str,
        *,
        assets: Sequence[str | objects.Asset] | None = None,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        provider: str | None = None,
        idempotency_key: str | None = None,
    ) -> objects.TrainingJob:
        """Fine-tune an adapter for `model_type` on `assets` (None: all pictures of the brand)."""
        return self.training_jobs.create(
            brand,
            model_type,
            training_asset_ids=self._asset_ids(brand, assets),
            name=name,
            training_config=config,
            provider=provider,
            idempotency_key=idempotency_key,
        )

    def check_training_data(
        self,
        brand: BrandLike,
        model_type: str,
        *,
        assets: Sequence[str | objects.Asset] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> monitor.DataCheck:
        """Check the pictures and captions that `create_training_job` would train on."""
        ids = self._asset_ids(brand, assets)
        return self.training_jobs.check(brand, model_type, training_asset_ids=ids, training_config=config)

    def _asset_ids(self, brand: BrandLike, assets: Sequence[str | objects.Asset] | None) -> list[str]:
        chosen = list(self.assets.list(brand)) if assets is None else assets
        return [asset.id if isinstance(asset, objects.Asset) else asset for asset in chosen]

    def generate_image(
        self,
        brand: BrandLike,
        prompt: str,
        *,
        model: str | objects.Model | None = None,
        wait: bool = True,
        timeout: float | None = None,
        progress: Callable[[objects.Generation], object] | None = None,
        **parameters: Any,
    ) -> objects.Generation:
        """Draw pictures and wait for them.

        Args:
            model: an adapter (name, id or object); None draws with the base named by ``model_type``.
            wait: False returns at once; call `.wait()` on the result.
            timeout: seconds to wait; None waits without limit.
            progress: called with the generation when it changes.
            parameters: as in `Generations.create`: ``num_images``, ``seed``, ``width``, ``negative_prompt``, ...
        """
        name = model.id if isinstance(model, objects.Model) else model
        seconds = 0 if not wait or progress else int(min(_ANSWER_WITHIN, timeout or _ANSWER_WITHIN))
        generation = self.generations.create(brand, prompt, model=name, wait_seconds=seconds, **parameters)
        return generation.wait(progress, timeout=timeout) if wait else generation

    # files behind signed links

    def fetch(self, link: objects.Link | str) -> bytes:
        """The bytes behind a signed link."""
        return b"".join(self.transport.download(_url(link)))

    def save(self, link: objects.Link | str, path: str | Path, name: str) -> Path:
        """Save the file behind a signed link to the file `path`, or as `name` into the folder `path`."""
        return save_at(path, name, self.transport.download(_url(link)))


def _url(link: objects.Link | str) -> str:
    return link.url if isinstance(link, objects.Link) else link
