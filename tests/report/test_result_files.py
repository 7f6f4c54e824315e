"""COCO and VOC result files: what is written is what is read back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnnpipe.artifacts.detections import Detections, read_detections
from rcnnpipe.datasets.records import Dataset, Record
from rcnnpipe.errors import ArtifactError, DataError
from rcnnpipe.evaluation.columns import Results, truth_of
from rcnnpipe.evaluation.comp4 import read_comp4_results
from rcnnpipe.evaluation.results import read_coco_results
from rcnnpipe.ragged import image_of_rows
from rcnnpipe.report.result_files import write_coco_results, write_comp4
from tests import artifacts_made as made


def dataset(image_ids: tuple[str, ...], **replaced: Any) -> Dataset:
    """A data set of the images of the made artifacts, one object in each."""
    no, box = np.zeros(1, np.bool_), np.array([[1.0, 2, 30, 40]])
    records = tuple(
        Record(image_id, Path(f"{image_id}.jpg"), (int(height), int(width)), box,
               np.array([1]), no, no, no, np.array([1102.0]))
        for image_id, (height, width) in zip(image_ids, made.SIZES, strict=True)
    )  # fmt: skip
    options: dict[str, Any] = {"category_ids": (0, 7, 90), "source": "coco"} | replaced
    return Dataset("some", made.CLASSES, records, **options)


def detections(folder: Path, image_ids: tuple[str, ...]) -> Detections:
    random = np.random.default_rng(3)
    low = random.random((10, 2)) * 50
    boxes = np.concatenate((low, low + random.random((10, 2)) * 40 + 1e-3), axis=1)
    boxes[0] = [1e-6, 0, 1 / 3, 119.99999]
    scores = -np.sort(-random.normal(size=10).astype(np.float32) * 3)
    scores[5] = np.float32(1e-7)
    path = made.make_detections(
        folder / "d.h5", image_ids=image_ids, counts=(5, 0, 5), boxes=boxes.astype(np.float32),
        scores=scores,
    )  # fmt: skip
    return read_detections(path)


def require_equal(results: Results, found: Detections, classwise: bool) -> None:
    order = np.argsort(found.labels, kind="stable") if classwise else np.arange(10)
    np.testing.assert_array_equal(results.boxes.astype(np.float32), found.boxes[order])
    np.testing.assert_array_equal(results.scores.astype(np.float32), found.scores[order])
    np.testing.assert_array_equal(results.labels, found.labels[order])
    np.testing.assert_array_equal(results.images, image_of_rows(found.offsets)[order])


@pytest.mark.parametrize("image_ids", [("3", "17", "397133"), ("a", "b", "c d"), ("1", "x", "2")])
def test_coco_json_reads_back_the_same(image_ids: tuple[str, ...], tmp_path: Path) -> None:
    found, data = detections(tmp_path, image_ids), dataset(image_ids)
    path = tmp_path / "results.json"
    count, are_integers = write_coco_results(path, tmp_path / "d.h5", found, data)
    assert count == 10
    rows = json.loads(path.read_text())
    assert {row["category_id"] for row in rows} <= {7, 90}
    expected = int if image_ids[0] == "3" else str
    assert are_integers is (expected is int)
    assert all(type(row["image_id"]) is expected for row in rows)
    results = read_coco_results(path, truth_of(data), data.category_ids)
    require_equal(results, found, classwise=False)
    # Exactly, not only to float32: evaluating the file gives the numbers of the artifact.
    np.testing.assert_array_equal(results.boxes, found.boxes.astype(np.float64))


def test_pycocotools_takes_the_json(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    image_ids = ("3", "17", "397133")
    path = tmp_path / "results.json"
    write_coco_results(path, path, detections(tmp_path, image_ids), dataset(image_ids))
    truth = COCO()
    truth.dataset = {
        "images": [{"id": int(image_id)} for image_id in image_ids],
        "categories": [{"id": 7}, {"id": 90}],
        "annotations": [],
    }
    truth.createIndex()
    assert len(truth.loadRes(str(path)).getAnnIds()) == 10


def test_zero_padded_ids_become_numbers_unless_they_collide(tmp_path: Path) -> None:
    found = detections(tmp_path, ("007", "008", "009"))
    assert write_coco_results(tmp_path / "a", tmp_path, found, dataset(("007", "008", "009")))[1]
    assert {row["image_id"] for row in json.loads((tmp_path / "a").read_text())} == {7, 9}
    found = detections(tmp_path, ("07", "7", "8"))
    assert not write_coco_results(tmp_path / "b", tmp_path, found, dataset(("07", "7", "8")))[1]


def test_no_detections_are_an_empty_list(tmp_path: Path) -> None:
    path = made.make_detections(tmp_path / "d.h5", counts=(0, 0, 0))
    data = dataset(made.IMAGE_IDS, category_ids=())
    write_coco_results(tmp_path / "r.json", path, read_detections(path), data)
    assert json.loads((tmp_path / "r.json").read_text()) == []


def test_other_classes_and_images_are_refused_and_harm_nothing(tmp_path: Path) -> None:
    found, path = detections(tmp_path, ("1", "2", "3")), tmp_path / "r.json"
    path.write_text("before")
    with pytest.raises(ArtifactError, match="has 1 images that some has not, the first is '3'"):
        write_coco_results(path, tmp_path / "d.h5", found, dataset(("1", "2", "4")))
    other = Dataset("other", ("background", "cow"), dataset(("1", "2", "3")).records)
    with pytest.raises(ArtifactError, match="cat, dog against cow"):
        write_coco_results(path, tmp_path / "d.h5", found, other)
    assert path.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.h5", "r.json"]


@pytest.mark.parametrize("digits", [6, 9])
def test_comp4_reads_back(digits: int, tmp_path: Path) -> None:
    ids = ("000012", "img-2", "x.y")
    found = detections(tmp_path, ids)
    paths = write_comp4(tmp_path / "voc", found, "val", digits)
    assert [path.name for path in paths] == ["comp4_det_val_cat.txt", "comp4_det_val_dog.txt"]
    results = read_comp4_results(tmp_path / "voc", truth_of(dataset(ids)), "val")
    if digits == 9:
        require_equal(results, found, classwise=True)
    order = np.argsort(found.labels, kind="stable")
    np.testing.assert_allclose(results.boxes, found.boxes[order], atol=0.51 * 10**-digits)
    np.testing.assert_allclose(results.scores, found.scores[order], atol=0.51 * 10**-digits)


def test_comp4_rows_are_one_based_and_inclusive(tmp_path: Path) -> None:
    path = made.make_detections(
        tmp_path / "d.h5", counts=(1, 0, 0), boxes=np.array([[0, 4, 10, 20]], np.float32),
        scores=np.array([-1.25]), labels=np.array([2]),
    )  # fmt: skip
    cat, dog = write_comp4(tmp_path, read_detections(path), "test")
    assert cat.read_text() == ""
    assert dog.read_text() == "first -1.250000 1.000000 5.000000 10.000000 20.000000\n"


@pytest.mark.parametrize(
    ("ids", "classes", "split", "words"),
    [
        (("a b", "c", "d"), made.CLASSES, "val", "'a b' holds blanks"),
        (("a", "b", "c"), ("background", "cat/dog", "x"), "val", "class 'cat/dog'"),
        (("a", "b", "c"), made.CLASSES, "../x", "split '../x'"),
    ],
)
def test_names_that_cannot_be_written_are_refused(
    ids: tuple[str, ...], classes: tuple[str, ...], split: str, words: str, tmp_path: Path
) -> None:
    path = made.make_detections(
        tmp_path / "d.h5", image_ids=ids, header=made.header("detections", classes)
    )
    with pytest.raises(DataError, match=words):
        write_comp4(tmp_path / "out", read_detections(path), split)
    assert not (tmp_path / "out").exists()
