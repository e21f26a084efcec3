"""Quotas of brands and callers on stored bytes and open uploads, checked inside the transaction that stores.

`storage.objects` counts its bytes by itself (`storage.count_bytes`). The results of an admitted training are counted
and never refused; a full brand cannot start another training.
"""

from __future__ import annotations

from onbrand.brand import Scope
from onbrand.config import Limits
from onbrand.db.session import Session
from onbrand.errors import TooLarge, TooManyRequests

_RETRY_SECONDS = 60
_UNDER_WAY = """
select (select count(*)::integer from app.uploads u
    where u.brand_id = %(brand_id)s and u.status = 'pending') as num_open,
  (select coalesce(sum(u.bytes), 0)::bigint from app.uploads u where u.brand_id = %(brand_id)s and u.swept_at is null)
  + (select coalesce(sum(greatest(0, (j.training_config -> 'import' ->> 'bytes')::bigint)), 0)::bigint
    from app.lora_training_jobs j where j.brand_id = %(brand_id)s and j.status in ('pending', 'training')) as bytes
"""


def limits_of(scope: Scope, limits: Limits) -> Limits:
    """Limits for a scope: a brand-bound credential opens at most half of its user's uploads, the rest is for others."""
    if scope.brand_id is None:
        return limits
    return limits.model_copy(update={"caller_open_uploads": max(1, limits.caller_open_uploads // 2)})


async def must_have_room_to_send(session: Session, brand_id: str, num_bytes: int, limits: Limits) -> None:
    """Raise unless the brand and the caller may begin an upload of so many bytes. Serialises the brand's uploads.

    An announced upload counts until it is swept (two hours at most), even after its end: its link may still be used.

    Raises:
        TooManyRequests: too many open uploads, of the brand or of the caller in all brands.
        TooLarge: the brand or the caller would have too many bytes.
    """
    bytes_under_way = await _must_be_few(session, brand_id, limits)
    await must_not_be_full(session, brand_id, bytes_under_way + num_bytes, limits)


async def must_have_room_to_import(session: Session, brand_id: str, num_bytes: int, limits: Limits) -> None:
    """Raise TooLarge unless the brand has room for a file of so many bytes until a job has imported it."""
    under_way = await _lock_and_look(session, brand_id)
    await must_not_be_full(session, brand_id, under_way["bytes"] + num_bytes, limits)


async def must_not_be_full(session: Session, brand_id: str, num_bytes: int, limits: Limits) -> None:
    """Raise TooLarge if so many more bytes would exceed a quota. Checked before they are written; takes no lock."""
    stored = await session.one("select of_brand, of_caller from private.stored_bytes(%s)", [brand_id])
    _must_fit(stored["of_brand"] + num_bytes, stored["of_caller"] + num_bytes, limits)


async def must_have_fitted(session: Session, brand_id: str, limits: Limits) -> None:
    """Raise TooLarge if this transaction's bytes exceed a quota, together with all committed ones.

    Call it last in the transaction: until its end, others that store in the brand wait.
    """
    await session.run("set constraints storage.count_bytes immediate")
    stored = await session.one("select of_brand, of_caller from private.stored_bytes(%s)", [brand_id])
    _must_fit(stored["of_brand"], stored["of_caller"], limits)


def _must_fit(of_brand: int, of_caller: int, limits: Limits) -> None:
    if of_brand > limits.brand_bytes:
        raise TooLarge(
            f"the brand would have {of_brand} bytes, stored and announced, of {limits.brand_bytes} at most "
            "(limits.brand_bytes); delete pictures, models or documents, or ask the operators",
            param="bytes",
            limit=limits.brand_bytes,
        )
    if of_caller > limits.caller_bytes:
        raise TooLarge(
            f"you would have more than {limits.caller_bytes} bytes, stored and announced, in all brands "
            "(limits.caller_bytes); have some of what you stored deleted, or ask the operators",
            param="bytes",
            limit=limits.caller_bytes,
        )


async def _must_be_few(session: Session, brand_id: str, limits: Limits) -> int:
    """Bytes of the brand's uploads and imports in progress. Raises TooManyRequests."""
    under_way = await _lock_and_look(session, brand_id)
    if under_way["num_open"] >= limits.open_uploads:
        raise TooManyRequests(
            f"{under_way['num_open']} uploads of this brand are open, of {limits.open_uploads} at most "
            "(limits.open_uploads); complete or cancel some",
            retry_after=_RETRY_SECONDS,
        )
    num_own = (await session.one("select private.num_open_uploads() as num"))["num"]
    if num_own >= limits.caller_open_uploads:
        raise TooManyRequests(
            f"at most {limits.caller_open_uploads} uploads of yours may be open in all brands "
            "(limits.caller_open_uploads); complete or cancel some",
            retry_after=_RETRY_SECONDS,
        )
    return int(under_way["bytes"])


async def _lock_and_look(session: Session, brand_id: str) -> dict[str, int]:
    await session.run("select private.lock_brand('uploads', %s)", [brand_id])
    return dict(await session.one(_UNDER_WAY, {"brand_id": brand_id}))
