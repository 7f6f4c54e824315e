"""propose, from image files to the proposals file: methods, kills, workers, wrong input."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from rcnnpipe.artifacts.proposals import read_proposals
from rcnnpipe.cli import main
from rcnnpipe.proposals import selective_search
from rcnnpipe.ragged import rows_of
from rcnnpipe.randomness import generator
from tests.proposals.test_selective_search import check_boxes, scene

SIZES = [(80, 110), (60, 90), (75, 130)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, size in enumerate(SIZES):
        Image.fromarray(scene(size, seed=number)).save(folder / f"{number}.png")
    return folder


def propose(*arguments: object, code: int = 0) -> Result:
    words = ["propose", *map(str, arguments)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return result


def test_boxes_of_every_image_as_the_library_makes_them(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "p.h5"
    result = propose(images, "--out", out, "--workers", 1, "--seed", 3, "--max-boxes", 50)
    assert f"wrote {out} (3 images" in result.stderr
    found = read_proposals(out)
    assert found.image_ids == ("0", "1", "2")
    assert found.sizes.tolist() == [list(size) for size in SIZES]
    assert found.header.classes == ()
    assert found.header.settings["strategy"] == "fast"
    assert not {"overlap", "columns", "workers", "boxes"} & set(found.header.settings)
    for number, size in enumerate(SIZES):
        image = scene(size, seed=number)
        expected = selective_search.propose(
            image, generator(3, "propose", str(number)), max_boxes=50
        )
        check_boxes(expected, size)
        np.testing.assert_array_equal(found.boxes[rows_of(found.offsets, number)], expected.boxes)
        np.testing.assert_array_equal(found.scores[rows_of(found.offsets, number)], expected.scores)


def test_workers_do_not_change_a_byte_but_the_seed_does(images: Path, tmp_path: Path) -> None:
    for name, words in {
        "one": ["--workers", 1],
        "two": ["--workers", 2],
        "seed": ["--workers", 1, "--seed", 1],
    }.items():
        propose(images, "--out", tmp_path / name, "--max-boxes", 20, *words)
    one, two, seed = ((tmp_path / name).read_bytes() for name in ("one", "two", "seed"))
    assert one == two != seed


@pytest.mark.parametrize(
    "words",
    [
        ["--strategy", "quality", "--max-boxes", 400],
        ["--method", "windows", "--overlap", 0.5],
        ["--resize-width", 60],
        ["--min-size", 5],
    ],
)
def test_settings_reach_the_method(images: Path, tmp_path: Path, words: list[object]) -> None:
    propose(images, "--out", tmp_path / "plain.h5", "--workers", 1)
    propose(images, "--out", tmp_path / "set.h5", "--workers", 1, *words)
    plain, changed = (read_proposals(tmp_path / name) for name in ("plain.h5", "set.h5"))
    assert plain.header.id != changed.header.id
    assert plain.boxes.shape != changed.boxes.shape or (plain.boxes != changed.boxes).any()


@pytest.mark.parametrize("method", ["opencv-fast", "opencv-quality", "selectivesearch"])
def test_other_packages(images: Path, tmp_path: Path, method: str) -> None:
    pytest.importorskip(method if method == "selectivesearch" else "cv2")
    propose(images, "--out", tmp_path / "p.h5", "--method", method, "--workers", 1)
    found = read_proposals(tmp_path / "p.h5")
    assert (np.diff(found.offsets) > 0).all()
    assert found.header.settings["method"] == method


def test_precomputed_boxes(images: Path, tmp_path: Path) -> None:
    boxes = {str(number): [[2 + number, 5, 40, 50]] for number in range(3)}
    path, out = tmp_path / "boxes.json", tmp_path / "p.h5"
    path.write_text(json.dumps(boxes))
    words = [images, "--out", out, "--method", "precomputed", "--boxes", path, "--columns", "xywh"]
    propose(*words)
    first = read_proposals(out)
    assert first.boxes.tolist() == [[2, 5, 42, 55], [3, 5, 43, 55], [4, 5, 44, 55]]
    assert first.scores.tolist() == [1, 1, 1]
    path.write_text(json.dumps(boxes | {"2": [[0, 5, 40, 50]]}))
    propose(*words)
    assert read_proposals(out).header.id != first.header.id


def test_small_boxes_are_left_out_with_a_word(images: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "boxes.json", tmp_path / "p.h5"
    path.write_text(json.dumps({str(n): [[2, 5, 40, 50], [2, 5, 9, 30]] for n in range(3)}))
    words = [images, "--out", out, "--method", "precomputed", "--boxes", path]
    told = propose(*words).stderr
    assert "3 boxes are left out, because a side is below --min-size 20" in told
    assert "left out" not in propose(*words, "--min-size", 5).stderr


def test_params_section(images: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("propose:\n  max-boxes: 7\n  method: windows\n")
    propose(images, "--out", tmp_path / "p.h5", "--params", f"{params}:propose")
    assert np.diff(read_proposals(tmp_path / "p.h5").offsets).tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "precomputed"], "--method precomputed and --boxes FILE go together"),
        (["--boxes", "b.json"], "--method precomputed and --boxes FILE go together"),
        (["--method", "opencv"], "'opencv' is not one of"),
        (["--max-boxes", 0], "0 is not in the range"),
        (["--overlap", 1], "1"),
        (["--strategy", "slow"], "'slow' is not one of"),
    ],
)
def test_wrong_usage(images: Path, tmp_path: Path, words: list[object], message: str) -> None:
    result = propose(images, "--out", tmp_path / "p.h5", *words, code=2)
    assert message in result.stderr


def test_missing_boxes_are_told_before_any_work(images: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "boxes.json", tmp_path / "p.h5"
    words = [images, "--out", out, "--method", "precomputed", "--boxes", path]
    assert "does not exist" in propose(*words, code=1).stderr
    path.write_text(json.dumps({"0": [], "2": []}))
    assert "has no boxes for 1 of 3 images, first '1'" in propose(*words, code=1).stderr
    assert not out.exists()


def test_a_bad_image_keeps_what_is_done_and_the_file_of_before(
    images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.h5"
    propose(images, "--out", out, "--workers", 1)
    before, image = out.read_bytes(), (images / "2.png").read_bytes()
    (images / "2.png").write_bytes(image[: len(image) // 2])
    words = [images, "--out", out, "--workers", 1, "--min-size", 10]
    result = propose(*words, code=1)
    assert "2.png is truncated or damaged" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert out.read_bytes() == before
    # Put right, the run goes on behind the two images that were done.
    (images / "2.png").write_bytes(image)
    assert list(tmp_path.glob("p.h5.partial/*"))
    (images / "0.png").rename(tmp_path / "away.png")
    Image.fromarray(scene(SIZES[0], seed=9)).save(images / "0.png")  # would give other boxes
    propose(*words)
    (tmp_path / "away.png").rename(images / "0.png")
    resumed = out.read_bytes()
    propose(images, "--out", tmp_path / "whole.h5", "--workers", 1, "--min-size", 10)
    assert resumed == (tmp_path / "whole.h5").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_killed_anywhere_the_bytes_are_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        Image.fromarray(scene((150, 200), seed=number)).save(folder / f"{number:02}.png")
    program = [sys.executable, "-m", "rcnnpipe", "propose", str(folder), "--workers", "2", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    subprocess.run([*program, str(tmp_path / "whole.h5")], check=True, env=environment)
    seconds = time.monotonic() - started
    out, moments = tmp_path / "killed.h5", random.Random(0)
    for _ in range(8):
        with subprocess.Popen([*program, str(out)], env=environment) as process:
            time.sleep(moments.uniform(0.3, 1) * seconds)
            process.kill()  # its workers notice and end
    subprocess.run([*program, str(out)], check=True, env=environment)
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()
