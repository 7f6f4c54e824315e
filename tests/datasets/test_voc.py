"""PASCAL VOC folders: coordinates, flags, splits, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from rcnnpipe.datasets import open_dataset
from rcnnpipe.errors import DataError
from tests.datasets.build import SIZE, image, voc, voc_object, voc_xml
from tests.realdata import DATA, needs_data

CAT = voc_object("cat", (1, 2, 10, 20), difficult=1, truncated=0)
DOG = voc_object("dog", (11.5, 3, 60, 40), difficult=0, truncated=1)


def test_boxes_become_continuous_and_0_based(tmp_path: Path) -> None:
    root = voc(tmp_path / "v", {"a": voc_xml(CAT, DOG), "b": voc_xml()}, train=["b", "a"])
    dataset = open_dataset(root)
    assert dataset.classes == ("background", "cat", "dog")
    assert dataset.image_ids == ("b", "a")  # the list's order
    assert (dataset.split, dataset.source, dataset.name) == ("train", "voc", "v")
    empty, both = dataset.records
    assert empty.boxes.shape == (0, 4)
    # 1-based inclusive 1..10, 2..20 covers 10 x 19 pixels from the corner 0, 1.
    np.testing.assert_array_equal(both.boxes, [[0, 1, 10, 20], [10.5, 2, 60, 40]])
    np.testing.assert_array_equal(both.areas, [190, 49.5 * 38])
    assert both.labels.tolist() == [1, 2]
    assert both.difficult.tolist() == [True, False]
    assert both.truncated.tolist() == [False, True]
    assert both.crowd.tolist() == [False, False]
    assert both.size == SIZE
    assert both.path == root / "JPEGImages" / "a.jpg"


@pytest.mark.parametrize(
    ("coordinates", "expected"), [("zero-based", [1, 2, 11, 21]), ("edges", [1, 2, 10, 20])]
)
def test_other_conventions_by_recipe(
    tmp_path: Path, coordinates: str, expected: list[float]
) -> None:
    voc(tmp_path / "v", {"a": voc_xml(CAT)})
    recipe = tmp_path / "v.yaml"
    recipe.write_text(f"format: voc\nroot: v\ncoordinates: {coordinates}\n")
    np.testing.assert_array_equal(open_dataset(recipe).records[0].boxes, [expected])


def test_classes_are_those_of_all_splits(tmp_path: Path) -> None:
    xml = {"a": voc_xml(CAT), "b": voc_xml(DOG)}
    root = voc(tmp_path, xml, train=["a"], val=["b"])
    assert open_dataset(root, "train").classes == open_dataset(root, "val").classes
    with pytest.raises(DataError, match="has the splits train, val; name one of them"):
        open_dataset(root)
    with pytest.raises(DataError, match="there is no split 'test'"):
        open_dataset(root, "test")


def test_parts_of_persons_are_no_objects(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>3</xmin></bndbox></part>"
    person = voc_object("person", (1, 1, 9, 9)).replace("</object>", part + "</object>")
    dataset = open_dataset(voc(tmp_path, {"a": voc_xml(person)}))
    assert dataset.classes == ("background", "person")
    assert len(dataset.records[0].boxes) == 1


def test_lists_of_single_classes_are_no_splits(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": voc_xml(CAT)}, train=["a"], cat_train=["a  1"])
    assert open_dataset(root).split == "train"
    recipe = tmp_path / "r.yaml"
    recipe.write_text("format: voc\nsplits: {cat: ImageSets/Main/cat_train.txt}\n")
    assert open_dataset(recipe, "cat").image_ids == ("a",)


def test_rounding_at_the_border_stays_and_more_is_clipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    near, far = voc_object("cat", (0, 0, 61, 40)), voc_object("cat", (50, 30, 75, 40))
    dataset = open_dataset(voc(tmp_path, {"a": voc_xml(near, far)}))
    np.testing.assert_array_equal(dataset.records[0].boxes, [[-1, -1, 61, 40], [49, 29, 60, 40]])
    assert "beyond-border (1 times)" in caplog.text


def test_size_from_the_header_where_unsaid(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": voc_xml(CAT, size=None)})
    assert open_dataset(root).records[0].size == SIZE


def test_images_beside_the_annotations(tmp_path: Path) -> None:
    image(tmp_path / "one.png")
    (tmp_path / "one.xml").write_text(voc_xml(CAT))
    assert open_dataset(tmp_path).records[0].path == tmp_path / "one.png"


def test_image_called_by_its_filename_only(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": voc_xml(CAT, filename="other.jpg")})
    (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / "other.jpg")
    assert open_dataset(root).records[0].path.name == "other.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (voc_xml(CAT)[:-14], r"image a: .*a\.xml, line \d: "),
        ("<html/>", "holds <html>, not <annotation>"),
        (
            voc_xml(voc_object("cat", (5, 5, 5, 9))),
            "image a, annotation 1: box 5 5 5 9 has no area",
        ),
        (
            voc_xml(CAT, voc_object("cat", (9, 5, 4, 9))),
            "annotation 2: box .* ends before it begins",
        ),
        (voc_xml(voc_object("cat", ("nan", 5, 5, 9))), "box nan 5 5 9 is not four numbers"),
        (voc_xml(voc_object("cat", ("x", 5, 5, 9))), "box x 5 5 9 is not four numbers"),
        (voc_xml(voc_object("cat", (70, 5, 80, 9))), "lies outside the image of 60 x 40"),
        (voc_xml(voc_object("cat", ("", 5, 8, 9))), "the object has no <xmin>"),
        (voc_xml(voc_object("", (1, 5, 8, 9))), "the object has no <name>"),
        (voc_xml(voc_object("background", (1, 5, 8, 9))), "called 'background'"),
        (voc_xml(CAT, filename="../../etc/x.jpg"), "image b: no image b"),
    ],
)
def test_what_would_corrupt_training_is_refused(tmp_path: Path, text: str, message: str) -> None:
    root = voc(tmp_path, {"a": text})
    if "etc" in text:
        (root / "Annotations" / "a.xml").rename(root / "Annotations" / "b.xml")
        message = r"image b: file name '\.\./\.\./etc/x\.jpg' leaves the data folder"
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(root)
    assert "rcnnpipe check" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_listed_but_absent_files(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": voc_xml(CAT)}, train=["a", "gone"], evil=["../../a"])
    with pytest.raises(DataError, match=r"2 faults, the first: image gone: .*does not exist"):
        open_dataset(root, "train")
    with pytest.raises(DataError, match="leaves the data folder"):
        open_dataset(root, "evil")


def test_an_image_listed_twice_is_read_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = voc(tmp_path, {"a": voc_xml(CAT)}, train=["a", "a"])
    assert open_dataset(root).image_ids == ("a",)
    assert "repeated-image" in caplog.text


def test_images_may_be_absent_for_evaluation(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": voc_xml(CAT)})
    (root / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"no image a\.\*"):
        open_dataset(root)
    assert len(open_dataset(root, need_images=False).records[0].boxes) == 1


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    root = voc(tmp_path / "v", {"a": voc_xml(CAT)})
    inside = root / "JPEGImages" / "a.jpg"
    outside = inside.rename(tmp_path / "secret.jpg")
    inside.symlink_to(outside)
    with pytest.raises(DataError, match="outside the data folder"):
        open_dataset(root)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("format: voc\nroot: v\nfollow_links: true\n")
    assert len(open_dataset(recipe).records) == 1


@needs_data
@pytest.mark.parametrize(
    ("name", "split", "images", "objects", "classes"),
    [
        ("raccoon", "train", 128, 139, 1),
        ("raccoon", "val", 32, 34, 1),
        ("playing_cards", "train", 236, 419, 6),
        ("playing_cards", "val", 60, 108, 6),
    ],
)
def test_real_folders(name: str, split: str, images: int, objects: int, classes: int) -> None:
    dataset = open_dataset(DATA / name, split)
    assert len(dataset.records) == images
    assert sum(len(record.boxes) for record in dataset.records) == objects
    assert len(dataset.classes) == classes + 1


@needs_data
def test_the_known_faults_of_bccd_are_found() -> None:
    with pytest.raises(DataError, match=r"BloodImage_00343, annotation 4: box .* has no area"):
        open_dataset(DATA / "bccd", "train")
    with pytest.raises(DataError, match=r"BloodImage_00338, annotation 13: box .* has no area"):
        open_dataset(DATA / "bccd", "val")
