from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rcnnpipe.datasets.records import Record
from rcnnpipe.errors import RcnnpipeError, SettingError
from rcnnpipe.models.backbones import Network, create_network
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.models.pyramid_head import head_for
from rcnnpipe.models.warp import Crop, warp
from rcnnpipe.systems.pretraining import Pretraining
from rcnnpipe.training.classifier import CropSource
from rcnnpipe.training.classifying import Classifier, answers_by_crops
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.examples import Examples, Floats
from rcnnpipe.training.views import Views, squares_in, views_of, whole_view
from tests.training.made import CLASSES, record_of

CPU = torch.device("cpu")
SIZES = ((60, 80), (64, 64), (60, 80))


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    random = np.random.default_rng(0)
    found = []
    for number, size in enumerate(SIZES):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(path)
        found.append(record_of(image_id=str(number), path=path, size=size))
    return found


def wholes() -> Examples:
    boxes = np.array([(0, 0, width, height) for height, width in SIZES], np.float32)
    return Examples(CLASSES, boxes, np.arange(3), np.array([1, 2, 1]), whole_images=True)


def objects() -> Examples:
    boxes = np.array([[5, 6, 35, 40], [40, 10, 70, 50], [8, 8, 40, 30]], np.float32)
    return Examples(CLASSES, boxes, np.array([0, 0, 1]), np.array([1, 2, 1]), whole_images=False)


def network(pyramid: bool = True, padding: int = 4) -> Network:
    made = create_network(
        *("demo", 3, torch.Generator().manual_seed(0)),
        head=head_for("demo", Pyramid()) if pyramid else None,
        crop=Crop(56, padding),
    )
    with torch.no_grad():  # answers that differ by more than rounding
        made.classifier_module.weight.normal_(0, 1, generator=torch.Generator().manual_seed(1))
    return made


def pixels(record: Record) -> np.ndarray:
    return np.array(Image.open(record.path))


def softmax(network: Network, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return network.logits(images).double().softmax(1)


def answered(classifier: Classifier) -> Floats:
    rows, parts = zip(*classifier.probabilities(), strict=True)
    assert np.concatenate(rows).tolist() == list(range(len(classifier.examples.boxes)))
    return np.concatenate(parts)


def windows(network: Network, record: Record, boxes: Floats, crop: Crop, flip: list[int]) -> Tensor:
    image = torch.from_numpy(pixels(record)).permute(2, 0, 1)
    turned = torch.tensor(flip, dtype=torch.bool)
    return warp(image, torch.from_numpy(boxes), crop, network.preprocessing, turned)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("workers", [0, 2])
def test_ten_views_are_averaged(records: list[Record], batch_size: int, workers: int) -> None:
    asked, examples = network(pyramid=False), wholes()
    views = views_of("ten", asked)
    found = answered(Classifier(asked, examples, records, views, CPU, batch_size, workers))
    for row in range(3):
        boxes = squares_in(examples.boxes[row : row + 1], views.squares)[0]
        shown = [
            windows(asked, records[row], boxes, Crop(56, 0), [mirrored] * 5)
            for mirrored in (False, True)
        ]
        expected = softmax(asked, torch.cat(shown)).mean(0)
        torch.testing.assert_close(torch.from_numpy(found[row]), expected, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(found.sum(1), 1)


def test_a_full_view_is_one_pass_over_the_image(records: list[Record]) -> None:
    asked = network()
    found = answered(Classifier(asked, wholes(), records, views_of("full", asked), CPU))
    shapes = ((64, 85), (64, 64), (64, 85))  # 64 / 60 * 80 = 85.3
    for row, shape in enumerate(shapes):
        shown = whole_view(pixels(records[row]), 64, asked.preprocessing)
        assert shown.shape == (3, *shape)
        expected = softmax(asked, shown[None])[0]
        torch.testing.assert_close(torch.from_numpy(found[row]), expected, atol=1e-4, rtol=1e-4)


def test_objects_are_seen_with_their_context(records: list[Record]) -> None:
    asked, examples = network(padding=14), objects()  # twice the box
    found = answered(Classifier(asked, examples, records, views_of("full", asked), CPU))
    # 5..35: 1-based centre 21, half a width 15, seen -9..51, so 0..51; 6..40: 24 +- 34, so 0..58
    shown = whole_view(pixels(records[0])[0:58, 0:51], 64, asked.preprocessing)
    expected = softmax(asked, shown[None])[0]
    torch.testing.assert_close(torch.from_numpy(found[0]), expected, atol=1e-4, rtol=1e-4)


def test_crops_of_objects_are_the_windows_of_training(records: list[Record]) -> None:
    asked, examples = network(pyramid=False), objects()
    views = views_of("crop", asked, whole_images=False)
    found = answered(Classifier(asked, examples, records, views, CPU))
    for row in range(3):
        record = records[examples.images[row]]
        shown = windows(asked, record, examples.boxes[row : row + 1], asked.crop, [False])
        expected = softmax(asked, shown)[0]
        torch.testing.assert_close(torch.from_numpy(found[row]), expected, atol=1e-4, rtol=1e-4)
    ranks = Ranks(0, 1, CPU)
    answers = answers_by_crops(CropSource(examples, records, asked, Pretraining(), ranks))
    assert answers.told.tolist() == found.argmax(1).tolist()
    assert answers.classes == CLASSES


def test_windows_and_whole_images_have_the_same_weight(records: list[Record]) -> None:
    asked, examples = network(), wholes()
    some = Views(((0.5, 0, 0), (0.5, 1, 1)), full=40, mirrored=True)
    found = answered(Classifier(asked, examples, records, some, CPU, batch_size=3))
    parts = (replace(some, full=None), replace(some, squares=()))
    four, two = (answered(Classifier(asked, examples, records, views, CPU)) for views in parts)
    np.testing.assert_allclose(found, (4 * four + 2 * two) / 6, atol=1e-4)
    image = whole_view(pixels(records[1]), 40, asked.preprocessing)
    expected = softmax(asked, torch.stack((image, image.flip(2)))).mean(0)
    torch.testing.assert_close(torch.from_numpy(two[1]), expected, atol=1e-4, rtol=1e-4)


def test_groups_fill_a_batch(records: list[Record]) -> None:
    classifier = Classifier(network(), wholes(), records, views_of("ten", network()), CPU, 25)
    assert [rows.tolist() for rows in classifier.groups] == [[0, 1], [2]]


def test_what_cannot_be_shown_is_told(records: list[Record]) -> None:
    asked = network()
    small = Classifier(asked, wholes(), records, Views(full=5), CPU)
    with pytest.raises(SettingError, match=r"7 x 5 pixels.*'0'.*too small for demo.*raise --scale"):
        list(small.probabilities())
    with torch.no_grad():
        asked.classifier_module.weight.fill_(torch.inf)
    wrong = Classifier(asked, wholes(), records, views_of("crop", asked), CPU)
    with pytest.raises(RcnnpipeError, match="no numbers for image '0'"):
        list(wrong.probabilities())
