"""The maximum size of a request's body in bytes, by method and path. Known before the body is read."""

from __future__ import annotations

from starlette.types import Scope

from onbrand.errors import TooLarge

JSON_BYTES = 2**20
ASSETS_BYTES = 256 * 2**20
DOCUMENT_BYTES = 32 * 2**20
IMPORT_BYTES = 513 * 2**20
"""A model file (`services.imports`) and the form around it."""
MODEL_BYTES = 2**30
IMAGE_BYTES = 64 * 2**20


def of_users(method: str, path: str) -> int:
    """The limit in bytes for a route of the API for users."""
    is_of_brand = method == "POST" and path.startswith("/v1/brands/")
    if is_of_brand and path.endswith("/documents"):
        return DOCUMENT_BYTES
    if is_of_brand and path.endswith("/models:import"):
        return IMPORT_BYTES
    is_upload = is_of_brand and path.endswith("/assets")
    is_file = method == "PUT" and path.startswith("/v1/files/")
    return ASSETS_BYTES if is_upload or is_file else JSON_BYTES


def of_workers(method: str, path: str) -> int:
    """The limit in bytes for an internal route."""
    if path.endswith("/v1/training/publish"):
        return MODEL_BYTES
    if path.endswith(("/v1/training/samples", "/v1/generation/images")):
        return IMAGE_BYTES
    return JSON_BYTES


def announced_bytes(scope: Scope) -> int:
    """The request's Content-Length; 0 without one."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def too_large(limit: int) -> TooLarge:
    """The error for a body that exceeds `limit` bytes."""
    return TooLarge(f"the body is larger than the {limit} bytes that this address accepts", param="body")
