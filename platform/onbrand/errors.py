"""Every error Onbrand raises on purpose: its code, its HTTP status and its fields, in one place.

Rendering for HTTP (RFC 9457 and OpenAI's `error` object) is in `onbrand.api.problems`.
"""

from __future__ import annotations

from typing import Any, ClassVar


class OnbrandError(Exception):
    """Base of all errors raised on purpose. Keeps its fields in a dict, so it survives pickling between processes.

    Args:
        message: what happened, to which input, and what to do; safe to show to the caller.
        fields: anything a program may want to read, e.g. ``param="steps"``, ``retry_after=3``.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Something went wrong"

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.fields))

    def anew(self) -> OnbrandError:
        """The same to be raised again: one that was raised holds on to all that was under way then."""
        return _rebuild(type(self), self.message, self.fields)

    @property
    def param(self) -> str | None:
        """The input that was wrong, as the caller named it, or None."""
        return self.fields.get("param")


def of_code(code: str, message: str, **fields: Any) -> OnbrandError:
    """The class whose `code` it is, as it was before it became words; OnbrandError for a code that is nobody's."""
    kinds = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, OnbrandError)]
    return next((kind for kind in kinds if kind.code == code), OnbrandError)(message, **fields)


def _rebuild(kind: type[OnbrandError], message: str, fields: dict[str, Any]) -> OnbrandError:
    return kind(message, **fields)


class InvalidInput(OnbrandError):
    """A value is out of bounds or contradicts another; ``param`` names it."""

    status, code, title = 422, "invalid_input", "The input is not valid"


class DataRefused(InvalidInput):
    """Training pictures or captions that a job must not start with; ``findings`` holds each with its remedy."""

    code, title = "data_refused", "The training data is not fit to train on"


class Unauthenticated(OnbrandError):
    """No credential, or one that is not (or no longer) good."""

    status, code, title = 401, "unauthenticated", "Log in first"


class Forbidden(OnbrandError):
    """Own brand, but the caller's role is too low for this verb."""

    status, code, title = 403, "forbidden", "Your role does not allow this"


class CrossSiteRefused(Forbidden):
    """A request that comes with a page's cookie, but not provably from our own page."""

    code, title = "cross_site_refused", "Not from our own page"


class NotFound(OnbrandError):
    """Not there, or another brand's: the same answer for both, always."""

    status, code, title = 404, "not_found", "Not found"


class ModelGone(NotFound):
    """The model was deleted after its generation was admitted; its id never comes back."""


class Conflict(OnbrandError):
    """The state of the thing does not allow this now."""

    status, code, title = 409, "conflict", "Conflict"


class RequestTimeout(OnbrandError):
    """A request came too slowly, or was the slowest of too many."""

    status, code, title = 408, "request_timeout", "Too slow"


class TooLarge(OnbrandError):
    """More bytes, pixels or files than the limit; the message holds the limit."""

    status, code, title = 413, "too_large", "Too large"


class UnsupportedMedia(OnbrandError):
    """Not a decodable file of an accepted type."""

    status, code, title = 415, "unsupported_media", "File type not accepted"


class TooManyRequests(OnbrandError):
    """A limit in time or in a queue; ``retry_after`` holds seconds."""

    status, code, title = 429, "too_many_requests", "Too many requests"


class Unavailable(OnbrandError):
    """A part of the platform cannot answer now; trying later is right."""

    status, code, title = 503, "unavailable", "Not available now"


class EngineLost(OnbrandError):
    """What drew a generation died under it again and again; it is not begun any more."""

    code, title = "engine_lost", "The engine was lost"


class TicketRefused(Unauthenticated):
    """A system ticket is forged, expired, or for another brand or job."""

    code, title = "ticket_refused", "Ticket refused"


class AdapterRefused(OnbrandError):
    """A LoRA file does not fit its base, its row, or the rules (keys, shapes, dtypes, finiteness, hash)."""

    status, code, title = 422, "adapter_refused", "Adapter refused"


class NotFinite(OnbrandError):
    """What was drawn overflowed: there is no picture in it."""

    status, code, title = 422, "picture_not_finite", "The picture overflowed"


class NotAsPublished(AdapterRefused):
    """Stored bytes are not those of the row: a fault of the store, which may be mended, and not of the content."""

    code, title = "not_as_published", "Not what was published"


class BaseModelRefused(OnbrandError):
    """A configured base model is not a folder (or URL, or id) of a pipeline of its family."""

    status, code, title = 503, "base_model_refused", "Base model refused"


class ConfigurationError(OnbrandError):
    """The platform cannot start as it is configured; the message names the setting and the remedy."""

    code, title = "configuration_error", "Configuration error"


class StorageError(OnbrandError):
    """The object store did not do what it was asked."""

    status, code, title = 503, "storage_error", "Storage error"


class TrainingFailed(OnbrandError):
    """A training run ended without an adapter; the message is the reason shown in the job's row."""

    code, title = "training_failed", "Training failed"


class OutOfMemory(TrainingFailed):
    """The device's memory is not enough for the run, however thrifty."""

    code, title = "out_of_memory", "Not enough memory"


class RanOutOfMemory(OutOfMemory):
    """A run that was thought to fit did not; it may be tried again with less."""


class Canceled(OnbrandError):
    """The owner asked for the end, and it ended."""

    status, code, title = 409, "canceled", "Canceled"
