"""Checks a job's pictures and captions before it takes a GPU: errors end the job, warnings are kept in its row."""

from __future__ import annotations

from onbrand.families.aspect_buckets import smallest_side
from onbrand.families.tokens import TextLengths
from onbrand.internal.client import SystemClient
from onbrand.internal.training import TrainingSpec
from onbrand.services import data_checks
from onbrand.services.data_checks import DataSample, DataTarget
from onbrand.training.recipes import Plan

FINDINGS_KEPT = 600
"""Maximum of findings in a report. Errors come first, so the rest are warnings."""


def must_be_fit_to_train(
    client: SystemClient, spec: TrainingSpec, plan: Plan, step: int, text_lengths: TextLengths | None = None
) -> None:
    """Check the job's data by its measurements, and keep the findings in the job's row.

    Args:
        step: side lengths of the plan's buckets are multiples of it (`families.aspect_buckets.bucket_step`).
        text_lengths: the caption lengths that the base reads.

    Raises DataRefused: a finding is an error; the message names files, reasons and remedies.
    """
    target = DataTarget(plan.resolution, plan.trigger_word, smallest_side(plan.resolution, step), text_lengths)
    samples = [DataSample(asset.id, asset.file, asset.caption, asset.features) for asset in spec.assets]
    findings = data_checks.examine(samples, target)
    client.report_findings([finding.model_dump(mode="json") for finding in findings[:FINDINGS_KEPT]])
    data_checks.must_be_fit(findings)
