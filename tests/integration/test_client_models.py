"""The client's objects have the fields of the API's schema, with the same types."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

import onbrand.client as sdk
from onbrand.services import events, logs, metrics
from onbrand.services.audit import AuditEvent
from onbrand.services.invitations import Invitation, ReceivedInvitation
from tools.harness.in_process_platform import Platform

OF_SERVICES = {
    "AuditEvent": AuditEvent,
    "Event": events.Event,
    "Invitation": Invitation,
    "ReceivedInvitation": ReceivedInvitation,
    "LogLine": logs.LogLine,
    "Sample": metrics.Sample,
}
"""Objects that lists return, whose routes name no model."""
NAMED_OTHERWISE = {"DataCheck": "CheckedData"}
WITHOUT_A_MODEL = {"Me", "Token"}
"""Objects that routes put together; tests of the client read each field."""
ONLY_OF_CLIENT = {
    ("ApiKey", "key"): "shown once, by the route that makes it",
    ("Invitation", "token"): "shown once, by the route that makes it",
    ("Upload", "send"): "only of an announcement",
    ("Event", "id"): "the `id` of a server-sent event, which is its `seq`",
}
ONLY_OF_API = {
    ("MetricsSeries", "object"): "the form of lists",
    ("MetricsSeries", "has_more"): "the form of lists",
    ("MetricsSeries", "next_cursor"): "the form of lists",
    ("Event", "seq"): "the `id` of a server-sent event",
    ("Event", "subject_id"): "in the stream's address",
    ("Event", "at"): "not sent in streams",
}
OBJECTS = [
    name
    for name in sdk.__all__
    if isinstance(kind := getattr(sdk, name), type) and issubclass(kind, pydantic.BaseModel)
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(OBJECTS) - WITHOUT_A_MODEL))
def test_a_clients_object_has_the_fields_of_the_api(platform: Platform, name: str) -> None:
    served, known = served_fields(platform, name), fields_of(getattr(sdk, name).model_json_schema())
    served = {field: kinds for field, kinds in served.items() if (name, field) not in ONLY_OF_API}
    known = {field: kinds for field, kinds in known.items() if (name, field) not in ONLY_OF_CLIENT}
    assert known == served


def served_fields(platform: Platform, name: str) -> dict[str, set[str]]:
    if name in OF_SERVICES:
        return fields_of(OF_SERVICES[name].model_json_schema(mode="serialization"))
    return fields_of(platform.app.openapi()["components"]["schemas"][NAMED_OTHERWISE.get(name, name)])


def fields_of(schema: dict[str, Any]) -> dict[str, set[str]]:
    """The JSON types of each field; `null` is left out, because the client gives optional fields a default."""
    return {name: kinds_of(field) - {"null"} for name, field in schema["properties"].items()}


def kinds_of(field: dict[str, Any]) -> set[str]:
    if "anyOf" in field:
        return set().union(*(kinds_of(each) for each in field["anyOf"]))
    if "$ref" in field or "allOf" in field:
        return {"object"}
    return {field.get("type", "any")}
