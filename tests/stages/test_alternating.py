"""Faster R-CNN in the four steps of Ren et al. 2015, section 3.2, as in dvc.yaml."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rcnnpipe.artifacts.detections import read_detections
from rcnnpipe.artifacts.model import read_model
from tests.stages.faster_made import TUNING, Chain
from tests.stages.made import (
    ON_CPU,
    detector_in,
    open_header,
    run,
    sentence,
    stopped_after,
    tensors_of,
)
from tests.stages.test_finetune import coco_of

ROOT = Path(__file__).parents[2]
FEW = {
    "single_stage.faster-alternating.rpn": ("--iterations", 20, "--lr", 0.02),
    "single_stage.faster-alternating.finetune": (
        "--batch-size",
        32,
        "--foreground",
        8,
        "--lr",
        0.01,
        "--iterations",
        16,
        "--background-from",
        0,
    ),
    "single_stage.faster-alternating.propose": ("--max-boxes", 60, "--min-size", 4),
}
STEPS = (
    *("alternate-1", "alternate-propose 1", "alternate-2"),
    *("alternate-3", "alternate-propose 3", "alternate-4"),
)


def planned() -> dict[str, tuple[list[str], str]]:
    """Stage of dvc.yaml -> the words of its command, and its section of params.yaml."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    found = {}
    for step in STEPS:
        name, _, item = step.partition(" ")
        stage = stages[name].get("do", stages[name])
        words = stage["cmd"].replace("${item}", item).split()[1:]
        section = words.pop(words.index("--params") + 1)
        words.remove("--params")
        found[step] = (words, section.removeprefix("params.yaml:"))
    return found


class Steps(Chain):
    """The files of the steps: ``step_1`` to ``step_3``, ``model``, ``proposals_1``, ..."""

    def __getattr__(self, name: str) -> Path:
        return self.folder / f"{name.replace('_', '-')}.h5"

    def command(self, step: str, out: Path | None = None) -> list[object]:
        """A step as dvc.yaml has it, on our data and with few iterations."""
        words, section = planned()[step]
        places: dict[str, object] = {"${data.source}": self.data[0], "${data.train}": "train"}
        of_step: list[object] = [
            places.get(word, self.folder / Path(word).name if word.endswith(".h5") else word)
            for word in words
        ]
        if out is not None:
            of_step[-1] = out
        tuning = ON_CPU if "propose" in step else TUNING
        return [*of_step, *tuning, *FEW[section]]

    def again(self, step: str, out: Path, *more: object, **how: bool) -> Any:
        return run(*self.command(step, out), *more, **how)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    folder = tmp_path_factory.mktemp("alternating")
    coco_of(folder / "data", 8)
    steps = Steps(folder)
    few = ("--network", "demo", "--epochs", 1, "--batch-size", 8, *ON_CPU)
    run("pretrain", *steps.data, *few, "--out", folder / "plain.h5")
    for step in STEPS:
        run(*steps.command(step))
    return steps


def layers_changed(before: Path, after: Path) -> set[str]:
    """Layers of both whose bytes differ."""
    one, two = tensors_of(before), tensors_of(after)
    names = {name for name in one.keys() & two.keys() if one[name].tobytes() != two[name].tobytes()}
    return {name.removesuffix(".weight").removesuffix(".bias") for name in names}


def layers_of(path: Path) -> set[str]:
    return {name.removesuffix(".weight").removesuffix(".bias") for name in tensors_of(path)}


CONVOLUTIONS = {f"network.conv{number}" for number in range(1, 6)}
HEAD = {"network.fc6", "network.fc7"}
OUTPUTS = {"class_scores", "box_deltas", "deltas_mean", "deltas_std"}
RPN = {"rpn.conv", "rpn.objectness", "rpn.deltas"}


def test_two_networks_are_trained_from_one_start(steps: Steps) -> None:
    start = {f"network.{name}": value for name, value in tensors_of(steps.plain).items()}
    for path in (steps.step_1, steps.step_2):
        own = tensors_of(path)
        for name in start.keys() & own.keys():
            same = start[name].tobytes() == own[name].tobytes()
            untouched = name.startswith("network.conv1.") or (
                path == steps.step_1 and name.startswith(tuple(HEAD))
            )
            assert same == untouched, name
    assert layers_of(steps.step_1) == layers_of(steps.step_2) | RPN
    assert layers_changed(steps.step_1, steps.step_2) >= CONVOLUTIONS - {"network.conv1"}


