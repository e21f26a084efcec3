"""Private folders: other users of the machine can neither enter nor replace them."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from onbrand.errors import ConfigurationError

PRIVATE_FOLDERS = ("objects", "runs", "tickets", "encoded", "cache", "logs", "inductor", "system")
"""Subfolders of the data directory; each may be our symbolic link to another place."""
_MARKS = frozenset({"up.lock", "postgres.lock", "database.json", "secrets.json", "ray-token"})
"""Every data directory holds at least one of these files."""
_OTHERS_WRITE = stat.S_IWOTH
_REMEDY = "choose another with ONBRAND_DATA_DIR"


def make_private(folder: Path, *, group: int | None = None, is_inner: bool = False) -> Path:
    """Make an existing folder 0700 and return it.

    Args:
        group: a group that may traverse the folder but not list it: the mode is then 0710.
        is_inner: True for a part of a data directory, whatever its content.

    Raises ConfigurationError: it belongs to another user, it is another user's symbolic link, others could replace it,
    or it is open to others and holds files that are not Onbrand's (`/tmp`, a home).
    """
    _must_be_our_link(folder)
    must_be_out_of_reach(folder)
    found = folder.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigurationError(f"{folder} is no folder; move it away, or {_REMEDY}", param="data_dir")
    if found.st_uid != os.geteuid():
        raise ConfigurationError(f"{folder} belongs to another user; {_REMEDY}", param="data_dir")
    if found.st_mode & stat.S_IRWXO and not is_inner and not _is_ours_to_close(folder):
        raise ConfigurationError(
            f"{folder} holds files that are not Onbrand's, and other users may enter it; give an empty folder, "
            f"or 'chmod 700' it; or {_REMEDY}",
            param="data_dir",
        )
    if group is not None and found.st_gid != group:
        os.chown(folder, -1, group)
    wanted = 0o700 if group is None else 0o710
    if stat.S_IMODE(found.st_mode) != wanted:
        folder.chmod(wanted)
    return folder


def must_be_out_of_reach(folder: Path) -> None:
    """Raise ConfigurationError if every user of the machine may rename entries of a parent folder."""
    for above in {*folder.parents, *Path(os.path.realpath(folder)).parents}:
        mode = above.stat().st_mode
        if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
            raise ConfigurationError(
                f"every user of this machine can rename what lies in {above}; 'chmod o-w' it, or {_REMEDY}",
                param="data_dir",
            )


def must_be_closed_to_others(folder: Path, setting: str) -> None:
    """Close an existing folder of ours to users outside its group.

    Raises ConfigurationError if the folder is another owner's and open to everybody.
    """
    found = folder.stat()
    if not found.st_mode & stat.S_IRWXO:
        return
    if found.st_uid != os.geteuid():
        raise ConfigurationError(
            f"every user of this machine may enter {folder}, which belongs to another user; 'chmod o-rwx' it, "
            f"or choose another in ONBRAND_{setting.upper()}",
            param=setting,
        )
    folder.chmod(stat.S_IMODE(found.st_mode) & ~stat.S_IRWXO)


def _is_ours_to_close(folder: Path) -> bool:
    names = set(os.listdir(folder))
    return not names or bool(names & _MARKS)


def _must_be_our_link(path: Path) -> None:
    """Reject a symbolic link of another user but root: its owner may change the target."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) and found.st_uid not in (os.geteuid(), 0):
        raise ConfigurationError(f"{path} is a link that belongs to another user; {_REMEDY}", param="data_dir")


def write_private(path: Path, text: str) -> None:
    """Write a file atomically (0600), in a folder that is made (0700) if missing."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)
