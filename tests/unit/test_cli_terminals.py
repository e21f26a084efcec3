"""The command line at terminals, in pipes and with odd files: one line and an exit code, never a traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from onbrand.cli import exits
from onbrand.cli.exits import failure_of

PICTURE = b"\x89PNG\r\n\x1a\n"
LISTING = """
import sys
from onbrand.cli import output
output.take_any_text()
with output.progress_bar("Größe 画 …", False) as step:
    step(50, "Größe 画 …", "läuft →")
output.show({"name": "Größe 画"}, "Größe 画 → fertig", sys.argv[1] == "json")
output.print_failure(output.Failure(1, "x", "Größe 画"), False)
"""


def run(*arguments: str | bytes, config: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `onbrand ARGUMENTS` without a user's settings in its environment."""
    return subprocess.run(
        [sys.executable, "-m", "onbrand.cli", *arguments],
        env=surroundings(config, **env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )


def surroundings(config: Path, **env: str) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("ONBRAND_", "PG"))}
    return known | {"PYTHONPATH": "platform", "XDG_CONFIG_HOME": str(config)} | env


def must_be_one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("onbrand: ")
    return lines[0]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("form", ["json", "text"])
def test_no_character_is_too_much_for_a_terminal(tmp_path: Path, encoding: str, form: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTING, form],
        env=surroundings(tmp_path, PYTHONIOENCODING=encoding),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    if form == "json":
        assert json.loads(done.stdout.decode(encoding)) == {"name": "Größe 画"}


@pytest.mark.slow
def test_a_locale_that_is_not_there_changes_nothing(tmp_path: Path) -> None:
    for locale in ("C", "POSIX", "xx_XX.nothing"):
        done = run("brand", "list", config=tmp_path, LC_ALL=locale, LANG=locale)
        assert "not logged in" in must_be_one_line(done, exits.NOT_LOGGED_IN)


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "onbrand.cli", "--help"],
        env=surroundings(tmp_path),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (exits.FAILED, "")


def test_closed_output_is_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m onbrand.cli brand list >&- 2>/dev/null"
    done = subprocess.run(["sh", "-c", command], env=surroundings(tmp_path), timeout=60, check=False)
    assert done.returncode == exits.NOT_LOGGED_IN


