"""A brand's limits on engines and trainings, for its members' calls. Only operators set them (`onbrand.db.limits`)."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

from onbrand.config import Limits
from onbrand.db.session import Session
from onbrand.errors import InvalidInput, TooManyRequests

_LOOK_BACK_SECONDS = 60
_RETRY_UNKNOWN, _RETRY_MAX = 5, 60
_TRAINING_SECONDS = 60
_ROW = """
select t.weight, t.max_waiting_pictures, t.slot_quota, t.max_running_trainings, t.max_open_trainings
from app.brand_limits t where t.brand_id = %s
"""
_OPEN = """
select count(*)::integer as num from app.lora_training_jobs t
where t.brand_id = %s and t.status in ('pending', 'training')
"""
_WAITING = """
select coalesce(sum(g.num_images - (select count(*) from app.generated_images i
    where i.brand_id = g.brand_id and i.generation_id = g.id)), 0)::integer as num
from app.generations g where g.brand_id = %s and g.status in ('pending', 'running')
"""
_DRAWN = """
select count(*)::integer as num from app.generated_images i
where i.brand_id = %s and i.created_at > clock_timestamp() - make_interval(secs => %s)
"""


class BrandLimits(BaseModel):
    """Limits of one brand.

    Args:
        weight: its share of an engine, relative to other brands that wait.
        max_waiting_pictures: requested pictures that are not drawn yet; None: the platform's number.
        slot_quota: its adapters on a device at once, in each rank class; None: no quota of its own.
        max_running_trainings: its jobs that train at once; None: the platform's number.
        max_open_trainings: its jobs that train or wait; None: the platform's number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = 1.0
    max_waiting_pictures: int | None = None
    slot_quota: int | None = None
    max_running_trainings: int | None = None
    max_open_trainings: int | None = None


async def limits_of(session: Session, brand_id: str) -> BrandLimits:
    """The brand's row, or the defaults."""
    row = await session.maybe(_ROW, [brand_id])
    return BrandLimits(**row) if row else BrandLimits()


async def must_have_room(session: Session, brand_id: str, num_images: int, limits: Limits) -> None:
    """Raise unless the brand and its account may have so many more pictures wait. Serialises their admissions.

    Raises:
        InvalidInput: the brand may never have so many at once.
        TooManyRequests: not now; `retry_after` estimates when, from the brand's last minute.
    """
    await session.run("select private.lock_brand('admission', %s)", [brand_id])
    most = (await limits_of(session, brand_id)).max_waiting_pictures or limits.waiting_pictures
    if num_images > most:
        raise InvalidInput(f"num_images must be 1 to {most} for this brand; got {num_images}", param="num_images")
    waiting = int((await session.one(_WAITING, [brand_id]))["num"])
    if waiting + num_images > most:
        raise TooManyRequests(
            f"{waiting} pictures of this brand wait already, of {most} at most; try again later",
            retry_after=await _retry_after(session, brand_id, waiting + num_images - most),
        )
    of_account = max(limits.account_waiting_pictures, most)
    room = await session.one("select private.account_has_room(%s, %s, %s) as ok", [brand_id, num_images, of_account])
    if not room["ok"]:
        raise TooManyRequests(
            f"at most {of_account} pictures of all brands of one account wait at a time "
            "(limits.account_waiting_pictures); try again later",
            retry_after=_RETRY_UNKNOWN,
            of_account=True,
        )


async def must_have_room_to_train(session: Session, brand_id: str, limits: Limits) -> None:
    """Raise TooManyRequests unless the brand may have one more job open. Serialises the brand's admissions.

    The end of a training is unknown, so `retry_after` is a minute.
    """
    await session.run("select private.lock_brand('training', %s)", [brand_id])
    most = (await limits_of(session, brand_id)).max_open_trainings or limits.open_trainings
    num_open = int((await session.one(_OPEN, [brand_id]))["num"])
    if num_open >= most:
        raise TooManyRequests(
            f"{num_open} training jobs of this brand wait or run already, of {most} at most; "
            "wait for one to end, or cancel one",
            retry_after=_TRAINING_SECONDS,
        )


async def _retry_after(session: Session, brand_id: str, num_too_many: int) -> int:
    """Seconds until so many pictures are drawn, at the rate of the last minute."""
    drawn = int((await session.one(_DRAWN, [brand_id, _LOOK_BACK_SECONDS]))["num"])
    if not drawn:
        return _RETRY_UNKNOWN
    return min(_RETRY_MAX, max(1, math.ceil(num_too_many * _LOOK_BACK_SECONDS / drawn)))
