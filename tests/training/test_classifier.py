from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcnnpipe.boxes import iou
from rcnnpipe.datasets.records import Dataset, Record
from rcnnpipe.errors import DataError
from rcnnpipe.models.backbones import create_network
from rcnnpipe.models.warp import Crop, warp
from rcnnpipe.systems.pretraining import Pretraining
from rcnnpipe.training.classifier import ClassLoss, CropSource
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.examples import examples_of, jittered, patches

ALONE = Ranks(0, 1, torch.device("cpu"))
CLASSES = ("background", "a", "b")


def record(name: str, boxes: list[list[float]], labels: list[int], **flags: list[bool]) -> Record:
    count = len(labels)
    difficult, truncated, crowd = (
        np.array(flags.get(flag, [False] * count), np.bool_)
        for flag in ("difficult", "truncated", "crowd")
    )
    sides = np.array(boxes, np.float64).reshape(-1, 4)
    areas = (sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1])
    sides_and_labels = (sides, np.array(labels, np.int64))
    return Record(name, Path(name), (60, 80), *sides_and_labels, difficult, truncated, crowd, areas)


def dataset(*records: Record, source: str = "coco") -> Dataset:
    classes = CLASSES if source != "folder" else CLASSES[:1]
    return Dataset("toy", classes, records, source=source)


@pytest.fixture
def drawn(tmp_path: Path) -> Dataset:
    """Six images of noise with two objects each."""
    random = np.random.default_rng(0)
    records = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8)).save(path)
        one = record(str(number), [[5, 6, 35, 40], [40, 10, 70, 50]], [1, 2])
        records.append(replace(one, path=path))
    return dataset(*records)


def source_of(data: Dataset, **settings: object) -> CropSource:
    network = create_network("demo", 3, torch.Generator().manual_seed(0))
    plan = Pretraining(**{"batch_size": 4, **settings})  # type: ignore[arg-type]
    return CropSource(examples_of(data), data.records, network, plan, ALONE)


def test_examples_are_objects_without_crowds() -> None:
    data = dataset(
        record("x", [[1, 2, 30, 40], [0, 0, 9, 9]], [2, 1], crowd=[False, True]),
        record("empty", [], []),
        record("y", [[3, 4, 50, 51]], [1], difficult=[True]),
    )
    found = examples_of(data)
    assert found.classes == CLASSES
    assert found.boxes.tolist() == [[1, 2, 30, 40], [3, 4, 50, 51]]
    assert found.images.tolist() == [0, 2]
    assert found.labels.tolist() == [2, 1]
    with pytest.raises(DataError, match="no image of toy has an object"):
        examples_of(dataset(record("empty", [], [])))


def test_examples_are_folders_where_nothing_is_annotated() -> None:
    names = ("dog/2", "cat/1", "dog/1")
    found = examples_of(dataset(*(record(name, [], []) for name in names), source="folder"))
    assert found.classes == ("background", "cat", "dog")
    assert found.labels.tolist() == [2, 1, 2]
    assert found.boxes.tolist() == [[0, 0, 80, 60]] * 3
    assert found.whole_images
    for wrong in (("dog/2", "dog/1"), ("dog/2", "stray")):
        with pytest.raises(DataError, match="a folder of images for each of at least two classes"):
            examples_of(dataset(*(record(name, [], []) for name in wrong), source="folder"))


def test_patches_are_squares_of_seven_eighths_in_the_middle_square() -> None:
    # 80 x 64: the middle square is 8..72, a patch 56 wide, with 8 pixels of room
    boxes = np.array([[0, 0, 80, 64]] * 3, np.float32)
    found = patches(boxes, np.array([[0, 0], [0.5, 0.5], [1, 0]], np.float32))
    assert found.tolist() == [[8, 0, 64, 56], [12, 4, 68, 60], [16, 0, 72, 56]]


def test_jitter_by_hand() -> None:
    boxes = np.array([[10, 20, 30, 60]], np.float32)
    assert jittered(boxes, np.zeros((1, 4))).tolist() == boxes.tolist()
    moved = jittered(boxes, np.array([[0.5, -0.25, np.log(2), 0]]))
    np.testing.assert_allclose(moved, [[10, 10, 50, 50]], rtol=1e-6)


def test_an_epoch_shows_every_example_once(drawn: Dataset) -> None:
    source = source_of(drawn, jitter=0.0)
    assert (source.objects, source.iterations_of_epoch) == (4, 3)
    for epoch in range(2):
        seen = []
        for iteration in range(3 * epoch, 3 * epoch + 3):
            boxes, images, labels, _ = source.draw(iteration)
            seen += [(*box, image) for box, image in zip(boxes.tolist(), images, strict=True)]
            assert ((boxes[:, 0] == 40) == (labels == 2)).all()
        assert len(set(seen)) == 12
    orders = [source.draw(iteration)[1].tolist() for iteration in range(6)]
    assert orders[:3] != orders[3:]