def test_ctrl_c_while_the_command_is_loading_is_no_traceback(tmp_path: Path) -> None:
    code = (
        "import builtins, os, signal\nreal = builtins.__import__\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "def load(name, *rest):\n"
        "    if name == 'typer': os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = load\nfrom onbrand.cli import main\nmain(['--help'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=surroundings(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (exits.INTERRUPTED, "onbrand: interrupted\n")


def test_a_file_whose_name_is_latin_1_is_named(tmp_path: Path) -> None:
    file = os.fsencode(tmp_path) + b"/logo-\xe9.png"
    with open(file, "wb") as picture:
        picture.write(PICTURE)
    known = {"ONBRAND_TOKEN": "t", "ONBRAND_URL": "http://127.0.0.1:1"}
    done = run("asset", "upload", file, "--brand", "acme", config=tmp_path, **known)
    assert done.returncode == exits.REFUSED
    assert r"onbrand: the name of the file 'logo-\xe9.png' is not in UTF-8; rename it" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_token_that_is_not_ascii_is_refused_without_it(tmp_path: Path) -> None:
    done = run("brand", "list", config=tmp_path, ONBRAND_TOKEN="gehöim", ONBRAND_URL="http://127.0.0.1:1")
    line = must_be_one_line(done, exits.REFUSED)
    assert "the token has characters" in line
    assert "geh" not in line


def test_a_password_that_is_not_utf8_is_refused_without_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onbrand.cli", "login", "a@b.example", "--password", "-", "--url", "http://127.0.0.1:1"],
        env=surroundings(tmp_path),
        input=b"geheim\xfc\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == exits.REFUSED
    assert b"password has bytes that are not UTF-8" in done.stderr
    assert b"geheim" not in done.stderr


@pytest.mark.slow
def test_a_password_in_the_address_is_not_shown(tmp_path: Path) -> None:
    done = run("brand", "list", config=tmp_path, ONBRAND_TOKEN="t", ONBRAND_URL="http://ada:geheim@127.0.0.1:1")
    line = must_be_one_line(done, exits.UNAVAILABLE)
    assert "http://127.0.0.1:1 does not answer" in line
    assert "geheim" not in line


@pytest.mark.slow
def test_a_socks_proxy_does_not_keep_the_command_from_this_machine(tmp_path: Path) -> None:
    known = {"ONBRAND_TOKEN": "t", "ALL_PROXY": "socks5://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    done = run("brand", "list", config=tmp_path, ONBRAND_URL="http://[::1]:1", **known)
    assert "http://[::1]:1 does not answer (ConnectError)" in must_be_one_line(done, exits.UNAVAILABLE)
    done = run("brand", "list", config=tmp_path, ONBRAND_URL="https://onbrand.example", **known)
    assert "httpx[socks]" in must_be_one_line(done, exits.REFUSED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"ONBRAND_SIGNUP": "closed"}, "do you mean ONBRAND_SIGN_UP"),
        ({"ONBRAND_LIMITS__UPLOAD_FILEZ": "3"}, "do you mean ONBRAND_LIMITS__UPLOAD_FILES"),
        ({"ONBRAND_BASES__FLAX": "/base"}, "ONBRAND_BASES__FLAX"),
        ({"ONBRAND_PORT": "many"}, "fix ONBRAND_PORT"),
        ({"ONBRAND_FAMILIES": "sd15"}, "JSON"),
        ({"ONBRAND_TOKENS": "s3cret"}, "do you mean ONBRAND_TOKEN"),
        ({"ONBRAND_HOST": "http://::1"}, "ONBRAND_HOST"),
        ({"ONBRAND_DATA_DIR": "a\nb"}, "control character"),
        ({"ONBRAND_DATABASE_URL": "postgresql+psycopg://o:s3cret@db/x"}, "SQLAlchemy"),
        ({"ONBRAND_DATABASE_URL": "postgresql://o:s3cret@db:99999/x"}, "port"),
        ({"ONBRAND_DATABASE_URL": "host=db pasword=s3cret"}, "do you mean password"),
        ({"ONBRAND_DATABASE_URL": "service=s3cret"}, "service file"),
        ({"ONBRAND_WEB_DATABASE_URL": "postgresql+psycopg://o:s3cret@db/x"}, "ONBRAND_WEB_DATABASE_URL"),
    ],
)
def test_a_start_that_cannot_be_says_why_in_one_line(tmp_path: Path, env: dict[str, str], says: str) -> None:
    known = {"ONBRAND_DATA_DIR": str(tmp_path / "data"), "ONBRAND_FAMILIES": '["sd15"]', "ONBRAND_PORT": "0"} | env
    done = run("up", "--json", config=tmp_path, **known)
    error = json.loads(done.stdout)["error"]
    assert done.returncode == exits.CONFIGURATION
    assert says in error["message"]
    assert "s3cret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_embedded_server_nothing_answers_is_seven(tmp_path: Path) -> None:
    known = {"ONBRAND_DATABASE_URL": "postgresql://o:s3cret@127.0.0.1:1/x", "PGPASSWORD": "s3cret", "PGPORT": "5432"}
    done = run("audit", "verify", "--database", "--data-dir", str(tmp_path), config=tmp_path, **known)
    assert "nobody listens" in must_be_one_line(done, exits.UNAVAILABLE)
    assert "s3cret" not in done.stderr


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (OSError(28, "No space left on device"), exits.FAILED),
        (PermissionError(13, "Permission denied", b"/x/\xff"), exits.FAILED),
        (ConnectionResetError(104, "Connection reset by peer"), exits.FAILED),
        (TimeoutError(), exits.FAILED),
        (psycopg.errors.UndefinedTable("relation s3cret"), exits.CONFIGURATION),
        (psycopg.OperationalError("server of s3cret closed the connection"), exits.UNAVAILABLE),
        (UnicodeEncodeError("utf-8", "s3cret\udcff", 6, 7, "surrogates not allowed"), exits.REFUSED),
    ],
)
def test_what_the_system_refuses_is_one_line(problem: Exception, code: int) -> None:
    failure = failure_of(problem)
    assert failure is not None
    assert failure.exit_code == code
    assert "s3cret" not in failure.message


def test_streams_that_are_no_files_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from onbrand.cli.output import take_any_text

    kept: Any = io.StringIO()
    monkeypatch.setattr(sys, "stdout", kept)
    take_any_text()
    assert sys.stdout is kept
