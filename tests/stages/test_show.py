"""``rcnnpipe show`` from the command line, on drawn images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from rcnnpipe.cli import main
from rcnnpipe.report.show import file_names
from tests import artifacts_made as made
from tests.realdata import DATA, needs_data

IDS = ("4", "5", "6")


def pixels_of(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        return np.asarray(picture)


def annotations() -> dict[str, Any]:
    images = [
        {"id": int(number), "file_name": f"{number}.png", "height": height, "width": width}
        for number, (height, width) in zip(IDS, made.SIZES.tolist(), strict=True)
    ]
    square = [20.0, 20, 60, 20, 60, 60, 20, 60]
    objects = [
        {"id": 1, "image_id": 4, "category_id": 1, "bbox": [20, 20, 40, 40], "area": 1600,
         "iscrowd": 0, "segmentation": [square], "keypoints": [30, 30, 2, 50, 50, 1],
         "num_keypoints": 2},
        {"id": 2, "image_id": 6, "category_id": 2, "bbox": [5, 5, 50, 60], "area": 3000,
         "iscrowd": 0, "segmentation": [[5, 5, 55, 5, 55, 65]], "keypoints": [0] * 6,
         "num_keypoints": 0},
    ]  # fmt: skip
    categories = [
        {"id": number, "name": name, "keypoints": ["nose", "tail"], "skeleton": [[1, 2]]}
        for number, name in enumerate(made.CLASSES)
        if number
    ]
    return {"images": images, "annotations": objects, "categories": categories}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("show")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for number, (height, width) in zip(IDS, made.SIZES.tolist(), strict=True):
        pixels = random.integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    (folder / "coco.json").write_text(json.dumps(annotations()))
    (folder / "data.yaml").write_text(
        "format: coco\nimages: images\nsplits: {all: coco.json}\n", encoding="utf-8"
    )
    made.make_proposals(folder / "p.h5", image_ids=IDS)
    # The first is found, the second a duplicate, and so on.
    boxes = made.boxes_inside(made.SIZES, made.COUNTS, random)
    boxes[:2] = [[20, 20, 60, 60], [22, 18, 60, 66]]
    labels = np.array([1, 1, 2, 1, 2, 1, 2, 1, 2, 1])
    made.make_detections(folder / "d.h5", image_ids=IDS, boxes=boxes, labels=labels)
    return folder


def show(folder: Path, *arguments: str | Path) -> Result:
    places = [str(folder / a) if a in ("data.yaml", "p.h5", "d.h5", "images") else str(a)
              for a in arguments]  # fmt: skip
    return CliRunner().invoke(main, ["show", *places])


BOTH = ("--proposals", "p.h5", "--detections", "d.h5")


def test_a_picture_for_each_image_and_a_sheet(folder: Path, tmp_path: Path) -> None:
    found = show(folder, "data.yaml", *BOTH, "--out", tmp_path / "new" / "shown")
    assert found.exit_code == 0, found.output
    assert found.stdout == ""
    names = sorted(path.name for path in (tmp_path / "new" / "shown").iterdir())
    assert names == ["4.png", "5.png", "6.png", "contact-sheet.png"]
    with Image.open(tmp_path / "new" / "shown" / "4.png") as picture:
        assert picture.width > 4 * 640  # four panels
    with Image.open(tmp_path / "new" / "shown" / "contact-sheet.png") as picture:
        assert picture.height > 3 * 160


def test_the_same_bytes_every_time(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        show(folder, "data.yaml", *BOTH, "--out", tmp_path / name, "--size", "200")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_one_file(folder: Path, tmp_path: Path) -> None:
    for images in ("4", "4,6"):
        out = tmp_path / f"{len(images)}.png"
        found = show(folder, "data.yaml", *BOTH, "--images", images, "--out", out)
        assert found.exit_code == 0, found.output
    sizes = [pixels_of(tmp_path / f"{length}.png").shape for length in (1, 3)]
    assert sizes[0] != sizes[1]
    assert len(list(tmp_path.iterdir())) == 2


def test_panels_follow_from_what_is_given(folder: Path, tmp_path: Path) -> None:
    widths = []
    for arguments in (
        (), ("--proposals", "p.h5"), BOTH, (*BOTH, "--kind", "errors"),
        (*BOTH, "--kind", "truth", "--kind", "detections"),
    ):  # fmt: skip
        out = tmp_path / "one.png"
        found = show(folder, "data.yaml", *arguments, "--images", "4", "--out", out)
        assert found.exit_code == 0, found.output
        widths.append(round(pixels_of(out).shape[1] / 650))
    assert widths == [1, 2, 4, 1, 2]


def test_every_mark_shows(folder: Path, tmp_path: Path) -> None:
    def pixels(*arguments: str) -> np.ndarray[Any, Any]:
        out = tmp_path / "one.png"
        found = show(folder, "data.yaml", *BOTH, "--images", "4", "--out", out, *arguments)
        assert found.exit_code == 0, found.output
        return pixels_of(out)

    few = pixels("--kind", "detections", "--threshold", "0.99")
    all_of_them = pixels("--kind", "detections", "--threshold", "-1")
    assert (few != all_of_them).any()
    assert (pixels("--kind", "proposals", "--top", "0") != pixels("--kind", "proposals")).any()
    mistakes = pixels("--kind", "errors", "--threshold", "0")
    for colour in ((61, 220, 91), (255, 176, 0), (255, 74, 61)):  # found, duplicate, background
        assert (mistakes == colour).all(axis=2).any()


@pytest.mark.parametrize("source", ["images", "one"])
def test_without_annotations(folder: Path, tmp_path: Path, source: str) -> None:
    data: str | Path = "images" if source == "images" else folder / "images" / "4.png"
    found = show(folder, data, "--detections", "d.h5", "--images", "4", "--out", tmp_path / "x.png")
    assert found.exit_code == 0, found.output
    assert "detections from 0.5 on" in found.stderr
    found = show(folder, data, "--out", tmp_path / "y.png", "--images", "4")
    assert found.exit_code == 0, found.output


def test_margins_of_an_svm_have_their_border_at_zero(folder: Path, tmp_path: Path) -> None:
    scores = np.linspace(1, -1, 10).astype(np.float32)
    made.make_detections(tmp_path / "svm.h5", image_ids=IDS, scores=scores)
    found = show(folder, "images", "--detections", tmp_path / "svm.h5", "--out", tmp_path / "o")
    assert "detections from 0 on" in found.stderr


def test_the_seed_chooses(folder: Path, tmp_path: Path) -> None:
    chosen = set()
    for seed in range(10):
        out = tmp_path / str(seed)
        show(folder, "data.yaml", "--count", "1", "--seed", str(seed), "--out", out, "--size", "64")
        chosen |= {path.name for path in out.iterdir()}
    assert chosen == {"4.png", "5.png", "6.png"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("data.yaml", "--images", "9"), "has no image '9'"),
        (("data.yaml", "--kind", "proposals"), "needs --proposals"),
        (("data.yaml", "--kind", "errors"), "needs --detections"),
        (("images", "--kind", "truth"), "needs annotations"),
        (("images", "--detections", "d.h5", "--kind", "errors"), "needs annotations"),
        (("data.yaml", "--proposals", "d.h5"), "is needed here"),
        (("data.yaml", "--detections", "none.h5"), "does not exist"),
        (("data.yaml", "--detections", "foreign-classes.h5"), "different classes"),
        (("data.yaml", "--detections", "foreign-images.h5"), "has no image in common"),
        (("data.yaml", "--proposals", "foreign-sizes.h5"), "make it for the same data"),
        (("no.yaml",), "no data set"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    head = made.header("detections", ("background", "cat", "cow"))
    made.make_detections(tmp_path / "foreign-classes.h5", image_ids=IDS, header=head)
    made.make_detections(tmp_path / "foreign-images.h5")
    made.make_proposals(tmp_path / "foreign-sizes.h5", image_ids=IDS, sizes=made.SIZES + 1)
    places = [tmp_path / a if a.startswith("foreign") else a for a in arguments]
    found = show(folder, *places, "--out", tmp_path / "out")
    assert found.exit_code == 1, found.output
    assert words in found.stderr
    assert len(found.stderr.strip().splitlines()[-1:]) == 1
    assert not (tmp_path / "out").exists()


def test_a_threshold_that_is_none_is_wrong_usage(folder: Path) -> None:
    found = show(folder, "data.yaml", "--threshold", "high")
    assert found.exit_code == 2
    assert "'high' is neither 'auto' nor a number" in found.stderr


def test_file_names_are_safe_and_different() -> None:
    names = file_names(["a/b", "a_b", "../../x", "contact-sheet", "ß ü", "", "A_B"])
    assert len({name.lower() for name in names}) == len(names)
    assert not any("/" in name or name.startswith(".") for name in names)
    assert "contact-sheet" not in names


@needs_data
def test_real_masks_and_keypoints(tmp_path: Path) -> None:
    found = CliRunner().invoke(
        main,
        ["show", str(DATA / "coco_person"), "--split", "val", "--images", "205105",
         "--out", str(tmp_path / "x.png")],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    pixels = pixels_of(tmp_path / "x.png")
    assert (pixels == (255, 176, 0)).all(axis=2).sum() > 1000
