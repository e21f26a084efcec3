"""Training jobs, the members' side: create, check, watch, rename, cancel, stop, retry, delete.

The system's side is `training_worker`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import anyio.to_thread
from psycopg.types.json import Jsonb

from onbrand.config import FamilyName, Limits
from onbrand.db.session import Session
from onbrand.errors import Conflict, Forbidden, InvalidInput, NotFound
from onbrand.families.spec import SPECS, Recommended
from onbrand.internal.training import IMPORT_KEY
from onbrand.services.audit import write_audit_line
from onbrand.services.brands import must_be_admin
from onbrand.services.continuation import FIELD as CONTINUE_FROM
from onbrand.services.continuation import start_of
from onbrand.services.data_checks import CheckedData, DataSample, DataTarget, target_of
from onbrand.services.events import ENDED_STATES, Event, events_of
from onbrand.services.job_validation import (
    PROVIDERS,
    NewCheck,
    NewJob,
    Terms,
    _assets_missing,
    _must_be_asset_ids,
    checked_config,
    must_look_fit,
    num_workers_of,
)
from onbrand.services.limits import must_have_room_to_train
from onbrand.services.pagination import Page, forbidden_as_not_found, known_id, must_be_there, page_of
from onbrand.services.storage_quota import must_not_be_full
from onbrand.services.training_job import TrainingJob
from onbrand.storage.layout import Key, import_file
from onbrand.storage.store import BrandStore
from onbrand.visible import must_be_name

_JOB = """
select t.*, array(select ja.asset_id from app.job_assets ja
  where ja.brand_id = t.brand_id and ja.job_id = t.id order by ja.asset_id)::text[] as training_asset_ids,
  case when t.status = 'training' and jsonb_typeof(t.metrics -> 'eta_seconds') = 'number' then
    greatest(0, round((t.metrics ->> 'eta_seconds')::numeric - extract(epoch from now() - t.heartbeat_at), 1))::float8
  end as eta_seconds,
  case when t.status = 'pending' then (select count(*) from app.lora_training_jobs e where e.brand_id = t.brand_id
    and e.status = 'pending' and (e.created_at, e.id) < (t.created_at, t.id))::integer end as num_ahead
from app.lora_training_jobs t
"""

_SAMPLES = """
select a.id, a.name, a.object_name, a.features, (select c.caption from app.asset_captions c
  where c.brand_id = a.brand_id and c.asset_id = a.id order by c.version desc limit 1) as caption
from app.brand_assets a where a.brand_id = %(brand_id)s and a.id = any(%(ids)s::uuid[]) order by a.created_at, a.id
"""


async def create_job(session: Session, brand_id: str, user_id: str, new: NewJob, terms: Terms = Terms()) -> TrainingJob:
    """Create a pending job.

    Raises:
        InvalidInput: a field is out of bounds; `param` names it (``training_config.steps``).
        DataRefused: the rows show that no job can train on these pictures; `findings` holds the reasons.
        NotFound: the brand, an asset, or the model to continue from is missing, or another's.
        TooLarge: too many assets, or the brand or the caller has no room for the result.
        TooManyRequests: too many of the brand's jobs are open.
    """
    config = checked_config(new.model_type, new.training_config)
    name = must_be_name(new.name)
    if new.provider not in PROVIDERS:
        raise InvalidInput(f"provider must be one of {', '.join(PROVIDERS)}", param="provider")
    asset_ids = _must_be_asset_ids(new.training_asset_ids)
    await _must_have_assets(session, brand_id, asset_ids)
    start_model_id, config = await start_of(session, brand_id, new.model_type, config)
    num_workers = num_workers_of(new.model_type, config, terms)
    await must_look_fit(session, brand_id, new.model_type, config, asset_ids, terms)
    row = JobRow(name, new.model_type, config, new.provider, num_workers, start_model_id)
    job = await insert_job(session, brand_id, user_id, row, asset_ids, terms.limits)
    await write_audit_line(session, brand_id, "job.create", {"job_id": job.id, "asset_ids": asset_ids})
    return job


async def samples_of(
    session: Session, brand_id: str, new: NewCheck, recommended: Mapping[FamilyName, Recommended]
) -> tuple[DataTarget, list[DataSample]]:
    """The inputs of a check: the intended training, and its pictures in upload order.

    Raises:
        InvalidInput: a field is out of bounds, as for `create_job`, or the family is not served here.
        NotFound: the brand or an asset is missing, or another's.
    """
    config = checked_config(new.model_type, new.training_config)
    if new.model_type not in recommended:
        raise InvalidInput(f"{new.model_type} is not served here; served: {', '.join(recommended)}", param="model_type")
    asset_ids = _must_be_asset_ids(new.training_asset_ids)
    await _must_have_assets(session, brand_id, asset_ids)
    rows = await session.all(_SAMPLES, {"brand_id": brand_id, "ids": asset_ids})
    family = cast(FamilyName, new.model_type)
    target = target_of(SPECS[family], config, recommended[family], brand_id)
    samples = [
        DataSample(
            row["id"], Key("training-data", row["object_name"]).filename, row["caption"], row["features"], row["name"]
        )
        for row in rows
    ]
    return target, samples


async def record_check(session: Session, brand_id: str, samples: Sequence[DataSample], said: CheckedData) -> None:
    """Write a line to the brand's record: all these pictures were part of a check."""
    asset_ids = [sample.asset_id for sample in samples]
    await write_audit_line(session, brand_id, "job.check", {"asset_ids": asset_ids, "num_errors": said.num_errors})


