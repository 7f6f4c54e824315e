"""finetune --train-from deltas: the box regression learns behind a finished classifier.

Girshick 2015, section 5.1, and the authors' ``experiments/scripts/piecewise_*.sh``.
"""

from pathlib import Path

import numpy as np
import pytest

from rcnnpipe.artifacts.model import read_model
from rcnnpipe.datasets import open_dataset
from tests.stages import made
from tests.stages.test_finetune import coco_of
from tests.stages.test_finetune_options import run
from tests.training.made import write_proposals

ALONE = ("--train-from", "deltas")
SYSTEMS = ["fast", "faster", "fpn"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, regions, and for each system a detector that has learnt to classify alone."""
    folder = tmp_path_factory.mktemp("stage-wise")
    dataset = open_dataset(coco_of(folder / "data", 6), "train")
    write_proposals(folder / "proposals.h5", dataset)
    for system in SYSTEMS:
        run(folder, folder / f"{system}.h5", system, "--box-weight", 0)
    return folder


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_box_regression_alone_learns(system: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.h5"
    words = ("--init", folder / f"{system}.h5", *ALONE, "--iterations", 40, "--lr", 0.0003)
    run(folder, out, system, *words)
    before, after = made.tensors_of(folder / f"{system}.h5"), made.tensors_of(out)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {"box_deltas.weight", "box_deltas.bias"} <= changed
    assert changed <= {"box_deltas.weight", "box_deltas.bias", "deltas_mean", "deltas_std"}
    model = read_model(out)
    assert model.header.settings["train-from"] == "deltas"
    losses = model.curves["box-loss"]
    assert losses[-5:].mean() < losses[0]


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_outputs_alone_learn(system: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.h5"
    run(folder, out, system, "--init", folder / f"{system}.h5", "--train-from", "outputs")
    before, after = made.tensors_of(folder / f"{system}.h5"), made.tensors_of(out)
    parts = {x.split(".")[0] for x in before if not np.array_equal(before[x], after[x])}
    learnt = {"class_scores", "box_deltas", *(("rpn",) if system != "fast" else ())}
    assert parts - {"deltas_mean", "deltas_std"} == learnt


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_run_that_was_stopped_goes_on(system: str, folder: Path, tmp_path: Path) -> None:
    words = ("--init", folder / f"{system}.h5", *ALONE, "--accumulate", 2)
    whole, out = tmp_path / "whole.h5", tmp_path / "stopped.h5"
    run(folder, whole, system, *words)
    with made.stopped_after(4):
        run(folder, out, system, *words, fails=True)
    assert "going on after iteration 3" in run(folder, out, system, *words).stderr
    assert out.read_bytes() == whole.read_bytes()


NO_DETECTOR = "of a detector that tells these classes already; give one by --init"
WRONG: dict[str, tuple[str, tuple[object, ...], str]] = {
    "nothing learnt": ("fast", (), NO_DETECTOR),
    "outputs anew": ("fast", ("--init", "fast.h5", "--new-outputs"), NO_DETECTOR),
    "no loss": ("faster", ("--init", "faster.h5", "--box-weight", 0), "--box-weight 0 leaves it"),
    "no regions": ("rpn", ("--init", "faster.h5"), "which --system rpn has not"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused(case: str, folder: Path, tmp_path: Path) -> None:
    system, more, told = WRONG[case]
    placed = [folder / str(word) if str(word).endswith(".h5") else word for word in more]
    out = tmp_path / "no.h5"
    result = run(folder, out, system, *ALONE, *placed, fails=True)
    assert told in made.sentence(result)
    assert not out.exists()
