"""Recipes and recognised folders: what a user may name, and what is said when it is wrong."""

from pathlib import Path

import pytest

from rcnnpipe.datasets import open_dataset
from rcnnpipe.datasets.recipe import read_source
from rcnnpipe.errors import DataError
from tests.datasets.build import SIZE, coco, coco_document, image, voc, voc_object, voc_xml, yolo

XML = voc_xml(voc_object("cat", (1, 2, 10, 20)))


def test_formats_are_recognised(tmp_path: Path) -> None:
    voc(tmp_path / "v", {"a": XML})
    coco(tmp_path / "c", coco_document())
    yolo(tmp_path / "y", {"a": ""})
    image(tmp_path / "f" / "sub" / "a.png")
    formats = {name: read_source(tmp_path / name).format for name in "vcyf"}
    assert formats == {"v": "voc", "c": "coco", "y": "yolo", "f": "folder"}


def test_plain_folders_and_single_images(tmp_path: Path) -> None:
    image(tmp_path / "b.png")
    image(tmp_path / "sub" / "a.jpg")
    image(tmp_path / ".hidden" / "c.png")
    (tmp_path / "notes.txt").write_text("no image")
    dataset = open_dataset(tmp_path)
    assert dataset.image_ids == ("b", "sub/a")
    assert dataset.classes == ("background",)
    assert all(len(record.boxes) == 0 and record.size == SIZE for record in dataset.records)
    one = open_dataset(tmp_path / "sub" / "a.jpg")
    assert one.image_ids == ("a",)
    assert one.records[0].path == tmp_path / "sub" / "a.jpg"


def test_folders_named_as_splits(tmp_path: Path) -> None:
    image(tmp_path / "test" / "a.png")
    image(tmp_path / "train" / "b.png")
    assert open_dataset(tmp_path, "train").image_ids == ("b",)
    with pytest.raises(DataError, match="has the splits train, test"):
        open_dataset(tmp_path)


def test_two_images_of_one_name(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"image a: a\.jpg and a\.png have one name"):
        open_dataset(tmp_path)


def test_a_whole_recipe(tmp_path: Path) -> None:
    root = voc(tmp_path / "data", {"a": XML})
    (root / "Annotations").rename(root / "xml")
    (root / "JPEGImages").rename(root / "photos")
    (root / "list.txt").write_text("a\n")
    recipe = tmp_path / "set.yaml"
    recipe.write_text(
        "name: cats\nformat: voc\nroot: data\nimages: photos\nannotations: xml\n"
        "classes: [dog, cat]\nsplits: {train: list.txt}\nlicence: CC0\nnotes: drawn\n"
    )
    dataset = open_dataset(recipe)
    assert (dataset.name, dataset.split) == ("cats", "train")
    assert dataset.classes == ("background", "dog", "cat")
    assert dataset.records[0].labels.tolist() == [2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "must hold keys and values"),
        ("a: [1\n", "line 2 is not YAML"),
        ("clases: [a]\n", "unknown key 'clases'; did you mean 'classes'?"),
        ("qqq: 1\n", "unknown key 'qqq'; the keys are name, format"),
        ("format: vco\n", "format: 'vco' is not known; did you mean 'voc'?"),
        ("format: voc\ncoordinates: zero\n", "choose from one-based, zero-based, edges"),
        ('root: "\\0"\n', "NUL character"),
        ("root: nowhere\n", "its root .*nowhere is no folder"),
        ("format: voc\nclasses: [a, a]\n", "names 'a' twice"),
        ("format: voc\nclasses: [background]\n", "must not name the background"),
        ("format: voc\nclasses: [yes]\n", "must be a list of names"),
        ("format: voc\nclasses: cat\n", "must be a list of names"),
        ("format: voc\nrename: [a]\n", "rename: must map"),
        ("format: voc\nsplits: [a]\n", "splits: must name"),
        ("format: voc\nquarantine: no.json\n", r"quarantine list no\.json does not exist"),
        ("format: coco\n", "names no json"),
        ("format: voc\nsplits: {train: gone.txt}\n", r"split list .*gone\.txt cannot be read"),
        ("format: voc\nannotations: gone\n", "has no folder of annotations"),
        ("format: yolo\n", "has no folder of images"),
        ("format: folder\n", "there is no image in"),
    ],
)
def test_wrong_recipes_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(recipe)
    assert "\n" not in str(caught.value)


def test_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no data set"):
        open_dataset(tmp_path / "no")
    (tmp_path / "a.h5").touch()
    with pytest.raises(DataError, match="neither a recipe"):
        open_dataset(tmp_path / "a.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the layout of .* is not VOC, COCO, YOLO"):
        open_dataset(tmp_path / "empty")
    voc(tmp_path / "kit" / "VOC2007", {"a": XML})
    (tmp_path / "kit" / "VOC2007" / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"name .*VOC2007 instead"):
        open_dataset(tmp_path / "kit")


def test_the_id_depends_on_annotations_alone(tmp_path: Path) -> None:
    first = open_dataset(voc(tmp_path / "a", {"x": XML}))
    moved = open_dataset(voc(tmp_path / "b", {"x": XML}))
    other = open_dataset(voc(tmp_path / "c", {"x": XML.replace(">10<", ">11<")}))
    assert first.id == moved.id != other.id