def test_the_convolutions_of_step_2_are_shared(steps: Steps) -> None:
    # Step 3 trains an RPN on the detector and nothing else of it.
    assert layers_of(steps.step_3) == layers_of(steps.step_2) | RPN
    assert layers_changed(steps.step_2, steps.step_3) == set()
    assert layers_changed(steps.step_1, steps.step_3) >= RPN
    # Step 4 trains what follows the maps, and neither them nor the RPN.
    assert layers_of(steps.model) == layers_of(steps.step_3)
    assert layers_changed(steps.step_3, steps.model) == HEAD | OUTPUTS
    assert layers_changed(steps.step_2, steps.model) == HEAD | OUTPUTS


def test_regions_of_the_two_networks_are_the_same(steps: Steps, tmp_path: Path) -> None:
    out, words = tmp_path / "p.h5", ("propose", *steps.data, "--method", "rpn", *ON_CPU)
    more = FEW["single_stage.faster-alternating.propose"]
    run(*words, "--model", steps.model, *more, "--out", out)
    with_own, with_step_3 = (detections(steps, tmp_path, p) for p in (out, steps.proposals_3))
    for column in ("offsets", "labels", "scores", "boxes"):
        one, two = getattr(with_own, column), getattr(with_step_3, column)
        np.testing.assert_array_equal(one, two)
    assert len(with_own.boxes) > 8


def detections(steps: Steps, folder: Path, proposals: Path) -> Any:
    steps.detect(folder / "d.h5", "--model", steps.model, "--proposals", proposals)
    return read_detections(folder / "d.h5")


def test_one_model_detects_alone(steps: Steps, tmp_path: Path) -> None:
    header, found = open_header(steps.model), tmp_path / "d.h5"
    assert header.settings["system"] == "fast"
    assert header.settings["train-from"] == "fc6"
    for name in ("step_1", "step_2", "step_3", "proposals_1", "proposals_3", "plain"):
        assert open_header(getattr(steps, name)).id in header.lineage, name
    steps.detect(found, "--model", steps.model)
    assert read_detections(found).header.inputs.keys() == {"data", "model"}
    run("evaluate", found, "--data", *steps.data, "--out", tmp_path / "scores")
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert metrics["voc_map_area"] > 0.5
    told = sentence(steps.detect(tmp_path / "no.h5", "--model", steps.step_1, fails=True))
    assert "has learnt to propose regions alone" in told
    # Step 3 leaves the maps and the outputs of step 2 alone: it is a detector with an RPN.
    steps.detect(tmp_path / "step-3.h5", "--model", steps.step_3)
    assert len(read_detections(tmp_path / "step-3.h5").boxes) > 0
    # Step 2 has no RPN: propose tells so, detect takes selective search.
    words = ("propose", *steps.data, "--method", "rpn", "--model", steps.step_2)
    assert "has no RPN" in sentence(run(*words, "--out", tmp_path / "no.h5", fails=True))


def test_deltas_of_step_4_go_on_where_those_of_step_2_were(steps: Steps, tmp_path: Path) -> None:
    # Normalised anew for other proposals, boxes first move as they did before.
    steps.again("alternate-4", tmp_path / "m.h5", "--iterations", 0)
    before, after = detector_in(steps.step_3), detector_in(tmp_path / "m.h5")
    assert not np.allclose(before.deltas_std, after.deltas_std)
    pooled = np.random.default_rng(0).normal(0, 1, (20, 96, 3, 3)).astype(np.float32)
    moves = []
    for detector in (before, after):
        found = detector.behind(detector.deltas_mean.new_tensor(pooled))
        moves.append(detector.scaled_deltas(found["deltas"]).detach().numpy())
    np.testing.assert_allclose(moves[0], moves[1], rtol=1e-5, atol=1e-6)


