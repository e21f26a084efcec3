"""Import of another trainer's LoRA file as the brand's next version: convert, verify against the original, publish.

An import is a job with the same ticket, queue, row and outcomes as a training. Without a loop it needs no Ray Train.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from onbrand.config import Settings
from onbrand.errors import AdapterRefused, Canceled, NotFound
from onbrand.families import lora
from onbrand.families.bases import base_source, s3_access
from onbrand.families.family import Family, draw
from onbrand.families.loading import load_family
from onbrand.families.lora_conversion import FileKind, attached, read_foreign
from onbrand.internal.client import SystemClient
from onbrand.internal.training import TrainingSpec
from onbrand.lora_names import Dropped, ImportOptions
from onbrand.safetensors_header import must_be_plain_safetensors
from onbrand.training.dispatch.tickets import TicketSource
from onbrand.training.export import (
    Label,
    diffusers_picture,
    header,
    load_into,
    must_be_same_pictures,
    must_be_same_tensors,
)
from onbrand.training.ray.heartbeat import Heartbeat
from onbrand.training.ray.worker import Outcome, ended

security_log = logging.getLogger("onbrand.security")

_PROOF_SIDE_MAX = 512


@dataclass(frozen=True)
class Imported:
    """A file that may be published.

    Args:
        difference: largest difference of a pixel (0..1) between diffusers' pictures with the original and this file.
        dropped: layers of text encoders that were left out.
    """

    data: bytes = field(repr=False)
    rank: int
    kind: FileKind
    num_layers: int
    difference: float
    dropped: Dropped | None = None

    def metrics(self) -> dict[str, Any]:
        """Facts of the import for the model's row."""
        left_out = {} if self.dropped is None else {"dropped": self.dropped.as_json()}
        return {"imported": self.kind, "layers": self.num_layers, "difference": self.difference, **left_out}


def import_adapter(
    data: bytes, family: Family, trigger_word: str, title: str, options: ImportOptions = ImportOptions()
) -> Imported:
    """Convert another trainer's file and verify the result.

    Diffusers must draw the same picture with the original, applied by its own loader, and with the converted file. A
    picture drawn by the base's recommendations, in the family's dtype, must have finite values only. The family is
    unchanged at the end.

    Raises:
        AdapterRefused: the file cannot be served on this base (`families.lora_conversion`), or pictures have values
            that are not finite.
        TrainingFailed: the converted file is not the same adapter.
    """
    side = min(_PROOF_SIDE_MAX, family.recommended.resolution)
    prompt = f"photo of {trigger_word}"
    foreign = read_foreign(data, family, options)
    with attached(foreign, family) as own:
        original = diffusers_picture(family.pipeline, family, prompt, 0, side)
    _must_be_drawable(bool(np.isfinite(original).all()), family)
    label = Label(title, trigger_word, own.rank, side)
    written = lora.serialize(family, own.state, own.rank, own.targets, header(family.spec, label, own.state))
    must_be_plain_safetensors(written)
    lora.read_adapter(written, family)
    try:
        load_into(family.pipeline, written)
        must_be_same_tensors(family.denoiser, own.state)
        published = diffusers_picture(family.pipeline, family, prompt, 0, side)
        drawn = draw(family, [prompt], [0], height=side, width=side)
    finally:
        lora.detach(family.denoiser)
    _must_be_drawable(bool(torch.isfinite(drawn).all()), family)
    difference = must_be_same_pictures(original, published, family.dtype)
    return Imported(written, own.rank, foreign.kind, len(own.state) // 2, difference, foreign.dropped)


def _must_be_drawable(is_finite: bool, family: Family) -> None:
    if not is_finite:
        dtype = str(family.dtype).removeprefix("torch.")
        raise AdapterRefused(
            f"the adapter is too strong: a picture drawn with it in {dtype} holds values that are not finite; "
            "train it again with a lower learning rate, or scale its weights down"
        )


def import_worker(tickets: TicketSource) -> Outcome:
    """The task on the cluster: fetch the file by ticket, import it, publish it, and write the outcome to the row."""
    settings = Settings()
    with SystemClient(settings.system_url, tickets.newest()) as client:
        return ended(client, lambda: _import(settings, client, tickets))


def _import(settings: Settings, client: SystemClient, tickets: TicketSource) -> None:
    spec = client.spec()
    with Heartbeat(client, settings.ticket_seconds / 3, tickets.newest) as heartbeat:
        on_gpu = settings.device != "cpu" and torch.cuda.is_available()
        family = load_family(
            spec.model_type,
            base_source(spec.model_type, settings.bases),
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            device="cuda" if on_gpu else "cpu",
            storage_options=s3_access(settings),
        )
        title = f"{spec.brand_id} {spec.model_type} LoRA"
        try:
            imported = import_adapter(_read(client), family, _trigger_word(spec), title, _options(spec))
        except AdapterRefused:
            security_log.warning("the file of an import was refused")
            raise
        if heartbeat.gone:
            raise NotFound("the job is not there any more, or has ended")
        if heartbeat.stop:
            raise Canceled("the job was canceled")
    facts = {
        "rank": imported.rank,
        "trigger_word": _trigger_word(spec),
        "base_revision": family.revision,
        "metrics": imported.metrics(),
    }
    client.publish(imported.data, facts)


def _read(client: SystemClient) -> bytes:
    """The file as uploaded. Raises AdapterRefused if it is gone: an earlier attempt has ended the job then."""
    try:
        return client.read_import()
    except NotFound:
        raise AdapterRefused("the file to import is gone; import it again") from None


def _options(spec: TrainingSpec) -> ImportOptions:
    said = spec.training_config.get("import") or {}
    return ImportOptions(said.get("text_encoder", "refuse"), said.get("lora_alpha"))


def _trigger_word(spec: TrainingSpec) -> str:
    return str(spec.training_config.get("trigger_word") or spec.brand_id)
