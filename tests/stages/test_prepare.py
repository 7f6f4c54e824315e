"""prepare: draws the demo set once, and says what it did."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rcnnpipe.cli import main
from rcnnpipe.datasets import open_dataset


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["prepare", *map(str, args)])


def test_draws_once(tmp_path: Path) -> None:
    out = tmp_path / "shapes"
    result = run("shapes", "--out", out, "--images", "train=2,val=1")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "(3 images: train 2, val 1;" in result.stderr
    assert len(open_dataset(out, "train").records) == 2
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = run("shapes", "--out", out, "--images", "train=2,val=1")
    assert again.exit_code == 0
    assert "is complete" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_does_not_overwrite_another_set(tmp_path: Path) -> None:
    out = tmp_path / "s"
    assert run("shapes", "--out", out, "--images", "train=1").exit_code == 0
    result = run("shapes", "--out", out, "--images", "train=1", "--seed", 1)
    assert result.exit_code == 1
    assert "drawn with other settings" in result.stderr


def test_a_set_that_lost_an_image_is_not_called_complete(tmp_path: Path) -> None:
    out = tmp_path / "s"
    run("shapes", "--out", out, "--images", "train=2")
    (out / "images" / "train" / "00001.png").unlink()
    result = run("shapes", "--out", out, "--images", "train=2")
    assert result.exit_code == 1
    assert "has 1 of 2 images of train left" in result.stderr


@pytest.mark.parametrize("images", ["train", "train=x", "=3", "train=1,train=2", "a/b=1", "a=-1"])
def test_wrong_counts(tmp_path: Path, images: str) -> None:
    result = run("shapes", "--out", tmp_path / "s", "--images", images)
    assert result.exit_code == 2
    assert "--images" in result.stderr
    assert not (tmp_path / "s").exists()


def test_what_cannot_be_prepared(tmp_path: Path) -> None:
    assert run("coco", "--out", tmp_path / "c").exit_code == 2
    result = run("voc2007", "--out", tmp_path / "v", "--images", "train=1")
    assert result.exit_code == 2
    assert "--images is for drawn sets" in result.stderr