async def list_jobs(session: Session, brand_id: str, limit: int = 20, cursor: str | None = None) -> Page[TrainingJob]:
    """The brand's jobs, newest first."""
    return await page_of(session, TrainingJob, _JOB, brand_id, limit, cursor)


async def get_job(session: Session, brand_id: str, job_id: str) -> TrainingJob:
    """One job. Raises NotFound."""
    job_id = known_id(job_id, "training job")
    row = await session.maybe(f"{_JOB} where t.brand_id = %s and t.id = %s", [brand_id, job_id])
    return TrainingJob.of(must_be_there(row, "training job"))


async def rename(session: Session, brand_id: str, job_id: str, name: str) -> TrainingJob:
    """Give the job another name. Raises NotFound, Forbidden (not its owner), InvalidInput."""
    job = await get_job(session, brand_id, job_id)
    num_changed = await session.run(
        "update app.lora_training_jobs set name = %s where brand_id = %s and id = %s",
        [must_be_name(name), brand_id, job.id],
    )
    _must_be_owner(num_changed, "rename")
    await write_audit_line(session, brand_id, "job.rename", {"job_id": job.id})
    return await get_job(session, brand_id, job_id)


async def request_cancel(session: Session, brand_id: str, job_id: str) -> TrainingJob:
    """Request cancellation; repeating it changes nothing. Raises NotFound, Forbidden, Conflict (it has ended)."""
    job = await get_job(session, brand_id, job_id)
    num_changed = await session.run(
        "update app.lora_training_jobs set cancel_requested_at = coalesce(cancel_requested_at, now())"
        " where brand_id = %s and id = %s and status = any(%s)",
        [brand_id, job.id, ["pending", "training"]],
    )
    now = await get_job(session, brand_id, job_id)
    if num_changed == 0 and now.status in ENDED_STATES and now.status != "canceled":
        raise Conflict(f"the job is {now.status}; only a pending or training job can be canceled")
    if now.status != "canceled":
        _must_be_owner(num_changed, "cancel")
    if num_changed and job.cancel_requested_at is None:
        await write_audit_line(session, brand_id, "job.cancel", {"job_id": job.id})
    return now


async def request_stop(session: Session, brand_id: str, job_id: str) -> TrainingJob:
    """Ask a training job to end now and publish its best adapter; repeating it changes nothing.

    Raises NotFound, Forbidden, Conflict (it has not begun, or has ended).
    """
    job = await get_job(session, brand_id, job_id)
    if job.status != "training" and job.stop_requested_at is None:
        raise Conflict(f"the job is {job.status}; only a training job can be stopped, and a pending one be canceled")
    num_changed = await session.run(
        "update app.lora_training_jobs set stop_requested_at = coalesce(stop_requested_at, now())"
        " where brand_id = %s and id = %s and status = 'training'",
        [brand_id, job.id],
    )
    now = await get_job(session, brand_id, job_id)
    if now.status == "training":
        _must_be_owner(num_changed, "stop")
    if num_changed and job.stop_requested_at is None:
        await write_audit_line(session, brand_id, "job.stop", {"job_id": job.id})
    return now


async def retry(session: Session, brand_id: str, user_id: str, job_id: str, terms: Terms = Terms()) -> TrainingJob:
    """Create a pending job like one that failed or was canceled, with its remaining assets.

    It continues from the old job's last checkpoint if plan and pictures are the same and no other open job does so.

    Raises NotFound, Conflict (it did neither, was an import, has no asset left, or continued from a deleted model),
    DataRefused and TooManyRequests as `create_job`.
    """
    old = await get_job(session, brand_id, job_id)
    if old.status not in ("failed", "canceled"):
        raise Conflict(f"the job is {old.status}; only a failed or canceled job can be retried")
    if IMPORT_KEY in old.training_config:
        raise Conflict("the file of an import is not kept; import it again")
    if not old.training_asset_ids:
        raise Conflict("none of the job's assets is left; create a new job with others")
    if CONTINUE_FROM in old.training_config and old.start_model_id is None:
        raise Conflict("the model that the job continued from is not there any more; create a new job")
    config, asset_ids = old.training_config, old.training_asset_ids
    num_workers = num_workers_of(old.model_type, config, terms)
    await must_look_fit(session, brand_id, old.model_type, config, asset_ids, terms)
    run_id = await _free_run(session, brand_id, old.run_id or old.id)
    row = JobRow(old.name, old.model_type, config, old.provider, num_workers, old.start_model_id, old.id, run_id)
    job = await insert_job(session, brand_id, user_id, row, asset_ids, terms.limits)
    await write_audit_line(session, brand_id, "job.retry", {"job_id": job.id, "retried_id": old.id})
    return job


