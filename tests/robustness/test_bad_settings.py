"""Settings that are unknown, of the wrong type or cannot work: on the command line and in YAML."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from rcnnpipe.cli import STAGES
from tests.robustness.pipeline import Made, commands, ran, run
from tests.robustness.refusal import Case, Cases, Spot, sentence

CASES = Cases()


def option(name: str, stage: str, says: str, *more: object, code: int = 2) -> None:
    """A case: a stage's usual command with something added."""
    out = {"show": "out.png", "export": "out.json", "evaluate": None}.get(stage, "out.h5")

    def words(spot: Spot) -> Sequence[object]:
        place = () if out else ("--out", spot.folder / "scores")
        return (*spot.stage(stage), *place, *more)

    CASES(name, says, code=code, out=out)(words)


option("an unknown option", "propose", "No such option '--max-box'", "--max-box", 3)
option("a negative seed", "propose", "-1 is not in the range 0<=x<=4294967295", "--seed", -1)
option("a seed beyond all solvers", "propose", "is not in the range 0<=x", "--seed", 10**25)
option("a seed that is a word", "finetune", "'one' is not a valid integer", "--seed", "one")
option("negative workers", "extract-features", "-2 is not in the range", "--workers", -2)
option("no boxes at all", "propose", "0 is not in the range", "--max-boxes", 0)
option("a rate of nothing", "finetune", "0.0 is not in the range x>0", "--lr", 0)
option("a rate that is no number", "finetune", "nan", "--lr", "nan")
option("a rate without end", "pretrain", "inf", "--lr", "inf")
option("a cost that is no number", "train-svm", "nan", "--cost", "nan")
option("a penalty without end", "train-bbox-reg", "inf", "--penalty", "inf")
option("a threshold that is no number", "detect", "nan", "--score-threshold", "nan")
option("a threshold to draw that is no number", "show", "nan", "--threshold", "nan")
option("an overlap above one", "detect", "1.5 is not in the range", "--nms-overlap", 1.5)
option("an overlap that is no number", "evaluate", "nan", "--iou", "nan")
option("a momentum of one", "pretrain", "1.0 is not in the range", "--momentum", 1)
option("another system", "finetune", "'yolo' is not one of 'rcnn', 'sppnet'", "--system", "yolo")
option("another precision", "detect", "'fp8' is not one of", "--precision", "fp8")
option("another solver", "train-svm", "'smo' is not one of", "--solver", "smo")
option("an empty layer", "extract-features", "has an empty item", "--layers", "pool5,,fc7")
option("no CUDA", "extract-features", "--device cuda was asked for", "--device", "cuda", code=1)
option("no such network", "pretrain", "there is no network 'lenet'", "--network", "lenet", code=1)
option("no such layer to train from", "finetune", "'fc99'", "--train-from", "fc99", code=1)
option("more foreground than windows", "finetune", "--foreground 99", "--foreground", 99, code=1)
option("overlaps that cross", "finetune", "--background-overlap 0.9", "--background-overlap", 0.9,
       code=1)  # fmt: skip
option("more parts than windows", "finetune", "--accumulate", "--accumulate", 99, code=1)
option("boxes without their method", "propose", "go together", "--boxes", "b.json")
option("no such image to draw", "show", "has no image 'x'", "--images", "x", code=1)
option("a panel without its file", "show", "--kind proposals needs", "--kind", "proposals", code=1)
option("masks of an artifact", "evaluate", "needs a result json", "--region", "masks", code=1)
option("a format of another kind", "export", "detections.h5 holds", "--format", "npz", code=1)
option("a scale of nothing", "pool", "'0' is no list of whole numbers above 0", "--scales", 0)
option("half a scale", "pool", "'60,7.5' is no list of whole numbers", "--scales", "60,7.5")
option("no scales", "pool", "has an empty item", "--scales", "")
option("a pyramid of nothing", "pretrain-pyramid", "'1,0' is no list", "--pyramid", "1,0")
option("a level twice", "pretrain-pyramid", "pyramid of '2, 2' bins", "--pyramid", "2,2", code=1)
option("a pyramid too large", "pretrain-pyramid", "16 units on a pyramid of 10000000000 bins",
       "--pyramid", 100000, code=1)  # fmt: skip
