"""A base model on a real S3 (Ceph) is fetched once a machine, identified by its metadata, or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest

from onbrand.config import Settings
from onbrand.errors import BaseModelRefused
from onbrand.families import bases
from onbrand.families.tiny import tiny_base
from onbrand.local.platform import fetch_bases
from onbrand.services.generations import recommended_of
from tests.s3.ceph import CephS3

NOBODY = {
    "key": "nobody",
    "secret": "nothing",
    "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"},
    "config_kwargs": {"retries": {"max_attempts": 0}},
}


@pytest.fixture(scope="module")
def access(s3_server: CephS3) -> dict[str, Any]:
    key, secret = s3_server.user("keeper-of-bases")
    return {"key": key, "secret": secret, "client_kwargs": {"endpoint_url": s3_server.endpoint}}


@pytest.fixture(scope="module")
def source(access: dict[str, Any]) -> str:
    """The tiny sd15 below a prefix of a bucket."""
    filesystem = fsspec.filesystem("s3", **access)
    filesystem.mkdir("onbrand-test-bases")
    filesystem.put(f"{tiny_base('sd15')}/", "onbrand-test-bases/of/sd15/", recursive=True)
    return "s3://onbrand-test-bases/of/sd15"


def test_a_base_is_fetched_once_and_is_the_folder_that_was_put(
    source: str, access: dict[str, Any], tmp_path: Path
) -> None:
    assert bases.folder_at_hand(source, tmp_path) is None
    folder = bases.base_folder("sd15", source, tmp_path, access)
    assert bases.revision(folder) == bases.revision(tiny_base("sd15"))
    assert bases.folder_at_hand(source, tmp_path) == bases.base_folder("sd15", source, tmp_path, NOBODY) == folder


def test_what_it_advises_counts_once_it_is_here(
    source: str, access: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings(families=("sd15",), bases={"sd15": source})
    assert recommended_of(settings)["sd15"].resolution == 512
    bases.base_folder("sd15", source, storage_options=access)
    assert recommended_of(settings)["sd15"] == bases.recommended("sd15", tiny_base("sd15"))


def test_fetching_is_told_before_it_takes_its_time(
    source: str, access: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    endpoint = access["client_kwargs"]["endpoint_url"]
    settings = Settings(
        families=("sd15", "sdxl"), bases={"sd15": source},
        s3_endpoint=endpoint, s3_access_key=access["key"], s3_secret_key=access["secret"],
    )  # fmt: skip
    told: list[str] = []
    fetch_bases(settings, told.append)
    fetch_bases(settings, told.append)
    assert told == [f"Fetching the base of sd15: {source}"]


@pytest.mark.parametrize("lacks", ["a store", "a bucket", "credentials"])
def test_a_base_that_cannot_be_fetched_is_refused_with_its_url(
    access: dict[str, Any], tmp_path: Path, lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    how = {"a store": NOBODY, "a bucket": access, "credentials": access | {"key": None, "secret": None}}[lacks]
    with pytest.raises(BaseModelRefused, match=r"s3://nowhere-to-be-found/sd15") as refused:
        bases.base_folder("sd15", "s3://nowhere-to-be-found/sd15", tmp_path, how)
    assert refused.value.param == "bases.sd15"
    assert bases.folder_at_hand("s3://nowhere-to-be-found/sd15", tmp_path) is None