async def _free_run(session: Session, brand_id: str, run_id: str) -> str | None:
    """The run if no open job writes it, else None: two jobs would overwrite each other's checkpoints."""
    row = await session.maybe(
        "select 1 from app.lora_training_jobs"
        " where brand_id = %s and run_id = %s and status in ('pending', 'training')",
        [brand_id, run_id],
    )
    return None if row else run_id


async def delete_job(session: Session, store: BrandStore, brand_id: str, job_id: str) -> None:
    """Delete the job, its events and its samples; its model stays. Raises NotFound, Forbidden, Conflict (under way)."""
    job = await get_job(session, brand_id, job_id)
    await must_be_admin(session, brand_id, "delete training jobs")
    num_deleted = await session.run(
        "delete from app.lora_training_jobs where brand_id = %s and id = %s"
        " and (status = any(%s) or (status = 'pending' and provider_job_id is null))",
        [brand_id, job.id, list(ENDED_STATES)],
    )
    if num_deleted == 0:
        raise Conflict("the job is under way; cancel it and wait for its end, then delete it")
    if IMPORT_KEY in job.training_config:
        await anyio.to_thread.run_sync(store.delete, import_file(brand_id, job.id))
    for key in job.sample_keys:
        await session.run("delete from storage.objects where bucket_id = %s and name = %s", [key.bucket, key.name])
    for key in job.sample_keys:
        await anyio.to_thread.run_sync(partial(store.delete, key))
    await write_audit_line(session, brand_id, "job.delete", {"job_id": job.id})


async def events(session: Session, brand_id: str, job_id: str, after_seq: int = 0) -> list[Event]:
    """Events of the job after `after_seq`, oldest first. Raises NotFound."""
    job = await get_job(session, brand_id, job_id)
    return await events_of(session, brand_id, job.id, after_seq)


async def _must_have_assets(session: Session, brand_id: str, asset_ids: list[str]) -> None:
    row = await session.one(
        "select count(*) as num from app.brand_assets where brand_id = %s and id = any(%s::uuid[])",
        [brand_id, asset_ids],
    )
    if row["num"] != len(asset_ids):
        raise _assets_missing()


@dataclass(frozen=True, slots=True)
class JobRow:
    """Checked columns of a new job."""

    name: str
    model_type: str
    training_config: Mapping[str, Any] = field(repr=False)
    provider: str = "ray"
    num_workers: int = 1
    start_model_id: str | None = None
    retry_of: str | None = None
    run_id: str | None = None


_COLUMNS = tuple(JobRow.__dataclass_fields__)
_INSERT = f"""
insert into app.lora_training_jobs (brand_id, user_id, {", ".join(_COLUMNS)})
values (%s, %s, {", ".join(["%s"] * len(_COLUMNS))}) returning id
"""


async def insert_job(
    session: Session, brand_id: str, user_id: str, new: JobRow, asset_ids: list[str], limits: Limits
) -> TrainingJob:
    """Insert a pending job's row and those of its assets.

    Raises NotFound: not the caller's brand, or an asset is gone. TooManyRequests: too many of the brand's are open.
    TooLarge: the brand or the caller has no room for the result.
    """
    await must_have_room_to_train(session, brand_id, limits)
    async with forbidden_as_not_found("brand"):
        await must_not_be_full(session, brand_id, 1, limits)
    values = [getattr(new, name) for name in _COLUMNS]
    values[_COLUMNS.index("training_config")] = Jsonb(dict(new.training_config))
    async with forbidden_as_not_found("brand"):
        row = await session.one(_INSERT, [brand_id, user_id, *values])
        try:
            await session.run(
                "insert into app.job_assets (brand_id, job_id, asset_id) select %s, %s, unnest(%s::uuid[])",
                [brand_id, row["id"], asset_ids],
            )
        except NotFound:
            raise _assets_missing() from None
    return await get_job(session, brand_id, cast(str, row["id"]))


def _must_be_owner(num_changed: int, verb: str) -> None:
    if num_changed == 0:
        raise Forbidden(f"only the member who created the job may {verb} it")
