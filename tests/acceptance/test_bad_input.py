"""Wrong input at the command line gives one line with the cause and the remedy, the right exit code, and no change."""

from __future__ import annotations

import json
import socket
import uuid
from pathlib import Path

import pytest

from tests.acceptance.conftest import Trained, draw_pictures
from tools.harness.platform_process import Person, Running, onbrand


def must_fail(person: Person, code: int, *arguments: str | Path, says: str, **env: str) -> None:
    """The command fails with `code`, one line on stderr that holds `says`, and one JSON document."""
    done = person.tries(*arguments, "--json", **env)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (code, 1), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert says in json.loads(done.stdout)["error"]["message"]


def test_a_wrong_password_is_refused(acme: Trained) -> None:
    before = acme.person.token
    must_fail(acme.person, 3, "login", "ada@example.com", says="password", ONBRAND_PASSWORD="wrong")
    assert acme.person.token == before


def test_a_malformed_token_is_refused(acme: Trained) -> None:
    must_fail(acme.person, 3, "brand", "list", says="log", ONBRAND_TOKEN="not.a.token")


def test_an_unknown_job_is_not_found(acme: Trained) -> None:
    must_fail(acme.person, 4, "job", "get", str(uuid.uuid4()), says="no such training job")


def test_a_file_that_is_no_picture_is_refused_and_none_of_its_batch_is_kept(acme: Trained, tmp_path: Path) -> None:
    before = len(acme.person.says("asset", "list")["data"])
    good = draw_pictures(tmp_path, 1)[0]
    (tmp_path / "notes.png").write_text("no picture at all")
    must_fail(acme.person, 5, "asset", "upload", good, tmp_path / "notes.png", "--caption", "x", says="notes.png")
    assert len(acme.person.says("asset", "list")["data"]) == before


def test_a_missing_file_is_named(acme: Trained, tmp_path: Path) -> None:
    must_fail(acme.person, 5, "asset", "upload", tmp_path / "gone.png", says="gone.png")


def test_a_caption_that_is_too_long_is_refused(acme: Trained, tmp_path: Path) -> None:
    picture = draw_pictures(tmp_path, 1)[0]
    must_fail(acme.person, 5, "asset", "upload", picture, "--caption", "x" * 501, says="500")


@pytest.mark.parametrize(("option", "value"), [("--steps", "0"), ("--rank", "1000"), ("--learning-rate", "7")])
def test_a_config_out_of_bounds_names_its_field(acme: Trained, option: str, value: str) -> None:
    must_fail(acme.person, 5, "train", option, value, says=option.removeprefix("--").replace("-", "_"))


def test_an_unknown_model_type_is_refused(acme: Trained) -> None:
    must_fail(acme.person, 5, "train", "--model-type", "sd3", says="model_type")


def test_a_foreign_asset_cannot_be_trained_on(acme: Trained, rival: Person) -> None:
    done = rival.tries("train", "--asset", acme.assets[0]["id"], "--no-wait")
    assert done.returncode in (4, 5)


def test_a_region_like_brand_id_is_refused(acme: Trained) -> None:
    must_fail(acme.person, 5, "brand", "create", "eu-acme", says="id")


def test_a_brand_that_exists_is_a_conflict(rival: Person) -> None:
    must_fail(rival, 6, "brand", "create", "acme", says="acme")


def test_a_platform_that_is_not_there_is_named(acme: Trained) -> None:
    must_fail(acme.person, 7, "brand", "list", says="127.0.0.1:9", ONBRAND_URL="http://127.0.0.1:9", ONBRAND_TOKEN="x")


def test_a_second_up_on_the_same_data_directory_names_the_first(platform: Running, tmp_path: Path) -> None:
    done = onbrand("up", "--port", "0", "--data-dir", platform.data_dir, config=tmp_path)
    assert done.returncode == 9
    assert platform.process is not None
    assert str(platform.process.pid) in done.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = onbrand("up", "--port", port, "--data-dir", tmp_path / "data", config=tmp_path)
    assert done.returncode == 9
    assert f"port {port}" in done.stderr


def test_a_data_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = onbrand("up", "--port", "0", "--data-dir", tmp_path / "file" / "data", config=tmp_path)
    assert done.returncode == 9
    assert "ONBRAND_DATA_DIR" in done.stderr


def test_a_base_folder_that_is_not_one_is_named(tmp_path: Path) -> None:
    bases = json.dumps({"sd15": str(tmp_path)})
    up = ("up", "--port", "0", "--family", "sd15", "--data-dir", tmp_path / "data")
    done = onbrand(*up, config=tmp_path, ONBRAND_BASES=bases)
    assert done.returncode == 9
    assert str(tmp_path) in done.stderr
    assert "ONBRAND_BASES" in done.stderr


@pytest.mark.parametrize(("option", "value"), [("NUM_SLOTS", "0"), ("SLOTS", "4")])
def test_an_engine_option_that_is_wrong_is_named(tmp_path: Path, option: str, value: str) -> None:
    up = ("up", "--port", "0", "--family", "sd15", "--data-dir", tmp_path / "data")
    done = onbrand(*up, config=tmp_path, **{f"ONBRAND_ENGINE__{option}": value})
    assert done.returncode == 9
    assert f"engine.{option.lower()}" in done.stderr


def test_a_demo_of_a_family_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    done = onbrand("demo", "--model-type", "sd3", "--out", tmp_path / "out", config=tmp_path)
    assert done.returncode == 5
    assert not (tmp_path / "out").exists()
