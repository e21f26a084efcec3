"""Stores training pictures as the API does, without HTTP."""

from __future__ import annotations

from onbrand.config import Limits
from onbrand.db.session import Session
from onbrand.sandbox.checker import Checker
from onbrand.services.asset_checks import Upload, check
from onbrand.services.assets import Asset, store_checked
from onbrand.storage.store import BrandStore


async def store_assets(
    session: Session, store: BrandStore, brand_id: str, user_id: str, files: list[Upload], limits: Limits
) -> list[Asset]:
    """Check and store the files in the open transaction."""
    checked = await check(Checker(limits), files, limits)
    return await store_checked(session, store, brand_id, user_id, checked, limits)
