"""File names that annotations give: they stay inside the data folder."""

import os
import stat
from pathlib import Path

from rcnnpipe.images import IMAGE_SUFFIXES


class Outside(Exception):
    """A name that leads out of its folder; the message says how."""


def locate(folder: Path, name: str, follow_links: bool) -> Path | None:
    """The file an annotation calls ``name`` in ``folder``, or None where there is none.

    Raises:
        Outside: the name is absolute, climbs with "..", or is a link to a place outside ``folder``
            (unless ``follow_links``).
    """
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or parts[0] == "" or ":" in parts[0] or ".." in parts:
        raise Outside(f"file name {name!r} leaves the data folder")
    path = os.path.join(folder, name)
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return None
    if not follow_links and (stat.S_ISLNK(mode) or len(parts) > 1):
        check_link(folder, path)
    return Path(path) if os.path.isfile(path) else None


def check_link(folder: Path, path: str | Path) -> None:
    """Raise ``Outside`` where ``path`` really lies outside ``folder``."""
    real_folder = os.path.realpath(folder)
    real = os.path.realpath(path)
    if os.path.commonpath([real_folder, real]) != real_folder:
        raise Outside(
            f"{path} is a link to {real}, outside the data folder "
            "(a recipe with `follow_links: true` allows that)"
        )


def files_below(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[str]:
    """Names of the files with one of ``suffixes``, relative with "/", sorted; hidden ones left out.

    Linked folders are not entered.
    """
    names = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(where, folder)
        prefix = "" if below == "." else below.replace(os.sep, "/") + "/"
        names += [
            prefix + name
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(names)


def by_stem(names: list[str]) -> dict[str, list[str]]:
    """Names grouped by what stands before the suffix: ``{"sub/a": ["sub/a.jpg", "sub/a.png"]}``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(os.path.splitext(name)[0], []).append(name)
    return groups
