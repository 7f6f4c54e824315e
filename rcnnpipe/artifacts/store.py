"""One self-describing HDF5 file: its header, atomic writing, and opening with every check first.

An artifact holds no time, host, path or commit, so that equal runs give equal bytes. It is written
beside its place and renamed into it, never updated there.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from rcnnpipe.artifacts.claims import check_sizes
from rcnnpipe.artifacts.journal import locked
from rcnnpipe.artifacts.newfile import new_file
from rcnnpipe.errors import ArtifactError, one_line

# kind -> (version of its layout, the command that makes one)
KINDS = {
    "proposals": (1, "rcnnpipe propose"),
    "features": (1, "rcnnpipe extract-features"),
    "svm": (1, "rcnnpipe train-svm"),
    "bbox-reg": (1, "rcnnpipe train-bbox-reg"),
    "model": (1, "rcnnpipe pretrain or finetune"),
    "detections": (1, "rcnnpipe detect"),
}


class Identified(Protocol):
    """Something a stage takes in: a data set or the header of an artifact."""

    @property
    def id(self) -> str:
        """What it is, as a hash."""

    @property
    def lineage(self) -> tuple[str, ...]:
        """Ids of everything it was made from."""


@dataclass(frozen=True)
class Origin:
    """Something known by its id alone, because only what was made from it is at hand."""

    id: str
    lineage: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """The root attributes of an artifact.

    Attributes:
        schema: kind and version of the layout, "rcnnpipe.features/1".
        id: hash of the stage, its version, its settings and the ids of its inputs.
        settings: every effective option that can change the result.
        inputs: name of an input -> its id.
        lineage: ids of all ancestors, sorted.
        classes: class names, ``classes[0] == "background"``; empty where it has none.
        software: name -> version of what can change the result.
    """

    schema: str
    id: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    lineage: tuple[str, ...]
    classes: tuple[str, ...]
    software: dict[str, str]

    @property
    def kind(self) -> str:
        """The kind of artifact, for example "features"."""
        return self.schema.removeprefix("rcnnpipe.").rpartition("/")[0]

    def with_model(self) -> dict[str, "Identified"]:
        """Inputs of what learns from these features: they, and the very network that made them.

        The lineage has all networks that came before as well, whose features are others.
        """
        inputs: dict[str, Identified] = {"features": self}
        if "model" in self.inputs:
            inputs["model"] = Origin(self.inputs["model"])
        return inputs


def make_header(
    kind: str,
    *,
    stage: str,
    version: int,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Identified],
    classes: Sequence[str],
    software: Sequence[str] = (),
) -> Header:
    """The header of what a stage is about to write.

    Args:
        kind: a key of :data:`KINDS`.
        stage: name of the stage.
        version: the stage's VERSION; raising it makes all its results new ones.
        settings: effective options that can change the result.
        inputs: data sets and headers of artifacts, by the part they play.
        classes: names of the labels.
        software: distributions, besides numpy, whose version can change the result.
    """
    ids = {name: source.id for name, source in sorted(inputs.items())}
    ancestors = {ancestor for source in inputs.values() for ancestor in source.lineage}
    plain = json.loads(json.dumps(dict(settings), sort_keys=True))
    identity = json.dumps([kind, stage, version, plain, ids, list(classes)], sort_keys=True)
    return Header(
        schema=f"rcnnpipe.{kind}/{KINDS[kind][0]}",
        id=hashlib.sha256(identity.encode()).hexdigest()[:16],
        settings=plain,
        inputs=ids,
        lineage=tuple(sorted(ancestors | set(ids.values()))),
        classes=tuple(classes),
        software=_versions(("rcnnpipe", "numpy", *software)),
    )


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return dict(sorted(found.items()))


def write_header(file: h5py.File, header: Header) -> None:
    """Set the root attributes of an open file."""
    for name, value in sorted(asdict(header).items()):
        file.attrs[name] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def partial_of(path: Path) -> Path:
    """Where unfinished work on ``path`` is kept: beside it, under a name DVC does not own."""
    return path.with_name(path.name + ".partial")


def write_artifact(
    path: Path,
    header: Header,
    arrays: Mapping[str, np.ndarray[Any, Any]],
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a whole artifact in one go: under another name, synced, renamed.

    Args:
        path: the file; what was there stays untouched until the new one is complete.
        header: its root attributes.
        arrays: dataset name -> values; a slash in a name makes a group.
        attributes: further root attributes, JSON values.

    Raises:
        ArtifactError: another process is writing it.
    """
    partial = path.with_name(path.name + ".partial.h5")
    with locked(partial, path):
        try:
            with new_file(partial) as file:
                write_header(file, header)
                write_attributes(file, attributes or {})
                for name, values in arrays.items():
                    write_array(file, name, values)
            settle(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_attributes(file: h5py.File, attributes: Mapping[str, Any]) -> None:
    """Set further root attributes, each as JSON, or as a string where it is one."""
    for name, value in sorted(attributes.items()):
        file.attrs[name] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def write_array(file: h5py.File, name: str, values: np.ndarray[Any, Any]) -> None:
    """Write one dataset: compressed when it is worth it, strings as fixed-length UTF-8."""
    if values.dtype.kind in "UO":
        values = encode_strings(values.tolist())
    worth_it = values.nbytes > 4096 and values.ndim > 0
    options = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if worth_it else {}
    file.create_dataset(name, data=values, track_times=False, **options)


def encode_strings(strings: Sequence[str]) -> np.ndarray[Any, Any]:
    """Strings as a fixed-length UTF-8 column, so that equal strings give equal bytes."""
    encoded = [string.encode() for string in strings]
    length = max((len(one) for one in encoded), default=1) or 1
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", length))


def settle(partial: Path, path: Path) -> None:
    """Sync a complete file and rename it to its place."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def open_artifact(path: Path, kind: str | None = None) -> Iterator[tuple[Header, h5py.File]]:
    """Open an artifact to read, after checking that it is one, whole, and of the kind needed.

    Args:
        path: the file.
        kind: a key of :data:`KINDS`; None takes any.

    Raises:
        ArtifactError: missing, not HDF5, damaged, no artifact, of another kind or a newer layout;
            also when data turns out damaged while it is read inside the ``with`` block.
    """
    maker = KINDS[kind][1] if kind else "the stage that made it"
    if not path.is_file():
        what = "is a folder, not an artifact" if path.is_dir() else "does not exist"
        raise ArtifactError(f"{path} {what}; run {maker} first")
    try:
        file = h5py.File(path, "r")
    except BlockingIOError:
        raise ArtifactError(f"{path} is being written by another process; wait for it") from None
    except PermissionError:
        raise ArtifactError(f"{path} cannot be read: no right to") from None
    except OSError as error:
        cause = "is cut off" if "truncated" in str(error) else "is no HDF5 file, or damaged"
        raise ArtifactError(f"{path} {cause}; delete it and run {maker} again") from None
    with file:
        header = _checked_header(path, file, kind)
        try:
            yield header, file
        except (OSError, KeyError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            cause = one_line(error)
            message = f"{path} is damaged ({cause}); delete it and run {maker} again"
            raise ArtifactError(message) from error


def _checked_header(path: Path, file: h5py.File, kind: str | None) -> Header:
    schema = file.attrs.get("schema")
    if not isinstance(schema, str) or not schema.startswith("rcnnpipe."):
        raise ArtifactError(f"{path} is an HDF5 file but no artifact of rcnnpipe")
    found, _, layout = schema.removeprefix("rcnnpipe.").rpartition("/")
    if kind is not None and found != kind:
        raise ArtifactError(
            f"{path} holds {schema}, but rcnnpipe.{kind}/{KINDS[kind][0]} is needed here; "
            f"{KINDS[kind][1]} makes one"
        )
    if found not in KINDS or layout != str(KINDS[found][0]):
        raise ArtifactError(f"{path} holds {schema}, which this version of rcnnpipe cannot read")
    try:
        check_sizes(path, file)
        return Header(
            schema=schema,
            id=str(file.attrs["id"]),
            settings=json.loads(file.attrs["settings"]),
            inputs=json.loads(file.attrs["inputs"]),
            lineage=tuple(json.loads(file.attrs["lineage"])),
            classes=tuple(json.loads(file.attrs["classes"])),
            software=json.loads(file.attrs["software"]),
        )
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        message = f"{path} is damaged ({one_line(error)})"
        raise ArtifactError(f"{message}; delete it and run {KINDS[found][1]} again") from None


def read_attribute(file: h5py.File, name: str) -> Any:
    """A root attribute that :func:`write_attributes` wrote as JSON.

    Raises:
        ArtifactError: it is missing or cannot be read.
    """
    try:
        return json.loads(file.attrs[name])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ArtifactError(
            f"{file.filename} is damaged (its attribute '{name}' cannot be read); delete it and "
            "make it again"
        ) from None


def read_strings(dataset: h5py.Dataset) -> tuple[str, ...]:
    """A column of strings."""
    return tuple(one.decode() if isinstance(one, bytes) else str(one) for one in dataset[()])


def require_same_classes(
    first: str, names: Sequence[str], second: str, others: Sequence[str]
) -> None:
    """Refuse to mix two files whose labels mean different classes.

    Raises:
        ArtifactError: prints both lists.
    """
    if tuple(names) != tuple(others):
        raise ArtifactError(
            f"{first} and {second} have different classes: {', '.join(names[1:])} against "
            f"{', '.join(others[1:])}; make both from one data set"
        )
