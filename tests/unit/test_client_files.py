"""The paths to which the client saves downloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from onbrand.client.errors import InvalidArgument
from onbrand.client.files import save_at


def test_a_path_that_ends_in_a_slash_is_a_folder_that_is_made(tmp_path: Path) -> None:
    saved = [save_at(f"{tmp_path}/made/today/", name, [name.encode()]) for name in ("one.png", "two.png")]
    assert saved == [tmp_path / "made" / "today" / name for name in ("one.png", "two.png")]
    assert [path.read_text() for path in saved] == ["one.png", "two.png"]


def test_a_path_without_a_slash_is_the_file_unless_it_is_a_folder(tmp_path: Path) -> None:
    assert save_at(str(tmp_path / "made.png"), "one.png", [b"1"]) == tmp_path / "made.png"
    assert save_at(str(tmp_path), "one.png", [b"1"]) == tmp_path / "one.png"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"1")
    with pytest.raises(InvalidArgument, match="made cannot be made a folder: File exists"):
        save_at(f"{tmp_path}/made/", "one.png", [b"1"])
