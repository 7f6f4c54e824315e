"""finetune --first-values: what layers of regions start from is a setting."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from rcnnpipe.datasets import open_dataset
from tests.stages import made
from tests.stages.made import open_header, tensors_of
from tests.stages.test_finetune import coco_of
from tests.stages.test_finetune_options import run
from tests.training.made import write_proposals

OTHER = ("--first-values", "torchvision")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("values")
    write_proposals(folder / "proposals.h5", open_dataset(coco_of(folder / "data", 4), "train"))
    return folder


def start_of(folder: Path, out: Path, system: str, *words: object) -> dict[str, Any]:
    run(folder, out, system, "--iterations", 0, *words)
    return tensors_of(out)


@pytest.mark.parametrize("system", ["fast", "faster", "fpn"])
def test_the_papers_or_torchvisions(system: str, folder: Path, tmp_path: Path) -> None:
    usual = start_of(folder, tmp_path / "usual.h5", system)
    other = start_of(folder, tmp_path / "other.h5", system, *OTHER)
    for name, deviation in (("class_scores", 0.01), ("box_deltas", 0.001)):
        weight, bias = usual[f"{name}.weight"], usual[f"{name}.bias"]
        assert weight.std() == pytest.approx(deviation, rel=0.15)
        assert not bias.any()
        weight, bias = other[f"{name}.weight"], other[f"{name}.bias"]
        bound = weight.shape[1] ** -0.5
        assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert 0.95 * bound < np.abs(weight).max() <= bound
        assert 0 < np.abs(bias).max() <= bound
    assert "first-values" not in open_header(tmp_path / "usual.h5").settings
    assert open_header(tmp_path / "other.h5").settings["first-values"] == "torchvision"


def test_they_are_spread_as_torchvisions(folder: Path, tmp_path: Path) -> None:
    ours = start_of(folder, tmp_path / "m.h5", "fpn", *OTHER)
    hidden, length = ours["fc6.weight"].shape
    head, outputs = TwoMLPHead(length, hidden), FastRCNNPredictor(hidden, 3)
    layers = {"fc6": head.fc6, "fc7": head.fc7}
    layers |= {"class_scores": outputs.cls_score, "box_deltas": outputs.bbox_pred}
    for name, layer in layers.items():
        for kind in ("weight", "bias"):
            values, expected = ours[f"{name}.{kind}"], getattr(layer, kind).detach().numpy()
            assert values.shape == expected.shape
            if values.size > 100:
                assert values.std() == pytest.approx(expected.std(), rel=0.1)
                assert np.abs(values).max() == pytest.approx(np.abs(expected).max(), rel=0.03)
            assert 0 < np.abs(values).max() <= layer.in_features**-0.5


def test_nothing_else_starts_otherwise(folder: Path, tmp_path: Path) -> None:
    usual = start_of(folder, tmp_path / "usual.h5", "fpn")
    other = start_of(folder, tmp_path / "other.h5", "fpn", *OTHER)
    assert set(usual) == set(other)
    for name in usual:
        if name.startswith(("neck.", "rpn.")):
            assert usual[name].std() == pytest.approx(other[name].std(), rel=0.3), name
        elif name.startswith("network."):
            assert np.array_equal(usual[name], other[name]), name


def test_outputs_that_stay_have_no_first_values(folder: Path, tmp_path: Path) -> None:
    before = start_of(folder, tmp_path / "m.h5", "faster")
    known = ("--init", tmp_path / "m.h5", *OTHER)
    result = run(folder, tmp_path / "no.h5", "faster", *known, fails=True)
    assert "--first-values has no meaning where the outputs of --init stay" in made.sentence(result)
    after = start_of(folder, tmp_path / "new.h5", "faster", *known, "--new-outputs")
    assert after["class_scores.weight"].std() > 3 * before["class_scores.weight"].std()


def test_without_outputs_it_is_refused(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "no.h5", "rpn", *OTHER, fails=True)
    assert "--first-values has no meaning with --system rpn" in made.sentence(result)
