"""Terms of a new training job (recommendations of bases, limits of the brand), and checks of its configuration and data
that need no file. The driver makes all checks again (`training.data.checks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from onbrand.config import FamilyName, Limits
from onbrand.db.session import Session
from onbrand.errors import InvalidInput, NotFound, TooLarge
from onbrand.families.spec import SPECS, Recommended
from onbrand.families.training_config import TrainingConfig, must_share_batch, workers_between
from onbrand.services.data_checks import DataSample, must_be_fit, seen_in_rows, target_of
from onbrand.services.pagination import known_id

_ROWS = """
select a.id, a.name, a.object_name, a.sha256, a.width, a.height, (select c.caption from app.asset_captions c
  where c.brand_id = a.brand_id and c.asset_id = a.id order by c.version desc limit 1) as caption
from app.brand_assets a where a.brand_id = %(brand_id)s and a.id = any(%(ids)s::uuid[]) order by a.created_at, a.id
"""


@dataclass(frozen=True, slots=True)
class Terms:
    """A platform's terms for training jobs.

    Args:
        recommended: of each served base; if empty, they are unknown here and not checked.
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
    recommended = terms.recommended[family].training
    batch_size = int(config.get("batch_size") or recommended.batch_size or SPECS[family].recipe.batch_size)
    fewest, most = workers_between(config.get("num_workers"), terms.train_workers, batch_size)
    must_share_batch(batch_size, most, config.get("accumulation"))
    return fewest


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
        [finding for row in rows for finding in seen_in_rows(_sample_of(row), row["width"], row["height"], target)]
    )


def _sample_of(row: Mapping[str, Any]) -> DataSample:
    file = row["object_name"].rpartition("/")[2]
    return DataSample(row["id"], file, row["caption"], row["sha256"], row["name"])


PROVIDERS = ("ray",)
"""Accepted providers. The table also has external ones, which first need a module in `training.dispatch.providers`."""
ASSETS_MAX = 500
"""Maximum pictures of a job."""
_CONFIG_FIELDS_MAX = 100


class NewJob(BaseModel):
    """A member's request for a job. `training_config` is checked against the family's bounds, field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str
    model_type: str
    training_config: dict[str, Any] = Field(default_factory=dict, max_length=_CONFIG_FIELDS_MAX)
    training_asset_ids: Annotated[list[str], FailFast()]
    provider: str = "ray"


class NewCheck(BaseModel):
    """The fields of a job to check; its name and provider do not affect its data."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_type: str
    training_config: dict[str, Any] = Field(default_factory=dict, max_length=_CONFIG_FIELDS_MAX)
    training_asset_ids: Annotated[list[str], FailFast()]
    name: str | None = None
    provider: str | None = None


def checked_config(model_type: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration to store. Raises InvalidInput naming the first field that is out of bounds."""
    if model_type not in SPECS:
        raise InvalidInput(f"model_type must be one of {', '.join(SPECS)}", param="model_type")
    try:
        checked = TrainingConfig(**config)
    except (ValidationError, TypeError) as problem:
        raise _named(problem) from None
    SPECS[model_type].must_be_size(checked.resolution, "training_config.resolution")  # type: ignore[index]
    most = checked.num_workers[1] if isinstance(checked.num_workers, tuple) else checked.num_workers
    if most and checked.batch_size:
        must_share_batch(checked.batch_size, most, checked.accumulation)
    return checked.model_dump(mode="json", exclude_none=True)


def _named(problem: ValidationError | TypeError) -> InvalidInput:
    """The first validation error, with the field's name and without the value that was sent."""
    if not isinstance(problem, ValidationError):
        return InvalidInput("training_config must be an object of known fields", param="training_config")
    first = problem.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(["training_config", *(str(part)[:80] for part in first["loc"])])
    if first["type"] == "extra_forbidden":
        known = ", ".join(TrainingConfig.model_fields)
        return InvalidInput(f"{path} is not a field of the configuration; the fields are {known}", param=path)
    return InvalidInput(f"{path}: {first['msg'].removeprefix('Value error, ')}", param=path)


def _must_be_asset_ids(ids: list[str]) -> list[str]:
    if not ids:
        raise InvalidInput("a job needs at least one asset; upload pictures first", param="training_asset_ids")
    if len(ids) > ASSETS_MAX:
        raise TooLarge(f"{len(ids)} assets; a job takes at most {ASSETS_MAX}", param="training_asset_ids")
    try:
        asset_ids = [known_id(text, "asset") for text in ids]
    except NotFound:
        raise _assets_missing() from None
    if len(set(asset_ids)) < len(asset_ids):
        raise InvalidInput("an asset is named twice", param="training_asset_ids")
    return asset_ids


def _assets_missing() -> NotFound:
    """The same message whether an asset never existed, was deleted, or is another brand's."""
    return NotFound("one of training_asset_ids is not there", param="training_asset_ids")
