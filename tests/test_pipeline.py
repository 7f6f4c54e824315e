"""The whole chain through DVC on a few drawn images: it runs, rests, and reruns what it must."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from rcnnpipe.cli import main, module_name
from rcnnpipe.system_options import complete_options

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {
    "prepare": {
        "shapes": {"images": "train=8,test=4"},
        "shapes-pretrain": {"images": "train=8,val=2"},
    },
    "pretrain": {name: {"epochs": 1} for name in ("plain", "pyramid", "pyramid-2")},
    "propose": {"max-boxes": 60},
}
# A row of each kind: one process for each stage takes its time. All rows are looked at below.
TARGETS = (
    *("recall", "show@rcnn", "evaluate@rcnn", "evaluate@rcnn-without-bbox-reg"),
    *("evaluate@sppnet", "evaluate@fast", "evaluate@fpn"),
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


def copy_of_pipeline(folder: Path) -> None:
    """The stages and what chains them, in a repository of its own."""
    for name in ("dvc.yaml", ".dvc/config", "stages", "params.yaml"):
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, target)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)


@pytest.mark.slow
def test_chain_runs_rests_and_reruns_only_what_follows_a_change(tmp_path: Path) -> None:
    pytest.importorskip("dvc", reason="DVC is not installed")
    copy_of_pipeline(tmp_path)
    params = updated(yaml.safe_load((ROOT / "params.yaml").read_text()), SMALL)
    for system in ("rcnn", "sppnet"):
        params["systems"][system]["finetune"] |= FEW_ITERATIONS
    for section in params["single_stage"].values():
        for stage in {"finetune", "rpn"} & set(section):
            section[stage] |= FEW_ITERATIONS | {"scales": 100}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))

    ran = repro(tmp_path, *TARGETS)
    single = {"finetune-fast", "finetune-joint@fpn", "detect-found@fpn"}
    assert single <= set(ran)
    assert {"finetune@rcnn", "evaluate@rcnn-without-bbox-reg", "recall"} <= set(ran)
    assert {"pool@sppnet", "finetune-pooled@sppnet", "evaluate@sppnet"} <= set(ran)
    assert list((tmp_path / "results/rcnn/shown").glob("*.png"))
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


def test_every_stage_is_understood_and_depends_on_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = pytest.importorskip("dvc.repo", reason="DVC is not installed").Repo
    copy_of_pipeline(tmp_path)
    monkeypatch.chdir(tmp_path)
    stages = {stage.addressing: stage for stage in repository(str(tmp_path)).index.stages}
    assert {"alternate-4", "finetune@rcnn-without-finetuning", "pool@sppnet-2"} <= stages.keys()
    for name, stage in stages.items():
        program, word, *words = shlex.split(stage.cmd)
        assert program == "rcnnpipe"
        command = main.get_command(click.Context(main), word)
        assert command is not None, name
        with command.make_context(word, list(words)) as context:  # reads the section of params.yaml
            if word == "finetune":
                complete_options(context, dict(context.params))
        needed = {Path(dependency.def_path) for dependency in stage.deps}
        assert Path(f"stages/{module_name(word)}.py") in needed, name
        given = {Path(one) for one in [*words, str(context.params.get("init"))]}
        given = {one for one in given if one.parts[0] in ("artifacts", "data", "results")}
        written = {context.params.get(option) for option in ("out", "curves")} - {None}
        read = given - written
        if word == "compare":
            read = {one / "metrics.json" for one in read}
        assert read <= needed, name
        for made in (Path(out.def_path) for out in stage.outs):
            assert {made, made.parent} & written, name
        if "--params" in words:
            section = words[words.index("--params") + 1].partition(":")[2]
            assert section in {key for one in stage.deps for key in getattr(one, "params", ())}


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
