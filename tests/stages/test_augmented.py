"""finetune with changed images and a rate that follows the batch: recorded, resumed, refused."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from rcnnpipe.artifacts.model import read_model
from rcnnpipe.datasets import open_dataset
from rcnnpipe.training.augmentation import Augmentation
from rcnnpipe.training.image_batches import ImageSource
from rcnnpipe.training.loop import Trainer
from tests.stages import made
from tests.stages.test_finetune import coco_of
from tests.stages.test_finetune_options import run
from tests.training.made import write_proposals

ALL = ("--scale-jitter", "0.5,1.5", "--photometric", "--random-crop")
NAMES = {"scale-jitter", "photometric", "random-crop", "scale-lr"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("augmented")
    dataset = open_dataset(coco_of(folder / "data", 4), "train")
    write_proposals(folder / "proposals.h5", dataset)
    return folder


def settings_of(path: Path) -> Any:
    return read_model(path).header.settings


@pytest.mark.parametrize("system", ["fast", "faster"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    system: str, folder: Path, tmp_path: Path
) -> None:
    words = (*ALL, "--scale-lr", "--images", 2, "--accumulate", 2)
    run(folder, tmp_path / "whole.h5", system, *words, "--workers", 2)
    out = tmp_path / "stopped.h5"
    with made.stopped_after(4):
        run(folder, out, system, *words, fails=True)
    assert "going on after iteration 3" in run(folder, out, system, *words).stderr
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("system", ["fast", "rpn"])
def test_images_are_changed_as_asked_and_it_is_recorded(
    system: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Augmentation] = []
    original = ImageSource.batches

    def watched(self: ImageSource, start: int, stop: int) -> Any:
        made.append(self.augmentation)
        return original(self, start, stop)

    monkeypatch.setattr(ImageSource, "batches", watched)
    plain, changed = tmp_path / "plain.h5", tmp_path / "changed.h5"
    run(folder, plain, system, "--iterations", 1)
    run(folder, changed, system, "--iterations", 1, *ALL)
    assert made == [Augmentation(), Augmentation((0.5, 1.5), True, True)]
    one, two = settings_of(plain), settings_of(changed)
    assert not one.keys() & NAMES
    assert {name: two[name] for name in NAMES & two.keys()} == {
        **{"scale-jitter": [0.5, 1.5], "photometric": True, "random-crop": True}
    }
    assert {name: two[name] for name in one} == one


def test_a_range_in_a_file_is_a_list(folder: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("mine:\n  scale-jitter: [0.5, 2]\n  photometric: true\n")
    run(folder, tmp_path / "m.h5", "rpn", "--iterations", 1, "--params", f"{params}:mine")
    settings = settings_of(tmp_path / "m.h5")
    assert (settings["scale-jitter"], settings["photometric"]) == ([0.5, 2.0], True)
    params.write_text("mine:\n  scale-jitter: [2, 0.5]\n")
    words = ("--params", f"{params}:mine")
    result = run(folder, tmp_path / "n.h5", "rpn", *words, fails=True)
    assert f"no range MIN,MAX of factors above 0 (from {params}:mine)" in result.stderr


@pytest.mark.parametrize(
    ("system", "given", "rate", "told"),
    [
        ("fpn", (), 0.02 / 8, "learning rate 0.0025: --images 2, where 16 is usual"),
        ("rpn", ("--lr", 0.002), 0.004, "learning rate 0.004: --images 2, where 1 is usual"),
        ("rcnn", (), 0.001 / 8, "learning rate 0.000125: --batch-size 16, where 128 is usual"),
    ],
)
def test_the_rate_in_proportion_is_the_rate(
    system: str, given: tuple[object, ...], rate: float, told: str, folder: Path, tmp_path: Path
) -> None:
    scaled, direct = tmp_path / "scaled.h5", tmp_path / "direct.h5"
    given = (*given, "--iterations", 1)
    result = run(folder, scaled, system, *given, "--scale-lr")
    assert told in result.stderr
    assert "in proportion" not in result.stderr
    settings = settings_of(scaled)
    assert settings["lr"] == pytest.approx(rate, rel=1e-12)
    assert "scale-lr" not in settings
    run(folder, direct, system, *given, "--lr", repr(settings["lr"]))
    assert scaled.read_bytes() == direct.read_bytes()


def test_too_little_memory_names_the_factors(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(self: Trainer, *arguments: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 b")

    monkeypatch.setattr(Trainer, "step", lacking)
    result = run(folder, tmp_path / "model.h5", "faster", *ALL, fails=True)
    assert "lower --images, --scales or --scale-jitter, or raise" in made.sentence(result)


def no_use(flag: str, why: str) -> str:
    return f"{flag} has no meaning with --{why}; leave it out"


WRONG: dict[str, tuple[str, tuple[object, ...], str]] = {
    "rcnn jitter": ("rcnn", ("--scale-jitter", "1,2"), no_use("--scale-jitter", "system rcnn")),
    "rcnn colours": ("rcnn", ("--photometric",), no_use("--photometric", "system rcnn")),
    "rcnn crop": ("rcnn", ("--random-crop",), no_use("--random-crop", "system rcnn")),
    "adamw": (
        *("faster", ("--optimizer", "adamw", "--scale-lr")),
        no_use("--scale-lr", "optimizer adamw"),
    ),
    "tiny": ("faster", ("--scale-jitter", "0.1,1"), "makes images of 4.8 pixels, less than a cell"),
    **{
        value: ("faster", ("--scale-jitter", value), f"'{value}' is no range MIN,MAX of factors")
        for value in ("2,1", "0,1", "-1,1", "1", "0.5,1,2", "a,b", "1,inf", "nan,1", "0.5;1")
    },
    "empty": ("faster", ("--scale-jitter", "1,"), "'1,' has an empty item"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_mistakes_are_told_in_a_sentence(case: str, folder: Path, tmp_path: Path) -> None:
    system, more, sentence = WRONG[case]
    result: Result = run(folder, tmp_path / "model.h5", system, *more, fails=True)
    assert sentence in made.sentence(result)
    assert not list(tmp_path.iterdir())
