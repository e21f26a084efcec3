"""Ray's head in a private folder: which address file is trusted, what it inherits, and what listens on its ports."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from onbrand.config import Settings
from onbrand.errors import ConfigurationError
from onbrand.local.platform import Platform, must_be_free, with_absolute_bases
from onbrand.local.ray_head import RAY_FOLDER, RayHead, free_ports
from onbrand.secrets_file import with_logins

NOBODY = 65534
LISTENER = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
time.sleep(60)
"""
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '''{LISTENER}'''])"


@pytest.fixture
def head(tmp_path: Path) -> RayHead:
    """A head whose Ray has reported its address."""
    head = RayHead(tmp_path, {})
    head._private = tmp_path / "private"
    (head._private / RAY_FOLDER).mkdir(parents=True)
    head._private.chmod(0o700)
    (head._private / RAY_FOLDER).chmod(0o777)
    (head._private / RAY_FOLDER / "ray_current_cluster").write_text("127.0.0.1:1234\n")
    return head


def test_an_address_of_ours_is_taken(head: RayHead) -> None:
    assert head._address() == "127.0.0.1:1234"


def test_ray_gets_a_child_of_the_closed_folder_and_chooses_its_port_itself(head: RayHead) -> None:
    command = head._command()
    assert f"--temp-dir={head._private / RAY_FOLDER}" in command
    assert "--port=0" in command


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user, which takes root")
@pytest.mark.parametrize("name", ["", f"{RAY_FOLDER}/ray_current_cluster"])
def test_an_address_that_another_user_may_have_written_is_refused(head: RayHead, name: str) -> None:
    os.chown(head._private / name, NOBODY, NOBODY)
    with pytest.raises(ConfigurationError, match="another user"):
        head._address()


def test_a_folder_that_became_open_is_refused(head: RayHead) -> None:
    head._private.chmod(0o777)
    with pytest.raises(ConfigurationError, match="other users may enter"):
        head._address()


def test_the_token_is_made_for_us_alone(tmp_path: Path) -> None:
    environment = RayHead(tmp_path, {}, no_proxy=("::1", "10.0.0.7"))._own_environment()
    token = Path(environment["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert {"127.0.0.1", "localhost", "::1", "10.0.0.7"} <= set(environment["no_proxy"].split(","))


def test_only_a_process_of_the_cluster_counts_as_who_listens(tmp_path: Path) -> None:
    head = RayHead(tmp_path, {})
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        assert not head.listens_at(stranger.getsockname()[1])
        with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as keeper:
            assert keeper.stdout is not None
            port = int(keeper.stdout.readline())
            head._keeper = keeper  # type: ignore[assignment]
            try:
                assert head.listens_at(port)
                assert not head.listens_at(stranger.getsockname()[1])
            finally:
                subprocess.run(["pkill", "-P", str(keeper.pid)], check=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::", "0.0.0.0", "localhost"])
def test_a_free_port_of_any_own_address_is_found(host: str) -> None:
    must_be_free(host, free_ports(1, host)[0])
    platform = Platform(Settings(host=host, port=0))
    assert platform.settings.port > 0
    assert platform.url.endswith(f":{platform.settings.port}")


def test_an_address_of_another_machine_is_refused_where_a_free_port_is_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="--host"):
        Platform(Settings(host="2001:db8::1", port=0))


def test_bases_in_folders_are_found_from_every_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my base #1").mkdir()
    known = {"sd15": "my base #1", "sdxl": "org/name", "flux": "s3://bucket/base"}
    bases = with_absolute_bases(Settings(bases=known)).bases  # type: ignore[arg-type]
    assert bases == known | {"sd15": str(tmp_path / "my base #1")}


def test_a_replica_forgets_libpqs_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c role=anon")
    with_logins(Settings(data_dir=tmp_path), "web")
    assert "PGOPTIONS" not in os.environ
