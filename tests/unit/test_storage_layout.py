"""One module makes keys, and only plain keys can be made."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from onbrand.errors import InvalidInput
from onbrand.storage import layout
from onbrand.storage.layout import BUCKETS, Drawn, Key
from onbrand.storage.regions import Regions


def _sample(*drawn: Any) -> Key:
    return layout.sample_image("acme", "0af3", Drawn(*drawn), "png")


@pytest.mark.parametrize(
    ("key", "bucket", "name"),
    [
        (layout.training_image("acme", "logo", 1, "jpg"), "training-data", "acme/logo-001.jpg"),
        (layout.training_image("acme", "product", 1234, "webp"), "training-data", "acme/product-1234.webp"),
        (layout.model_file("acme", "flux", 2), "models", "acme/flux-lora-v2.safetensors"),
        (layout.model_metadata("acme"), "models", "acme/metadata.json"),
        (layout.generated_image("acme", date(2024, 12, 4), 1, "jpg"), "generated-content", "acme/2024-12-04-001.jpg"),
        (_sample("adapter", 100, 2), "generated-content", "acme/samples/0af3/000100-02.png"),
        (_sample("base", 0, 2), "generated-content", "acme/samples/0af3/base-02.png"),
        (layout.document("acme", "brand-guidelines", "pdf"), "brand-documents", "acme/brand-guidelines.pdf"),
    ],
)
def test_keys_read_as_the_specification_writes_them(key: Key, bucket: str, name: str) -> None:
    assert (key.bucket, key.name) == (bucket, name)


@pytest.mark.parametrize("drawn", [Drawn("base", 0, 7), Drawn("adapter", 0, 0), Drawn("adapter", 20_000, 12)])
def test_a_samples_key_says_which_sample_it_is(drawn: Drawn) -> None:
    assert layout.drawn_in(layout.sample_image("acme", "0af3", drawn, "webp")) == drawn


def test_a_key_knows_its_brand_its_file_and_its_type() -> None:
    key = layout.training_image("acme", "logo", 1, "jpg")
    assert (key.brand_id, key.filename, key.content_type) == ("acme", "logo-001.jpg", "image/jpeg")


@pytest.mark.parametrize(
    "name",
    [
        "acme/../globex/x.png",
        "acme//x",
        "acme/./x",
        "acme/..",
        "acme/x/",
        "/acme/x",
        "acme",
        "",
        "acme/x y",
        "acme/x\x00",
        "acme/x\n",
        "acme/\u202ex",
        "acme/\u0430",
        "acme/X",
        "Acme/x",
        "acme/.hidden",
        "acme/-x",
        "acme/a..b",
        "acme/x?y",
        "acme/x%2fy",
        "acme\\x",
        "acme/x:y",
        "eu-west/x",
        "us-east-1/acme/x",
        "a/x",
        "acme/" + "x" * 600,
    ],
)
def test_a_name_that_is_not_plain_makes_no_key(name: str) -> None:
    with pytest.raises(InvalidInput) as told:
        Key("models", name)
    assert told.value.param == "key"


@pytest.mark.parametrize("bucket", ["", "Models", "models/acme", "..", "secrets"])
def test_an_unknown_bucket_makes_no_key(bucket: str) -> None:
    with pytest.raises(InvalidInput, match="training-data"):
        Key(bucket, "acme/x.png")  # type: ignore[arg-type]


def test_keys_cannot_be_made_from_odd_parts() -> None:
    for make in (
        lambda: layout.training_image("acme", "logo", 0, "png"),
        lambda: layout.training_image("acme", "logo", 1, "svg"),
        lambda: layout.training_image("acme/globex", "../x", 1, "png"),
        lambda: layout.model_file("acme", "../flux", 1),
        lambda: layout.model_file("acme", "flux", 0),
        lambda: layout.sample_image("acme", "../../globex", layout.Drawn("adapter", 1, 1), "png"),
        lambda: layout.document("acme", "Brand Guidelines", "pdf"),
        lambda: layout.document("acme", "guidelines", "exe"),
    ):
        with pytest.raises(InvalidInput):
            make()


def test_there_are_four_buckets() -> None:
    assert BUCKETS == ("training-data", "models", "generated-content", "brand-documents")


def test_the_home_region_has_the_buckets_root_and_others_have_a_folder() -> None:
    regions = Regions("us-east-1")
    assert regions.folder(None) == regions.folder("us-east-1") == ""
    assert regions.folder("eu-west-1") == "eu-west-1/"


REGION_NAMES = (
    "eu-west-1", "us-east-1-gov", "us-gov-west-1", "auto", "fr-par", "nyc3", "garage", "default", "gra", "us-west-004",
    "ru-central1", "ch-gva-2", "oss-cn-hangzhou", "RegionOne", "a",
)  # fmt: skip


@pytest.mark.parametrize("region", REGION_NAMES)
def test_any_region_that_a_store_is_known_by_can_be_a_home(region: str) -> None:
    assert Regions(region).folder(region) == ""


@pytest.mark.parametrize("region", REGION_NAMES)
def test_the_folder_of_a_region_is_never_that_of_a_brand(region: str) -> None:
    folder = Regions("home").folder(region)
    assert folder in (f"{region}/", f"_{region}/")
    with pytest.raises(InvalidInput):
        Key("models", f"{folder}metadata.json")


@pytest.mark.parametrize(
    "region", ["", "eu west", "../eu-west-1", "eu-west-1/", "-auto", "auto-", "eu_west_1", "é", "1234", "a\n", "a" * 64]
)
def test_a_region_that_is_none_is_refused(region: str) -> None:
    with pytest.raises(InvalidInput):
        Regions("us-east-1").folder(region)
    with pytest.raises(InvalidInput):
        Regions(region)


def test_no_brand_can_be_named_like_a_region() -> None:
    for region in ("us-east-1", "eu-west-1", "ap-southeast-2", "sa-east-1", "ca-central-1", "me-south-1", "af-south-1"):
        with pytest.raises(InvalidInput):
            Key("models", f"{region}/metadata.json")