option("a pyramid beyond all bounds", "pretrain-pyramid", "lower --pyramid or --hidden",
       "--pyramid", 10**21, code=1)  # fmt: skip
option("too many units", "pretrain-pyramid", "lower --pyramid or --hidden", "--hidden", 10**12,
       code=1)  # fmt: skip
option("a pyramid of no map", "pretrain-pyramid", "demo has no map 'fc6'", "--map", "fc6", code=1)
option("a reference of nothing", "pretrain-pyramid", "0.0 is not in the range", "--reference", 0)
option("another projection", "pretrain-pyramid", "'exact' is not one of", "--projection", "exact")
option("scales without a pyramid", "pretrain", "give --pyramid too", "--scales", 60, code=1)
option("scales of windows", "extract-features", "--scales is for networks with a pyramid",
       "--scales", 60, code=1)  # fmt: skip
option("random scales of windows", "extract-features", "--random-scales is for networks with a",
       "--random-scales", code=1)  # fmt: skip
option("a map of no region", "pool", "'conv5' is a map of the whole image", "--layers", "conv5",
       code=1)  # fmt: skip
option("an unknown layer of a pyramid", "pool", "has no layer 'fc99', only conv1", "--layers",
       "fc99", code=1)  # fmt: skip
option("a mirror of what is not at hand", "finetune-pooled", "--mirror has no meaning", "--mirror",
       code=1)  # fmt: skip
option("proposals of what is pooled", "finetune-pooled", "--crop has no meaning with --system spp",
       "--crop", "tight", code=1)  # fmt: skip
option("features of windows to learn from", "finetune", "--features has no meaning with --system r",
       "--features", "f.h5", code=1)  # fmt: skip
option("training what is not at hand", "finetune-pooled", "only what follows pool5 learns",
       "--train-from", "conv1", code=1)  # fmt: skip
option("images of windows", "finetune", "--images has no meaning with --system rcnn", "--images", 4,
       code=1)  # fmt: skip
option("a pooling of windows", "finetune", "--pooling has no meaning with --system rcnn",
       "--pooling", "align", code=1)  # fmt: skip
option("a crop of images", "finetune-fast", "--crop has no meaning with --system fast", "--crop",
       "tight", code=1)  # fmt: skip
option("no images", "finetune-fast", "0 is not in the range", "--images", 0)
option("images that do not divide", "finetune-fast", "are regions of 3 images together",
       "--images", 3, code=1)  # fmt: skip
option("more parts than images", "finetune-fast", "--images 2 cannot be shared by 1 ranks and 3",
       "--accumulate", 3, code=1)  # fmt: skip
option("a longest side too short", "finetune-fast", "a longest side of 99 pixels is below",
       "--longest", 99, code=1)  # fmt: skip
option("another pooling", "finetune-fast", "'mean' is not one of", "--pooling", "mean")
option("a negative weight", "finetune-fast", "-1.0 is not in the range", "--box-weight", -1)
option("a weight that is no number", "finetune-fast", "nan", "--box-weight", "nan")
option("random scales of a detector", "detect-fast", "No such option '--random-scales'",
       "--random-scales")  # fmt: skip
option("a scale of a detector that is nothing", "detect-fast", "'0' is no list", "--scales", 0)
option("no memory", "finetune-pooled", "0 is not in the range", "--memory", 0)
option("another thinning", "train-svm", "'most' is not one of", "--thin", "most")
option("cells of windows", "train-svm", "has no pyramid; use --thin overlap", "--thin", "cells",
       code=1)  # fmt: skip
option("a model for candidates", "suppress-anew", "needs one of --model", "--model", "m.h5", code=1)
option("new scores of candidates", "suppress-anew", "--score-threshold has no meaning",
       "--score-threshold", 0.5, code=1)  # fmt: skip


def scaled_by(name: str, scale: int, *says: str) -> None:
    """A case: images scaled so that they cannot be passed through the network."""

    def words(spot: Spot) -> Sequence[object]:
        return (*spot.stage("pool"), "--scales", scale)

    CASES(name, *says, keeps_work=True)(words)