def test_outputs_of_step_4_may_start_anew(steps: Steps, tmp_path: Path) -> None:
    # The authors' Python code restarts them, their MATLAB code goes on; the sheet, section 7.
    steps.again("alternate-4", tmp_path / "m.h5", "--iterations", 0, "--new-outputs")
    assert open_header(tmp_path / "m.h5").settings["new-outputs"]
    assert layers_changed(steps.step_3, tmp_path / "m.h5") == OUTPUTS
    weights = tensors_of(tmp_path / "m.h5")
    assert weights["class_scores.weight"].std() == pytest.approx(0.01, rel=0.15)
    assert weights["box_deltas.weight"].std() == pytest.approx(0.001, rel=0.15)


def test_an_rpn_whose_maps_are_trained_is_told(steps: Steps, tmp_path: Path) -> None:
    told = "the RPN of --init stays as it is, but the maps it looks at are trained"
    few = ("--iterations", 0)
    for layer, warned in (("fc6", False), ("outputs", False), ("conv5", True), ("conv2", True)):
        out = tmp_path / f"{layer}.h5"
        result = steps.again("alternate-4", out, *few, "--train-from", layer)
        assert (told in result.stderr) == warned, layer
        assert ("--train-from fc6 keeps them" in result.stderr) == warned
    words = ("finetune", *steps.data, "--system", "faster", *TUNING, *few, "--init", steps.step_3)
    assert told not in run(*words, "--out", tmp_path / "m.h5").stderr


@pytest.mark.parametrize("step", ["alternate-3", "alternate-4"])
def test_a_step_that_was_stopped_goes_on(step: str, steps: Steps, tmp_path: Path) -> None:
    out = tmp_path / "stopped.h5"
    with stopped_after(4):
        steps.again(step, out, fails=True)
    assert "going on after iteration 3," in steps.again(step, out).stderr
    whole = steps.step_3 if step == "alternate-3" else steps.model
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "more", [("--optimizer", "adamw"), ("--average", 0.9), ("--clip", 1)], ids=str
)
def test_no_way_of_training_moves_what_is_fixed(
    more: tuple[object, ...], steps: Steps, tmp_path: Path
) -> None:
    out = tmp_path / "m.h5"
    steps.again("alternate-3", out, *more)
    assert layers_changed(steps.step_2, out) == set()
    steps.again("alternate-4", out, *more)
    assert layers_changed(steps.step_3, out) == HEAD | OUTPUTS


@pytest.mark.slow
def test_statistics_of_shared_layers_are_fixed_too(steps: Steps, tmp_path: Path) -> None:
    # Made from nothing, a ResNet's batch norms follow the data: not in the steps that share it.
    small = ("--scales", 40, "--network", "resnet18")
    words = ("finetune", *steps.data, *TUNING, *small)
    regions = ("--batch-size", 4, "--foreground", 2, "--proposals", steps.proposals_1)
    fast, rpn, last = (tmp_path / f"{name}.h5" for name in ("fast", "rpn", "last"))
    few = ("--iterations", 1)
    run(*words, "--system", "fast", *regions, *few, "--out", fast)
    start = read_model(fast)
    assert start.tensors["network.bn1.running_mean"].any()
    fixed = ("--train-from", "outputs", "--init", fast)
    anchors = ("--anchor-sizes", "16,32")  # the usual ones are larger than the images
    run(*words, "--system", "rpn", *fixed, *anchors, *few, "--out", rpn)
    assert layers_changed(fast, rpn) == set()
    fixed = ("--train-from", "layer4", "--init", rpn)
    run(*words, "--system", "fast", *regions, *fixed, *few, "--out", last)
    changed = layers_changed(rpn, last)
    assert {name.split(".")[1] for name in changed if name.startswith("network.")} == {"layer4"}
    assert not {name for name in changed if "running" in name}


def test_the_model_is_one_file(steps: Steps, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    shutil.copy(steps.model, copy)
    image = steps.data[0] / "images" / "train" / "003.png"
    run("detect", image, "--model", copy, *ON_CPU, "--out", tmp_path / "one.h5")
    found = read_detections(tmp_path / "one.h5")
    assert found.header.classes == ("background", "red", "green")
    assert len(found.boxes) > 0
