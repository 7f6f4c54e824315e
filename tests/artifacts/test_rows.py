"""The journal: the same bytes however often the work is interrupted."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rcnnpipe.artifacts.rows import RowWriter
from rcnnpipe.artifacts.store import make_header, open_artifact
from rcnnpipe.errors import ArtifactError, SettingError

IDS = [f"image-{number}" for number in range(60)]
SIZES = np.full((60, 2), 100)
COLUMNS: dict[str, Any] = {
    "boxes": (np.float32, (4,)),
    "layers/fc7": (np.float16, (4096,)),
    "is_truth": (np.bool_, ()),
}
HEADER = make_header(
    "features", stage="t", version=1, settings={}, inputs={}, classes=("background", "a")
)


def rows(number: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(number)
    count = int(random.integers(0, 150)) if number % 7 else 0
    features = random.normal(size=(count, 4096)) * (random.random((count, 4096)) > 0.8)
    return {
        "boxes": random.random((count, 4), np.float32),
        "layers/fc7": features.astype(np.float16),
        "is_truth": random.random(count) > 0.5,
    }


def run(path: Path, until: int = 60, **options: Any) -> int:
    """Write images up to ``until``; returns where the run began."""
    with RowWriter(path, HEADER, COLUMNS, IDS, SIZES, **options) as writer:
        began = writer.done
        while writer.done < until:
            writer.append(rows(writer.done))
        if until == len(IDS):
            norms = np.linalg.norm(writer.column("boxes"), axis=1)
            writer.finish({"norms": norms}, {"note": {"a": 1}})
    return began


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_any_reader_sees_what_was_appended(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "f.h5"
    run(path, compression=compression, compress_workers=2)
    everything = [rows(number) for number in range(60)]
    with h5py.File(path) as file:
        for name in COLUMNS:
            assert (file[name][()] == np.concatenate([one[name] for one in everything])).all()
        assert file["offsets"][-1] == len(file["boxes"])
        assert file["image_ids"][3] == b"image-3"
        assert file["norms"].shape == (len(file["boxes"]),)
    assert not list(tmp_path.glob("*.partial"))


def test_interrupted_work_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path / "whole.h5")
    path = tmp_path / "parts.h5"
    assert run(path, until=13) == 0
    assert not path.exists()
    assert run(path, until=14) == 13
    assert run(path, until=41, compress_workers=2) == 14
    assert run(path) == 41
    assert digest(path) == digest(tmp_path / "whole.h5")


def test_other_settings_neither_use_nor_destroy_unfinished_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "f.h5"
    run(path, until=20)
    other = make_header("features", stage="t", version=2, settings={}, inputs={}, classes=("b",))
    with RowWriter(path, other, COLUMNS, IDS[:1], SIZES[:1]) as writer:
        assert writer.done == 0
        writer.append(rows(1))
        writer.finish()
    assert f"other settings or inputs stays in {path}.partial/" in caplog.text
    caplog.clear()
    assert run(path) == 20
    assert "other settings" not in caplog.text


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.json", b"{"),
        ("state.json", b'{"done": 3, "lengths": [0, 0, 0]}'),
        ("tail-20.npz", b"PK no more"),
        ("layers@fc7.chunks", b""),
        ("layers@fc7.chunks", bytes(100)),
    ],
)
def test_damaged_journal_is_discarded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: bytes
) -> None:
    path = tmp_path / "f.h5"
    run(path, until=20)
    (state,) = tmp_path.glob(f"f.h5.partial/*/{name}")
    state.write_bytes(damage)
    with caplog.at_level("INFO"):
        assert run(path) == 0
    assert "starting anew" in caplog.text or name == "state.json"
    run(tmp_path / "whole.h5")
    assert digest(path) == digest(tmp_path / "whole.h5")


def test_no_images_and_no_rows(tmp_path: Path) -> None:
    with RowWriter(tmp_path / "f.h5", HEADER, COLUMNS, [], np.empty((0, 2))) as writer:
        writer.finish()
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["layers/fc7"].shape == (0, 4096)
        assert file["offsets"][()].tolist() == [0]


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    run(tmp_path / "whole.h5")
    random = np.random.default_rng(1)
    path = tmp_path / "killed.h5"
    code = f"from tests.artifacts.test_rows import *; run(Path({str(path)!r}))"
    kills = 0
    while not path.exists() and kills < 40:
        process = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 0.25 + float(random.random()) * 0.5
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    if not path.exists():
        run(path)
    assert kills > 0
    assert digest(path) == digest(tmp_path / "whole.h5")


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with RowWriter(path, HEADER, COLUMNS, IDS, SIZES) as first:
        first.append(rows(0))
        with pytest.raises(ArtifactError, match="another process is writing"):
            RowWriter(path, HEADER, COLUMNS, IDS, SIZES)
    assert run(path) == 1


def test_zstd_is_read_back_or_explained(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    try:
        import hdf5plugin  # noqa: F401
        import zstandard  # noqa: F401
    except ImportError:
        with pytest.raises(SettingError, match="rcnnpipe\\[zstd\\]"):
            run(path, compression="zstd")
        return
    run(path, compression="zstd")
    with open_artifact(path, "features") as (_, file):
        assert len(file["layers/fc7"][()]) == file["offsets"][-1]
