"""Data sets, annotations and images that cannot be used, in every stage that reads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.datasets.build import voc, voc_object, voc_xml, yolo
from tests.robustness.pipeline import Made
from tests.robustness.refusal import Case, Cases, Spot

CASES = Cases()
WINDOWS = ("propose", "--method", "windows", "--max-boxes", 9)


def recipe(spot: Spot, text: str) -> Sequence[object]:
    return (*WINDOWS, spot.file("set.yaml", text))


@CASES("no such data set", "there is no data set {folder}/nowhere")
def _(spot: Spot) -> Sequence[object]:
    return (*WINDOWS, spot.folder / "nowhere")


@CASES("data that is a text file", "notes.txt is neither a recipe")
def _(spot: Spot) -> Sequence[object]:
    return (*WINDOWS, spot.file("notes.txt", "hello"))


@CASES("a recipe that is a list", "set.yaml must hold keys and values")
def _(spot: Spot) -> Sequence[object]:
    return recipe(spot, "[voc, coco]")


@CASES("a recipe that is no YAML", "set.yaml, line 2 is not YAML")
def _(spot: Spot) -> Sequence[object]:
    return recipe(spot, "format: coco\nroot: [")


@CASES("a recipe that is not text", "set.yaml is not YAML: not UTF-8 text")
def _(spot: Spot) -> Sequence[object]:
    return (*WINDOWS, spot.file("set.yaml", b"\xff\xfe\x00\x81"))


@CASES("a recipe nested without end", "set.yaml")
def _(spot: Spot) -> Sequence[object]:
    return recipe(spot, "format: " + "[" * 5000)


@CASES("a recipe with an unknown key", "unknown key 'fromat'", "did you mean 'format'?")
def _(spot: Spot) -> Sequence[object]:
    return recipe(spot, "fromat: coco")


@CASES("a recipe of an unknown format", "format: 'cocoa' is not known", "did you mean 'coco'?")
def _(spot: Spot) -> Sequence[object]:
    return recipe(spot, "format: cocoa")


@CASES("a recipe without its data", "{folder}/gone is no folder", "`root:`")
def _(spot: Spot) -> Sequence[object]:
    return recipe(spot, "format: coco\nroot: gone")


@CASES("a recipe that names a class twice", "names 'cat' twice")
def _(spot: Spot) -> Sequence[object]:
    return recipe(spot, "format: coco\nclasses: [cat, dog, cat]")


@CASES("a recipe with a key twice", "the key 'root' stands twice", "line 3")
def _(spot: Spot) -> Sequence[object]:
    return recipe(spot, "format: coco\nroot: a\nroot: b")


@CASES("a split of crowds alone", "crowds and difficult objects alone", out=None, keeps_work=True)
def _(spot: Spot) -> Sequence[object]:
    def crowded(document: dict[str, Any]) -> None:
        for annotation in document["annotations"]:
            annotation["iscrowd"] = 1

    data, out = spot.data("test", crowded), spot.folder.parent / "out" / "scores"
    return ("evaluate", spot.made.detections, "--data", data, "--split", "test", "--out", out)


@CASES("a recipe whose splits are a list", "splits: must name a file or folder for each")
def _(spot: Spot) -> Sequence[object]:
    return recipe(spot, "format: coco\nsplits: [train]")


@CASES("a recipe whose quarantine is gone", "its quarantine list q.json does not exist")
def _(spot: Spot) -> Sequence[object]:
    return recipe(spot, "format: coco\nquarantine: q.json")


@CASES("a quarantine list that is none", "quarantine.json is not a quarantine list")
def _(spot: Spot) -> Sequence[object]:
    data = spot.data()
    spot.file("data/quarantine.json", '{"schema": "?", "images": [], "objects": []}')
    return (*WINDOWS, data, "--split", "train")


@CASES("several splits and none named", "has the splits train, test; name one of them")
def _(spot: Spot) -> Sequence[object]:
    return (*WINDOWS, spot.made.data)


@CASES("an unknown split", "there is no split 'val'")
def _(spot: Spot) -> Sequence[object]:
    return (*WINDOWS, spot.made.data, "--split", "val")


@CASES("an empty folder", "the layout of {folder}/empty is not")
def _(spot: Spot) -> Sequence[object]:
    (spot.folder / "empty").mkdir()
    return (*WINDOWS, spot.folder / "empty")


@CASES("a folder without images", "the layout of {folder}/texts is not")
def _(spot: Spot) -> Sequence[object]:
    return (*WINDOWS, spot.file("texts/notes.txt", "hello").parent)


def coco(name: str, *says: str) -> Any:
    """A case with a changed train document; the decorated function changes it."""

    def add(change: Any) -> None:
        def words(spot: Spot) -> Sequence[object]:
            return (*WINDOWS, spot.data("train", change), "--split", "train")

        CASES(name, *says)(words)

    return add


@CASES("COCO json cut off", "instances_train.json")
def _(spot: Spot) -> Sequence[object]:
    data = spot.data()
    path = data / "annotations" / "instances_train.json"
    path.write_text(path.read_text()[:300])
    return (*WINDOWS, data, "--split", "train")


@CASES("COCO json nested without end", "instances_train.json")
def _(spot: Spot) -> Sequence[object]:
    data = spot.data()
    (data / "annotations" / "instances_train.json").write_text("[" * 100_000)
    return (*WINDOWS, data, "--split", "train")


@CASES("COCO json that is a list", "instances_train.json")
def _(spot: Spot) -> Sequence[object]:
    data = spot.data()
    (data / "annotations" / "instances_train.json").write_text("[1, 2]")
    return (*WINDOWS, data, "--split", "train")


@coco("COCO json without images", "instances_train.json", "images")
def _(document: dict[str, Any]) -> None:
    del document["images"]


@coco("COCO images that are no list", "instances_train.json", "images")
def _(document: dict[str, Any]) -> None:
    document["images"] = {"a": 1}


@coco("two images of one id", "image 1: two images have this id")
def _(document: dict[str, Any]) -> None:
    document["images"][4]["id"] = 1


@coco("an annotation of no image", "999")
def _(document: dict[str, Any]) -> None:
    document["annotations"][2]["image_id"] = 999


@coco("an annotation of no category", "77")
def _(document: dict[str, Any]) -> None:
    document["annotations"][2]["category_id"] = 77


@coco("two categories of one name", "red")
def _(document: dict[str, Any]) -> None:
    document["categories"][1]["name"] = "red"


@coco("a box of three numbers", "annotation 3")
def _(document: dict[str, Any]) -> None:
    document["annotations"][2]["bbox"] = [1, 2, 3]


@coco("a box of words", "annotation 3")
def _(document: dict[str, Any]) -> None:
    document["annotations"][2]["bbox"] = ["a", "b", "c", "d"]


@coco("a box that is not a number", "annotation 3")
def _(document: dict[str, Any]) -> None:
    document["annotations"][2]["bbox"][0] = float("nan")


@coco("a box without end", "annotation 3")
def _(document: dict[str, Any]) -> None:
    document["annotations"][2]["bbox"][2] = float("inf")


@coco("a box without width", "annotation 3", "rcnnpipe check")
def _(document: dict[str, Any]) -> None:
    document["annotations"][2]["bbox"][2] = 0


@coco("a box outside", "annotation 3")
def _(document: dict[str, Any]) -> None:
    document["annotations"][2]["bbox"][0] = 5000


@coco("an image without a name", "image 2: file name ''")
def _(document: dict[str, Any]) -> None:
    del document["images"][2]["file_name"]


@coco("an image outside of the data", "../../secret.png")
def _(document: dict[str, Any]) -> None:
    document["images"][2]["file_name"] = "../../secret.png"


@coco("an absolute path", "/etc/hostname")
def _(document: dict[str, Any]) -> None:
    document["images"][2]["file_name"] = "/etc/hostname"


@coco("a missing image", "gone.png")
def _(document: dict[str, Any]) -> None:
    document["images"][2]["file_name"] = "gone.png"


def voc_case(name: str, *says: str) -> Any:
    """A VOC folder whose one annotation is the text the decorated function returns."""

    def add(text: Any) -> None:
        def words(spot: Spot) -> Sequence[object]:
            return (*WINDOWS, voc(spot.folder / "voc", {"a": text()}, train=["a"]))

        CASES(name, *says)(words)

    return add


@voc_case("VOC xml cut off", "a.xml")
def _() -> str:
    return voc_xml(voc_object("cat", (1, 1, 9, 9)))[:60]


@voc_case("VOC xml of entities that multiply", "a.xml")
def _() -> str:
    layers = "".join(
        f'<!ENTITY {"abcdefghij"[i + 1]} "{("&" + "abcdefghij"[i] + ";") * 10}">' for i in range(8)
    )
    head = f'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">{layers}]>'
    return head + "<annotation><filename>&i;</filename></annotation>"


@voc_case("a VOC box of words", "image a, annotation 1: box one 1 9 9")
def _() -> str:
    return voc_xml(voc_object("cat", ("one", 1, 9, 9)))


@voc_case("a VOC object without a name", "image a, annotation 1: the object has no <name>")
def _() -> str:
    return voc_xml(voc_object("", (1, 1, 9, 9)))


@CASES("a VOC image outside of the data", "image a: file name '../../etc/passwd' leaves")
def _(spot: Spot) -> Sequence[object]:
    text = voc_xml(voc_object("cat", (1, 1, 9, 9)), filename="../../etc/passwd")
    root = voc(spot.folder / "voc", {"a": text, "b": text}, train=["a"])
    (root / "JPEGImages" / "a.jpg").unlink()
    return (*WINDOWS, root)


@CASES("a VOC list of an image that is not there", "image b: ", "b.xml does not exist")
def _(spot: Spot) -> Sequence[object]:
    text = voc_xml(voc_object("cat", (1, 1, 9, 9)))
    return (*WINDOWS, voc(spot.folder / "voc", {"a": text}, train=["a", "b"]))


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("0 0.5 0.5 0.2", "line 1 is not"),
        ("2 0.5 0.5 0.2 0.2", "class '#2' is not declared"),
        ("-1 0.5 0.5 0.2 0.2", "line 1 is not"),
        ("0 nan 0.5 0.2 0.2", "nan 0.5 0.2 0.2 is not four numbers"),
        ("0 x 0.5 0.2 0.2", "x 0.5 0.2 0.2 is not four numbers"),
        ("0 0.5 0.5 0 0.2", "0.5 0.5 0 0.2 has no area"),
    ],
)
def test_yolo_lines(made: Made, tmp_path: Path, label: str, says: str) -> None:
    def words(spot: Spot) -> Sequence[object]:
        return (*WINDOWS, yolo(spot.folder / "yolo", {"a": label}))

    Case(label, words, ("image a, annotation 1: ", says)).check(made, tmp_path)


@CASES("YOLO classes without names", "data.yaml")
def _(spot: Spot) -> Sequence[object]:
    return (*WINDOWS, yolo(spot.folder / "yolo", {"a": "0 .5 .5 .2 .2"}, "names: 3"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refused(case: Case, made: Made, tmp_path: Path) -> None:
    case.check(made, tmp_path)
