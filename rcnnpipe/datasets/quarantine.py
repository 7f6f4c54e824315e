"""The quarantine list: images and objects left out of a data set without touching its files.

A JSON file: ``quarantine.json`` in the data folder, ``NAME.quarantine.json`` beside the recipe
``NAME.yaml``, or wherever a recipe's ``quarantine`` says::

    {"schema": "rcnnpipe.quarantine/1",
     "images": [{"image": "000012", "why": "..."}],
     "objects": [{"image": "000007", "annotation": "2", "box": "5 5 5 5", "why": "..."}]}

An object is recognised by its annotation key *and* its box as written: once the file is corrected,
the entry fits nothing and does nothing.
"""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rcnnpipe.datasets.faults import ERROR, Fault
from rcnnpipe.datasets.parsed import Parsed
from rcnnpipe.errors import DataError

SCHEMA = "rcnnpipe.quarantine/1"
logger = logging.getLogger(__name__)


def leave_out(parsed: Parsed, path: Path) -> None:
    """Drop the listed images and objects, and the faults that were theirs."""
    entries = read_quarantine(path)
    images = {entry["image"] for entry in entries["images"]}
    objects = {(e["image"], e["annotation"], e["box"]) for e in entries["objects"]}
    before = len(parsed.images), sum(len(image.objects) for image in parsed.images)
    parsed.images = [image for image in parsed.images if image.image_id not in images]
    kept = 0
    for image in parsed.images:
        image.objects = [
            obj for obj in image.objects if (image.image_id, obj.key, obj.written) not in objects
        ]
        kept += len(image.objects)
    parsed.faults = [
        fault
        for fault in parsed.faults
        if fault.image_id not in images
        and (fault.image_id, fault.annotation, fault.written) not in objects
    ]
    gone = before[0] - len(parsed.images), before[1] - kept
    logger.info("%s leaves out %d images and %d objects", path, *gone)


def read_quarantine(path: Path) -> dict[str, list[dict[str, str]]]:
    """The entries of a list, ``images`` and ``objects``.

    Raises:
        DataError: it cannot be read or is no quarantine list.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        good = (
            entries["schema"] == SCHEMA
            and all(isinstance(entry["image"], str) for entry in entries["images"])
            and all(
                isinstance(entry[key], str)
                for entry in entries["objects"]
                for key in ("image", "annotation", "box")
            )
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"quarantine list {path} cannot be read ({error!r})") from error
    if not good:
        raise DataError(f"{path} is not a quarantine list; `rcnnpipe check DATA --fix` writes one")
    return {"images": entries["images"], "objects": entries["objects"]}


def entries_of(faults: Iterable[Fault]) -> dict[str, list[dict[str, str]]]:
    """What leaves out every error among the faults; faults of the whole set have no entry.

    An image goes where the image itself is at fault, else the object alone.
    """
    errors = [fault for fault in faults if fault.severity == ERROR and fault.image_id is not None]
    images: dict[str, dict[str, str]] = {}
    objects: dict[tuple[str, str, str], dict[str, str]] = {}
    for fault in errors:
        image, why = fault.image_id or "", f"{fault.kind}: {fault.message}"
        if fault.annotation is None or fault.written is None:
            images.setdefault(image, {"image": image, "why": why})
        else:
            key = (image, fault.annotation, fault.written)
            entry = dict(zip(("image", "annotation", "box"), key, strict=True))
            objects.setdefault(key, {**entry, "why": why})
    kept = [entry for entry in objects.values() if entry["image"] not in images]
    return {"images": list(images.values()), "objects": kept}


def write_quarantine(path: Path, entries: dict[str, list[dict[str, str]]]) -> None:
    """Write a list atomically, joined to the entries an earlier one at ``path`` holds.

    Raises:
        DataError: ``path`` holds something else, or cannot be written.
    """
    if path.exists():
        earlier = read_quarantine(path)
        entries = {key: _joined(earlier[key], entries[key]) for key in entries}
    document: dict[str, Any] = {"schema": SCHEMA, **entries}
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}); name another place with --quarantine "
            "and in a recipe's `quarantine:`"
        ) from error


def _joined(old: list[dict[str, str]], new: list[dict[str, str]]) -> list[dict[str, str]]:
    def key(entry: dict[str, str]) -> tuple[str, str, str]:
        return entry["image"], entry.get("annotation", ""), entry.get("box", "")

    entries = {key(entry): entry for entry in [*new, *old]}
    return [entries[k] for k in sorted(entries)]
