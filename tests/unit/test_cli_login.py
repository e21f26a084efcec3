"""The file with the token, and the hosts that it is sent to."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from onbrand.cli.exits import Refused
from onbrand.cli.login import connect, credentials_path, keep_credentials, read_credentials


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("ONBRAND_URL", raising=False)
    monkeypatch.delenv("ONBRAND_TOKEN", raising=False)


def test_credentials_are_readable_by_their_owner_only() -> None:
    path = keep_credentials(url="http://here", token="t")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_credentials()["token"] == "t"


def test_a_broken_credentials_file_is_nobody_logged_in() -> None:
    keep_credentials(url="http://here", token="t")
    credentials_path().write_text("{")
    with pytest.raises(Refused, match="onbrand login"):
        connect()


def test_the_kept_token_goes_to_its_own_platform() -> None:
    keep_credentials(url="http://here", token="t")
    with connect() as client:
        assert (client.base_url, client.token) == ("http://here", "t")


def test_the_kept_token_is_not_sent_to_another_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_credentials(url="http://here", token="t")
    monkeypatch.setenv("ONBRAND_URL", "http://elsewhere")
    with pytest.raises(Refused, match="elsewhere"):
        connect()


def test_the_environment_goes_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_credentials(url="http://here", token="t")
    monkeypatch.setenv("ONBRAND_URL", "http://elsewhere")
    monkeypatch.setenv("ONBRAND_TOKEN", "other")
    with connect() as client:
        assert (client.base_url, client.token) == ("http://elsewhere", "other")
