"""``rcnnpipe pretrain`` from the command line, on a tiny set of drawn images."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from rcnnpipe.artifacts.model import read_model
from rcnnpipe.cli import main
from rcnnpipe.models.backbones import build_network
from rcnnpipe.training import loop

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


def draw(path: Path, colour: tuple[int, int, int], random: np.random.Generator) -> list[int]:
    pixels = random.integers(90, 160, (48, 64, 3), np.uint8)
    x, y = int(random.integers(2, 30)), int(random.integers(2, 18))
    pixels[y : y + 26, x : x + 30] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return [x, y, 30, 26]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        images, annotations = [], []
        for number in range(12):
            name = list(COLOURS)[number % 2]
            box = draw(folder / "images" / split / f"{number}.png", COLOURS[name], random)
            file = f"{number}.png"
            images.append({"id": number, "file_name": file, "height": 48, "width": 64})
            annotations.append(
                {
                    "id": number + 1,
                    "image_id": number,
                    "category_id": number % 2 + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        categories = [{"id": number, "name": name} for number, name in enumerate(COLOURS, 1)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return folder


def pretrain(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["pretrain", *map(str, arguments)])


SETTINGS = ("--network", "demo", "--epochs", "4", "--batch-size", "4", "--device", "cpu")


def run(data: Path, out: Path, *arguments: str | Path) -> Result:
    result = pretrain(data, "--split", "train", *SETTINGS, "--out", out, *arguments)
    assert result.exit_code == 0, result.output
    return result


def test_a_model_that_can_be_rebuilt(coco: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "w.h5", tmp_path / "curves.csv"
    result = run(coco, out, "--curves", table, "--validate", "val")
    assert result.stdout == ""
    assert "accuracy on val:" in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"wrote {out} (4 epochs")
    model = read_model(out)
    assert model.header.classes == ("background", "red", "blue")
    assert model.header.settings["network"] == "demo"
    assert build_network(model.architecture, model.tensors).outputs == 3
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["iteration"]) for row in rows] == [3, 6, 9, 12]
    assert [float(row["loss"]) for row in rows] == model.curves["loss"].tolist()
    assert not (tmp_path / "w.h5.partial").exists()


def test_colours_are_learned(coco: Path, tmp_path: Path) -> None:
    result = run(coco, tmp_path / "w.h5", "--epochs", "30", "--validate", "val", "--lr", "0.001")
    assert "accuracy on val: 1.0" in result.stderr


def test_equal_runs_give_equal_bytes(coco: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.h5", "b.h5", "c.h5")]
    run(coco, files[0])
    run(coco, files[1], "--workers", "0")
    run(coco, files[2], "--seed", "1")
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes() != files[2].read_bytes()


def test_a_stopped_run_goes_on_to_the_same_bytes(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole.h5", tmp_path / "stopped.h5"
    run(coco, whole)
    step = loop.Trainer.step

    def failing(self: Any, *arguments: Any) -> Any:
        if self.iteration == 8:  # in the third epoch of three iterations
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(loop.Trainer, "step", failing)
    arguments = (coco, "--split", "train", *SETTINGS, "--out", stopped)
    assert pretrain(*arguments).exit_code != 0
    assert not stopped.exists()
    monkeypatch.undo()
    result = run(coco, stopped)
    assert "going on after iteration 6" in result.stderr
    assert stopped.read_bytes() == whole.read_bytes()


def test_from_folders_and_from_weights(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for name, colour in COLOURS.items():
        for number in range(4):
            draw(tmp_path / "photos" / name / f"{number}.png", colour, random)
    first, second = tmp_path / "first.h5", tmp_path / "second.h5"
    arguments = (tmp_path / "photos", *SETTINGS)
    result = pretrain(*arguments, "--out", first)
    assert result.exit_code == 0, result.output
    assert read_model(first).header.classes == ("background", "blue", "red")
    result = pretrain(*arguments, "--init", first, "--epochs", "0", "--out", second)
    assert result.exit_code == 0, result.output
    one, other = read_model(first), read_model(second)
    assert np.array_equal(one.tensors["conv1.weight"], other.tensors["conv1.weight"])
    assert other.header.inputs["init"] == one.header.id
    assert other.architecture["crop"]["padding"] == 4  # patches have none, the network's own stays


def test_sizes_take_turns_and_a_stopped_run_goes_on(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ("--pyramid", "1,2,3", "--sizes", "56,42")
    whole, stopped, plain = (tmp_path / name for name in ("whole.h5", "stopped.h5", "plain.h5"))
    step = loop.Trainer.step
    seen: list[tuple[int, ...]] = []

    def watched(self: Any, pieces: Any, *arguments: Any) -> Any:
        if self.iteration == stop_at:
            raise KeyboardInterrupt
        ((windows, _),) = pieces
        seen.append(tuple(windows.shape[2:]))
        return step(self, pieces, *arguments)

    monkeypatch.setattr(loop.Trainer, "step", watched)
    stop_at = -1
    run(coco, whole, *sizes)
    assert seen == ([(56, 56)] * 3 + [(42, 42)] * 3) * 2
    stop_at = 4  # in the second epoch of three iterations
    assert pretrain(coco, "--split", "train", *SETTINGS, "--out", stopped, *sizes).exit_code != 0
    stop_at, seen[:] = -1, []
    result = run(coco, stopped, *sizes)
    assert "going on after iteration 3" in result.stderr
    assert seen == [(42, 42)] * 3 + [(56, 56)] * 3 + [(42, 42)] * 3
    assert stopped.read_bytes() == whole.read_bytes()
    assert read_model(whole).header.settings["sizes"] == [56, 42]
    assert read_model(whole).architecture["crop"]["size"] == 56
    run(coco, plain, "--pyramid", "1,2,3")
    settings = read_model(plain).header.settings
    assert not {"sizes", "random-size"} & set(settings)  # as before there were such options
    assert not np.array_equal(
        read_model(plain).tensors["conv1.weight"], read_model(whole).tensors["conv1.weight"]
    )


def test_a_random_size_is_the_same_again(coco: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.h5", "b.h5", "c.h5")]
    for file, seed in zip(files, ("0", "0", "1"), strict=True):
        arguments = ("--random-size", "40-60", "--seed", seed, "--validate", "val")
        result = run(coco, file, "--pyramid", "1,2,3", *arguments)
        assert "accuracy on val:" in result.stderr
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes() != files[2].read_bytes()
    assert read_model(files[0]).header.settings["random-size"] == [40, 60]


@pytest.mark.parametrize("value", ["56", "56-40", "0-56", "a-b", "40,56"])
def test_a_range_that_is_none(coco: Path, tmp_path: Path, value: str) -> None:
    result = pretrain(coco, "--random-size", value, "--out", tmp_path / "w.h5")
    assert result.exit_code == 2
    assert f"'{value}' is not LOW-HIGH" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--network", "lenet"), "there is no network 'lenet'"),
        (("--init", "absent.h5"), "absent.h5 does not exist"),
        (("--init", "torchvision"), "torchvision has no demo"),
        (("--split", "test"), "test"),
        (("--validate", "test"), "test"),
        (("--lr", "1e6"), "lower --lr"),
        (("--sizes", "56,42"), "give --pyramid, which takes any, or leave --sizes out"),
        (("--random-size", "42-56"), "give --pyramid, which takes any, or leave --random-size out"),
        (("--sizes", "56", "--random-size", "42-56"), "exclude each other"),
        (("--pyramid", "1,2", "--sizes", "56,5"), "windows of 5 pixels are too small for demo"),
    ],
)
def test_mistakes_are_one_sentence(
    coco: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    out = tmp_path / "w.h5"
    result = pretrain(coco, "--split", "train", *SETTINGS, "--out", out, *arguments)
    assert result.exit_code == 1, result.output
    assert words in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert not out.exists()


def test_a_set_without_objects_is_told(tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "0.png", (9, 9, 9), np.random.default_rng(0))
    result = pretrain(tmp_path / "photos", *SETTINGS, "--out", tmp_path / "w.h5")
    assert result.exit_code == 1
    assert "neither annotations nor a folder of images" in result.stderr
