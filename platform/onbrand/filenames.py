"""Names of files as people's systems make them: what is no file of theirs, and which text describes which picture.

One rule for zip archives, forms, folders and direct uploads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from onbrand.visible import composed

PICTURES = ("png", "jpg", "jpeg", "jpe", "jfif", "mpo", "webp")
"""Extensions of pictures; MPO and JFIF are JPEGs."""
CAPTION = "txt"

_FOLDERS = frozenset({
    "__macosx", ".spotlight-v100", ".trashes", ".fseventsd", ".temporaryitems", ".documentrevisions-v100",
    ".appledouble", ".appledb", ".appledesktop", "network trash folder",
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", ".@__thumb",
    ".thumbnails", ".thumbs", ".xvpics", ".picasaoriginals", ".trash-1000", ".dropbox.cache", ".stfolder",
    "$recycle.bin", "system volume information", "recycler", "found.000", "lost+found",
})  # fmt: skip
_FILES = frozenset({
    ".ds_store", ".localized", ".apdisk", ".volumeicon.icns", ".metadata_never_index",
    "icon\r", "icon%0d", "icon\uf00d", "icon?",
    "thumbs.db", "thumbs.db:encryptable",
    "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "folder.ini", "indexervolumeguid", "wpsettings.dat",
    ".picasa.ini", "picasa.ini", ".directory", ".nomedia", ".hidden", "zbthumbnail.info", ".dropbox", ".dropbox.attr",
    ".bridgesort", ".bridgecache", ".bridgecachet", ".bridgelabelsandratings",
})  # fmt: skip
_BEGINNINGS = ("._", "~$", ".~lock.")
"""macOS's resource forks, and what Office and LibreOffice keep beside open files."""

_ENDINGS = (":zone.identifier", "\uf03azone.identifier", ":com.dropbox.attributes", ":com.dropbox.attrs")
"""What Windows keeps in streams of a file, as files of their own."""


def is_litter(path: str) -> bool:
    """Whether a file, by its path with slashes, is one that a system or a program keeps beside people's files."""
    *folders, name = path.casefold().split("/")
    return (
        any(folder in _FOLDERS for folder in folders)
        or name in _FILES
        or name in _FOLDERS
        or name.startswith(_BEGINNINGS)
        or name.endswith(_ENDINGS)
    )


def own_name(path: str) -> str:
    """A path's last part, composed, of either kind of slash."""
    return composed(path.replace("\\", "/").rsplit("/", 1)[-1])


def plain(path: str) -> str:
    """What is the same for two names that people take for the same: in any case, composed or not.

    ``ß`` is not ``ss``, as systems have it; a sigma at the end of a word is any sigma.
    """
    return composed(composed(path).lower()).replace("ς", "σ")


def stem_and_extension(path: str) -> tuple[str, str]:
    """Of `plain`: the path without its extension, and the extension without its dot; "" where there is none."""
    folder, slash, name = plain(path).rpartition("/")
    stem, dot, extension = name.rpartition(".")
    return (f"{folder}{slash}{stem}", extension) if dot else (f"{folder}{slash}{name}", "")


def is_picture(path: str) -> bool:
    """By its extension."""
    return stem_and_extension(path)[1] in PICTURES


def is_caption(path: str) -> bool:
    """By its extension."""
    return stem_and_extension(path)[1] == CAPTION


@dataclass(frozen=True, slots=True)
class Described:
    """Which of several files describe which; files by their index.

    Args:
        captions: of a picture, its text file.
        nobodys: text files that describe no picture.
        doubtful: text files beside two pictures of their name, or beside another text for the same picture.
    """

    captions: dict[int, int] = field(default_factory=dict)
    nobodys: list[int] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)


def described(paths: Sequence[str], texts: Iterable[int]) -> Described:
    """``logo.txt`` describes the one picture of the same stem beside it: ``logo.png``, ``LOGO.JPG``.

    Args:
        texts: which of the paths are text files; the others are pictures.
    """
    pictures: dict[str, list[int]] = {}
    texts = set(texts)
    for index, path in enumerate(paths):
        if index not in texts:
            pictures.setdefault(stem_and_extension(path)[0], []).append(index)
    found = Described()
    for index in sorted(texts):
        named = pictures.get(stem_and_extension(paths[index])[0], [])
        if not named:
            found.nobodys.append(index)
        elif len(named) > 1 or named[0] in found.captions:
            found.doubtful.append(index)
        else:
            found.captions[named[0]] = index
    return found
