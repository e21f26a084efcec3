"""Upload, train, publish, generate: at the command line, with a running platform."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.conftest import Trained
from tools.harness.platform_process import Person, Running, pixels


def test_uploaded_pictures_are_listed_with_their_captions(acme: Trained) -> None:
    listed = acme.person.says("asset", "list")["data"]
    assert {asset["id"] for asset in listed} == {asset["id"] for asset in acme.assets}
    assert {asset["caption"] for asset in listed} == {"photo of [brand] logo"}


def test_a_training_job_ends_with_a_model_in_the_brands_folder(acme: Trained) -> None:
    assert acme.job["status"] == "completed"
    assert acme.job["progress"] == 100
    assert acme.job["model_url"].endswith("models/acme/sd15-lora-v1.safetensors")
    assert set(acme.job["training_asset_ids"]) == {asset["id"] for asset in acme.assets}


def test_the_model_can_be_downloaded_and_is_what_was_published(acme: Trained, tmp_path: Path) -> None:
    import hashlib

    saved = Path(acme.person.says("model", "download", "sd15-lora-v1", "--out", tmp_path)["path"])
    assert hashlib.sha256(saved.read_bytes()).hexdigest() == acme.model["sha256"]


def test_pictures_are_drawn_with_the_brands_model_and_saved(acme: Trained) -> None:
    assert acme.generation["status"] == "completed"
    assert [image["seed"] for image in acme.generation["images"]] == [11, 12]
    assert {pixels(path).shape for path in acme.generation["paths"]} == {(64, 64, 3)}


def test_the_same_seed_draws_the_same_picture(acme: Trained, tmp_path: Path) -> None:
    drawing = ("generate", "photo of [brand] logo", "--model", "sd15-lora-v1", "--seed", "12", "--out", tmp_path)
    again = acme.person.says(*drawing)
    difference = pixels(acme.generation["paths"][1]) - pixels(again["paths"][0])
    assert abs(difference).max() <= 1  # alone or beside another picture: the same to 1e-5, before rounding


def test_the_adapter_draws_something_else_than_the_base(acme: Trained, tmp_path: Path) -> None:
    drawing = ("generate", "photo of [brand] logo", "--model-type", "sd15", "--seed", "11", "--out", tmp_path)
    base = acme.person.says(*drawing)
    assert abs(pixels(base["paths"][0]) - pixels(acme.generation["paths"][0])).max() > 50


def test_another_brand_finds_nothing_of_it(acme: Trained, rival: Person) -> None:
    for command in (
        ("job", "get", acme.job["id"], "--brand", "acme"),
        ("model", "get", acme.model["id"], "--brand", "rival"),
        ("asset", "list", "--brand", "acme"),
        ("image", "download", acme.generation["images"][0]["id"], "--brand", "rival"),
    ):
        assert rival.tries(*command).returncode == 4


def test_a_human_sees_a_progress_bar_on_stderr_and_only_words_on_stdout(acme: Trained, tmp_path: Path) -> None:
    done = acme.person.tries("generate", "a red circle", "--model-type", "sd15", "--out", tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("Saved ")
    assert "Drawing" in done.stderr


def test_up_says_where_it_is(platform: Running) -> None:
    import httpx

    assert httpx.get(f"{platform.url}/healthz").is_success
    assert "/v1/brands/{brand_id}/training-jobs" in httpx.get(f"{platform.url}/openapi.json").json()["paths"]