def test_a_draw_depends_on_seed_and_iteration_alone(drawn: Dataset) -> None:
    source = source_of(drawn)
    first = [source.draw(iteration) for iteration in range(4)]
    again = [source.draw(iteration) for iteration in reversed(range(4))][::-1]
    for one, other in zip(first, again, strict=True):
        for column in range(4):
            assert np.array_equal(one[column], other[column])
    assert not np.array_equal(first[0][0], replace(source, seed=1).draw(0)[0])


def test_background_holds_no_object(drawn: Dataset) -> None:
    source = source_of(drawn, background=0.5)
    found = 0
    for iteration in range(20):
        boxes, images, labels, _ = source.draw(iteration)
        assert (labels > 0).sum() == 2
        for box, image in zip(boxes[labels == 0], images[labels == 0], strict=True):
            truth = torch.from_numpy(drawn.records[image].boxes).float()
            assert iou(torch.from_numpy(box)[None], truth).max() < 0.3
            assert (box[:2] >= 0).all()
            assert (box[2:] <= (80, 60)).all()
            found += 1
    assert found > 30


def test_batches_are_the_drawn_windows(drawn: Dataset) -> None:
    source = replace(source_of(drawn), workers=2)
    for iteration, batch in enumerate(source.batches(0, 3)):
        boxes, images, labels, flip = source.draw(iteration)
        ((windows, told),) = batch.pieces
        assert told.tolist() == labels.tolist()
        for row in range(len(boxes)):
            pixels = np.asarray(Image.open(drawn.records[images[row]].path))
            expected = warp(
                torch.from_numpy(pixels.copy()).permute(2, 0, 1),
                torch.from_numpy(boxes[row : row + 1]),
                source.network.crop,
                source.network.preprocessing,
                torch.tensor([bool(flip[row])]),
            )
            assert torch.equal(windows[row], expected[0])


def test_ranks_share_a_batch(drawn: Dataset) -> None:
    whole = source_of(drawn)
    ((windows, labels),) = next(whole.batches(0, 1)).pieces
    for rank in range(2):
        share = replace(whole, ranks=Ranks(rank, 2, torch.device("cpu")))
        ((part, told),) = next(share.batches(0, 1)).pieces
        assert torch.equal(part, windows[rank::2])
        assert torch.equal(told, labels[rank::2])


def test_whole_images_have_no_context(drawn: Dataset) -> None:
    plain = [record(f"{'ab'[n % 2]}/{n}", [], []) for n in range(6)]
    records = [replace(p, path=r.path) for p, r in zip(plain, drawn.records, strict=True)]
    source = source_of(dataset(*records, source="folder"))
    assert source.crop == Crop(56, 0)
    ((windows, _),) = next(source.batches(0, 1)).pieces
    assert (windows != 0).all(dim=1).float().mean() > 0.99  # no empty border


def test_loss_and_accuracy(drawn: Dataset) -> None:
    source = source_of(drawn)
    loss = ClassLoss(source.network, 4, ALONE.device)
    (piece,) = next(source.batches(0, 1)).pieces
    part = loss(piece)
    logits = source.network.logits(piece[0])
    expected = -logits.log_softmax(1)[torch.arange(4), piece[1]].mean()
    torch.testing.assert_close(part.loss, expected)
    right = (logits.argmax(1) == piece[1]).sum()
    assert part.shares["accuracy"].tolist() == [right, 4]


@pytest.mark.parametrize(("batch_size", "background"), [(4, 0.0), (4, 0.5), (1000, 0.0)])
def test_the_loss_is_shared_by_the_windows_there_are(
    drawn: Dataset, batch_size: int, background: float
) -> None:
    source = source_of(drawn, batch_size=batch_size, background=background)
    ((windows, _),) = next(source.batches(0, 1)).pieces
    # A set that is smaller than the batch would otherwise hardly learn.
    assert len(windows) == source.windows_of_batch <= batch_size


def test_an_epoch_has_one_size(drawn: Dataset) -> None:
    plain = source_of(drawn)
    source = source_of(drawn, sizes=(56, 28))
    network = source.network
    sides = []
    for iteration, batch in enumerate(source.batches(0, 9)):
        ((windows, labels),) = batch.pieces
        sides.append(windows.shape[-1])
        boxes, images, expected, flip = plain.draw(iteration)
        assert labels.tolist() == expected.tolist()  # the same examples whatever the size
        crop = Crop(56, 4) if sides[-1] == 56 else Crop(28, 2)
        pixels = np.array(Image.open(drawn.records[images[0]].path))
        window = warp(
            torch.from_numpy(pixels).permute(2, 0, 1),
            torch.from_numpy(boxes[:1]),
            crop,
            network.preprocessing,
            torch.from_numpy(flip[:1]),
        )
        assert torch.equal(windows[:1], window)
    assert sides == [56] * 3 + [28] * 3 + [56] * 3


def test_a_mean_image_goes_with_the_size(drawn: Dataset) -> None:
    source = source_of(drawn, sizes=(28,))
    mean = torch.rand(3, 56, 56, generator=torch.Generator().manual_seed(0))
    source.network.preprocessing = replace(source.network.preprocessing, mean=mean)
    ((windows, _),) = next(source.batches(0, 1)).pieces
    assert windows.shape == (4, 3, 28, 28)
