"""``rcnnpipe export`` from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from rcnnpipe.cli import main
from tests import artifacts_made as made

COCO = {
    "images": [
        {"id": number, "file_name": f"{number}.jpg", "height": height, "width": width}
        for number, (height, width) in zip((4, 5, 6), made.SIZES.tolist(), strict=True)
    ],
    "categories": [{"id": 11, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 2, "bbox": [1, 2, 30, 40], "area": 9, "iscrowd": 0}
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "coco.json").write_text(json.dumps(COCO))
    ids = ("4", "5", "6")
    made.make_detections(tmp_path / "d.h5", image_ids=ids)
    made.make_proposals(tmp_path / "p.h5", image_ids=ids)
    made.make_model(tmp_path / "m.h5")
    return tmp_path


def export(folder: Path, *arguments: str) -> Result:
    places = [str(folder / a) if "." in a else a for a in arguments]
    return CliRunner().invoke(main, ["export", *places])


def test_coco(folder: Path) -> None:
    found = export(folder, "d.h5", "--format", "coco", "--data", "coco.json", "--out", "new/r.json")
    assert found.exit_code == 0, found.output
    assert found.stdout == ""
    rows = json.loads((folder / "new/r.json").read_text())
    assert len(rows) == 10
    assert {row["image_id"] for row in rows} == {4, 6}
    assert {row["category_id"] for row in rows} == {2, 11}


def test_voc(folder: Path) -> None:
    arguments = ("d.h5", "--format", "voc", "--split", "val", "--out", "voc.d")
    found = export(folder, *arguments, "--digits", "3")
    assert found.exit_code == 0, found.output
    rows = [
        row
        for name in ("cat", "dog")
        for row in (folder / f"voc.d/comp4_det_val_{name}.txt").read_text().splitlines()
    ]
    assert len(rows) == 10
    assert all(len(word.partition(".")[2]) == 3 for row in rows for word in row.split()[1:])


def test_model_and_proposals(folder: Path) -> None:
    for name, format_, out in (
        ("m.h5", "safetensors", "m.safetensors"),
        ("p.h5", "npz", "p.npz"),
        ("p.h5", "json", "p.json"),
    ):
        found = export(folder, name, "--format", format_, "--out", out)
        assert found.exit_code == 0, found.output
        assert (folder / out).stat().st_size > 0
    assert len(np.load(folder / "p.npz")["boxes"]) == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("p.h5", "--format", "voc", "--split", "val", "--out", "o.d"), "is needed here"),
        (("d.h5", "--format", "npz", "--out", "o.npz"), "is needed here"),
        (("d.h5", "--format", "safetensors", "--out", "o.st"), "is needed here"),
        (("d.h5", "--format", "coco", "--out", "o.json"), "needs --data"),
        (("d.h5", "--format", "voc", "--out", "o.d"), "needs --split"),
        (("d.h5", "--format", "voc", "--split", "v", "--out", "p.h5"), "writes a folder"),
        (("d.h5", "--format", "coco", "--data", "coco.json", "--out", "."), "writes a .json file"),
        (("none.h5", "--format", "npz", "--out", "o.npz"), "does not exist"),
        (("p.h5", "--format", "npz", "--out", "d.h5"), "is an artifact, so it is not replaced by"),
        (("p.h5", "--format", "json", "--out", "p.h5"), "is also read and would be lost"),
        (("d.h5", "--format", "coco", "--data", "no.json", "--out", "o.json"), "no data set"),
    ],
)
def test_mistakes_are_one_sentence(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    before = sorted(folder.iterdir())
    found = export(folder, *arguments)
    assert found.exit_code == 1, found.output
    assert words in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert sorted(folder.iterdir()) == before


def test_an_unwritable_place_is_one_sentence(folder: Path) -> None:
    (folder / "a.file").write_text("")
    found = export(folder, "p.h5", "--format", "npz", "--out", "a.file/p.npz")
    assert found.exit_code == 1
    assert "a.file" in found.stderr
