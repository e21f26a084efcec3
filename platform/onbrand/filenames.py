"""File names from users' systems: detect system files, and match captions to images.

One rule for zip archives, forms, folders and direct uploads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from onbrand.visible import composed

PICTURES = ("png", "jpg", "jpeg", "jpe", "jfif", "mpo", "webp")
"""Extensions of images; MPO and JFIF are JPEGs."""
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
"""Prefixes of macOS's resource forks, and of the files that Office and LibreOffice keep beside open files."""

_ENDINGS = (":zone.identifier", "\uf03azone.identifier", ":com.dropbox.attributes", ":com.dropbox.attrs")
"""Suffixes of Windows' alternate data streams that were saved as separate files."""


def is_litter(path: str) -> bool:
    """Whether a path (with slashes) is a file that a system or a program keeps beside users' files."""
    *folders, name = path.casefold().split("/")
    return (
        any(folder in _FOLDERS for folder in folders)
        or name in _FILES
        or name in _FOLDERS
        or name.startswith(_BEGINNINGS)
        or name.endswith(_ENDINGS)
    )


def own_name(path: str) -> str:
    """The last part of a path with slashes or backslashes, in NFC."""
    return composed(path.replace("\\", "/").rsplit("/", 1)[-1])


def plain(path: str) -> str:
    """The name in NFC and lower case, for comparisons.

    ``ß`` is not ``ss``, as in file systems; a final sigma equals any sigma.
    """
    return composed(composed(path).lower()).replace("ς", "σ")


def stem_and_extension(path: str) -> tuple[str, str]:
    """A path's stem (with its folders) and its extension (without the dot), both as by `plain`; "" if it has none."""
    folder, slash, name = plain(path).rpartition("/")
    stem, dot, extension = name.rpartition(".")
    return (f"{folder}{slash}{stem}", extension) if dot else (f"{folder}{slash}{name}", "")


def is_picture(path: str) -> bool:
    """Whether the extension is an image's."""
    return stem_and_extension(path)[1] in PICTURES


def is_caption(path: str) -> bool:
    """Whether the extension is a caption's."""
    return stem_and_extension(path)[1] == CAPTION


@dataclass(frozen=True, slots=True)
class Described:
    """Text files matched to images, all by index.

    Args:
        captions: each image's text file.
        nobodys: text files that match no image.
        doubtful: text files that match two images, or an image that already has a text file.
    """

    captions: dict[int, int] = field(default_factory=dict)
    nobodys: list[int] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)


def described(paths: Sequence[str], texts: Iterable[int]) -> Described:
    """Match text files to images: ``logo.txt`` describes the one ``logo.png`` or ``LOGO.JPG`` beside it.

    Args:
        texts: indices of the text files; the other paths are images.
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
