"""Checks a job's pictures and captions before it takes a GPU: errors end the job, warnings are kept in its row."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from onbrand.config import Limits
from onbrand.families.aspect_buckets import smallest_side
from onbrand.families.tokens import TextLengths
from onbrand.internal.training import TrainingSpec
from onbrand.sandbox.checker import Checker
from onbrand.services import data_checks
from onbrand.services.data_checks import DataSample, DataTarget, Finding
from onbrand.training.recipes import Plan

FINDINGS_KEPT = 600
"""Maximum of findings in a report. Errors come first, so the rest are warnings."""


class Line(Protocol):
    """The platform's calls that the examination needs: `onbrand.internal.client.SystemClient`."""

    def read_asset(self, asset_id: str) -> bytes: ...
    def report_findings(self, findings: list[dict[str, Any]]) -> object: ...


def must_be_fit_to_train(
    client: Line, spec: TrainingSpec, plan: Plan, limits: Limits, step: int, text_lengths: TextLengths | None = None
) -> None:
    """Check the job's data in child processes and keep the findings in the job's row.

    Args:
        step: side lengths of the plan's buckets are multiples of it (`families.aspect_buckets.bucket_step`).
        text_lengths: the caption lengths that the base reads.

    Raises:
        DataRefused: a finding is an error; the message names files, reasons and remedies.
        Unavailable, StorageError, TicketRefused: the check could not be made.
    """
    findings = examine_data(client, spec, plan, limits, step, text_lengths)
    client.report_findings([finding.model_dump(mode="json") for finding in findings[:FINDINGS_KEPT]])
    data_checks.must_be_fit(findings)


def examine_data(
    client: Line, spec: TrainingSpec, plan: Plan, limits: Limits, step: int, text_lengths: TextLengths | None = None
) -> list[Finding]:
    """The data doctor's findings for this job's pictures; holds one picture in memory at a time."""
    target = DataTarget(plan.resolution, plan.trigger_word, smallest_side(plan.resolution, step), text_lengths)
    checker = Checker(limits)
    examined = [
        data_checks.measure(
            checker,
            DataSample(asset.id, asset.file, asset.caption, asset.sha256),
            partial(client.read_asset, asset.id),
        )
        for asset in spec.assets
    ]
    return data_checks.examine(examined, target)
