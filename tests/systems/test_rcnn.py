"""R-CNN's constants against the paper and the authors' prototxt files, row by row."""

from dataclasses import asdict

from rcnnpipe.models.warp import Crop
from rcnnpipe.systems.rcnn import CROPS, PADDING, SAMPLING, SOLVER


def test_batches_are_the_papers() -> None:
    assert asdict(SAMPLING) == {
        "batch_size": 128,
        "foreground": 32,
        "foreground_overlap": 0.5,
        "background_overlap": 0.5,
        "background_from": 0.0,
        "mirror": True,
    }


def test_the_solver_is_the_authors() -> None:
    assert asdict(SOLVER) == {
        "iterations": 70_000,
        "learning_rate": 0.001,
        "step": 20_000,
        "gamma": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "bias_multiplier": 2,
        "classifier_multiplier": 10,
        "optimizer": "sgd",
        "schedule": "step",
        "warm_up": 0,
        "clip": None,
        "average": None,
    }


def test_crops_are_those_of_appendix_a() -> None:
    built = {
        name: Crop(227, **({"padding": PADDING} | dict(parts))) for name, parts in CROPS.items()
    }
    assert built["warp"] == Crop()  # the paper's choice is the default of the window itself
    assert (built["tight"].mode, built["tight"].padding) == ("warp", 0)
    assert (built["square"].mode, built["square"].context) == ("square", True)
    assert (built["square-masked"].mode, built["square-masked"].context) == ("square", False)
