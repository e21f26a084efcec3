"""Routes of training jobs: check their data, create, watch, rename, cancel, stop, retry, delete."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any
from uuid import UUID

import anyio.to_thread
from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field

from onbrand.api import events
from onbrand.api.authorization import (
    Admin,
    AppStateDep,
    BrandCaller,
    ReadAccess,
    ReadCaller,
    TrainAccess,
    TrainCaller,
    UserRoute,
)
from onbrand.api.files import links_to
from onbrand.api.idempotency import OnlyOnce, as_json
from onbrand.api.input import Input
from onbrand.api.lists import Listed, Paging, listed
from onbrand.families.tokens import at_hand
from onbrand.services import data_checks, job_validation, jobs, metrics, training_job
from onbrand.services.logs import readable

router = APIRouter(prefix="/v1/brands/{brand_id}/training-jobs", tags=["training jobs"], route_class=UserRoute)


class NewName(Input):
    """A job's new name."""

    name: str = Field(min_length=1, max_length=200)


async def shown(caller: BrandCaller, job: training_job.TrainingJob) -> training_job.TrainingJob:
    """The job with its URLs, and with signed links in place of its samples' keys."""
    at = f"{caller.state.settings.url}/v1/brands/{job.brand_id}/training-jobs/{job.id}"
    urls = training_job.JobUrls(get=at, cancel=f"{at}/cancel", events=f"{at}/events")
    samples = await links_to(caller, job.sample_keys, "job.link", {"job_id": job.id})
    return job.model_copy(update={"urls": urls, "sample_images_urls": [link.url for link in samples]})


@router.post("", status_code=201, response_model=training_job.TrainingJob)
async def create_job(body: job_validation.NewJob, caller: TrainCaller, once: OnlyOnce) -> JSONResponse:
    """Start a fine-tuning of an adapter on images of the brand."""

    async def create() -> training_job.TrainingJob:
        terms = caller.state.terms
        return await shown(caller, await jobs.create_job(caller.session, caller.brand_id, caller.user_id, body, terms))

    return await once.answer(caller, 201, create)


@router.post(":check")
async def check_job(body: job_validation.NewCheck, access: TrainAccess, state: AppStateDep) -> data_checks.CheckedData:
    """Check the images and captions that a job would train on. Each finding has a remedy; no job is created."""
    async with access.open() as caller:
        target, samples = await jobs.samples_of(caller.session, caller.brand_id, body, state.recommended)
    lengths = await anyio.to_thread.run_sync(at_hand, body.model_type, state.settings.bases)
    target = replace(target, text_lengths=lengths)
    findings = await anyio.to_thread.run_sync(data_checks.examine, samples, target)
    checked = data_checks.checked_data(findings, len(samples), target)
    async with access.open() as caller:  # a removed member gets no result
        await jobs.record_check(caller.session, caller.brand_id, samples, checked)
    return checked


@router.get("", response_model=Listed)
async def list_jobs(caller: ReadCaller, paging: Paging) -> dict[str, Any]:
    """The brand's training jobs."""
    page = await jobs.list_jobs(caller.session, caller.brand_id, paging.limit, paging.cursor)
    return listed(page) | {"data": [as_json(await shown(caller, job)) for job in page.data]}


@router.get("/{job_id}")
async def get_job(job_id: UUID, caller: ReadCaller) -> training_job.TrainingJob:
    """The current state of one training job."""
    return await shown(caller, await jobs.get_job(caller.session, caller.brand_id, str(job_id)))


@router.patch("/{job_id}")
async def rename_job(job_id: UUID, body: NewName, caller: TrainCaller) -> training_job.TrainingJob:
    """Rename an own job."""
    return await shown(caller, await jobs.rename(caller.session, caller.brand_id, str(job_id), body.name))


@router.post("/{job_id}/cancel", response_model=training_job.TrainingJob)
async def cancel_job(job_id: UUID, caller: TrainCaller, once: OnlyOnce) -> JSONResponse:
    """Cancel an own job; it ends at its next report."""

    async def cancel() -> training_job.TrainingJob:
        return await shown(caller, await jobs.request_cancel(caller.session, caller.brand_id, str(job_id)))

    return await once.answer(caller, 200, cancel)


@router.post("/{job_id}/stop", response_model=training_job.TrainingJob)
async def stop_job(job_id: UUID, caller: TrainCaller, once: OnlyOnce) -> JSONResponse:
    """Stop an own job that trains now; it publishes its best step so far."""

    async def stop() -> training_job.TrainingJob:
        return await shown(caller, await jobs.request_stop(caller.session, caller.brand_id, str(job_id)))

    return await once.answer(caller, 200, stop)


@router.post("/{job_id}/retry", status_code=201, response_model=training_job.TrainingJob)
async def retry_job(job_id: UUID, caller: TrainCaller, once: OnlyOnce) -> JSONResponse:
    """Create a job like one that failed or was canceled; it resumes from that job's last checkpoint if it fits."""

    async def retry() -> training_job.TrainingJob:
        made = await jobs.retry(caller.session, caller.brand_id, caller.user_id, str(job_id), caller.state.terms)
        return await shown(caller, made)

    return await once.answer(caller, 201, retry)


@router.delete("/{job_id}", status_code=204, response_class=Response)
async def delete_job(job_id: UUID, caller: Admin) -> None:
    """Delete a job that has ended; its model stays."""
    await jobs.delete_job(caller.session, caller.store, caller.brand_id, str(job_id))


@router.get("/{job_id}/metrics")
async def get_metrics(
    job_id: UUID,
    caller: ReadCaller,
    limit: Annotated[int, Query(description="Points at most, 2 to 1000, spread evenly.")] = 200,
    after_step: Annotated[int, Query(ge=-1, le=10**9, description="Only later steps.")] = -1,
) -> metrics.MetricsSeries:
    """The training's metrics by step: loss, validation, learning rate, throughput and time left."""
    return await metrics.series_of(caller.session, caller.brand_id, str(job_id), limit, after_step)


@router.get("/{job_id}/samples", response_model=Listed)
async def list_samples(job_id: UUID, caller: ReadCaller, paging: Paging) -> dict[str, Any]:
    """Links to the sample images: for each prompt the base's image, then the adapter's at each sampled step."""
    page = await metrics.samples(caller.session, caller.brand_id, str(job_id), paging.limit, paging.cursor)
    links = await links_to(caller, [sample.key for sample in page.data], "job.link", {"job_id": str(job_id)})
    linked = [sample.model_copy(update={"url": link.url}) for sample, link in zip(page.data, links, strict=True)]
    return listed(page.model_copy(update={"data": linked}))


@router.get("/{job_id}/logs", response_model=Listed)
async def read_log(job_id: UUID, caller: ReadCaller, paging: Paging) -> dict[str, Any]:
    """The lines of the run's log, oldest first."""
    return listed(await metrics.logs(caller.session, caller.brand_id, str(job_id), paging.limit, paging.cursor))


@router.get("/{job_id}/events", response_class=StreamingResponse, responses=events.OVER)
async def watch_job(job_id: UUID, access: ReadAccess, after: events.After) -> Response:
    """Progress, metrics, samples, the log and status as Server-Sent Events until the job ends."""

    async def look(caller: BrandCaller, after: int) -> events.Snapshot:
        job = await jobs.get_job(caller.session, caller.brand_id, str(job_id))
        seen = await jobs.events(caller.session, caller.brand_id, str(job_id), after)
        return events.Snapshot(job.status, [readable(event) for event in seen])

    return await events.stream(access, str(job_id), after, look)
