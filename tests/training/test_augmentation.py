"""Random changes of images: boxes follow pixels, ranges, chances, the same whoever makes them."""

from collections import Counter, defaultdict
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from rcnnpipe.boxes import iou
from rcnnpipe.datasets.records import Record
from rcnnpipe.models.image_view import ImageView
from rcnnpipe.randomness import generator
from rcnnpipe.training import augmentation
from rcnnpipe.training.augmentation import Augmentation, distort, draw_window
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.image_batches import Example
from rcnnpipe.training.region_targets import Truth
from rcnnpipe.training.seen import Seen, centres_inside, crop
from tests.training.made import draw_records, record_of
from tests.training.test_image_batches import (
    CPU,
    examples_of,
    same_batches,
    source_of,
    unpadded,
    unprepared,
)

JITTER = Augmentation(scale_jitter=(0.5, 1.5))
COLOURS = Augmentation(photometric=True)
CROP = Augmentation(random_crop=True)
ALL = Augmentation((0.5, 1.5), photometric=True, random_crop=True)
VIEW = ImageView((150,), 240)
AMOUNTS = ("brightness", "contrast", "saturation", "hue")
ORDERS = list(permutations(range(3)))


@pytest.fixture(scope="module")
def white(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A white rectangle on black."""
    pixels = np.zeros((150, 200, 3), np.uint8)
    pixels[30:90, 110:180] = 255
    path = tmp_path_factory.mktemp("white") / "a.png"
    Image.fromarray(pixels).save(path)
    return record_of([(110, 30, 180, 90)], [1], path=path, size=(150, 200))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, ...]:
    return draw_records(tmp_path_factory.mktemp("images"), 5)


def seen_of(
    boxes: Any = (), labels: Any = (), proposals: Any = (), size: tuple[int, int] = (60, 80)
) -> Seen:
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (3, *size), dtype=np.uint8))
    made = [torch.tensor(held, dtype=torch.float32).view(-1, 4) for held in (boxes, proposals)]
    return Seen(pixels, Truth(made[0], torch.tensor(labels, dtype=torch.int64)), made[1])


def bright_part(image: Tensor) -> Tensor:
    """(4,) around what is brighter than the middle; of an image of one colour, all of it."""
    values = image.mean(dim=0)
    rows, columns = (values >= (values.max() + values.min()) / 2).nonzero().T
    return torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)).float()


@pytest.mark.parametrize("changes", [JITTER, COLOURS, CROP, ALL])
def test_boxes_follow_the_pixels(changes: Augmentation, white: Record) -> None:
    proposals = [np.array([white.boxes[0], (0, 0, 40, 40)], np.float32)]
    settings = {"proposals": proposals, "view": VIEW, "images": 1, "augmentation": changes}
    source = source_of((white,), **settings)
    seen = Counter[bool]()
    for number, batch in enumerate(source.batches(0, 40)):
        ((image,), (example,)) = batch.pieces[0]  # type: ignore[index]
        factors = torch.tensor(VIEW.factors(example.size, example.scale) * 2)
        assert image.shape[1:] == VIEW.resized_size(example.size, example.scale)
        around = bright_part(unprepared(image))
        for box in (example.truth.boxes[0], example.proposals[0]):
            assert (box * factors - around).abs().max() <= 1
        seen.update(flip for _, flip in source.draw(number))
        size = torch.tensor((example.size[1], example.size[0]) * 2)
        assert ((example.proposals >= 0) & (example.proposals <= size)).all()
        assert (example.proposals[:, 2:] > example.proposals[:, :2]).all()
    assert seen == {True: 20, False: 20}


def test_scales_are_drawn_evenly_from_the_range(records: tuple[Record, ...]) -> None:
    # 72 x 96 pixels: a factor of the shorter side; the limit of 90 of the longest grows with it.
    for longest, usual in ((200, 1.0), (90, 90 / 96)):
        view = ImageView((72,), longest)
        source = source_of(records, view=view, augmentation=JITTER, workers=0)
        scales = [e.scale for batch in source.batches(0, 150) for e in examples_of(batch)]
        factors = np.array(scales) / usual
        assert 0.5 <= factors.min() < 0.52
        assert 1.48 < factors.max() <= 1.5
        counts, _ = np.histogram(factors, 5, (0.5, 1.5))
        assert counts.min() > 60 - 3.5 * 7  # of 300: 60 on average, with a deviation of 7
    assert len(set(scales)) == len(scales)
    assert Augmentation().factor(0, (1, 2)) == 1
    assert Augmentation(scale_jitter=(1.2, 1.2)).factor(0, (1, 2)) == 1.2


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Every call of a change of colours, with its amount."""
    calls: list[tuple[str, float]] = []
    kernels = SimpleNamespace()
    monkeypatch.setattr(augmentation, "functional", kernels)
    for name in AMOUNTS:
        original = getattr(v2.functional, f"adjust_{name}")

        def call(pixels: Tensor, amount: float, name: str = name, original: Any = original) -> Any:
            calls.append((name, amount))
            return original(pixels, amount)

        setattr(kernels, f"adjust_{name}", call)
    return calls


def test_colours_change_as_often_and_as_much_as_in_ssd(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, amounts, orders, exchanged = recorded(monkeypatch), defaultdict(list), [], []
    pixels = torch.tensor([10, 90, 200], dtype=torch.uint8).view(3, 1, 1)
    for key in range(1600):
        calls.clear()
        distort(pixels, generator(0, "colours", key))
        for name, amount in calls:
            amounts[name].append(amount)
        names = [name for name, _ in calls]
        assert len(names) == len(set(names))
        if "contrast" in names and "hue" in names:
            orders.append(names.index("contrast") < names.index("hue"))
        if not names:
            exchanged.append(distort(pixels, generator(0, "colours", key)).flatten().tolist())
    usual = v2.RandomPhotometricDistort()
    for name in AMOUNTS:
        low, high = getattr(usual, name)
        assert abs(len(amounts[name]) - 800) < 3.5 * 20
        assert low <= min(amounts[name]) < low + (high - low) / 50
        assert high - (high - low) / 50 < max(amounts[name]) <= high
        assert abs(np.mean(amounts[name]) - (low + high) / 2) < (high - low) / 25
    assert abs(np.mean(orders) - 0.5) < 3.5 / 40
    # Without any other change channels are exchanged in half of the cases, in any order.
    assert len({tuple(colour) for colour in exchanged}) == 6
    share = np.mean([colour == [10, 90, 200] for colour in exchanged])
    assert abs(share - (1 / 2 + 1 / 12)) < 3.5 / 20


def test_colours_are_those_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, pixels, permuted = recorded(monkeypatch), seen_of().pixels, 0
    usual = v2.RandomPhotometricDistort()
    for key in range(60):
        calls.clear()
        before = pixels.clone()
        made = distort(pixels, generator(0, "colours", key))
        assert torch.equal(pixels, before)
        names, amounts = [name for name, _ in calls], dict(calls)
        others = {"saturation", "hue"} & set(names)
        early = "contrast" in names and all(
            names.index("contrast") < names.index(one) for one in others
        )
        known: dict[str, Any] = {f"{name}_factor": amounts.get(name) for name in AMOUNTS}
        known |= {"contrast_before": early, "channel_permutation": None}
        expected = usual.transform(pixels, known)
        orders = [order for order in ORDERS if torch.equal(made, expected[list(order)])]
        assert orders
        permuted += (0, 1, 2) not in orders
        assert made.dtype == torch.uint8
    assert permuted > 10


def test_grey_stays_grey() -> None:
    grey = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    for key in range(60):
        made = distort(grey, generator(0, "colours", key))
        assert torch.equal(made, made[:1].expand(3, -1, -1))
    tiny = seen_of(size=(1, 1)).pixels
    assert distort(tiny, generator(0, "colours", 1)).shape == (3, 1, 1)


def test_a_crop_drops_what_it_does_not_show() -> None:
    objects = [
        (0, 0, 10, 10),  # outside
        (20, 20, 40, 40),  # cut at the left: its centre is at 30
        (8, 10, 52, 50),  # its centre is on the border, which is not inside
        (55, 25, 65, 35),  # whole
        (0, 0, 80, 60),  # all of the image
        (0, 0, 40, 60),  # a crowd: cut, though its centre is outside
        (0, 0, 30, 60),  # a crowd of which nothing is left
    ]
    proposals = [(0, 0, 30, 60), (10, 0, 40, 60), (31, 21, 32, 22), (70, 50, 80, 60)]
    seen = seen_of(objects, [1, 2, 3, 4, 1, -1, -1], proposals)
    made = crop(seen, (20, 30, 30, 40))
    assert torch.equal(made.pixels, seen.pixels[:, 20:50, 30:70])
    assert made.size == (30, 40)
    # Centres at 30 lie on the left border, so that of the second object is not inside.
    assert made.truth.labels.tolist() == [4, 1, -1]
    assert made.truth.boxes.tolist() == [[25, 5, 35, 15], [0, 0, 40, 30], [0, 0, 10, 30]]
    assert made.proposals.tolist() == [[0, 0, 10, 30], [1, 1, 2, 2]]
    moved = crop(seen, (20, 29, 30, 41))
    assert moved.truth.labels.tolist() == [2, 3, 4, 1, -1, -1]
    assert moved.truth.boxes[0].tolist() == [0, 0, 11, 20]
    for kept in (made, moved, crop(seen_of(), (0, 0, 5, 5))):
        assert {type(part) for part in (kept.pixels, *kept.truth, kept.proposals)} == {Tensor}
    nothing = crop(seen_of(), (0, 0, 5, 5))
    assert nothing.truth.boxes.shape == nothing.proposals.shape == (0, 4)
    assert crop(seen, None) is seen


def test_crops_are_as_ssd_draws_them() -> None:
    objects = torch.tensor([(10.0, 5, 60, 45), (50, 30, 78, 58)])
    seen = seen_of(objects.tolist(), [1, 2])
    sides, whole, best = [], 0, []
    for key in range(600):
        window = draw_window(seen, generator(0, "crop", key))
        whole += window is None
        if window is None:
            continue
        top, left, height, width = window
        assert min(top, left) >= 0
        assert top + height <= 60
        assert left + width <= 80
        assert 0.5 <= width / height <= 2
        sides += [height / 60, width / 80]
        corners = torch.tensor([(left, top, left + width, top + height)])
        inside = objects[centres_inside(objects, corners)[0]]
        best.append(float(iou(inside, corners.float()).max()))
    assert min(sides) >= 0.3 - 1 / 60
    assert min(sides) < 0.35
    assert 0.95 < max(sides) <= 1
    # Of seven ways one is the whole image; the hardest is not always reached.
    assert 600 / 7 - 3.5 * 8.6 < whole < 600 / 5
    assert np.quantile(best, 0.25) < 0.5 < np.quantile(best, 0.75)
    assert max(best) > 0.7


def test_overlaps_that_no_crop_reaches_leave_half_of_the_images_whole() -> None:
    # 2 x 2 pixels are less than a tenth of any crop; "any overlap" and the whole image are left.
    seen = seen_of([(40, 30, 42, 32)], [1])
    whole = sum(draw_window(seen, generator(0, "crop", key)) is None for key in range(150))
    assert abs(whole - 75) < 3.5 * 6.1


@pytest.mark.parametrize(
    ("boxes", "labels", "size"),
    [
        ([], [], (60, 80)),  # no objects
        ([(0, 0, 40, 40)], [-1], (60, 80)),  # a crowd is none
        ([(0, 0, 400, 10)], [1], (10, 400)),  # parts of it have no shape within the limits
        ([(0, 0, 1, 1)], [1], (1, 1)),
        ([(0, 0, 2, 2)], [1], (2, 2)),  # no part shows its centre inside
    ],
)
def test_images_that_cannot_be_cropped_stay_whole(
    boxes: list[Any], labels: list[int], size: tuple[int, int]
) -> None:
    seen = seen_of(boxes, labels, [(0, 0, 1, 1)], size)
    for key in range(15):
        made = CROP.apply(seen, 0, (key, 0))
        assert made is seen


def tensors(example: Example) -> tuple[Tensor, ...]:
    return (example.proposals, *example.truth)


def test_what_is_drawn_depends_on_seed_and_key_alone() -> None:
    seen = seen_of([(10, 10, 50, 50)], [1], [(5, 5, 60, 50)])
    state = torch.random.get_rng_state()
    first = ALL.apply(seen, 1, (2, 3))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    again = ALL.apply(seen, 1, (2, 3))
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.proposals, again.proposals)
    made = [ALL.apply(seen, seed, key) for seed in (1, 2) for key in ((2, 3), (3, 2), (23, 0))]
    assert len({one.pixels.numpy().tobytes() for one in made}) == 6
    assert len({ALL.factor(seed, key) for seed in (1, 2) for key in ((2, 3), (3, 2))}) == 4


def test_one_change_does_not_alter_the_others(records: tuple[Record, ...]) -> None:
    def examples(changes: Augmentation) -> list[Example]:
        source = source_of(records, augmentation=changes, workers=0)
        return [one for batch in source.batches(0, 10) for one in examples_of(batch)]

    coloured = Augmentation(photometric=True, random_crop=True)
    for one, two in zip(examples(CROP), examples(coloured), strict=True):
        assert (one.size, one.scale) == (two.size, two.scale)
        assert all(map(torch.equal, tensors(one), tensors(two)))
    jittered = [example.scale for example in examples(JITTER)]
    assert jittered == [e.scale for e in examples(Augmentation((0.5, 1.5), photometric=True))]


@pytest.mark.parametrize("changed", [{"workers": 0}, {"workers": 3}, {"cache_bytes": 0}])
def test_workers_and_restarts_change_nothing(
    changed: dict[str, int], records: tuple[Record, ...]
) -> None:
    whole = list(source_of(records, augmentation=ALL).batches(0, 8))
    again = list(source_of(records, augmentation=ALL, **changed).batches(0, 8))
    resumed = list(source_of(records, augmentation=ALL, **changed).batches(5, 8))
    for first, second in zip(whole + whole[5:], again + resumed, strict=True):
        same_batches(first, second)


def test_ranks_together_see_what_one_sees(records: tuple[Record, ...]) -> None:
    view = ImageView((60, 72), 120)
    settings = {"view": view, "images": 4, "augmentation": ALL}
    (whole,) = source_of(records, **settings).batches(0, 1)
    shares = [
        next(iter(source_of(records, ranks=Ranks(rank, 2, CPU), **settings).batches(0, 1)))
        for rank in range(2)
    ]
    together = type(whole)(whole.image_ids, [piece for one in shares for piece in one.pieces])
    same_batches(unpadded(whole, view), unpadded(together, view))


def test_images_kept_in_memory_stay_as_they_are(white: Record, tmp_path: Path) -> None:
    proposals = [np.array([white.boxes[0]], np.float32)]
    settings: dict[str, Any] = {"proposals": proposals, "view": VIEW, "images": 1, "workers": 0}
    source = source_of((white,), augmentation=ALL, **settings)
    changed = list(source.batches(0, 12))
    fresh = source_of((white,), augmentation=ALL, cache_bytes=0, **settings)
    for first, second in zip(changed, fresh.batches(0, 12), strict=True):
        same_batches(first, second)
