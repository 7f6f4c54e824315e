"""Deliberately broken sets: every kind of fault is found, and named with image and annotation."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnnpipe.datasets import open_dataset
from rcnnpipe.datasets.faults import ERROR, KINDS, Fault
from rcnnpipe.datasets.lint import (
    check_images,
    check_objects,
    check_set,
    parse_splits,
    unique_images,
)
from rcnnpipe.datasets.quarantine import entries_of, read_quarantine, write_quarantine
from rcnnpipe.datasets.recipe import read_source
from rcnnpipe.datasets.statistics import statistics
from rcnnpipe.errors import DataError
from tests.datasets.build import coco, coco_document, image, voc, voc_object, voc_xml, yolo
from tests.realdata import DATA, needs_data

GOOD = (5, 6, 30, 25)


def lint(source: Path) -> list[Fault]:
    recipe = read_source(source)
    splits, faults = parse_splits(recipe, list(recipe.splits) or [""])
    for parsed in splits.values():
        faults += parsed.faults
    images = unique_images(splits)
    for found in check_images(images, workers=2):
        faults += found
    return list(dict.fromkeys([*faults, *check_objects(splits), *check_set(recipe, splits)]))


def places(faults: list[Fault]) -> set[tuple[str, str | None, str | None]]:
    return {(fault.kind, fault.image_id, fault.annotation) for fault in faults}


def broken_voc(root: Path) -> Path:
    boxes = [
        ("cat", GOOD),
        ("cat", (5, 5, 5, 9)),
        ("cat", (9, 5, 4, 9)),
        ("cat", (80, 5, 90, 9)),
        ("cat", ("nan", 5, 9, 9)),
        ("cat", (50, 5, 75, 9)),
        ("cat", (7, 7, 8, 20)),
        ("dog", GOOD),
        ("dog", GOOD),
        ("Dog", (0, 8, 30, 25)),
        ("", GOOD),
    ]
    objects = [voc_object(name, box, difficult=0) for name, box in boxes]
    objects[0] = voc_object("cat", GOOD, difficult=7)
    xml = {name: voc_xml(voc_object("cat", GOOD)) for name in "defgmnqrst"}
    xml |= {"a": voc_xml(*objects), "b": voc_xml(voc_object("cat", GOOD))[:-9]}
    xml |= {"h": voc_xml(voc_object("cat", GOOD), size=(60, 40))}
    xml |= {"i": voc_xml(voc_object("cat", GOOD), size=None)}
    xml |= {"j": voc_xml(voc_object("cat", GOOD), filename="../../x.jpg")}
    names = [*"abdefghijmn", "nowhere", "a"]
    voc(root, xml, train=names, val=["m", "q"], test=[])
    photos = root / "JPEGImages"
    (photos / "d.jpg").unlink()
    (photos / "j.jpg").unlink()
    (photos / "e.jpg").write_bytes((photos / "e.jpg").read_bytes()[:900])
    (photos / "f.jpg").write_text("no image")
    image(photos / "g.jpg", (50, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((60, 40, 3), np.uint8)).save(photos / "h.jpg", exif=exif)
    image(photos / "n.png")
    return root


def test_every_fault_of_a_broken_voc_folder(tmp_path: Path) -> None:
    faults = lint(broken_voc(tmp_path))
    assert places(faults) == {
        ("bad-flag", "a", "1"),
        ("zero-area", "a", "2"),
        ("inverted", "a", "3"),
        ("outside", "a", "4"),
        ("not-a-number", "a", "5"),
        ("beyond-border", "a", "6"),
        ("repeated-box", "a", "9"),
        ("unknown-class", "a", "11"),
        ("similar-class", None, None),
        ("malformed-annotation", "b", None),
        ("missing-image", "d", None),
        ("truncated-image", "e", None),
        ("unreadable-image", "f", None),
        ("size-mismatch", "g", None),
        ("turned-image", "h", None),
        ("missing-size", "i", None),
        ("outside-folder", "j", None),
        ("ambiguous-image", "n", None),
        ("missing-annotation", "nowhere", None),
        ("missing-image", "nowhere", None),
        ("repeated-image", "a", None),
        ("split-overlap", "m", None),
        ("empty-split", None, None),
        ("coordinate-base", None, None),
        ("unused-image", None, None),
    }


def test_every_fault_of_a_broken_coco_file(tmp_path: Path) -> None:
    document = coco_document(
        [
            {"segmentation": [[5, 6, 15, 6, 15, 14, 5, 14]]},
            {"segmentation": [[5, 6, 7]]},
            {"segmentation": [[25, 6, 35, 6, 35, 14]]},
            {"segmentation": {"size": [1, 1], "counts": [1]}},
            {"bbox": [1, 1, 1.5, 20], "id": 4},
            {"bbox": [1, 1, 20], "id": 6},
            {"image_id": 99, "id": 7},
            {"category_id": 55, "id": 8},
            {"keypoints": [70, 1, 2], "id": 9},
            {"keypoints": [7, 1, 5], "id": 10, "bbox": [9, 9, 9, 9]},
            {"iscrowd": 3, "id": 11, "bbox": [9, 9, 19, 9]},
        ],
        categories=[
            {"id": 3, "name": "cat", "keypoints": ["nose"]},
            {"id": 4, "name": "cat"},
            {"id": 5, "name": "bat"},
        ],
    )
    document["images"].append(dict(document["images"][1]))
    document["annotations"].append("what")
    root = coco(tmp_path, document)
    coco(root, coco_document([{"id": 77}], images=1), "val")
    faults = places(lint(root))
    assert faults == {
        ("repeated-box", "1", "2"),
        ("repeated-box", "1", "3"),
        ("repeated-box", "1", "4"),
        ("repeated-box", "1", "9"),
        ("bad-segment", "1", "2"),
        ("segment-box-mismatch", "1", "3"),
        ("bad-segment", "1", "4"),
        ("tiny-box", "1", "4"),
        ("duplicate-annotation", "1", "4"),
        ("malformed-annotation", "1", "6"),
        ("dangling-annotation", "99", "7"),
        ("unknown-class", "1", "8"),
        ("keypoint-outside", "1", "9"),
        ("bad-keypoints", "1", "10"),
        ("bad-flag", "1", "11"),
        ("duplicate-class", None, None),
        ("duplicate-image", "2", None),
        ("malformed-annotation", None, None),
        ("split-overlap", "1", None),
        ("class-lists-differ", None, None),
        ("unused-class", None, None),
    }


def test_all_kinds_are_tested_here() -> None:
    text = Path(__file__).read_text()
    assert {kind for kind in KINDS if f'"{kind}", ' not in text} == set()


def test_a_split_that_cannot_be_parsed_hides_no_other(tmp_path: Path) -> None:
    root = coco(tmp_path, coco_document([{"bbox": [1, 1, 0, 5]}]))
    (root / "annotations" / "instances_val.json").write_text("{")
    kinds = {fault.kind for fault in lint(root)}
    assert {"malformed-annotation", "zero-area"} <= kinds


@pytest.mark.parametrize(
    ("boxes", "suspected"),
    [
        ([(0, 3, 20, 30), (5, 0, 60, 40)], "`coordinates: edges`"),
        ([(0, 3, 20, 30), (5, 0, 59, 39)], "`coordinates: zero-based`"),
        ([(1, 1, 60, 40), (5, 3, 20, 30)], None),
    ],
)
def test_voc_written_from_0(
    tmp_path: Path, boxes: list[tuple[int, ...]], suspected: str | None
) -> None:
    objects = [voc_object("cat", box) for box in boxes]
    faults = [f for f in lint(voc(tmp_path, {"a": voc_xml(*objects)})) if f.severity != ERROR]
    assert [f.kind for f in faults] == (["coordinate-base"] if suspected else [])
    assert suspected is None or suspected in faults[0].message


@pytest.mark.parametrize(
    ("x", "w", "suspected"),
    [(1, 60, "begin at 1, none before"), (0, 59, "end one pixel before"), (0, 60, None)],
)
def test_coco_written_otherwise(tmp_path: Path, x: int, w: int, suspected: str | None) -> None:
    given = [{"bbox": [x, x + i / 8, w, 20], "image_id": 1} for i in range(6)]
    given += [{"bbox": [x, x, 9 + i, 20], "image_id": 2} for i in range(5)]
    kinds = [f for f in lint(coco(tmp_path, coco_document(given))) if f.kind == "coordinate-base"]
    assert [suspected in fault.message for fault in kinds if suspected] == [True] * bool(suspected)
    assert bool(kinds) == bool(suspected)


def test_what_is_quarantined_is_left_out(tmp_path: Path) -> None:
    root = broken_voc(tmp_path)
    with pytest.raises(DataError, match="faults, the first: "):
        open_dataset(root, "train")
    write_quarantine(root / "quarantine.json", entries_of(lint(root)))
    dataset = open_dataset(root, "train")
    assert dataset.image_ids == ("a", "i", "m", "n")
    assert len(dataset.records[0].boxes) == 11 - 5  # the five boxes in error
    assert not [fault for fault in lint(root) if fault.severity == ERROR]


def test_a_corrected_object_is_quarantined_no_more(tmp_path: Path) -> None:
    good, bad = voc_object("cat", GOOD), voc_object("cat", (5, 5, 5, 9))
    root = voc(tmp_path, {"a": voc_xml(bad, good)})
    write_quarantine(root / "quarantine.json", entries_of(lint(root)))
    assert len(open_dataset(root).records[0].boxes) == 1
    (root / "Annotations" / "a.xml").write_text(voc_xml(good, good))
    assert len(open_dataset(root).records[0].boxes) == 2


def test_a_second_fix_keeps_the_first(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    write_quarantine(path, entries_of([Fault("missing-image", "gone", "b")]))
    write_quarantine(path, entries_of([Fault("zero-area", "flat", "a", "2", "1 1 1 1")]))
    entries = read_quarantine(path)
    assert [entry["image"] for entry in entries["images"]] == ["b"]
    assert entries["objects"][0]["why"] == "zero-area: flat"


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": "x", "images": [], "objects": []}', "{}"])
def test_what_is_no_quarantine_list_is_neither_used_nor_overwritten(
    tmp_path: Path, text: str
) -> None:
    root = voc(tmp_path, {"a": voc_xml()})
    path = root / "quarantine.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"quarantine"):
        open_dataset(root)
    with pytest.raises(DataError, match=r"quarantine"):
        write_quarantine(path, {"images": [], "objects": []})
    assert path.read_text() == text


def test_statistics_by_hand(tmp_path: Path) -> None:
    document = coco_document(
        [{"bbox": [0, 0, 10, 40]}, {"bbox": [0, 0, 40, 40], "iscrowd": 1, "category_id": 7}]
    )
    recipe = read_source(coco(tmp_path, document))
    splits, _ = parse_splits(recipe, ["train"])
    figures = statistics(splits["train"])
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["images"], figures["images without objects"], figures["objects"]) == (2, 1, 2)
    assert figures["classes"] == {"cat": 1, "dog": 1}
    assert figures["crowd"] == 1
    assert figures["sizes"] == {"small": 1, "medium": 1, "large": 0}  # 400 and 1600 pixels
    assert figures["side"] == [20, 22, 25, 30, 35, 38, 40]
    assert (figures["aspect"][0], figures["aspect"][-1]) == (0.25, 1)
    assert figures["image width"] == [60] * 7


def test_a_clean_set_has_no_fault(tmp_path: Path) -> None:
    assert lint(yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.2 0.2", "b": ""})) == []


@needs_data
def test_the_two_known_faults_of_bccd() -> None:
    assert places(lint(DATA / "bccd")) == {
        ("zero-area", "BloodImage_00338", "13"),
        ("zero-area", "BloodImage_00343", "4"),
    }