scaled_by("images without a cell", 4, "'0', scaled to 5 x 4 pixels, is too small", "raise --scales")
scaled_by("images of one pixel", 1, "'0', scaled to 1 x 1 pixels, is too small", "raise --scales")
for power in (7, 12, 23):  # that fit into no memory; no number of 64 bits; no pixel of one
    scaled_by(f"images of 10^{power} pixels", 10**power, "does not fit into the memory", "lower --")


def scaled_whole(name: str, stage: str, scale: int, *says: str) -> None:
    """A case: the same of a detector."""

    def words(spot: Spot) -> Sequence[object]:
        return (*spot.stage(stage), "--scales", scale)

    CASES(f"{name} to {stage}", *says, keeps_work=True)(words)


for stage in ("finetune-fast", "detect-fast"):
    for power in (7, 12, 23):
        told = ("does not fit into the memory", "lower --scales")
        scaled_whole(f"images of 10^{power} pixels", stage, 10**power, *told)


@CASES("COCO results without a data set", "--format coco needs --data", out="out.json")
def _(spot: Spot) -> Sequence[object]:
    return ("export", spot.made.detections, "--format", "coco")


@CASES("VOC results without a split", "--format voc needs --split", out=None)
def _(spot: Spot) -> Sequence[object]:
    return ("export", spot.made.detections, "--format", "voc", "--out", spot.folder / "voc")


@CASES("no such column to compare", "has none of speed", out="table.md")
def _(spot: Spot) -> Sequence[object]:
    return ("compare", spot.made.scores, "--columns", "speed")


@CASES("two rows of one name", "two rows would be called 'scores'", out="table.md")
def _(spot: Spot) -> Sequence[object]:
    return ("compare", spot.made.scores, spot.made.scores)


@CASES("metrics that are a list", "metrics.json", "run rcnnpipe evaluate", out="table.md")
def _(spot: Spot) -> Sequence[object]:
    return ("compare", spot.file("a/metrics.json", "[1]"))


@CASES("metrics that are words", "metrics.json has no number for ap", out="table.md")
def _(spot: Spot) -> Sequence[object]:
    return ("compare", spot.file("a/metrics.json", '{"ap": "high"}'))


@CASES("metrics that are no JSON", "metrics.json is no JSON", out="table.md")
def _(spot: Spot) -> Sequence[object]:
    return ("compare", spot.file("a/metrics.json", "{"))


@CASES(
    "metrics that are missing",
    "{folder}/a: No such file",
    "run rcnnpipe evaluate first",
    out="table.md",
)
def _(spot: Spot) -> Sequence[object]:
    return ("compare", spot.folder / "a")


@CASES("a table in the place of its figures", "is also read and would be lost", out=None)
def _(spot: Spot) -> Sequence[object]:
    file = spot.file("a/metrics.json", '{"ap": 0.5}')
    return ("compare", file.parent, "--out", file)


@CASES("a setting twice", "the key 'cost' stands twice", code=2)
def _(spot: Spot) -> Sequence[object]:
    params = spot.file("params.yaml", "svm:\n  cost: 1\n  cost: 2\n")
    return (*spot.stage("train-svm"), "--params", f"{params}:svm")


@CASES("neither model nor features", "one of --model", "--features", "--candidates")
def _(spot: Spot) -> Sequence[object]:
    return ("detect", spot.made.data, "--split", "test")


@CASES("finetuning without proposals", "needs --proposals")
def _(spot: Spot) -> Sequence[object]:
    return ("finetune", spot.made.data, "--split", "train", "--network", "demo")


@CASES("a quarantine without --fix", "give --fix too", code=2, out=None)
def _(spot: Spot) -> Sequence[object]:
    return ("check", spot.made.data, "--quarantine", spot.folder / "q.json")


@CASES("drawing nothing sensible", "'train=many' is not SPLIT=NUMBER", code=2, out=None)
def _(spot: Spot) -> Sequence[object]:
    return ("prepare", "shapes", "--out", spot.folder / "new", "--images", "train=many")


