"""All errors that Onbrand raises on purpose, each with its code, HTTP status and fields.

Rendering for HTTP (RFC 9457 and OpenAI's `error` object) is in `onbrand.api.problems`.
"""

from __future__ import annotations

from typing import Any, ClassVar


class OnbrandError(Exception):
    """Base of all errors raised on purpose. Its fields are in a dict, so it can be pickled between processes.

    Args:
        message: the problem, the input and the remedy; safe to show to the caller.
        fields: details for programs, e.g. ``param="steps"``, ``retry_after=3``.
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
        """A fresh copy to raise again: a raised exception keeps its traceback's frames alive."""
        return _rebuild(type(self), self.message, self.fields)

    @property
    def param(self) -> str | None:
        """The input that was wrong, as the caller named it, or None."""
        return self.fields.get("param")


def of_code(code: str, message: str, **fields: Any) -> OnbrandError:
    """Rebuild an error from its code; OnbrandError for an unknown code."""
    kinds = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, OnbrandError)]
    return next((kind for kind in kinds if kind.code == code), OnbrandError)(message, **fields)


def _rebuild(kind: type[OnbrandError], message: str, fields: dict[str, Any]) -> OnbrandError:
    return kind(message, **fields)


class InvalidInput(OnbrandError):
    """A value is out of bounds or contradicts another; ``param`` names it."""

    status, code, title = 422, "invalid_input", "The input is not valid"


class DataRefused(InvalidInput):
    """Training images or captions are unfit for a job; ``findings`` holds each problem with its remedy."""

    code, title = "data_refused", "The training data is not fit to train on"


class Unauthenticated(OnbrandError):
    """The credential is missing, invalid or no longer valid."""

    status, code, title = 401, "unauthenticated", "Log in first"


class Forbidden(OnbrandError):
    """The brand is the caller's, but their role is too low for this action."""

    status, code, title = 403, "forbidden", "Your role does not allow this"


class CrossSiteRefused(Forbidden):
    """A request with a page's cookie that does not provably come from our own page."""

    code, title = "cross_site_refused", "Not from our own page"


class NotFound(OnbrandError):
    """Missing, or another brand's: always the same answer for both."""

    status, code, title = 404, "not_found", "Not found"


class ModelGone(NotFound):
    """The model was deleted after its generation was admitted; its id is never reused."""


class Conflict(OnbrandError):
    """The object's current state does not allow this."""

    status, code, title = 409, "conflict", "Conflict"


class RequestTimeout(OnbrandError):
    """The request arrived too slowly, or was the slowest of too many."""

    status, code, title = 408, "request_timeout", "Too slow"


class TooLarge(OnbrandError):
    """More bytes, pixels or files than the limit; the message holds the limit."""

    status, code, title = 413, "too_large", "Too large"


class UnsupportedMedia(OnbrandError):
    """Not a decodable file of an accepted type."""

    status, code, title = 415, "unsupported_media", "File type not accepted"


class TooManyRequests(OnbrandError):
    """A rate limit or queue limit is reached; ``retry_after`` holds seconds."""

    status, code, title = 429, "too_many_requests", "Too many requests"


class Unavailable(OnbrandError):
    """A part of the platform cannot answer now; the caller should retry later."""

    status, code, title = 503, "unavailable", "Not available now"


class EngineLost(OnbrandError):
    """The engine died too often while it drew this generation, which is not started again."""

    code, title = "engine_lost", "The engine was lost"


class TicketRefused(Unauthenticated):
    """A system ticket is forged, expired, or for another brand or job."""

    code, title = "ticket_refused", "Ticket refused"


class AdapterRefused(OnbrandError):
    """A LoRA file does not fit its base, its row, or the rules (keys, shapes, dtypes, finiteness, hash)."""

    status, code, title = 422, "adapter_refused", "Adapter refused"


class NotFinite(OnbrandError):
    """The generated values overflowed (not finite), so there is no image."""

    status, code, title = 422, "picture_not_finite", "The picture overflowed"


class NotAsPublished(AdapterRefused):
    """The stored bytes differ from the row's digest: a repairable fault of the store, and not of the content."""

    code, title = "not_as_published", "Not what was published"


class BaseModelRefused(OnbrandError):
    """A configured base model is not a folder (or URL, or id) of a pipeline of its family."""

    status, code, title = 503, "base_model_refused", "Base model refused"


class ConfigurationError(OnbrandError):
    """The platform cannot start as it is configured; the message names the setting and the remedy."""

    code, title = "configuration_error", "Configuration error"


class StorageError(OnbrandError):
    """The object store could not complete an operation."""

    status, code, title = 503, "storage_error", "Storage error"


class TrainingFailed(OnbrandError):
    """A training run ended without an adapter; the message is the reason shown in the job's row."""

    code, title = "training_failed", "Training failed"


class OutOfMemory(TrainingFailed):
    """The device's memory is too small for the run, even with all memory savings."""

    code, title = "out_of_memory", "Not enough memory"


class RanOutOfMemory(OutOfMemory):
    """A run that was expected to fit ran out of memory; it may be retried with less."""


class Canceled(OnbrandError):
    """The owner requested cancellation, and it was carried out."""

    status, code, title = 409, "canceled", "Canceled"
