"""Training jobs that continue from a published model of the brand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onbrand.brand import Ticket
from onbrand.db.session import Session
from onbrand.errors import InvalidInput, NotFound
from onbrand.internal.training import StartModel
from onbrand.services.models import Model, get_model, read_weights
from onbrand.storage.store import BrandStore

FIELD = "continue_from"
"""Field of a job's configuration: the name of the model that it continues from."""
_PARAM = f"training_config.{FIELD}"


async def start_of(
    session: Session, brand_id: str, model_type: str, config: Mapping[str, Any]
) -> tuple[str | None, dict[str, Any]]:
    """The id of the model that a configuration continues from, and the completed configuration.

    Rank, targets and trigger word default to the model's.

    Raises:
        NotFound: there is no such model in this brand.
        InvalidInput: it is of another family, or the given rank or targets differ from its own.
    """
    named = config.get(FIELD)
    if named is None:
        return None, dict(config)
    model = await get_model(session, brand_id, named)
    if model.model_type != model_type:
        raise InvalidInput(f"{model.name} is of type {model.model_type}; this job trains {model_type}", param=_PARAM)
    its_own = {"rank": model.rank, "targets": await _targets_of(session, model), "trigger_word": model.trigger_word}
    for name in ("rank", "targets"):
        said, own = config.get(name), its_own[name]
        if said is not None and own is not None and said != own:
            raise InvalidInput(f"{name} of {model.name} is {own}; leave it out", param=f"training_config.{name}")
    known = {name: value for name, value in its_own.items() if value is not None}
    return model.id, {**known, **config, FIELD: model.name}


async def _targets_of(session: Session, model: Model) -> str | None:
    """The `targets` of the model's job; None if unknown, and then the file itself must fit (`Trainer`)."""
    row = await session.maybe(
        "select training_config ->> 'targets' as targets from app.lora_training_jobs where brand_id = %s and id = %s",
        [model.brand_id, model.job_id],
    )
    return None if row is None else row["targets"]


async def start_for_worker(session: Session, job: Mapping[str, Any]) -> StartModel | None:
    """The model that the ticket's job continues from; None if it continues from none, or the model was deleted."""
    if job["start_model_id"] is None:
        return None
    return StartModel.model_validate((await get_model(session, job["brand_id"], job["start_model_id"])).model_dump())


async def read_start(session: Session, store: BrandStore, ticket: Ticket) -> bytes:
    """Weights of the model that the ticket's job continues from. Raises NotFound (none, or deleted), AdapterRefused."""
    row = await session.one(
        "select start_model_id from app.lora_training_jobs where brand_id = %s and id = %s"
        " and status in ('pending', 'training')",
        [ticket.brand_id, ticket.job_id],
    )
    if row["start_model_id"] is None:
        raise NotFound("this job begins with no model")
    _, data = await read_weights(session, store, ticket.brand_id, row["start_model_id"])
    return data
