"""Checkpoints: exact, replaced at once, and never trusted blindly."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rcnnpipe.errors import ArtifactError
from rcnnpipe.training.checkpoints import load_checkpoint, save_checkpoint, unfinished

TENSORS = {
    "network/a.weight": torch.tensor([[1.5, -0.0], [float("inf"), 3e-41]]),
    "network/count": torch.tensor(7),
    "file": torch.arange(3),  # numpy's own argument name
}
STATE = {"iteration": 12, "curve": [0.1, 1 / 3, float("nan")]}


def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "deep" / "id", TENSORS, STATE)
    found = load_checkpoint(tmp_path / "deep" / "id")
    assert found is not None
    assert found.tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        held = found.tensors[name]
        assert held.dtype == value.dtype
        assert held.shape == value.shape
        assert held.numpy().tobytes() == value.numpy().tobytes()
    assert repr(found.state) == repr(STATE)


def test_none_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_a_damaged_one_starts_anew_and_says_so(
    keep: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, TENSORS, STATE)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    assert load_checkpoint(tmp_path) is None
    assert "damaged" in caplog.text


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    import numpy as np

    objects = np.array([{"code": 1}], dtype=object)
    np.savez(tmp_path / "checkpoint.npz", **{"state.json": objects}, allow_pickle=True)
    assert load_checkpoint(tmp_path) is None


def test_a_full_disk_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, TENSORS, STATE)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, TENSORS, {"iteration": 13})
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.state["iteration"] == 12
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]


def test_unfinished_work_of_other_settings_stays_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    out = tmp_path / "out.h5"
    for name in ("one", "two", "one-of-2"):  # the last, another rank's share of the same work
        save_checkpoint(tmp_path / "out.h5.partial" / name, TENSORS, STATE)
    with unfinished(out, "one") as folder:
        assert load_checkpoint(folder) is not None
    assert f"other settings or inputs stays in {tmp_path}/out.h5.partial/two/;" in caplog.text
    shutil.rmtree(tmp_path / "out.h5.partial" / "one-of-2")
    assert load_checkpoint(tmp_path / "out.h5.partial" / "two") is not None
    caplog.clear()
    with unfinished(out, "two"), unfinished(out, "three"):  # the first is being worked at
        pass
    assert not caplog.text
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_outlives_a_failure_and_an_empty_folder_does_not(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    with pytest.raises(KeyError), unfinished(out, "one"):
        raise KeyError
    assert not list(tmp_path.iterdir())

    def fail_after_a_checkpoint() -> None:
        with unfinished(out, "one") as folder:
            save_checkpoint(folder, TENSORS, STATE)
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_a_checkpoint()
    assert load_checkpoint(tmp_path / "out.h5.partial" / "one") is not None


def test_two_do_not_train_one_file(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    with unfinished(out, "one") as folder:
        save_checkpoint(folder, TENSORS, STATE)
        with pytest.raises(ArtifactError, match=r"another process is writing .*out\.h5"):
            with unfinished(out, "one"):
                raise AssertionError("not reached")
        with unfinished(out, "one", first=False) as read:
            assert read == folder
        assert load_checkpoint(folder) is not None
