"""Terms of a new training job: the bases' advice, the brand's limits, and all checks of its configuration and data
that need no file. The driver makes the checks that need the bytes (`training.data.checks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from onbrand.config import FamilyName, Limits
from onbrand.db.session import Session
from onbrand.errors import InvalidInput
from onbrand.families.spec import SPECS, Recommended
from onbrand.families.training_config import workers_between
from onbrand.services.data_checks import DataSample, must_be_fit, seen_in_rows, target_of

_ROWS = """
select a.id, a.name, a.object_name, a.sha256, a.width, a.height, (select c.caption from app.asset_captions c
  where c.brand_id = a.brand_id and c.asset_id = a.id order by c.version desc limit 1) as caption
from app.brand_assets a where a.brand_id = %(brand_id)s and a.id = any(%(ids)s::uuid[]) order by a.created_at, a.id
"""


@dataclass(frozen=True, slots=True)
class Terms:
    """A platform's terms for training jobs.

    Args:
        recommended: advice of each served base; empty: unknown here, and not checked.
        train_workers: workers of a job that does not set them, or their minimum and maximum.
    """

    recommended: Mapping[FamilyName, Recommended] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    train_workers: int | tuple[int, int] = 1


def num_workers_of(model_type: str, config: Mapping[str, Any], terms: Terms) -> int:
    """The minimum of workers to start a job with this (checked) configuration.

    Raises InvalidInput naming the field if the base is not served, or workers and parts cannot divide its batch.
    """
    family = cast(FamilyName, model_type)
    if not terms.recommended:
        return workers_between(config.get("num_workers"), 1, 1)[0]
    if family not in terms.recommended:
        raise InvalidInput(f"{family} is not served here; served: {', '.join(terms.recommended)}", param="model_type")
    advice = terms.recommended[family].training
    batch_size = int(config.get("batch_size") or advice.batch_size or SPECS[family].recipe.batch_size)
    fewest, most = workers_between(config.get("num_workers"), terms.train_workers, batch_size)
    _must_share(batch_size, most, config.get("accumulation"))
    return fewest


def _must_share(batch_size: int, num_workers: int, accumulation: int | None) -> None:
    if batch_size % num_workers:
        raise InvalidInput(
            f"num_workers must divide batch_size ({batch_size}); {num_workers} does not",
            param="training_config.num_workers",
        )
    if accumulation and batch_size % (num_workers * accumulation):
        raise InvalidInput(
            f"accumulation times workers ({accumulation} x {num_workers}) must divide batch_size ({batch_size})",
            param="training_config.accumulation",
        )


async def must_look_fit(
    session: Session, brand_id: str, model_type: str, config: Mapping[str, Any], asset_ids: list[str], terms: Terms
) -> None:
    """Raise DataRefused if the rows show that no job can train on these pictures: too small, or unusable captions."""
    family = cast(FamilyName, model_type)
    if family not in terms.recommended:
        return
    target = target_of(SPECS[family], config, terms.recommended[family], brand_id)
    rows = await session.all(_ROWS, {"brand_id": brand_id, "ids": asset_ids})
    must_be_fit(
        [finding for row in rows for finding in seen_in_rows(_patient(row), row["width"], row["height"], target)]
    )


def _patient(row: Mapping[str, Any]) -> DataSample:
    file = row["object_name"].rpartition("/")[2]
    return DataSample(row["id"], file, row["caption"], row["sha256"], row["name"])
