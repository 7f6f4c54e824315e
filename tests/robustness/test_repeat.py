"""Two runs with one seed give the same bytes, by any number of workers; and --json is JSON."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.robustness.pipeline import Made, commands, out_of, ran, run, tree

STAGES = list(commands(Made(Path())))
POOLED = ("pretrain-pyramid", "pool", "finetune-pooled")
SEEDED = ("prepare", "pretrain", "propose", "finetune", "finetune-faster", *POOLED)
WORKING = (
    *("pretrain", "propose", "finetune", "extract-features", "train-svm", "detect", "check"),
    *("finetune-faster", "propose-rpn", *POOLED),
)


def written(made: Made, folder: Path, stage: str, *more: object) -> dict[str, bytes]:
    """The files of one run."""
    folder.mkdir()
    name, words = commands(made)[stage]
    ran(*words, out_of(stage), folder / name, *more)
    return tree(folder)


@pytest.mark.parametrize("stage", STAGES)
def test_again(made: Made, tmp_path: Path, stage: str) -> None:
    first, second = (written(made, tmp_path / name, stage) for name in ("one", "two"))
    assert first
    assert first == second


@pytest.mark.parametrize("stage", WORKING)
def test_by_more_workers(made: Made, tmp_path: Path, stage: str) -> None:
    one, three = (written(made, tmp_path / f"{n}", stage, "--workers", n) for n in (1, 3))
    assert one == three


@pytest.mark.parametrize("stage", SEEDED)
def test_another_seed_gives_something_else(made: Made, tmp_path: Path, stage: str) -> None:
    zero, one = (written(made, tmp_path / f"{n}", stage, "--seed", n) for n in (0, 1))
    assert zero.keys() == one.keys()
    assert zero != one


@pytest.mark.parametrize(
    "stage",
    ["extract-features", "detect", "train-svm", "pool", "finetune-pooled", "suppress-anew"],
)
def test_from_another_place(made: Made, tmp_path: Path, stage: str) -> None:
    """No path is written down."""
    shutil.copytree(made.folder, tmp_path / "elsewhere")
    moved = Made(tmp_path / "elsewhere")
    assert written(made, tmp_path / "here", stage) == written(moved, tmp_path / "there", stage)


@pytest.mark.slow
def test_proposals_by_two_ranks(made: Made, tmp_path: Path) -> None:
    alone = written(made, tmp_path / "alone", "propose")
    (tmp_path / "shared").mkdir()
    name, words = commands(made)["propose"]
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    line = [*program, "-m", "rcnnpipe", *map(str, words), "--out", str(tmp_path / "shared" / name)]
    result = subprocess.run(
        line, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "shared") == alone


@pytest.mark.parametrize("stage", ["train-svm", "train-bbox-reg", "evaluate", "compare"])
def test_json(made: Made, tmp_path: Path, stage: str) -> None:
    result = ran(*commands(made)[stage][1], "--out", tmp_path / "out", "--json")
    assert as_json(result.stdout)


def test_json_of_check(made: Made) -> None:
    before = tree(made.faulty)
    assert as_json(run("check", made.faulty, "--json").stdout)["errors"] == 2
    assert as_json(ran("check", made.data, "--json").stdout)["errors"] == 0
    assert tree(made.faulty) == before


@pytest.mark.parametrize(
    "name", ["proposals", "model", "features", "svm", "bbox_reg", "detections"]
)
def test_json_of_inspect(made: Made, name: str) -> None:
    path = getattr(made, name)
    assert as_json(ran("inspect", path, "--json").stdout)
    assert as_json(ran("inspect", path, path, "--json").stdout)


def as_json(text: str) -> dict[str, object]:
    """Strict: NaN and Infinity are no JSON."""
    document: dict[str, object] = json.loads(text, parse_constant=pytest.fail)
    return document
