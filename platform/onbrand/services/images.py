"""Generated images, the members' side: list, read, delete. `generations` has the requests for them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import anyio.to_thread

from onbrand.db.session import Session
from onbrand.errors import Forbidden
from onbrand.services.audit import write_audit_line
from onbrand.services.pagination import Page, Row, known_id, must_be_there, page_of
from onbrand.storage.layout import Key
from onbrand.storage.store import BrandStore

_IMAGE = "select t.* from app.generated_images t"


class Image(Row):
    """A generated picture. `receipt` holds its origin (base, adapters, parameters), and so does its file."""

    id: str
    brand_id: str
    generation_id: str
    model_id: str | None
    user_id: str
    index: int
    seed: int
    object_name: str
    content_type: str
    width: int
    height: int
    bytes: int
    sha256: str
    receipt: dict[str, Any]
    created_at: datetime

    @property
    def key(self) -> Key:
        """The key of its bytes in the store."""
        return Key("generated-content", self.object_name)


async def list_images(session: Session, brand_id: str, limit: int = 20, cursor: str | None = None) -> Page[Image]:
    """The brand's pictures, newest first."""
    return await page_of(session, Image, _IMAGE, brand_id, limit, cursor)


async def get_image(session: Session, brand_id: str, image_id: str) -> Image:
    """One picture's row. Raises NotFound."""
    image_id = known_id(image_id, "image")
    row = await session.maybe(f"{_IMAGE} where t.brand_id = %s and t.id = %s", [brand_id, image_id])
    return Image.of(must_be_there(row, "image"))


async def delete_image(session: Session, store: BrandStore, brand_id: str, image_id: str) -> None:
    """Delete row and bytes. Raises NotFound, Forbidden (another member's)."""
    image = await get_image(session, brand_id, image_id)
    num_deleted = await session.run(
        "delete from app.generated_images where brand_id = %s and id = %s", [brand_id, image.id]
    )
    if num_deleted == 0:
        raise Forbidden("only the member whose picture it is may delete it")
    await session.run(
        "delete from storage.objects where bucket_id = %s and name = %s", [image.key.bucket, image.object_name]
    )
    await anyio.to_thread.run_sync(store.delete, image.key)
    await write_audit_line(
        session, brand_id, "image.delete", {"image_id": image.id, "generation_id": image.generation_id}
    )
