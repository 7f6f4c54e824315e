"""finetune's optimizers, averages and validation: recorded, resumed, as detect sees it, refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from rcnnpipe.artifacts.model import read_model
from rcnnpipe.datasets import open_dataset
from rcnnpipe.evaluation.columns import truth_of
from rcnnpipe.finetuning.judging import AveragePrecision
from rcnnpipe.randomness import generator
from rcnnpipe.scoring import score_model
from rcnnpipe.training.loop import Trainer
from tests.stages import made
from tests.stages.test_finetune import coco_of
from tests.training.made import write_proposals

TUNED = (
    *("--optimizer", "adamw", "--schedule", "cosine", "--warm-up", 2, "--clip", 5),
    *("--average", 0.9, "--lr", 0.001),
)
JUDGED = ("--validate", "train", "--validate-every", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    dataset = open_dataset(coco_of(folder / "data", 4), "train")
    write_proposals(folder / "proposals.h5", dataset)
    write_proposals(folder / "few.h5", dataset, images=2)
    return folder


def run(folder: Path, out: Path, system: str, *more: object, fails: bool = False) -> Result:
    """A run of 7 iterations."""
    words: list[object] = ["finetune", folder / "data", "--split", "train", "--system", system]
    words += ["--network", "demo", "--iterations", 7, "--log-every", 4, "--checkpoint-every", 3]
    words += ["--workers", 0, "--device", "cpu"]
    if system != "rpn":
        words += ["--batch-size", 16, "--foreground", 4]
    if system != "rcnn":
        words += ["--scales", 48, "--images", 2]
    if system in ("rcnn", "fast"):
        words += ["--proposals", folder / "proposals.h5"]
    return made.run(*words, *more, "--out", out, fails=fails)


@pytest.mark.parametrize("system", ["rcnn", "fast"])
def test_few_proposals_are_the_best_of_the_file(system: str, folder: Path, tmp_path: Path) -> None:
    write_proposals(tmp_path / "four.h5", open_dataset(folder / "data", "train"), best=4)
    run(folder, tmp_path / "few.h5", system, "--max-proposals", 4)
    run(folder, tmp_path / "cut.h5", system, "--proposals", tmp_path / "four.h5")
    run(folder, tmp_path / "all.h5", system, "--max-proposals", 0)
    few, cut, every = (read_model(tmp_path / f"{name}.h5") for name in ("few", "cut", "all"))
    for name, values in cut.tensors.items():
        np.testing.assert_array_equal(few.tensors[name], values)
    assert any(not np.array_equal(few.tensors[name], every.tensors[name]) for name in few.tensors)
    assert few.header.settings["max-proposals"] == 4
    assert "max-proposals" not in every.header.settings


def judged(folder: Path, system: str) -> tuple[object, ...]:
    given = ("--validate-proposals", folder / "proposals.h5")
    return (*JUDGED, *(given if system in ("rcnn", "fast") else ()))


@pytest.mark.parametrize("system", ["rcnn", "fast", "faster", "fpn"])
def test_the_model_is_the_best_one_and_scores_as_it_was_told(
    system: str, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.h5"
    result = run(folder, out, system, *judged(folder, system), *TUNED)
    model = read_model(out)
    reached = model.curves["ap"]
    looks = np.flatnonzero(~np.isnan(reached))
    assert model.curves["iteration"][looks].tolist() == [2, 4, 6, 7]
    best = looks[reached[looks].argmax()]
    told = f"weights after iteration {model.curves['iteration'][best]:.0f}, the best: AP "
    assert f"{told}{reached[best]:.4f}" in result.stderr
    dataset = open_dataset(folder / "data", "train")
    proposals = folder / "proposals.h5" if system in ("rcnn", "fast") else None
    figures = score_model(out, dataset, truth_of(dataset), proposals, torch.device("cpu"), 0)
    assert figures["ap"] == reached[best]
    assert figures["ap50"] == model.curves["ap50"][best]
    assert model.header.inputs["validation"] == dataset.id
    assert ("validation-proposals" in model.header.inputs) == (proposals is not None)


def test_validation_does_not_change_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter((0.1, 0.2, 0.3, 0.4))  # the last weights are the best
    original = AveragePrecision.__call__

    def rising(self: AveragePrecision, tensors: Any, /) -> dict[str, float]:
        return original(self, tensors) | {"ap": next(scores)}

    run(folder, tmp_path / "plain.h5", "faster", "--average", 0.5)
    monkeypatch.setattr(AveragePrecision, "__call__", rising)
    run(folder, tmp_path / "judged.h5", "faster", "--average", 0.5, *JUDGED)
    plain, other = read_model(tmp_path / "plain.h5"), read_model(tmp_path / "judged.h5")
    for name, values in plain.tensors.items():
        assert values.tobytes() == other.tensors[name].tobytes()


def by_values(self: Any, tensors: dict[str, Any], /) -> dict[str, float]:
    """A score that depends on the values to the bit, and rises as often as it falls."""
    text = "".join(str(values.astype("float64").sum()) for values in tensors.values())
    score = float(generator(0, text).random())
    return {"ap": score, "ap50": score}


@pytest.mark.parametrize("system", ["rcnn", "faster"])
@pytest.mark.parametrize(("stop", "patience"), [(4, 9), (6, 9), (3, 3)])  # no patience ends before
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    system: str,
    stop: int,
    patience: int,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AveragePrecision, "__call__", by_values)
    words = (*judged(folder, system), *TUNED, "--patience", patience, "--validate-every", 1)
    run(folder, tmp_path / "whole.h5", system, *words)
    out = tmp_path / "stopped.h5"
    with made.stopped_after(stop):
        stopped = run(folder, out, system, *words, fails=True)
    assert "stopped; the same command goes on" in stopped.stderr
    assert "going on after iteration" in run(folder, out, system, *words).stderr
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped.h5", "whole.h5"]


def test_patience_ends_a_run_and_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter((0.2, 0.1, 0.2))
    monkeypatch.setattr(AveragePrecision, "__call__", lambda self, tensors: {"ap": next(scores)})
    result = run(folder, tmp_path / "model.h5", "faster", *JUDGED, "--patience", 2)
    told, wrote = result.stderr.splitlines()[-2:]
    assert told == ("ended early; the model has the weights after iteration 2, the best: AP 0.2000")
    assert "(6 iterations, " in wrote


def test_the_header_records_what_is_asked_for(folder: Path, tmp_path: Path) -> None:
    plain, tuned = tmp_path / "plain.h5", tmp_path / "tuned.h5"
    run(folder, plain, "rpn", "--iterations", 1)
    settings = read_model(plain).header.settings
    names = {"optimizer", "schedule", "warm-up", "clip", "average", "patience"}
    names |= {"validate", "validate-every", "validate-proposals"}
    assert not settings.keys() & names
    assert {"step", "gamma", "lr", "weight-decay"} <= settings.keys()
    run(folder, tuned, "rpn", "--optimizer", "adamw", "--schedule", "cosine", "--average", 0.9)
    settings = read_model(tuned).header.settings
    assert settings.keys() & names == {"optimizer", "schedule", "average"}
    assert not settings.keys() & {"step", "gamma"}
    assert (settings["lr"], settings["weight-decay"], settings["momentum"]) == (1e-4, 0.05, 0.9)


def test_a_batch_of_another_size_is_told_its_rate(folder: Path, tmp_path: Path) -> None:
    told = "--images 2 instead of 16: --lr 0.0025, and iterations, steps and warm-up times 8"
    assert told in run(folder, tmp_path / "a.h5", "fpn", "--iterations", 0).stderr
    given = run(folder, tmp_path / "b.h5", "fpn", "--iterations", 0, "--lr", 0.0025)
    assert "instead of" not in given.stderr
    assert "instead of" not in run(folder, tmp_path / "c.h5", "fast", "--iterations", 0).stderr


def test_a_batch_without_a_finite_loss_is_kept(folder: Path, tmp_path: Path) -> None:
    for system in ("rcnn", "faster"):
        out = tmp_path / f"{system}.h5"
        result = run(folder, out, system, "--lr", "1e30", "--train-from", "fc6", fails=True)
        kept = tmp_path / f"{system}.h5.bad-batch.npz"
        assert result.stderr.strip().endswith(f"; its network input is in {kept}")
        assert isinstance(result.exception, SystemExit)
        with np.load(kept, allow_pickle=False) as held:
            assert set(held["image-ids"].tolist()) <= {"0", "1", "2", "3"}
            assert len(held["input-0"]) == (16 if system == "rcnn" else 2)
            assert held["input-0"].shape[1] == 3
        assert not out.exists()


def test_too_little_memory_names_the_settings_of_the_system(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(self: Trainer, *arguments: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 b")

    monkeypatch.setattr(Trainer, "step", lacking)
    for system, told in (
        ("rcnn", "raise --accumulate, which computes it in that many parts, or lower --batch-size"),
        ("faster", "lower --images or --scales, or raise --accumulate, "),
    ):
        result = run(folder, tmp_path / "model.h5", system, fails=True)
        last = made.sentence(result)
        assert last.startswith("Error: the memory of cpu does not suffice")
        assert told in last


WRONG: dict[str, tuple[str, tuple[object, ...], str]] = {
    "alone": ("fast", ("--patience", 3), "--patience has no meaning without --validate; leave"),
    "every": ("faster", ("--validate-every", 3), "--validate-every has no meaning without"),
    "rpn": ("rpn", JUDGED, "--validate has no meaning with --system rpn; leave it out"),
    "own regions": (
        *("faster", (*JUDGED, "--validate-proposals", "proposals.h5")),
        "--validate-proposals has no meaning with --system faster",
    ),
    "fast": ("fast", JUDGED, "--validate needs --validate-proposals with --system fast; run"),
    "rcnn": ("rcnn", JUDGED, "--validate needs --validate-proposals with --system rcnn; run"),
    "few": ("fast", (*JUDGED, "--validate-proposals", "few.h5"), "no proposals for 2 of 4 images"),
    "no split": ("faster", ("--validate", "nothing"), "nothing"),
    "bare": ("faster", ("--validate", "bare"), "no annotated objects"),
    "cosine": ("rpn", ("--schedule", "cosine", "--step", 3), "--step has no meaning with --sched"),
    "warm": ("rpn", ("--warm-up", 9), "--warm-up 9 is more than all 7 iterations; lower it"),
    "optimizer": ("rpn", ("--optimizer", "lion"), "'lion' is not one of"),
    "clip": ("rpn", ("--clip", 0), "0.0 is not in the range x>0"),
    "average": ("rpn", ("--average", 1), "1.0 is not in the range 0<x<1"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_mistakes_are_told_in_a_sentence(case: str, folder: Path, tmp_path: Path) -> None:
    system, more, sentence = WRONG[case]
    words = [folder / str(word) if str(word).endswith(".h5") else word for word in more]
    result = run(folder, tmp_path / "model.h5", system, *words, fails=True)
    assert sentence in made.sentence(result)
    assert not list(tmp_path.iterdir())
