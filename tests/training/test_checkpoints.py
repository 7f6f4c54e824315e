"""Checkpoints: exact, replaced at once, and never trusted blindly."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rcnnpipe.training.checkpoints import drop_checkpoint, load_checkpoint, save_checkpoint

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


def test_dropping_leaves_the_work_of_other_settings(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_checkpoint(tmp_path / "out.partial" / name, TENSORS, STATE)
    drop_checkpoint(tmp_path / "out.partial" / "one")
    assert load_checkpoint(tmp_path / "out.partial" / "two") is not None
    drop_checkpoint(tmp_path / "out.partial" / "two")
    assert not list(tmp_path.iterdir())
    drop_checkpoint(tmp_path / "out.partial" / "never")
