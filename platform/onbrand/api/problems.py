"""Errors as HTTP: RFC 9457 `application/problem+json` with OpenAI's `error` added. No stack trace, SQL or file path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from onbrand.api.input import PLACE_CHARS, place_of
from onbrand.errors import InvalidInput, NotFound, OnbrandError, TicketRefused, TooManyRequests, Unavailable

REQUEST_ID = "onbrand.request_id"
MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER_SECONDS = 2
_DETAIL_CHARS = 4_000
"""The most characters of an error's text in a response."""
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media"}
_HTTP_DETAILS = {
    400: "the body cannot be read; is it complete, and of the type that its header says?",
    404: "there is nothing at this address",
    405: "this address does not know this method",
    413: "the body is larger than this address accepts",
}


def install(app: FastAPI) -> None:
    """Make `app` answer every error with a problem body."""
    app.add_exception_handler(OnbrandError, _on_own_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _on_validation_error)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _on_http_error)  # type: ignore[arg-type]


def request_id_of(scope: Mapping[str, Any]) -> str:
    """The id of this request, which the response's header also has."""
    return str(scope.get(REQUEST_ID, "none"))


def problem(error: OnbrandError, request_id: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response for one of Onbrand's errors."""
    content = body(error.status, error.code, error.title, error.message, request_id, error.param)
    all_headers = dict(headers or {}) | _headers_of(error)
    return JSONResponse(content, error.status, headers=all_headers, media_type=MEDIA_TYPE)


def fault(request_id: str) -> JSONResponse:
    """The response for an unexpected exception: it reveals only the request id."""
    return problem(OnbrandError("something went wrong on our side; quote the request id to the operator"), request_id)


def body(status: int, code: str, title: str, detail: str, request_id: str, param: str | None = None) -> dict[str, Any]:
    """The problem's JSON: RFC 9457's members, Onbrand's, and OpenAI's `error`."""
    detail, param = detail[:_DETAIL_CHARS], param and param[:PLACE_CHARS]
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {
        "type": f"urn:onbrand:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "param": param,
        "request_id": request_id,
        "error": {"message": detail, "type": kind, "param": param, "code": code},
    }


def _headers_of(error: OnbrandError) -> dict[str, str]:
    if error.status == 401 and not isinstance(error, TicketRefused):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, TooManyRequests | Unavailable):
        return {"Retry-After": str(int(error.fields.get("retry_after", _RETRY_AFTER_SECONDS)))}
    if error.fields.get("should_retry") is False:
        return {"X-Should-Retry": "false"}  # OpenAI's clients retry after 409 and 500 without this header
    return {}


async def _on_own_error(request: Request, error: OnbrandError) -> JSONResponse:
    return problem(error, request_id_of(request.scope))


async def _on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    return problem(as_own_error(error.errors()), request_id_of(request.scope))


async def _on_http_error(request: Request, error: HTTPException) -> JSONResponse:
    """Handle Starlette's errors: unknown path, wrong method, unreadable or too large body."""
    code = _HTTP_CODES.get(error.status_code, "bad_request" if error.status_code < 500 else "internal_error")
    detail = _HTTP_DETAILS.get(error.status_code, "the request cannot be answered")
    title = HTTPStatus(error.status_code).phrase
    content = body(error.status_code, code, title, detail, request_id_of(request.scope))
    return JSONResponse(content, error.status_code, headers=error.headers, media_type=MEDIA_TYPE)


def as_own_error(faults: Sequence[Mapping[str, Any]]) -> OnbrandError:
    """pydantic's findings as one Onbrand error, without the caller's values; a malformed id in the path is NotFound."""
    first = faults[0]
    place = [str(part) for part in first["loc"]]
    if place and place[0] == "path":
        return NotFound("there is nothing at this address")
    param = place_of(place[1:] or place) if place else None
    if first["type"] == "json_invalid":
        return InvalidInput("the body is not valid JSON", param="body")
    if first["type"] == "extra_forbidden":
        return InvalidInput(f"{param} is not a field of this input; leave it out", param=param)
    message = str(first["msg"]).removeprefix("Value error, ")
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return InvalidInput(f"{param}: {message[:1].lower()}{message[1:]}{more}", param=param)
