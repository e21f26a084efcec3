"""The command line alone: help, usage, JSON output, and modules that it must not load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import typer

from onbrand.cli import main
from onbrand.cli.assets import expand, with_sidecars
from onbrand.cli.exits import Refused
from onbrand.cli.generate import adapters
from onbrand.cli.train import _field, show_check
from onbrand.client import DataCheck, Finding, Onbrand


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `onbrand ARGUMENTS` in this process."""
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login is stored."""
    for name in ("ONBRAND_URL", "ONBRAND_TOKEN", "ONBRAND_BRAND", "ONBRAND_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.mark.parametrize(
    "command",
    [
        "",
        "up",
        "demo",
        "train",
        "generate",
        "brand",
        "brand limits",
        "asset",
        "document",
        "upload",
        "job",
        "model",
        "image",
        "audit",
        "key",
        "invitation",
        "user",
    ],
)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert "Usage: onbrand" in out


def test_an_unknown_option_is_a_usage_error_with_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "train", "--stepps", "3", "--json")
    assert code == 2
    assert "--stepps" in json.loads(out)["error"]["message"]
    assert len(err.splitlines()) == 1
    assert "onbrand train --help" in err


def test_without_a_login_nothing_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "brand", "list")
    assert (code, out) == (3, "")
    assert "onbrand login" in err


def test_a_password_is_never_read_from_nowhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, _, err = run(capsys, "login", "ada@example.com")
    assert code == 2
    assert "ONBRAND_PASSWORD" in err


def test_a_broken_setting_is_named_with_its_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONBRAND_TOKEN_MINUTES", "soon")
    code, _, err = run(capsys, "up")
    assert code == 9
    assert "ONBRAND_TOKEN_MINUTES" in err


def test_the_demo_wants_a_name_for_each_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "demo", "--images", str(tmp_path))
    assert code == 2
    assert "--brand" in err


def test_any_field_of_a_jobs_configuration_can_be_said() -> None:
    said = ["optimizer=prodigy", "held_out=3", "shuffle_captions=true", "trigger_word=a=b"]
    wanted = {"optimizer": "prodigy", "held_out": 3, "shuffle_captions": True, "trigger_word": "a=b"}
    assert dict(map(_field, said)) == wanted
    with pytest.raises(typer.BadParameter, match="FIELD=VALUE"):
        _field("prodigy")


def test_a_family_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "demo", "--model-type", "sd3")
    assert code == 5
    assert "sd15, sdxl, flux" in err


def test_an_upload_shows_how_far_it_is_unless_its_output_is_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = Onbrand(
        "http://test", "token", transport=httpx.MockTransport(lambda _: httpx.Response(201, json={"data": []}))
    )
    monkeypatch.setattr("onbrand.cli.assets.connect", lambda: client)
    for name in ("one.png", "two.png"):
        (tmp_path / name).write_bytes(b"a picture")
    code, _, err = run(capsys, "asset", "upload", str(tmp_path), "--brand", "acme")
    assert code == 0
    assert "Uploading 2 pictures" in err
    assert "100%" in err
    assert run(capsys, "asset", "upload", str(tmp_path), "--brand", "acme", "--json")[::2] == (0, "")


def test_the_command_line_loads_neither_torch_nor_ray() -> None:
    probe = "import sys; import onbrand.cli; print({'torch', 'ray', 'diffusers', 'httpx'} & set(sys.modules))"
    own = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "platform")}
    done = subprocess.run([sys.executable, "-c", probe], env=own, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_folder_stands_for_its_pictures_in_order(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "d/c.jfif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in expand([tmp_path])] == ["a.png", "b.JPG", "c.jfif"]


LITTER = ("._a.png", ".DS_Store", "Thumbs.db", "Icon\r", "__MACOSX/._a.png", "x/@eaDir/a.png/SYNOPHOTO.jpg", "~$a.png")


def test_of_a_folder_what_systems_keep_beside_files_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*LITTER, "a.png", "a.heic"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    assert [path.name for path in expand([tmp_path])] == ["a.png"]
    told = capsys.readouterr().err
    assert "a.heic" in told
    assert "DS_Store" not in told


def test_files_that_a_shell_lists_are_taken_as_their_folder_is(tmp_path: Path) -> None:
    for name in ("a.JPG", "a.TXT", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    assert [path.name for path in expand(sorted(tmp_path.iterdir()))] == ["a.JPG"]
    (tmp_path / "b.txt").touch()
    with pytest.raises(Refused, match=r"b\.txt is neither a picture nor the caption of one"):
        expand(sorted(tmp_path.iterdir()))
    with pytest.raises(Refused, match=r"Thumbs\.db is no picture"):
        expand([tmp_path / "Thumbs.db", tmp_path / "desktop.ini"])


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=str(tmp_path)):
        expand([tmp_path])


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ([], {}),
        (["sd15-lora-v1"], {"model": "sd15-lora-v1"}),
        (["sd15-lora-v1:0.5"], {"models": [{"model": "sd15-lora-v1", "scale": 0.5}]}),
        (["a", "b:2"], {"models": [{"model": "a"}, {"model": "b", "scale": 2.0}]}),
    ],
)
def test_models_are_named_alone_or_with_their_scales(named: list[str], asked: dict[str, object]) -> None:
    assert adapters(named) == asked


def test_a_scale_that_is_no_number_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "generate", "a prompt", "--model", "sd15-lora-v1:much")
    assert code == 2
    assert "sd15-lora-v1:much" in err


def test_limits_without_the_owners_login_say_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONBRAND_DATABASE_URL", raising=False)
    monkeypatch.setenv("ONBRAND_WEB_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    code, _, err = run(capsys, "brand", "limits", "acme", "--data-dir", str(tmp_path))
    assert code == 2
    assert "ONBRAND_DATABASE_URL" in err


def test_a_text_file_beside_a_picture_is_its_caption_and_goes_before_one_for_all(tmp_path: Path) -> None:
    pictures = [tmp_path / name for name in ("a.png", "b.JPG", "c.png")]
    for picture in pictures:
        picture.touch()
    (tmp_path / "a.txt").write_text("\ufeffphoto of [brand]\n", "utf-8")
    (tmp_path / "c.TXT").write_bytes("photo of\u00a0[brand]\r\nat night".encode("utf-16"))
    assert with_sidecars(expand([tmp_path]), None) == ["photo of [brand]", None, NIGHT]
    assert with_sidecars(pictures, ["[brand]"]) == ["photo of [brand]", "[brand]", NIGHT]
    assert with_sidecars(pictures, ["1", "2", "3"]) == ["photo of [brand]", "2", NIGHT]


NIGHT = "photo of\u00a0[brand]\nat night"


def test_a_text_is_found_whichever_way_its_letters_are_composed(tmp_path: Path) -> None:
    (tmp_path / "gro\u0308ße.png").touch()
    (tmp_path / "größe.txt").write_text("[brand]", "utf-8")
    assert with_sidecars(expand([tmp_path]), None) == ["[brand]"]


@pytest.mark.parametrize(
    ("text", "why"),
    [(b"  ", "is empty"), ("a\u202eb".encode(), "cannot be seen"), (b"a\x1bb", "cannot be seen"), (b"\xe4", "UTF-8")],
)
def test_a_text_that_is_no_caption_is_refused_and_named(tmp_path: Path, text: bytes, why: str) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "a.txt").write_bytes(text)
    with pytest.raises(Refused, match=rf"a\.txt .*{why}"):
        with_sidecars([tmp_path / "a.png"], None)


def test_a_text_beside_two_pictures_of_its_name_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.txt"):
        (tmp_path / name).write_text("x")
    with pytest.raises(Refused, match=r"a\.txt must describe exactly one picture"):
        with_sidecars(expand([tmp_path]), None)


def test_captions_that_do_not_fit_the_pictures_are_refused(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.touch()
    with pytest.raises(Refused, match="2 captions for 1"):
        with_sidecars([picture], ["a", "b"])
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(Refused, match="UTF-8"):
        with_sidecars([picture], None)


def test_a_check_prints_each_finding_with_its_remedy_and_exits_with_5_if_a_job_would_not_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    finding = Finding(level="error", code="no_trigger", file="a.png", message="a.png has no word", remedy="write it")
    refused = DataCheck(ok=False, num_images=1, num_errors=1, resolution=64, trigger_word="zilgo", findings=(finding,))
    with pytest.raises(typer.Exit) as left:
        show_check(refused, as_json=False)
    assert left.value.exit_code == 5
    assert "error: a.png has no word; write it [no_trigger]" in capsys.readouterr().out
    show_check(refused.model_copy(update={"ok": True, "findings": ()}), as_json=True)
    assert json.loads(capsys.readouterr().out)["num_images"] == 1
