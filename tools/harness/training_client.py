"""An asynchronous client of the internal routes for training tickets, for tests within one event loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onbrand.internal.async_client import AsyncSystemClient
from onbrand.internal.client import (
    Call,
    credentials_of,
    failure_call,
    publish_call,
    report_call,
    sample_call,
)
from onbrand.internal.training import PublishedModel, ReportResponse, RunCredentials, TrainingSpec


class AsyncTrainingClient(AsyncSystemClient):
    """`AsyncSystemClient` with the calls that a training worker makes by the blocking client."""

    async def __aenter__(self) -> AsyncTrainingClient:
        return self

    async def spec(self) -> TrainingSpec:
        """The job's configuration and images."""
        return TrainingSpec.model_validate(await self._json(Call("GET", "/training")))

    async def read_asset(self, asset_id: str) -> bytes:
        """The bytes of one image of this job."""
        return (await self._send(Call("GET", f"/training/assets/{asset_id}"))).content

    async def read_import(self) -> bytes:
        """The file that this job imports."""
        return (await self._send(Call("GET", "/training/import"))).content

    async def report_findings(self, findings: Sequence[Mapping[str, Any]]) -> ReportResponse:
        """Report the data doctor's findings."""
        return ReportResponse.model_validate(await self._json(report_call(None, None, findings=findings)))

    async def report(
        self,
        progress: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        lines: Sequence[Mapping[str, Any]] = (),
    ) -> ReportResponse:
        """Report progress, metrics and log lines; also the heartbeat."""
        return ReportResponse.model_validate(await self._json(report_call(progress, metrics, lines)))

    async def add_sample(
        self, step: int, index: int, data: bytes, content_type: str = "image/png", drawn_by: str = "adapter"
    ) -> None:
        """Store a sample image of a training step."""
        await self._send(sample_call(step, index, data, content_type, drawn_by))

    async def publish(self, data: bytes, facts: Mapping[str, Any]) -> PublishedModel:
        """Publish the safetensors `data` as the brand's next version; completes the job."""
        return PublishedModel.model_validate(await self._json(publish_call(data, facts)))

    async def fail(self, code: str, message: str) -> None:
        """End the job as failed, with a reason for its owner."""
        await self._send(failure_call("/training/fail", code, message))

    async def canceled(self) -> None:
        """End the job as canceled at its owner's request."""
        await self._send(Call("POST", "/training/canceled"))

    async def credentials(self) -> RunCredentials | None:
        """Session credentials for the run's folder on S3, or None."""
        return credentials_of(await self._json(Call("POST", "/training/credentials")))
