"""``rcnnpipe evaluate`` of classifiers, on a tiny set of drawn images."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from rcnnpipe.artifacts.model import write_model
from rcnnpipe.artifacts.store import make_header
from rcnnpipe.cli import main
from rcnnpipe.datasets import open_dataset
from rcnnpipe.models.backbones import Network, create_network
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.models.pyramid_head import head_for
from rcnnpipe.training.classifying import Classifier
from rcnnpipe.training.examples import examples_of
from rcnnpipe.training.views import views_of

NAMES = ("ant", "bee", "cow", "dog", "emu", "fox")


def photos(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    """Two images of noise for each class, of different sizes."""
    random = np.random.default_rng(0)
    for name in names:
        for number, size in enumerate(((60, 80), (72, 64))):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return folder


def network_of(outputs: int, pyramid: bool) -> Network:
    head = head_for("demo", Pyramid()) if pyramid else None
    return create_network("demo", outputs, torch.Generator().manual_seed(0), head=head)


def model(path: Path, names: tuple[str, ...] = NAMES, pyramid: bool = True, more: int = 0) -> Path:
    network = network_of(len(names) + 1 + more, pyramid)
    classes = ("background", *names)
    header = make_header("model", stage="x", version=1, settings={}, inputs={}, classes=classes)
    write_model(path, header, network.settings(), network.tensors())
    return path


def evaluate(file: Path, data: Path, *options: str) -> Result:
    out = ("--out", str(file.parent / "out"), "--device", "cpu", "--workers", "0")
    return CliRunner().invoke(main, ["evaluate", str(file), "--data", str(data), *out, *options])


def test_figures_and_files(tmp_path: Path) -> None:
    data, file = photos(tmp_path / "photos"), model(tmp_path / "m.h5")
    ran = evaluate(file, data, "--json")
    assert ran.exit_code == 0, ran.output
    figures = json.loads(ran.stdout)
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == figures
    assert (figures["examples"], figures["views"]) == (12, 1)

    dataset, network = open_dataset(data), network_of(7, pyramid=True)
    examples = examples_of(dataset)
    views = views_of("crop", network)
    asked = Classifier(network, examples, dataset.records, views, torch.device("cpu"))
    found = np.concatenate([part for _, part in asked.probabilities()])
    best = found.argsort(axis=1)[:, ::-1]
    first = (best[:, 0] == examples.labels).mean()
    five = (best[:, :5] == examples.labels[:, None]).any(axis=1).mean()
    assert figures["top1_accuracy"] == pytest.approx(first)
    assert figures["top1_error"] == pytest.approx(1 - first)
    assert figures["top5_accuracy"] == pytest.approx(five)
    assert figures["mean_class_accuracy"] == pytest.approx(first)  # two examples each

    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"metrics.json", "per_class.csv", "confusion.csv"}
    with (tmp_path / "out/confusion.csv").open() as opened:
        heading, *rows = csv.reader(opened)
    assert heading == ["true class", "background", *NAMES]
    counts = np.array([row[1:] for row in rows], np.int64)
    assert counts.sum(axis=1).tolist() == [2] * 6
    assert np.trace(counts[:, 1:]) == round(12 * first)
    with (tmp_path / "out/per_class.csv").open() as opened:
        assert [row["class"] for row in csv.DictReader(opened)] == list(NAMES)


@pytest.mark.parametrize(
    ("options", "pyramid", "views"),
    [
        (("--views", "full"), True, 1),
        (("--views", "full", "--scale", "40"), True, 1),
        (("--views", "ten"), False, 10),
        (("--views", "ten", "--scale", "70", "--batch-size", "30"), True, 10),
        (("--views", "crop", "--scale", "56"), False, 1),
        (("--views", "multi"), True, 98),
        (("--views", "multi"), False, 96),
    ],
)
def test_views(tmp_path: Path, options: tuple[str, ...], pyramid: bool, views: int) -> None:
    data, file = photos(tmp_path / "photos", NAMES[:3]), tmp_path / "m.h5"
    ran = evaluate(model(file, pyramid=pyramid), data, "--json", *options)
    assert ran.exit_code == 0, ran.output
    figures = json.loads(ran.stdout)
    assert (figures["examples"], figures["views"]) == (6, views)
    told = "whole images are not among the views" in ran.stderr
    assert told == (views == 96)


def test_top5_is_left_out_of_few_classes(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", NAMES[:4])
    ran = evaluate(model(tmp_path / "m.h5", NAMES[:4]), data, "--json")
    assert "top-5 is left out, because the model has fewer than 5 classes" in ran.stderr
    assert not [name for name in json.loads(ran.stdout) if "top5" in name]


def test_objects_of_a_set(tmp_path: Path) -> None:
    photos(tmp_path / "images", ("ant",))
    boxes = {"1": (2, 3, 40, 30), "2": (10, 10, 20, 41)}
    document = {
        "images": [
            {"id": 1, "file_name": "ant/0.png", "height": 60, "width": 80},
            {"id": 2, "file_name": "ant/1.png", "height": 72, "width": 64},
        ],
        "categories": [{"id": 5, "name": "fox"}, {"id": 9, "name": "yak"}],  # of yaks there is none
        "annotations": [
            {"id": int(image), "image_id": int(image), "category_id": 5, "bbox": box}
            | {"iscrowd": 0, "area": box[2] * box[3]}
            for image, box in boxes.items()
        ],
    }
    data = tmp_path / "coco.json"
    data.write_text(json.dumps(document))
    for views in ("crop", "full", "ten"):
        ran = evaluate(model(tmp_path / "m.h5"), data, "--json", "--views", views)
        assert ran.exit_code == 0, ran.output
        assert json.loads(ran.stdout)["examples"] == 2
    with (tmp_path / "out/confusion.csv").open() as opened:
        rows = {row["true class"]: row for row in csv.DictReader(opened)}
    assert sum(int(rows["fox"][name]) for name in ("background", *NAMES)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--views", "full"), "takes a pyramid; pre-train it with --pyramid"),
        (("--views", "ten", "--scale", "50"), "leaves no room for windows of 56 pixels"),
        (("--views", "multi", "--scale", "64"), "--scale has no meaning with --views multi"),
        (("--split", "test"), "test"),
        (("--metrics", "voc"), "--metrics is for detections, and"),
        (("--region", "masks"), "--region is for detections, and"),
    ],
)
def test_mistakes_take_one_sentence(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    data, file = photos(tmp_path / "photos"), model(tmp_path / "m.h5", pyramid=False)
    refused(evaluate(file, data, *options), message, tmp_path)


def refused(ran: Result, message: str, folder: Path) -> None:
    assert ran.exit_code == 1, ran.output
    assert message in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    assert not list(folder.glob("out/*"))


def test_a_model_of_other_classes(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", NAMES[:3])
    none = evaluate(model(tmp_path / "m.h5", ("gnu", "hen")), data)
    refused(none, "no class in common: gnu, hen against ant, bee, cow", tmp_path)
    some = evaluate(model(tmp_path / "m.h5", ("ant", "hen")), data)
    refused(some, "m.h5 does not know (bee, cow; it knows ant, hen)", tmp_path)


def test_a_model_that_is_no_classifier_of_its_classes(tmp_path: Path) -> None:
    data, file = photos(tmp_path / "photos"), model(tmp_path / "m.h5", more=3)
    refused(evaluate(file, data), "has 10 outputs for 7 classes", tmp_path)


def test_a_set_without_classes(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", NAMES[:1])
    message = "neither annotations nor a folder of images for each of at least two classes"
    refused(evaluate(model(tmp_path / "m.h5"), data), message, tmp_path)
