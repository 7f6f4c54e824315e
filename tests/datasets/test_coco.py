"""COCO json: boxes, masks of all kinds, crowds, keypoints, sparse ids, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnnpipe.datasets import open_dataset
from rcnnpipe.datasets.masks import decode_segment, rle_of
from rcnnpipe.errors import DataError
from tests.datasets.build import SIZE, coco, coco_document
from tests.realdata import DATA, needs_data

POLYGON = [5, 6, 15, 6, 15, 14, 5, 14]


def uncompressed() -> dict[str, Any]:
    """Columns 5..14, rows 6..13 of a 40 x 60 image."""
    counts, height = [5 * 40 + 6], SIZE[0]
    for _ in range(10):
        counts += [8, height - 8]
    return {"size": list(SIZE), "counts": [*counts[:-1], SIZE[0] * SIZE[1] - sum(counts[:-1])]}


def expected_mask() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[6:14, 5:15] = True
    return mask


def compressed() -> dict[str, Any]:
    rle = rle_of(uncompressed(), SIZE)
    return {"size": list(SIZE), "counts": rle["counts"].decode("ascii")}


def test_boxes_flags_and_order(tmp_path: Path) -> None:
    document = coco_document(
        [
            {"area": 33.5},
            {"category_id": 7, "bbox": [0.5, 1.25, 20, 10.5], "iscrowd": 1},
            {"image_id": 2, "difficult": 1},
        ],
        images=3,
    )
    document["images"].reverse()
    dataset = open_dataset(coco(tmp_path, document))
    assert dataset.image_ids == ("3", "2", "1")  # as the file lists them
    assert dataset.classes == ("background", "cat", "dog")
    assert dataset.category_ids == (0, 3, 7)
    one = dataset.records[2]
    np.testing.assert_array_equal(one.boxes, [[5, 6, 15, 14], [0.5, 1.25, 20.5, 11.75]])
    assert one.areas.tolist() == [33.5, 210.0]
    assert one.crowd.tolist() == [False, True]
    assert one.labels.tolist() == [1, 2]
    assert dataset.records[1].difficult.tolist() == [True]
    assert one.segments is None
    assert one.keypoints is None


@pytest.mark.parametrize("kind", ["polygon", "two polygons", "uncompressed", "compressed"])
def test_masks(tmp_path: Path, kind: str) -> None:
    halves = [[5, 6, 10, 6, 10, 14, 5, 14], [10, 6, 15, 6, 15, 14, 10, 14]]
    segment: Any = {
        "polygon": [POLYGON],
        "two polygons": halves,
        "uncompressed": uncompressed(),
        "compressed": compressed(),
    }[kind]
    dataset = open_dataset(coco(tmp_path, coco_document([{"segmentation": segment}])))
    segments = dataset.records[0].segments
    assert segments == (segment,)
    np.testing.assert_array_equal(decode_segment(segments[0], SIZE), expected_mask())


def test_every_compressed_mask_is_its_own_inverse() -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        size = (int(random.integers(1, 90)), int(random.integers(1, 90)))
        mask = random.random(size) < random.random()
        flat = np.concatenate([[False], mask.T.ravel()])
        starts = np.flatnonzero(flat[1:] != flat[:-1])
        counts = np.diff(np.concatenate([[0], starts, [mask.size]])).tolist()
        text = rle_of({"size": list(size), "counts": counts}, size)
        np.testing.assert_array_equal(decode_segment(text, size), mask)


@pytest.mark.parametrize(
    ("segment", "problem"),
    [
        ([[1, 2, 3, 4]], "three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "even number"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite"),
        ([[1, 2, 3, 4, 5, 10**400]], "finite"),
        ([], "neither"),
        ("abc", "neither"),
        ({"size": [60, 40], "counts": [2400]}, "is of size"),
        ({"size": [40, 60], "counts": [2399]}, "do not sum"),
        ({"size": [40, 60], "counts": [2500, -100]}, "do not sum"),
        ({"size": [40, 60], "counts": "zz{{"}, "do not sum"),
        ({"size": [40, 60], "counts": "o"}, "do not sum"),
        ({"size": [40, 60]}, "no counts"),
        ({"size": 7, "counts": [2400]}, "is of size 7"),
    ],
)
def test_broken_masks_are_refused(segment: Any, problem: str) -> None:
    with pytest.raises(DataError, match=f"a mask cannot be drawn: .*{problem}"):
        decode_segment(segment, SIZE)


def test_keypoints(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "person", "keypoints": ["nose", "hand"]}]
    document = coco_document(
        [
            {"category_id": 1, "keypoints": [7, 8, 2, 0, 0, 0], "num_keypoints": 1},
            {"category_id": 1},
        ],
        categories=categories,
    )
    dataset = open_dataset(coco(tmp_path, document))
    assert dataset.keypoint_names == ("nose", "hand")
    first = dataset.records[0].keypoints
    assert first is not None
    np.testing.assert_array_equal(first, [[[7, 8, 2], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
    assert dataset.records[1].keypoints is not None
    assert dataset.records[1].keypoints.shape == (0, 2, 3)


def test_several_files_for_a_split(tmp_path: Path) -> None:
    root = coco(tmp_path, coco_document([{}]))
    people = coco_document([{}, {}])
    (root / "annotations" / "person_keypoints_train.json").write_text(json.dumps(people))
    assert len(open_dataset(root, "train").records[0].boxes) == 1
    assert len(open_dataset(root, "person_keypoints_train").records[0].boxes) == 2


def test_a_json_alone_and_without_images(tmp_path: Path) -> None:
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(coco_document([{}])))
    with pytest.raises(DataError, match=r"no file .*1\.png"):
        open_dataset(path)
    assert len(open_dataset(path, need_images=False).records) == 2


def test_classes_may_be_renamed_merged_and_left_out(tmp_path: Path) -> None:
    coco(tmp_path / "c", coco_document([{}, {"category_id": 7}]))
    recipe = tmp_path / "r.yaml"
    recipe.write_text("format: coco\nroot: c\nrename: {'*': animal}\n")
    merged = open_dataset(recipe)
    assert (merged.classes, merged.category_ids) == (("background", "animal"), (0, 3))
    assert merged.records[0].labels.tolist() == [1, 1]
    recipe.write_text("format: coco\nroot: c\nrename: {dog: dog, '*': null}\n")
    left = open_dataset(recipe)
    assert (left.classes, left.category_ids) == (("background", "dog"), (0, 7))
    assert left.records[0].labels.tolist() == [1]
    recipe.write_text("format: coco\nroot: c\nclasses: [dog, cat]\n")
    ordered = open_dataset(recipe)
    assert (ordered.classes, ordered.category_ids) == (("background", "dog", "cat"), (0, 7, 3))
    assert ordered.records[0].labels.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bbox": [5, 5, 0, 3]}, "image 1, annotation 1: box 5 5 0 3 has no area"),
        ({"bbox": [5, 5, -4, 3]}, "ends before it begins"),
        ({"bbox": [5, float("nan"), 4, 3]}, "is not four numbers"),
        ({"bbox": [5, None, 4, 3]}, "is not four numbers"),
        ({"bbox": [5, 4, 3]}, "`bbox` is not x, y, width, height"),
        ({"bbox": [90, 5, 4, 3]}, "lies outside"),
        ({"category_id": 99}, "class 'category 99' is not declared"),
        ({"image_id": 77}, "belongs to an image that is not listed"),
        ({"keypoints": [1, 2]}, "2 numbers where 0 are due"),
    ],
)
def test_what_would_corrupt_training_is_refused(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    root = coco(tmp_path, coco_document([given]))
    with pytest.raises(DataError, match=message):
        open_dataset(root)


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "a/../../x.png", "C:\\x.png", ""])
def test_file_names_stay_inside(tmp_path: Path, name: str) -> None:
    root = coco(tmp_path, coco_document())
    path = root / "annotations" / "instances_train.json"
    document = coco_document()
    document["images"][1]["file_name"] = name
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"image 2: file name .* leaves the data folder"):
        open_dataset(root)


def test_one_id_for_two_images(tmp_path: Path) -> None:
    document = coco_document()
    document["images"][1]["id"] = 1
    with pytest.raises(DataError, match="image 1: two images have this id"):
        open_dataset(coco(tmp_path, document))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "no list 'images'"),
        ('{"images": []}', "no list 'categories'"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_no_coco_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(path)


@needs_data
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_real_masks_equal_pycocotools(capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    theirs = COCO(str(DATA / "coco_multi" / "annotations" / "instances_val.json"))
    dataset = open_dataset(DATA / "coco_multi", "val")
    assert len(dataset.records) == 34
    assert sum(int(record.crowd.sum()) for record in dataset.records) == 6
    assert len(dataset.classes) == 81
    for record in dataset.records:
        entries = theirs.loadAnns(theirs.getAnnIds([int(record.image_id)]))
        assert record.segments is not None
        assert len(entries) == len(record.segments)
        for entry, segment in zip(entries, record.segments, strict=True):
            np.testing.assert_array_equal(
                decode_segment(segment, record.size), theirs.annToMask(entry)
            )


@needs_data
def test_real_keypoints() -> None:
    dataset = open_dataset(DATA / "coco_person", "val")
    assert len(dataset.keypoint_names) == 17
    keypoints = [record.keypoints for record in dataset.records]
    assert all(points is not None and points.shape == (1, 17, 3) for points in keypoints)
