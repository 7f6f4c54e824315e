"""The whole chain through DVC on a few drawn images: it runs, rests, and reruns what it must."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {
    "prepare": {
        "shapes": {"images": "train=8,test=4"},
        "shapes-pretrain": {"images": "train=8,val=2"},
    },
    "pretrain": {name: {"epochs": 1} for name in ("plain", "pyramid", "pyramid-2")},
    "propose": {"max-boxes": 60},
}
# A row of each kind: one process for each stage takes its time.
TARGETS = (
    *("recall", "show@rcnn", "show@sppnet", "evaluate@sppnet"),
    *("evaluate@rcnn", "evaluate@rcnn-without-bbox-reg", "evaluate@rcnn-without-both"),
    *("evaluate@fast", "evaluate@fpn"),
)
FEW_ITERATIONS = {"iterations": 2, "log-every": 1, "checkpoint-every": 2}


def updated(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with some of them replaced, at any depth."""
    result = dict(settings)
    for key, value in changes.items():
        deeper = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = updated(result[key], value) if deeper else value
    return result


def repro(folder: Path, *targets: str) -> list[str]:
    """Run ``dvc repro``; names of the stages that it ran."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run(
        ["dvc", "repro", *targets], cwd=folder, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("Running stage")]
    return [line.split("'")[1] for line in lines]


@pytest.mark.slow
def test_chain_runs_rests_and_reruns_only_what_follows_a_change(tmp_path: Path) -> None:
    pytest.importorskip("dvc", reason="DVC is not installed")
    for name in ("dvc.yaml", ".dvc/config", "stages"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, target)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    params = updated(yaml.safe_load((ROOT / "params.yaml").read_text()), SMALL)
    for system in ("rcnn", "sppnet", "sppnet-2"):
        params["systems"][system]["finetune"] |= FEW_ITERATIONS
    for section in params["single_stage"].values():
        for stage in {"finetune", "rpn"} & set(section):
            section[stage] |= FEW_ITERATIONS | {"scales": 100}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))

    ran = repro(tmp_path, *TARGETS)
    single = {"finetune-fast", "finetune-joint@fpn", "detect-found@fpn"}
    assert single <= set(ran)
    assert {"finetune@rcnn", "evaluate@rcnn-without-both", "recall"} <= set(ran)
    assert {"pool@sppnet", "finetune-pooled@sppnet", "evaluate@sppnet"} <= set(ran)
    assert list((tmp_path / "results/rcnn/shown").glob("*.png"))
    assert list((tmp_path / "results/sppnet/shown").glob("*.png"))
    assert not list(tmp_path.rglob("*.partial*"))

    assert repro(tmp_path, *TARGETS) == []

    params["systems"]["rcnn"]["detect"]["nms-overlap"] = 0.5
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    changed = {
        f"{stage}@{detector}"
        for stage in ("detect", "evaluate")
        for detector in ("rcnn", "rcnn-without-bbox-reg")
    }
    ran = repro(tmp_path, *TARGETS)
    assert changed <= set(ran) <= changed | {"show@rcnn"}


def test_the_table_has_a_row_for_every_way_to_detect() -> None:
    document = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    ways = next(one["evaluated"] for one in document["vars"] if "evaluated" in one)
    compare = document["stages"]["compare"]
    rows = [*ways, "sppnet-combined"]
    words = compare["cmd"].split()
    assert sorted(word for word in words if word.startswith("results/") and "." not in word) == (
        sorted(f"results/{name}" for name in rows)
    )
    wanted = {f"results/{name}/metrics.json" for name in rows}
    assert wanted == set(compare["deps"]) - {"stages/compare.py"}
