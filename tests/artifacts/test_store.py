"""Headers, atomic writing, and what a reader refuses."""

import hashlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rcnnpipe.artifacts.store import (
    Header,
    make_header,
    open_artifact,
    require_same_classes,
    write_artifact,
)
from rcnnpipe.errors import ArtifactError


def header(kind: str = "svm", **changes: Any) -> Header:
    options: dict[str, Any] = {
        "stage": "train-svm",
        "version": 1,
        "settings": {"c": 0.001},
        "inputs": {},
        "classes": ("background", "cat"),
    }
    return make_header(kind, **(options | changes))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    arrays = {"weights": np.arange(20_000, dtype=np.float32), "names": np.array(["ä", "b"])}
    for name in ("a.h5", "b.h5"):
        write_artifact(tmp_path / name, header(), arrays, {"layer": "fc7"})
    assert digest(tmp_path / "a.h5") == digest(tmp_path / "b.h5")
    with open_artifact(tmp_path / "a.h5", "svm") as (found, file):
        assert found == header()
        assert (file["weights"][()] == arrays["weights"]).all()
        assert [name.decode() for name in file["names"][()]] == ["ä", "b"]


def test_id_follows_settings_inputs_and_version_but_not_software() -> None:
    base = header()
    assert header(settings={"c": 0.01}).id != base.id
    assert header(version=2).id != base.id
    assert header(inputs={"features": base}).id != base.id
    assert header(software=["torch"]).id == base.id
    child = header(inputs={"features": header(inputs={"data": base})})
    assert base.id in child.lineage
    assert len(child.lineage) == 2


def test_a_failed_write_keeps_the_file_of_before(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_artifact(path, header(), {"weights": np.zeros(3)})
    before = digest(path)
    with pytest.raises(AttributeError):
        write_artifact(path, header(), {"weights": np.array([object()])})
    assert digest(path) == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.h5"]


def _not_hdf5(path: Path) -> None:
    path.write_text("boxes")


def _cut_off(path: Path) -> None:
    write_artifact(path, header(), {"weights": np.random.default_rng(0).normal(size=9000)})
    path.write_bytes(path.read_bytes()[:-3000])


def _plain_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = 1


def _other_kind(path: Path) -> None:
    write_artifact(path, header("bbox-reg"), {})


def _newer(path: Path) -> None:
    write_artifact(path, header(), {})
    with h5py.File(path, "a") as file:
        file.attrs["schema"] = "rcnnpipe.svm/99"


def _no_settings(path: Path) -> None:
    write_artifact(path, header(), {})
    with h5py.File(path, "a") as file:
        file.attrs["settings"] = "{"


def _boastful(path: Path) -> None:
    write_artifact(path, header(), {})
    with h5py.File(path, "a") as file:
        file.create_dataset("weights", (10**12,), np.float32, chunks=(1024,))


def _flipped(path: Path) -> None:
    write_artifact(path, header(), {"weights": np.random.default_rng(0).normal(size=9000)})
    data = bytearray(path.read_bytes())
    start = len(data) // 2
    data[start : start + 64] = bytes(64)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist; run rcnnpipe train-svm first"),
        (Path.mkdir, "is a folder"),
        (_not_hdf5, "is no HDF5 file, or damaged"),
        (_cut_off, "is cut off"),
        (_plain_hdf5, "no artifact of rcnnpipe"),
        (_other_kind, "holds rcnnpipe.bbox-reg/1, but rcnnpipe.svm/1 is needed here"),
        (_newer, "which this version of rcnnpipe cannot read"),
        (_no_settings, "is damaged"),
        (_boastful, "claims 4000000000000 bytes"),
        (_flipped, "is damaged"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, make: Any, words: str) -> None:
    path = tmp_path / "svm.h5"
    make(path)
    with pytest.raises(ArtifactError) as caught, open_artifact(path, "svm") as (_, file):
        assert file["weights"][()] is not None
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_class_lists_are_checked() -> None:
    require_same_classes("a.h5", ("background", "cat"), "b.h5", ("background", "cat"))
    with pytest.raises(
        ArtifactError, match=r"a.h5 and b.h5 have different classes: cat against dog"
    ):
        require_same_classes("a.h5", ("background", "cat"), "b.h5", ("background", "dog"))


def test_what_learns_from_features_remembers_their_network_and_none_before_it() -> None:
    first = header("model")
    tuned = header("model", settings={"c": 2}, inputs={"init": first})
    features = header("features", inputs={"model": tuned})
    svm = header(inputs=features.with_model())
    assert svm.inputs == {"features": features.id, "model": tuned.id}
    assert {first.id, tuned.id, features.id} <= set(svm.lineage)
    assert set(header("features").with_model()) == {"features"}
