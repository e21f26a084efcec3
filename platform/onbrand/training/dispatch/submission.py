"""A driver waits here until the job's row names its submission, so that manual submissions also keep the queue's order.

The dispatcher's own drivers wait a moment, as the row is updated after the submission. A manual submission of a pending
job leaves a note in the folder of the job's ticket. When the job may start, the dispatcher uses that submission instead
of a new one. Before that there is no ticket, so nothing can be read or trained.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from onbrand.config import Settings
from onbrand.errors import Conflict, TicketRefused, Unavailable
from onbrand.folders import write_private
from onbrand.internal.training import TrainingSpec
from onbrand.training.dispatch.tickets import ticket_folder

OWN_PATIENCE_SECONDS = 120.0
_LOOK_SECONDS = 0.5
_NOTE = "wanted"
_SUBMISSION = re.compile(r"[A-Za-z0-9_-]{1,100}")


def own_submission() -> str:
    """The id of the Ray submission whose driver this process is. Raises Conflict outside a Ray job."""
    said = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    submission = str(said.get("metadata", {}).get("job_submission_id", ""))
    if not _SUBMISSION.fullmatch(submission):
        raise Conflict(
            "this is no Ray job; submit it: ray job submit -- python -m onbrand.training.job --brand B --job J"
        )
    return submission


def wait_until_named(
    settings: Settings, brand_id: str, job_id: str, submission: str, look: Callable[[], TrainingSpec], patience: float
) -> TrainingSpec:
    """Wait until the job's row names this submission; returns the job's specification.

    Args:
        look: reads the job with its ticket; raises TicketRefused while there is none.
        patience: seconds.

    Raises:
        Conflict: another submission runs the job, or it has ended.
        Unavailable: `patience` ran out. The job keeps its place in the queue.
    """
    is_own = submission.startswith(f"onbrand-{job_id}-")
    end = time.monotonic() + (OWN_PATIENCE_SECONDS if is_own else patience)
    folder = ticket_folder(settings, brand_id, job_id)
    with contextlib.nullcontext() if is_own else offered(folder, submission):
        while time.monotonic() < end:
            spec = _seen(look)
            if spec is not None and spec.provider_job_id == submission:
                return spec
            if spec is not None and spec.provider_job_id is not None and not is_own:
                raise Conflict(f"job {job_id} is run as {spec.provider_job_id}; follow that, or cancel the job")
            time.sleep(_LOOK_SECONDS)
    raise Unavailable(
        f"the dispatcher did not take {submission} for job {job_id}: it starts jobs in their turn, and only those that "
        "are pending in that brand; a pending job stays in the queue without this submission"
    )


def _seen(look: Callable[[], TrainingSpec]) -> TrainingSpec | None:
    try:
        return look()
    except TicketRefused:
        return None


@contextlib.contextmanager
def offered(folder: Path, submission: str) -> Iterator[None]:
    """Offer the submission to the dispatcher inside the block, by a note that is written atomically, mode 0600."""
    note = folder / _NOTE
    write_private(note, submission)
    try:
        yield
    finally:
        if manual_submission(folder) == submission:
            note.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty if it holds the ticket
            folder.rmdir()


def manual_submission(folder: Path) -> str | None:
    """The submission in the note, if any. Only its id is known; nothing about it is verified yet."""
    try:
        said = (folder / _NOTE).read_text()
    except OSError:
        return None
    return said if _SUBMISSION.fullmatch(said) else None
