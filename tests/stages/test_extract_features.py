"""extract-features and detect, from drawn images to files: contents, ranks, wrong input."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from rcnnpipe.artifacts import proposals as proposals_file
from rcnnpipe.artifacts.detections import read_detections
from rcnnpipe.artifacts.features import open_features
from rcnnpipe.artifacts.model import write_model
from rcnnpipe.artifacts.rows import RowWriter
from rcnnpipe.artifacts.store import make_header
from rcnnpipe.cli import main
from rcnnpipe.datasets import Dataset, open_dataset
from rcnnpipe.datasets.shapes import draw_set
from rcnnpipe.images import read_image
from rcnnpipe.models.backbones import create_network
from rcnnpipe.models.warp import warp
from rcnnpipe.ragged import rows_of

LAYERS = ("pool5", "fc7", "logits")


def run(*arguments: object, fails: bool = False) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert (result.exit_code != 0) == fails, result.output
    return result


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def random_proposals(path: Path, dataset: Dataset, each: int = 12) -> Path:
    """A valid proposals file of random boxes, other numbers of them in each image."""
    header = make_header(
        "proposals", stage="t", version=1, settings={}, inputs={"data": dataset}, classes=()
    )
    sizes = np.array([record.size for record in dataset.records])
    with RowWriter(path, header, proposals_file.COLUMNS, dataset.image_ids, sizes) as writer:
        for number, (height, width) in enumerate(sizes):
            random = np.random.default_rng(number)
            count = each + number % 3
            low = random.random((count, 2)) * 0.6
            high = low + 0.1 + random.random((count, 2)) * 0.3
            boxes = np.concatenate((low, high), axis=1) * [width, height, width, height]
            scores = np.linspace(1, 0, count)
            writer.append({"boxes": boxes.astype(np.float32), "scores": scores})
        writer.finish()
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Drawn images, random proposals, and an untrained network."""
    folder = tmp_path_factory.mktemp("pipeline")
    for _ in draw_set(folder / "shapes", "shapes", {"train": 8}, 0):
        continue
    dataset = open_dataset(folder / "shapes", "train")
    outputs = len(dataset.classes)
    network = create_network("demo", outputs, torch.Generator().manual_seed(0))
    header = make_header(
        "model", stage="t", version=1, settings={}, inputs={}, classes=dataset.classes
    )
    write_model(folder / "model.h5", header, network.settings(), network.tensors())
    random_proposals(folder / "proposals.h5", dataset)
    return {"folder": folder, "dataset": dataset, "network": network}


def extract(made: dict[str, Any], out: Path, *more: object, fails: bool = False) -> Result:
    folder = made["folder"]
    options = {
        "--split": "train",
        "--proposals": folder / "proposals.h5",
        "--model": folder / "model.h5",
        "--layers": ",".join(LAYERS),
        "--workers": 1,
        "--out": out,
    }
    flat = [word for pair in options.items() for word in pair]
    return run("extract-features", folder / "shapes", *flat, *more, fails=fails)


def test_rows_are_what_the_network_makes_of_the_regions(
    made: dict[str, Any], tmp_path: Path
) -> None:
    extract(made, tmp_path / "f.h5")
    network, dataset = made["network"].eval(), made["dataset"]
    with open_features(tmp_path / "f.h5") as features:
        assert features.layers == {"fc7": 256, "logits": len(dataset.classes), "pool5": 864}
        for number, record in enumerate(dataset.records):
            rows = rows_of(features.offsets, number)
            kept = ~record.crowd
            objects = int(kept.sum())
            assert features.is_truth[rows].sum() == objects
            assert features.is_truth[rows][:objects].all()
            assert (features.labels[rows][:objects] == record.labels[kept]).all()
            assert (features.truth[rows][:objects] == np.arange(objects)).all()
            boxes = features.boxes[rows]
            np.testing.assert_array_equal(boxes[:objects], record.boxes[kept].astype(np.float32))
            image = torch.from_numpy(read_image(record.path)).permute(2, 0, 1)
            windows = warp(image, torch.from_numpy(boxes), network.crop, network.preprocessing)
            with torch.inference_mode():
                expected = network(windows, LAYERS, flatten=True)
            for layer in LAYERS:
                found = features.rows(layer, rows).astype(np.float32)
                np.testing.assert_allclose(found, expected[layer], rtol=2e-3, atol=2e-3)
                norms = np.linalg.norm(found, axis=1)
                np.testing.assert_allclose(features.norms(layer)[rows], norms, rtol=1e-5)
        # Fewer images and regions than the statistic draws: the mean over all.
        assert features.mean_norm("fc7") == pytest.approx(features.norms("fc7").mean(), rel=1e-5)


