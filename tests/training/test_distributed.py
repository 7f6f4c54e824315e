"""Ranks: two of them make the step of one; environments that cannot work are told."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from rcnnpipe.errors import SettingError
from rcnnpipe.training.distributed import join_ranks, require_agreement, sum_over_ranks
from tests.training import run_judged, run_ranks


def test_alone_there_is_nothing_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with join_ranks("cpu") as ranks:
        assert (ranks.rank, ranks.world, ranks.device.type) == (0, 1, "cpu")
        assert ranks.first
        tensor = torch.ones(2)
        sum_over_ranks([tensor], ranks)
        require_agreement(5, ranks, "numbers")
        assert tensor.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"RANK": "two", "WORLD_SIZE": "2"}, "RANK is 'two', which is no number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 of WORLD_SIZE 2; start the ranks with"),
        ({"RANK": "0", "WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1', which is no number"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "rank 1 of 2 cannot meet the others"),
    ],
)
def test_an_incomplete_environment_is_told(
    environment: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match=sentence), join_ranks("cpu"):
        pass


def run_by_two(module: ModuleType, out: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--module"]
    subprocess.run(
        [*command, module.__name__, str(out)],
        check=True,
        timeout=240,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        stdout=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_two_ranks_make_the_steps_of_one(tmp_path: Path) -> None:
    run_by_two(run_ranks, tmp_path / "two.npz")
    run_ranks.main(tmp_path / "one.npz")
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        assert one.files == two.files
        start = run_ranks.network_of().state_dict()
        for name in start:
            np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-6)
            assert (one[name] != start[name].numpy()).any()  # all of them have learnt
        np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)
        for name in ("foreground-accuracy", "background-accuracy"):
            np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.slow
def test_two_ranks_clip_average_and_judge_as_one(tmp_path: Path) -> None:
    run_by_two(run_judged, tmp_path / "two.npz")
    run_judged.main(tmp_path / "one.npz")
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        assert one.files == two.files
        assert one["best_iteration"] == two["best_iteration"]
        for name in one.files:
            np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-6, err_msg=name)
        assert one["ap"][~np.isnan(one["ap"])].size == 3
