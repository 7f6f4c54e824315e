"""check: faults and statistics for people and as JSON, the quarantine list, exit codes."""

import json
from pathlib import Path

from click.testing import CliRunner, Result

from rcnnpipe.cli import main
from rcnnpipe.datasets import open_dataset
from tests.datasets.build import coco, coco_document, voc, voc_object, voc_xml
from tests.realdata import DATA, needs_data

GOOD, FLAT = voc_object("cat", (5, 6, 30, 25)), voc_object("cat", (5, 5, 5, 9))


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, args)])


def test_a_clean_set(tmp_path: Path) -> None:
    result = run(voc(tmp_path, {"a": voc_xml(GOOD), "b": voc_xml()}))
    assert result.exit_code == 0
    assert "2 images (1 without objects), 1 objects" in result.stdout
    assert "classes: cat 1" in result.stdout
    assert result.stdout.endswith("0 errors, 0 warnings\n")


def test_errors_are_named_fixed_and_gone(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": voc_xml(GOOD, FLAT), "b": voc_xml(GOOD)})
    (root / "JPEGImages" / "b.jpg").write_bytes(b"")
    result = run(root)
    assert result.exit_code == 1
    assert "error zero-area: image a, annotation 2: box 5 5 5 9 has no area" in result.stdout
    assert "error unreadable-image: image b: " in result.stdout
    assert not (root / "quarantine.json").exists()
    fixed = run(root, "--fix")
    assert fixed.exit_code == 0
    assert "(1 images and 1 objects left out)" in fixed.stderr
    assert open_dataset(root).image_ids == ("a",)
    assert run(root).exit_code == 0


def test_json(tmp_path: Path) -> None:
    result = run(coco(tmp_path, coco_document([{"bbox": [1, 1, 0, 4]}])), "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["errors"] == 1
    assert document["faults"][0] == {
        "severity": "error",
        "kind": "zero-area",
        "image": "1",
        "annotation": "1",
        "message": "box 1 1 0 4 has no area",
    }
    assert document["splits"]["train"]["images"] == 2


def test_a_fault_of_the_whole_set_cannot_be_quarantined(tmp_path: Path) -> None:
    document = coco_document(categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}])
    result = run(coco(tmp_path, document), "--fix")
    assert result.exit_code == 1
    assert "not to be quarantined: class 'cat' is declared 2 times" in result.stderr


def test_the_list_lies_beside_a_recipe(tmp_path: Path) -> None:
    voc(tmp_path / "v", {"a": voc_xml(GOOD, FLAT)})
    recipe = tmp_path / "set.yaml"
    recipe.write_text("format: voc\nroot: v\n")
    assert run(recipe, "--fix").exit_code == 0
    assert (tmp_path / "set.quarantine.json").is_file()
    assert len(open_dataset(recipe).records[0].boxes) == 1


def test_the_list_elsewhere(tmp_path: Path) -> None:
    root = voc(tmp_path / "v", {"a": voc_xml(GOOD, FLAT)})
    result = run(root, "--fix", "--quarantine", tmp_path / "no" / "q.json")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
    result = run(root, "--fix", "--quarantine", tmp_path / "q.json")
    assert result.exit_code == 0
    assert f"put `quarantine: {tmp_path / 'q.json'}` into a recipe" in result.stderr
    recipe = tmp_path / "r.yaml"
    recipe.write_text("format: voc\nroot: v\nquarantine: q.json\n")
    assert len(open_dataset(recipe).records[0].boxes) == 1
    assert run(root, "--quarantine", tmp_path / "q.json").exit_code == 2


def test_many_warnings_are_cut_short(tmp_path: Path) -> None:
    objects = [voc_object("cat", (1, 1, 2 + i, 2)) for i in range(1, 15)]
    objects = [o.replace("<ymax>2<", "<ymax>70<") for o in objects]
    result = run(voc(tmp_path, {"a": voc_xml(*objects)}))
    assert result.exit_code == 0
    assert result.stdout.count("warning beyond-border: image a") == 10
    assert "... 4 more of beyond-border; --json lists all" in result.stdout


def test_one_split(tmp_path: Path) -> None:
    xml = {"a": voc_xml(GOOD), "b": voc_xml(FLAT)}
    root = voc(tmp_path, xml, train=["a"], val=["b"])
    assert run(root, "--split", "train").exit_code == 0
    assert run(root, "--split", "val").exit_code == 1
    assert "there is no split 'x'" in run(root, "--split", "x").stderr


@needs_data
def test_bccd_through_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "bccd.yaml"
    recipe.write_text(f"format: voc\nroot: {DATA / 'bccd'}\n")
    result = run(recipe, "--fix")
    assert result.exit_code == 0
    assert "(0 images and 2 objects left out)" in result.stderr
    counts = [sum(len(r.boxes) for r in open_dataset(recipe, s).records) for s in ("train", "val")]
    assert counts == [2804, 1137]
