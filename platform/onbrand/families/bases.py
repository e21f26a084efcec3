"""Sources of base models: a folder, an S3 URL, a Hugging Face id, or the tiny base that ships with the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from onbrand.addresses import is_s3
from onbrand.config import Settings
from onbrand.errors import BaseModelRefused
from onbrand.families.spec import SPECS, Recommended, with_family_defaults

_COMPLETE = "complete"
"""A file in the folder of a downloaded base, written when all of it is there."""
_WHOLE_HASH_BYTES = 2**30
_SAMPLE_BYTES = 2**20
_WEIGHT_SUFFIXES = (".safetensors", ".json", ".txt", ".model")


def base_source(family: str, bases: dict[Any, str]) -> str:
    """The configured base of `family`, or the folder of its tiny base."""
    if family in bases:
        return bases[family]
    from onbrand.families.tiny import tiny_base

    return str(tiny_base(family))


def s3_access(settings: Settings) -> dict[str, Any]:
    """fsspec options for `s3://` bases: the settings' key where this process has one, else the machine's own AWS chain.
    Workers of one machine find bases in the cache, where `onbrand up` has put them."""
    client = {"endpoint_url": settings.s3_endpoint} if settings.s3_endpoint else {}
    return {"key": settings.s3_access_key, "secret": settings.s3_secret_key, "client_kwargs": client}


def base_folder(
    family: str, source: str, cache: Path | None = None, storage_options: dict[str, Any] | None = None
) -> Path:
    """A local folder with the base at `source`.

    Args:
        source: a folder, `s3://bucket/prefix`, or a Hugging Face id such as `stabilityai/stable-diffusion-xl-base-1.0`.
        cache: folder for downloads; None: `~/.cache/onbrand/bases`.
        storage_options: fsspec options for `s3://`.

    Raises BaseModelRefused: nothing there, or not a diffusers pipeline of this family.
    """
    cache = cache or _usual_cache()
    if is_s3(source):
        folder = _download_s3(family, source, cache, storage_options or {})
    elif Path(source).expanduser().exists() or source.startswith(("/", ".", "~")):
        folder = Path(source).expanduser()
    else:
        folder = _download_hub(family, source, cache)
    return must_be_base(family, folder, source)


def folder_at_hand(source: str, cache: Path | None = None) -> Path | None:
    """The folder of the base at `source` if it is on this machine; fetches nothing. Arguments as for `base_folder`."""
    cache = cache or _usual_cache()
    if is_s3(source):
        folder = _s3_folder(source, cache)
        return folder if (folder / _COMPLETE).is_file() else None
    local = Path(source).expanduser()
    if local.is_dir():
        return local
    from huggingface_hub import try_to_load_from_cache

    try:
        index = try_to_load_from_cache(source, "model_index.json", cache_dir=cache / "hub")
    except ValueError:  # not a repository name
        return None
    return Path(index).parent if isinstance(index, str) else None


def _usual_cache() -> Path:
    return Path("~/.cache/onbrand/bases").expanduser()


def _s3_folder(source: str, cache: Path) -> Path:
    return cache / hashlib.sha256(source.encode()).hexdigest()[:24]


def must_be_base(family: str, folder: Path, source: str | None = None) -> Path:
    """Return `folder` if it holds a diffusers pipeline of `family`, else raise BaseModelRefused."""
    source = source or str(folder)
    index = folder / "model_index.json"
    if not index.is_file():
        raise BaseModelRefused(
            f"the base model for {family}, '{source}', is not a diffusers pipeline folder: it has no model_index.json; "
            f"point ONBRAND_BASES at one, or leave {family} out of it to use the tiny flavour",
            param=f"bases.{family}",
        )
    try:
        found = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError):
        found = None
    wanted = SPECS[family].pipeline_classes  # type: ignore[index]
    if found not in wanted:
        raise BaseModelRefused(
            f"the base model for {family}, '{source}', is a {found or 'broken model_index.json'}, not a {wanted[0]}; "
            f"configure a {SPECS[family].title} base for {family}",  # type: ignore[index]
            param=f"bases.{family}",
        )
    return folder


def recommended(family: str, folder: Path) -> Recommended:
    """The base's recommendations (`onbrand.json`), completed by the family's defaults. Raises BaseModelRefused."""
    path = folder / "onbrand.json"
    try:
        return with_family_defaults(family, json.loads(path.read_text()) if path.is_file() else {})
    except ValidationError as problem:
        first = problem.errors(include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BaseModelRefused(f"{path}: {field}: {first['msg']}; correct it", param=f"bases.{family}") from None


def revision(folder: Path) -> str:
    """A hex digest that identifies this base's content.

    Folders up to 1 GiB are hashed in full; of larger ones each file's name, size, and first and last MiB.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in _WEIGHT_SUFFIXES)
    whole = sum(p.stat().st_size for p in files) <= _WHOLE_HASH_BYTES
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes() if whole else _ends(path))
    return digest.hexdigest()


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        first = file.read(_SAMPLE_BYTES)
        file.seek(max(0, path.stat().st_size - _SAMPLE_BYTES))
        return first + file.read(_SAMPLE_BYTES)


def _download_s3(family: str, source: str, cache: Path, storage_options: dict[str, Any]) -> Path:
    import fsspec
    from botocore.exceptions import BotoCoreError, ClientError

    folder = _s3_folder(source, cache)
    if (folder / _COMPLETE).is_file():
        return folder
    try:
        filesystem, root = fsspec.core.url_to_fs(source, **storage_options)
        filesystem.get(root.rstrip("/") + "/", str(folder) + "/", recursive=True)
    except (OSError, ValueError, BotoCoreError, ClientError) as problem:
        raise BaseModelRefused(
            f"the base model for {family} cannot be read from {source} ({type(problem).__name__}); "
            "check the URL and the credentials",
            param=f"bases.{family}",
        ) from None
    (folder / _COMPLETE).touch()
    return folder


def _download_hub(family: str, source: str, cache: Path) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        return Path(snapshot_download(source, cache_dir=cache / "hub", allow_patterns=patterns))
    except Exception as problem:
        raise BaseModelRefused(
            f"the base model for {family}, '{source}', is neither a folder nor a Hugging Face id that can be fetched "
            f"({type(problem).__name__}); check the name and the network, or give a folder",
            param=f"bases.{family}",
        ) from None
