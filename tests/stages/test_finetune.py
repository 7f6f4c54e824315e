"""finetune from images to a model: what it learns and records, resuming, ranks, wrong input."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from rcnnpipe.artifacts.model import read_model, write_model
from rcnnpipe.artifacts.store import make_header
from rcnnpipe.cli import main
from rcnnpipe.datasets import Dataset, open_dataset
from rcnnpipe.models.backbones import build_network, create_network
from rcnnpipe.models.warp import Crop
from tests.stages.made import run_by_two_ranks, stopped_after
from tests.training.made import SIZE, draw_records, write_proposals

QUICK = ("--batch-size", 16, "--foreground", 4, "--log-every", 4, "--checkpoint-every", 3)


def coco_of(folder: Path, count: int) -> Path:
    """The drawn squares as a folder in COCO's layout, split "train"; "bare" has no objects."""
    records = draw_records(folder / "images" / "train", count)
    images: list[Any] = [
        {"id": n, "file_name": f"train/{r.path.name}", "height": SIZE[0], "width": SIZE[1]}
        for n, r in enumerate(records)
    ]
    objects = [
        {
            "id": number + 1,
            "image_id": number,
            "category_id": int(record.labels[0]),
            "bbox": [*record.boxes[0, :2], 30.0, 30.0],
            "area": 900.0,
            "iscrowd": 0,
        }
        for number, record in enumerate(records)
    ]
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    (folder / "annotations").mkdir()
    for split, held in (("train", objects), ("bare", [])):
        text = json.dumps({"images": images, "annotations": held, "categories": categories})
        (folder / "annotations" / f"instances_{split}.json").write_text(text)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, its proposals, and a pre-trained network of other classes."""
    folder = tmp_path_factory.mktemp("finetune")
    dataset = open_dataset(coco_of(folder / "data", 8), "train")
    write_proposals(folder / "proposals.h5", dataset)
    write_proposals(folder / "few.h5", dataset, images=5)
    network = create_network("demo", 6, torch.Generator().manual_seed(0))
    header = made_header(dataset, ("background", *"abcde"))
    write_model(folder / "init.h5", header, network.settings(), network.tensors())
    arrays: dict[str, Any] = network.tensors()
    np.savez(folder / "init.npz", **arrays)
    return folder


def made_header(dataset: Dataset, classes: tuple[str, ...]) -> Any:
    return make_header(
        "model", stage="made", version=1, settings={}, inputs={"data": dataset}, classes=classes
    )


def words(folder: Path, out: Path, *more: object, **changed: object) -> list[str]:
    options: dict[str, object] = {
        "--split": "train",
        "--proposals": folder / "proposals.h5",
        "--network": "demo",
        "--iterations": 8,
        "--workers": 1,
        "--device": "cpu",
        "--out": out,
    }
    options |= {f"--{name}": value for name, value in changed.items()}
    flat = [word for pair in options.items() if pair[1] is not None for word in pair]
    return [str(word) for word in ("finetune", folder / "data", *flat, *QUICK, *more)]


def run(folder: Path, out: Path, *more: object, fails: bool = False, **changed: object) -> Result:
    result = CliRunner().invoke(main, words(folder, out, *more, **changed))
    assert (result.exit_code != 0) == fails, result.output
    assert result.stdout == ""
    return result


def test_it_learns_and_writes_a_network_that_can_be_rebuilt(folder: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "model.h5", tmp_path / "plots" / "curves.csv"
    result = run(folder, out, "--curves", table, "--lr", 0.003, iterations=60)
    assert result.stderr.splitlines()[-1].startswith(f"wrote {out} (60 iterations, ")
    model = read_model(out)
    assert model.header.classes == ("background", "red", "green")
    network = build_network(model.architecture, model.tensors)
    assert network.crop == Crop(56, 4)
    losses = model.curves["loss"]
    assert losses[-3:].mean() < 0.7 * losses[:3].mean()
    assert model.curves["foreground-accuracy"][-3:].mean() > 0.7
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == [str(n) for n in range(4, 61, 4)]
    for name, values in model.curves.items():
        assert [float(row[name]) for row in rows] == values.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.h5", "plots"]


def test_the_header_records_what_can_change_the_result(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.h5"
    run(folder, out, init=folder / "init.h5", network=None)
    header = read_model(out).header
    assert header.inputs.keys() == {"data", "init", "proposals"}
    assert header.inputs["data"] == open_dataset(folder / "data", "train").id
    settings = header.settings
    recorded = ("network", "padding", "crop", "foreground-overlap", "ranks", "device", "lr")
    assert [settings[name] for name in recorded] == ["demo", 4, "warp", 0.5, 1, "cpu", 0.001]
    assert not settings.keys() & {"workers", "checkpoint-every", "image-cache", "init", "out"}


def test_no_iterations_leave_all_but_the_classifier(folder: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "model.h5", tmp_path / "curves.csv"
    run(folder, out, "--curves", table, init=folder / "init.h5", network=None, iterations=0)
    before, after = read_model(folder / "init.h5").tensors, read_model(out).tensors
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name.startswith("fc8"):
            assert len(after[name]) == 3
        else:
            np.testing.assert_array_equal(value, after[name])
    assert after["fc8.weight"].std() == pytest.approx(0.01, rel=0.1)
    assert table.read_text() == "iteration,loss,learning-rate\n"


def test_weights_of_every_kind_of_file_are_the_same_start(folder: Path, tmp_path: Path) -> None:
    for suffix in ("h5", "npz"):
        run(folder, tmp_path / f"{suffix}.h5", init=folder / f"init.{suffix}", iterations=2)
    first, second = (read_model(tmp_path / f"{suffix}.h5") for suffix in ("h5", "npz"))
    for name, value in first.tensors.items():
        np.testing.assert_array_equal(value, second.tensors[name])
    assert second.header.inputs["init"] != first.header.inputs["init"]


def test_equal_runs_give_equal_bytes_however_they_are_done(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "one.h5")
    run(folder, tmp_path / "two.h5", "--workers", 0, "--image-cache", 0, "--checkpoint-every", 7)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    run(folder, tmp_path / "other.h5", "--seed", 1)
    assert (tmp_path / "one.h5").read_bytes() != (tmp_path / "other.h5").read_bytes()


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    stop: int, folder: Path, tmp_path: Path
) -> None:
    run(folder, tmp_path / "whole.h5")
    out = tmp_path / "stopped.h5"
    with stopped_after(stop - 1):
        run(folder, out, fails=True)
    assert not out.exists()
    saved = (stop - 1) // 3 * 3
    # Another setting is another result: what was done does not count for it.
    assert "going on" not in run(folder, out, "--seed", 1, iterations=1).stderr
    result = run(folder, out)
    expected = f"going on after iteration {saved}, which an earlier run had reached"
    assert (expected in result.stderr) == (saved > 0)
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert not out.with_name("stopped.h5.partial").exists()


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    more = ("--checkpoint-every", 2)
    run(folder, tmp_path / "whole.h5", *more, iterations=120)
    out = tmp_path / "killed.h5"
    command = [sys.executable, "-m", "rcnnpipe", *words(folder, out, *more, iterations=120)]
    random = np.random.default_rng(0)
    for _ in range(5):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        # Of the start nothing is kept, so the first checkpoint of each run is waited for.
        partial = out.with_name("killed.h5.partial")
        before = newest(partial)
        while process.poll() is None and newest(partial) == before:
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    result = run(folder, out, *more, iterations=120)
    assert "going on after iteration" in result.stderr
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def newest(folder: Path) -> int:
    found = folder.glob("*/checkpoint.npz")
    return max((path.stat().st_mtime_ns for path in found), default=0)


@pytest.mark.slow
def test_two_ranks_train_and_repeat_themselves(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_by_two_ranks(*words(folder, tmp_path / f"{name}.h5"))
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    model = read_model(tmp_path / "one.h5")
    assert model.header.settings["ranks"] == 2
    assert np.isfinite(model.curves["loss"]).all()


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        ("tight", Crop(56, 0)),
        ("square", Crop(56, 4, "square")),
        ("square-masked", Crop(56, 4, "square", context=False)),
    ],
)
def test_the_model_carries_its_crop(
    crop: str, expected: Crop, folder: Path, tmp_path: Path
) -> None:
    run(folder, tmp_path / "model.h5", crop=crop, iterations=1)
    model = read_model(tmp_path / "model.h5")
    assert build_network(model.architecture, model.tensors).crop == expected


def test_settings_come_from_a_section(folder: Path, tmp_path: Path) -> None:
    section = tmp_path / "params.yaml"
    section.write_text("rcnn:\n  finetune: {lr: 0.5, train-from: fc7, mirror: false}\n")
    run(folder, tmp_path / "model.h5", "--params", f"{section}:rcnn.finetune", iterations=0)
    settings = read_model(tmp_path / "model.h5").header.settings
    assert (settings["lr"], settings["train-from"], settings["mirror"]) == (0.5, "fc7", False)


def test_proposals_of_another_split_serve_but_are_told(folder: Path, tmp_path: Path) -> None:
    text = json.loads((folder / "data" / "annotations" / "instances_train.json").read_text())
    text["images"], text["annotations"] = text["images"][:4], text["annotations"][:4]
    part = folder / "data" / "annotations" / "instances_part.json"
    part.write_text(json.dumps(text))
    result = run(folder, tmp_path / "model.h5", split="part", iterations=1)
    assert "was made for another data set or split" in result.stderr
    assert "other data set" not in run(folder, tmp_path / "train.h5", iterations=1).stderr


WRONG: dict[str, tuple[dict[str, object], tuple[object, ...], str]] = {
    "no proposals": ({"proposals": None}, (), "--system rcnn needs --proposals"),
    "proposals missing": ({"proposals": "absent.h5"}, (), "absent.h5 does not exist; run rcnnpipe"),
    "proposals of few": ({"proposals": "few.h5"}, (), "no proposals for 3 of 8 images"),
    "another kind": ({"proposals": "init.h5"}, (), "rcnnpipe.proposals/1 is needed here"),
    "init of another kind": ({"init": "proposals.h5"}, (), "rcnnpipe.model/1 is needed here"),
    "init missing": ({"init": "absent.npz"}, (), "absent.npz does not exist"),
    "init of another network": ({"init": "init.h5", "network": "zf5"}, (), "holds a demo, not"),
    "no such init": ({"init": "IMAGENET"}, (), "torchvision has no demo"),
    "no network": ({"network": None}, (), "name a network: alexnet"),
    "no such network": ({"network": "lenet"}, (), "there is no network 'lenet'"),
    "no such layer": ({}, ("--train-from", "fc9"), "no layer 'fc9' to train from"),
    "too much foreground": ({}, ("--foreground", 17), "--foreground 17 is not within a batch"),
    "overlaps": ({}, ("--background-overlap", 0.7), "--background-overlap 0.7 is above"),
    "parts": ({}, ("--accumulate", 17), "a batch of 16 cannot be shared by 17"),
    "padding": ({}, ("--padding", 28), "a padding of 28"),
    "tight padding": ({"crop": "tight"}, ("--padding", 4), "a tight crop has no padding"),
    "no objects": ({"split": "bare"}, (), "none of the 8 images has an object"),
    "no such split": ({"split": "nothing"}, (), "nothing"),
    "rate": ({}, ("--lr", "1e30"), "lower --lr, or look at the batch's images: 0, 1"),
    "rate of nothing": ({}, ("--lr", 0), "0.0 is not in the range"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_mistakes_are_told_in_a_sentence_and_harm_nothing(
    case: str, folder: Path, tmp_path: Path
) -> None:
    changed, more, sentence = WRONG[case]
    place = {
        name: folder / str(value) if str(value).endswith((".h5", ".npz")) else value
        for name, value in changed.items()
    }
    out = tmp_path / "model.h5"
    out.write_bytes(b"\x89HDF\r\n\x1a\nthe model of before")
    result = run(folder, out, *more, fails=True, **place)
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: "), result.stderr
    assert sentence in lines[-1]
    assert isinstance(result.exception, SystemExit)
    assert out.read_bytes() == b"\x89HDF\r\n\x1a\nthe model of before"
