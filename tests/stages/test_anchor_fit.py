"""finetune tells of classes whose objects no anchor fits, in words and pixels of the image seen."""

import json
from pathlib import Path

import pytest

from tests.stages.test_finetune import coco_of
from tests.stages.test_finetune_options import run
from tests.training.made import SIZE

LOOK = ("--iterations", 0, "--straddle", "keep")
FIT = "will hardly be found"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose red objects are 30 x 30 pixels, the green ones 15 x 20."""
    folder = tmp_path_factory.mktemp("anchors")
    path = coco_of(folder / "data", 6) / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for one in content["annotations"]:
        if one["category_id"] == 2:
            one["bbox"][2:], one["area"] = [15.0, 20.0], 300.0
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("system", "sizes", "scale", "classes"),
    [
        ("rpn", "100,200", "48", "red, green"),
        ("faster", "20,40", "48", "green"),
        ("faster", "40,80", "96", "green"),
        ("faster", "20,40", "48,96", None),  # the green ones fit at the larger
        ("faster", "12,24", "48", None),
        ("fpn", "64,128,200,300", "48", "red, green"),
        ("fpn", "8,16,32,64", "48", None),
    ],
)
def test_classes_that_no_anchor_fits_are_named(
    system: str, sizes: str, scale: str, classes: str | None, folder: Path, tmp_path: Path
) -> None:
    words = ("--anchor-sizes", sizes, "--scales", scale, *LOOK)
    told = run(folder, tmp_path / "m.h5", system, *words).stderr
    assert (FIT in told) == (classes is not None), told
    if classes is not None:
        assert f"fit few objects of {classes}, whose" in told


def test_sides_are_those_of_the_resized_image(folder: Path, tmp_path: Path) -> None:
    words = ("--anchor-sizes", "200,400", "--scales", min(SIZE) * 2, *LOOK)
    told = run(folder, tmp_path / "m.h5", "rpn", *words).stderr
    assert "anchors of 200 to 400 pixels fit few" in told
    assert "usual sides are 35 to 60 in the resized images" in told  # 2 sqrt(15 x 20), 2 x 30


def test_a_thin_object_fits_no_square(folder: Path, tmp_path: Path) -> None:
    """Ratios of 1:2 and 2:1 are as far as the anchors go: 1:8 is covered by less than half."""
    data = tmp_path / "thin" / "data"
    path = coco_of(data, 4) / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for one in content["annotations"]:
        one["bbox"][2:], one["area"] = [4.0, 32.0], 128.0
    path.write_text(json.dumps(content))
    words = ("--anchor-sizes", "8,11,16,22", "--scales", min(SIZE), *LOOK)
    assert FIT in run(tmp_path / "thin", tmp_path / "m.h5", "rpn", *words).stderr