@CASES("drawing over something else", "{folder}/full exists and is no drawn set", out=None)
def _(spot: Spot) -> Sequence[object]:
    return ("prepare", "shapes", "--out", spot.file("full/photo.txt", "mine").parent)


def params(name: str, text: str | bytes, section: str, *says: str) -> None:
    """A case: propose with settings from a file."""

    def words(spot: Spot) -> Sequence[object]:
        spot.file("params.yaml", text)
        return (*spot.stage("propose"), "--params", f"{spot.folder}/params.yaml{section}")

    CASES(name, *says, code=2)(words)


params("an unknown key", "propose: {max-box: 9}", ":propose", "'max-box'", "'max-boxes'")
params("a key of another stage", "propose: {lr: 9}", ":propose", "'lr' in", "is not an option")
params("a bad value", "propose: {resize-width: many}", ":propose", "'many'", "params.yaml:propose")
params("a value out of range", "propose: {seed: -4}", ":propose", "-4", "params.yaml:propose")
params("a list for a number", "propose: {resize-width: [1, 2]}", ":propose", "params.yaml:propose")
params("a mapping for a number", "propose: {seed: {a: 1}}", ":propose", "params.yaml:propose")
params("a number for a flag", "propose: {inclusive: 7}", ":propose", "params.yaml:propose")
params("yes for a number", "propose: {resize-width: yes}", ":propose", "params.yaml:propose")
params("no such section", "propose: {}", ":detect", "has no section 'detect'")
params("a section that is a list", "propose: [1]", ":propose", "is not a mapping of settings")
params("a file that is a list", "[1, 2]", "", "is not a mapping of settings")
params("no YAML", "propose: [", ":propose", "is not YAML")
params("no text", b"\xff\xfe\x81", ":propose", "is not YAML")
params("without end", "[" * 5000, ":propose", "nested too deeply")


@CASES("no such file of settings", "nowhere.yaml: No such file", code=2)
def _(spot: Spot) -> Sequence[object]:
    return (*spot.stage("propose"), "--params", f"{spot.folder}/nowhere.yaml:propose")


def test_lists_and_words_in_a_section(made: Made, tmp_path: Path) -> None:
    file, out = tmp_path / "params.yaml", tmp_path / "out.png"
    file.write_text("show: {kind: [truth, detections], images: [100], count: 2, threshold: 0.5}")
    ran(*Spot(made, tmp_path).stage("show"), "--params", f"{file}:show", "--out", out)
    assert out.is_file()


def test_a_pyramid_deeper_than_its_map(made: Made, tmp_path: Path) -> None:
    """Maps of 7 and of 2 cells a side, bins by 1 and by 9: cells are repeated."""
    weights, pooled, model = (tmp_path / f"{name}.h5" for name in ("w", "p", "m"))
    ran(*Spot(made, tmp_path).stage("pretrain-pyramid"), "--pyramid", "1,9", "--out", weights)
    words = Spot(made, tmp_path).stage("pool", made.pyramid, weights)
    ran(*words, "--scales", 16, "--out", pooled)
    words = Spot(made, tmp_path).stage(
        "finetune-pooled", made.pooled, pooled, made.pyramid, weights
    )
    ran(*words, "--out", model)
    words = [made.data, "--split", "test", "--model", model, "--scales", "7,16", "--device", "cpu"]
    ran("detect", *words, "--out", tmp_path / "d.h5")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refused(case: Case, made: Made, tmp_path: Path) -> None:
    case.check(made, tmp_path)


def test_a_misspelt_stage_is_guessed() -> None:
    assert "extract-features" in sentence(run("extract-feature"), 2)


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "prepare"])
def test_a_stage_without_its_arguments(stage: str) -> None:
    assert "Missing" in sentence(run(stage), 2)


@pytest.mark.parametrize("stage", STAGES)
def test_an_option_that_no_stage_has(made: Made, stage: str) -> None:
    words = commands(made).get(stage, ("", [stage, made.model]))[1]
    assert "No such option '--frobnicate'" in sentence(run(*words, "--frobnicate", 1), 2)
