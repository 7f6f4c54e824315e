import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from rcnnpipe.artifacts.store import open_artifact
from rcnnpipe.artifacts.svm import read_svm
from rcnnpipe.cli import main
from tests.artifacts_made import make_features, make_proposals
from tests.reference import svm as reference

COUNTS = (30, 20, 25)
TRUTH = np.isin(np.arange(75), [0, 1, 30, 50, 51])


def run(*arguments: object, fails: int = 0) -> Result:
    result = CliRunner().invoke(main, ["train-svm", *map(str, arguments)])
    assert result.exit_code == fails, result.output
    return result


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    labels = np.where(TRUTH, 1 + np.arange(75) % 2, 0)
    overlaps = 0.4 * random.random((75, 2)).astype(np.float32)
    overlaps[TRUTH] = np.eye(2)[labels[TRUTH] - 1]
    path = tmp_path_factory.mktemp("svm") / "features.h5"
    columns: dict[str, Any] = {"labels": labels, "is_truth": TRUTH, "overlaps": overlaps}
    return make_features(path, counts=COUNTS, **columns)


def test_weights_minimise_the_objective_that_is_reported(features: Path, tmp_path: Path) -> None:
    # No negative is left out when none counts as easy or as too easy to join.
    out, everything = tmp_path / "svm.h5", ("--hard", "-100", "--easy", "-100")
    printed = json.loads(run(features, "--out", out, "--json", *everything).stdout)
    svm = read_svm(out)
    assert svm.layer == "fc7"
    assert svm.header.classes == ("background", "cat", "dog")
    with open_artifact(features) as (header, file):
        assert header.id in svm.header.lineage
        rows = svm.scale * file["layers/fc7"][()].astype(np.float64)
        labels, overlaps = file["labels"][()], file["overlaps"][()]
    assert np.linalg.norm(rows, axis=1).mean() == pytest.approx(20, rel=1e-3)
    for number, name in enumerate(("cat", "dog")):
        positives = rows[TRUTH & (labels == number + 1)]
        negatives = rows[overlaps[:, number] < 0.3]
        examples = np.concatenate([positives, negatives])
        signs = np.array([1] * len(positives) + [-1] * len(negatives))
        least = reference.objective(*reference.minimise(examples, signs), examples, signs)
        ours = reference.objective(svm.weights[number], float(svm.bias[number]), examples, signs)
        assert ours == pytest.approx(least, rel=2e-5)
        assert printed[name]["objective"] == pytest.approx(ours, rel=1e-5)
        assert printed[name]["positives"] == len(positives)
        assert printed[name]["negatives_seen"] == len(negatives)
        assert printed[name]["negatives_cached"] == len(negatives)
        assert svm.report["positives"][number] == len(positives)


def test_liblinear_agrees(features: Path, tmp_path: Path) -> None:
    run(features, "--out", tmp_path / "dual.h5")
    run(features, "--out", tmp_path / "liblinear.h5", "--solver", "liblinear")
    dual, liblinear = read_svm(tmp_path / "dual.h5"), read_svm(tmp_path / "liblinear.h5")
    np.testing.assert_allclose(dual.report["objective"], liblinear.report["objective"], rtol=1e-4)
    np.testing.assert_allclose(dual.weights, liblinear.weights, atol=1e-3)
    assert dual.header.id != liblinear.header.id
    assert "tolerance" not in liblinear.header.settings


def test_equal_runs_give_equal_bytes(features: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("one.h5", "two.h5")]
    for out, workers in zip(outs, (1, 2), strict=True):
        run(features, "--out", out, "--workers", workers, "--retrain-after", 5)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_the_table_tells_each_class(features: Path, tmp_path: Path) -> None:
    result = run(features, "--out", tmp_path / "svm.h5")
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].split()[:4] == ["class", "positives", "seen", "cached"]
    assert [line.split()[0] for line in lines[1:3]] == ["cat", "dog"]
    assert lines[-1].startswith(f"wrote {tmp_path / 'svm.h5'} (2 classes")


def test_a_class_without_objects_is_told_and_never_found(features: Path, tmp_path: Path) -> None:
    labels = np.where(TRUTH, 1, 0)
    path = make_features(tmp_path / "f.h5", counts=COUNTS, labels=labels, is_truth=TRUTH)
    result = run(path, "--out", tmp_path / "svm.h5")
    assert "dog has no positives: it gets no SVM" in result.stderr
    svm = read_svm(tmp_path / "svm.h5")
    assert svm.bias[1] == -np.inf
    assert not svm.weights[1].any()
    assert np.isfinite(svm.bias[0])
    result = run(path, "--out", tmp_path / "svm.h5", "--json")
    assert json.loads(result.stdout)["dog"]["objective"] is None


def test_an_svm_short_of_its_minimum_is_told(features: Path, tmp_path: Path) -> None:
    words = (features, "--out", tmp_path / "svm.h5", "--tolerance", 1e-6)
    assert "warning" not in run(*words).stderr
    told = run(*words, "--cost", 1e6).stderr
    assert "warning: the SVM of cat stopped" in told
    assert "lower --cost" in told


def test_features_of_random_scales_are_told(features: Path, tmp_path: Path) -> None:
    changed = tmp_path / "features.h5"
    shutil.copy(features, changed)
    with h5py.File(changed, "r+") as file:
        settings = json.loads(file.attrs["settings"]) | {"random-scales": True}
        file.attrs["settings"] = json.dumps(settings)
    told = run(changed, "--out", tmp_path / "svm.h5").stderr
    assert "warning" in told
    assert "--random-scales, which is for finetune" in told


def test_difficult_objects_can_be_left_out(tmp_path: Path) -> None:
    labels = np.where(TRUTH, 1 + np.arange(75) % 2, 0)
    columns: dict[str, Any] = {
        "labels": labels,
        "is_truth": TRUTH,
        "difficult": np.arange(75) == 50,
    }
    path = make_features(tmp_path / "f.h5", counts=COUNTS, **columns)
    kept = json.loads(run(path, "--out", tmp_path / "a.h5", "--json").stdout)
    dropped = json.loads(
        run(path, "--out", tmp_path / "b.h5", "--json", "--difficult", "drop").stdout
    )
    assert kept["cat"]["positives"] == dropped["cat"]["positives"] + 1
    assert kept["cat"]["negatives_seen"] == dropped["cat"]["negatives_seen"]


def test_mistakes_are_told_and_leave_the_file_of_before(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "svm.h5"
    run(features, "--out", out)
    before = out.read_bytes()
    empty = make_features(tmp_path / "empty.h5", is_truth=np.zeros(10, bool))
    zeros: dict[str, Any] = {"layers/fc7": np.zeros((10, 32))}
    flat = make_features(tmp_path / "flat.h5", **zeros)
    wrong = {
        "has no layer 'fc8', only fc7, pool5": (features, "--layer", "fc8"),
        "has no annotated objects of cat, dog": (empty,),
        "has mean norm 0 in layer 'fc7'": (flat,),
        "rcnnpipe.features/1 is needed": (make_proposals(tmp_path / "p.h5"),),
        "does not exist": (tmp_path / "none.h5",),
    }
    for message, arguments in wrong.items():
        result = run(*arguments, "--out", out, fails=1)
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    run(features, "--out", out, "--hard", "0.5", fails=2)
    run(features, "--out", out, "--negative-overlap", "2", fails=2)
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.h5", "flat.h5", "p.h5", "svm.h5"]
