"""``rcnnpipe evaluate`` from the command line."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from rcnnpipe.cli import main
from tests import artifacts_made as made

IDS = ("4", "5", "6")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """COCO annotations, a perfect detections file, proposals, and the same for other tools."""
    boxes = np.array([(1, 2, 31, 42), (50, 10, 90, 60), (5, 5, 70, 70)], np.float32)
    annotations: list[dict[str, Any]] = [
        {"id": number + 1, "image_id": image, "category_id": category, "iscrowd": 0}
        | {"bbox": [*box[:2], box[2] - box[0], box[3] - box[1]], "area": 1500}
        for number, (image, category, box) in enumerate(
            zip((4, 4, 6), (2, 11, 2), boxes.tolist(), strict=True)
        )
    ]
    document = {
        "images": [
            {"id": int(image), "file_name": f"{image}.jpg", "height": height, "width": width}
            for image, (height, width) in zip(IDS, made.SIZES.tolist(), strict=True)
        ],
        "categories": [{"id": 11, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }
    (tmp_path / "coco.json").write_text(json.dumps(document))
    rows: dict[str, Any] = {"image_ids": IDS, "counts": (2, 0, 1), "boxes": boxes}
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    made.make_detections(tmp_path / "d.h5", labels=np.array([2, 1, 2]), scores=scores, **rows)
    made.make_proposals(tmp_path / "p.h5", scores=scores, **rows)
    made.make_model(tmp_path / "m.h5")
    made.make_svm(tmp_path / "s.h5")
    for image, (height, width) in zip(IDS, made.SIZES.tolist(), strict=True):
        Image.new("RGB", (width, height)).save(tmp_path / f"{image}.jpg")
    found: list[dict[str, Any]] = [
        {name: row[name] for name in ("image_id", "category_id", "bbox")} | {"score": float(score)}
        for row, score in zip(annotations, scores, strict=True)
    ]
    (tmp_path / "r.json").write_text(json.dumps(found))
    (tmp_path / "comp4").mkdir()
    for name, category in (("cat", 11), ("dog", 2)):
        lines = [
            f"{row['image_id']} {row['score']} {x + 1} {y + 1} {x + width} {y + height}"
            for row in found
            for x, y, width, height in [row["bbox"]]
            if row["category_id"] == category
        ]
        (tmp_path / "comp4" / f"comp4_det_val_{name}.txt").write_text("\n".join(lines))
    return tmp_path


def evaluate(folder: Path, file: str, *options: str, data: str = "coco.json") -> Result:
    places = [str(folder / file), "--data", str(folder / data), "--out", str(folder / "out")]
    return CliRunner().invoke(main, ["evaluate", *places, *options])


def test_every_form_gives_the_same_figures(folder: Path) -> None:
    figures = []
    for file in ("d.h5", "r.json", "comp4"):
        ran = evaluate(folder, file, "--json")
        assert ran.exit_code == 0, ran.output
        figures.append(json.loads(ran.stdout))
        assert json.loads((folder / "out/metrics.json").read_text()) == figures[-1]
        assert "wrote" in ran.stderr.splitlines()[-1]
    assert figures[0] == figures[1] == figures[2]
    assert figures[0]["voc_map_area"] == 1
    assert figures[0]["ap"] == pytest.approx(1)
    assert figures[0]["objects"] == 3


def test_files(folder: Path) -> None:
    ran = evaluate(folder, "d.h5")
    assert ran.stdout == ""
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"metrics.json", "per_class.csv", "pr.csv", "pr.png"}
    with (folder / "out/per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["cat", "dog"]
    assert [row["objects"] for row in rows] == ["1", "2"]
    first = {name: (folder / "out" / name).read_bytes() for name in names}
    evaluate(folder, "d.h5")
    assert first == {name: (folder / "out" / name).read_bytes() for name in names}


def test_proposals(folder: Path) -> None:
    ran = evaluate(folder, "p.h5", "--json")
    assert ran.exit_code == 0, ran.output
    metrics = json.loads(ran.stdout)
    assert metrics["recall_70_2000"] == metrics["ar_1000"] == metrics["mabo_300"] == 1
    names = {path.name for path in (folder / "out").iterdir()}
    written = {"metrics.json", "per_class.csv", "recall.csv", "recall_iou.csv", "recall.png"}
    assert names == written


def test_settings_reach_the_metric(folder: Path) -> None:
    def names(*options: str) -> set[str]:
        return set(json.loads(evaluate(folder, "d.h5", "--json", *options).stdout))

    counts = {"images", "objects", "detections"}
    assert names("--metrics", "voc", "--voc-ap", "area") == counts | {"voc_map_area"}
    assert "ap50" in names("--metrics", "coco")
    at_75 = counts | {"voc_map_11_point_at_75"}
    assert names("--metrics", "voc", "--voc-ap", "11-point", "--iou", "0.75") == at_75


def test_settings_from_a_file(folder: Path) -> None:
    (folder / "params.yaml").write_text("evaluate:\n  metrics: voc\n  voc-ap: area\n  iou: 0.6\n")
    ran = evaluate(folder, "d.h5", "--json", "--params", f"{folder / 'params.yaml'}:evaluate")
    assert "voc_map_area_at_60" in json.loads(ran.stdout)


def no_objects(folder: Path) -> None:
    document = json.loads((folder / "coco.json").read_text())
    (folder / "none.json").write_text(json.dumps(document | {"annotations": []}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.h5",), "does not exist; `rcnnpipe detect` or `propose` makes one"),
        (("s.h5",), "holds rcnnpipe.svm/1; detections, proposals and models are evaluated"),
        (("m.h5",), "m.h5 cannot be built"),
        (("m.h5", "--iou", "0.6"), "--iou is for detections, and"),
        (("d.h5", "--views", "ten"), "--views is for models, and"),
        (("p.h5", "--scale", "64"), "--scale is for models, and"),
        (("coco.json",), "is a COCO annotation file"),
        ((".",), "holds no comp4_det_SPLIT_CLASS.txt"),
        (("d.h5", "--region", "masks"), "holds boxes; --region masks needs a result json"),
        (("r.json", "--region", "masks"), "row 0 has no segmentation"),
    ],
)
def test_mistakes_take_one_sentence(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    ran = evaluate(folder, *arguments)
    assert ran.exit_code == 1, ran.output
    assert message in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    assert not list(folder.glob("out/*"))


def test_data_without_objects(folder: Path) -> None:
    no_objects(folder)
    ran = evaluate(folder, "d.h5", data="none.json")
    assert ran.exit_code == 1
    assert "has no annotated objects in its 3 images" in ran.stderr


def test_other_classes_print_both_lists(folder: Path) -> None:
    text = (folder / "coco.json").read_text().replace("dog", "cow")
    (folder / "other.json").write_text(text)
    ran = evaluate(folder, "d.h5", data="other.json")
    assert ran.exit_code == 1
    assert "cat, dog against cat, cow" in ran.stderr
    ran = evaluate(folder, "comp4", data="other.json")
    assert ran.exit_code == 0
    assert "no result file of class cow" in ran.stderr


def test_out_that_is_a_file(folder: Path) -> None:
    (folder / "out").write_text("kept")
    ran = evaluate(folder, "d.h5")
    assert ran.exit_code == 1
    assert "is a file; name a folder" in ran.stderr
    assert (folder / "out").read_text() == "kept"


def test_results_of_before_survive_a_mistake(folder: Path) -> None:
    evaluate(folder, "d.h5")
    before = (folder / "out/metrics.json").read_bytes()
    damaged = folder / "broken.h5"
    damaged.write_bytes((folder / "d.h5").read_bytes()[:3000])
    ran = evaluate(folder, "broken.h5")
    assert ran.exit_code == 1
    assert "Traceback" not in ran.output
    assert (folder / "out/metrics.json").read_bytes() == before


def test_usage() -> None:
    ran = CliRunner().invoke(main, ["evaluate", "x.h5", "--data", "d", "--out", "o", "--iou", "0"])
    assert ran.exit_code == 2