def test_two_runs_two_worker_counts_and_two_ranks_give_the_same_bytes(
    made: dict[str, Any], tmp_path: Path
) -> None:
    extract(made, tmp_path / "a.h5")
    extract(made, tmp_path / "b.h5", "--workers", 0)
    assert digest(tmp_path / "a.h5") == digest(tmp_path / "b.h5")
    folder = made["folder"]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
        *("-m", "rcnnpipe", "extract-features", str(folder / "shapes"), "--split", "train"),
        *("--proposals", str(folder / "proposals.h5"), "--model", str(folder / "model.h5")),
        *("--layers", ",".join(LAYERS), "--workers", "1", "--out", str(tmp_path / "c.h5")),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "c.h5") == digest(tmp_path / "a.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5", "c.h5"]


def test_detect_from_cache_equals_detect_from_pixels(made: dict[str, Any], tmp_path: Path) -> None:
    extract(made, tmp_path / "f.h5")
    data = (made["folder"] / "shapes", "--split", "train")
    from_pixels = ("--model", made["folder"] / "model.h5")
    proposals = ("--proposals", made["folder"] / "proposals.h5")
    run("detect", *data, *from_pixels, *proposals, "--out", tmp_path / "pixels.h5")
    run("detect", *data, "--features", tmp_path / "f.h5", "--out", tmp_path / "cache.h5")
    one, two = (read_detections(tmp_path / name) for name in ("pixels.h5", "cache.h5"))
    assert len(one.boxes) > 0
    assert (one.offsets == two.offsets).all()
    np.testing.assert_allclose(one.scores, two.scores, rtol=1e-3, atol=1e-3)
    assert one.classes == made["dataset"].classes


def test_detect_keeps_candidates_and_needs_no_proposals(
    made: dict[str, Any], tmp_path: Path
) -> None:
    import h5py

    image = made["dataset"].records[0].path
    model = ("--model", made["folder"] / "model.h5")
    run("detect", image, *model, "--keep-candidates", "--out", tmp_path / "d.h5")
    found = read_detections(tmp_path / "d.h5")
    assert found.image_ids == (image.stem,)
    with h5py.File(tmp_path / "d.h5") as file:
        assert len(file["candidates/boxes"]) >= len(found.boxes) > 0
    run("detect", image, *model, "--out", tmp_path / "again.h5", "--keep-candidates")
    assert digest(tmp_path / "d.h5") == digest(tmp_path / "again.h5")


def test_wrong_input_is_explained(made: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "f.h5"
    cases = [
        (("--layers", "fc9"), "has no layer"),
        (("--model", "nowhere.h5"), "nowhere.h5 does not exist"),
        (("--model", made["folder"] / "proposals.h5"), "holds rcnnpipe.proposals/1"),
        (("--proposals", made["folder"] / "model.h5"), "holds rcnnpipe.model/1"),
    ]
    for more, words in cases:
        output = extract(made, out, *more, fails=True).output
        assert words in output
        assert "Traceback" not in output
    assert not out.exists()


def test_a_full_disk_is_foreseen(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    result = extract(made, tmp_path / "f.h5", fails=True)
    assert "are free in" in result.output
